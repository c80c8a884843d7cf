"""Removal methods, one a file, and what is measured on their results."""
