"""Removal from language models: FLAT and what it is compared with, one a file, and what is measured on their
results."""
