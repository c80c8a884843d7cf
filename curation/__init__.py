"""Data sets built out of data sets, one curator a file."""
