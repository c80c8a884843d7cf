"""Few synthetic examples on which a network learns what it would learn on all real ones."""
