"""Unlearning of numbers: methods for tasks whose target is one number, and what is measured on their results."""
