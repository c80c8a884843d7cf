"""Removal methods side by side: which is closest to retraining, on which forget sets, at what cost."""
