"""How language models are trained: from scratch, by adapters on a given base, many adapters on one base."""
