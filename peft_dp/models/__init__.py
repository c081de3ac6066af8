"""A backbone and what changes its forward pass: sites, batches, packing, the last layer."""
