"""The bench: one file per paper, one test per cell, fact and claim."""
