"""Verdicts as a table, files and a page."""
