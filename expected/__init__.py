"""The tables: what papers print and what this project recorded; data, no code."""
