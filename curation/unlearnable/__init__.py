"""Data sets that are of no use to whoever trains on them."""
