"""Training on masks: overlap and topology losses, colours at random, soft maps of an earlier model."""
