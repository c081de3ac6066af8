"""Backbones: one file each, data only; the folder is the registry."""
