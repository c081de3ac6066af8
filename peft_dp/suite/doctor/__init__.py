"""What a machine has of all that runs need, and what mends the rest: looked at, never fetched."""
