"""Removal without labels: neither those of what is forgotten nor those of what is kept."""
