"""Attacks on private cells, and other engines beside ours."""
