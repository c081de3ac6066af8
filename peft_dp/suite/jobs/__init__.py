"""Cells as jobs, on this machine or a Slurm cluster."""
