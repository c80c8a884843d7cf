"""Training on what is known of bags of examples: the mean response of each."""
