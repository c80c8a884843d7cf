"""Words that every room shares: frozen, standard-library-only declarations. Imports nothing of this project."""
