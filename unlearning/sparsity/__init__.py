"""Sparse models and what unlearns with them: pruning, and the methods that make or keep a model sparse."""
