"""What the examples of a set are made of, one kind a file: arrays, tokens, graphs, pairs; and masks as targets."""
