"""What cells cost before anything runs."""
