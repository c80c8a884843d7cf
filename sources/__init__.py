"""Real data in: files and bundled sets become a :class:`sources.example_set.ExampleSet`; one source a file."""
