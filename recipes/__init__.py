"""How models are trained, the audited one and its reference models alike; one recipe a file."""
