"""Subsets that cover what they are chosen from, in what the audited model sees."""
