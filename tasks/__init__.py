"""What kind of thing is learnt, one file a kind: losses, readings, metrics and what a person is shown of an example."""
