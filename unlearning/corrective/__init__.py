"""Corrective unlearning: a manipulation is to leave the model, and only part of it has been identified."""
