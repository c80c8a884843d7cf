"""Declarations that every package shares: frozen, standard library only. Imports nothing of this project."""
