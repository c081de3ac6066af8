"""What cells will cost, before anything runs, and how they spread over GPUs and machines."""
