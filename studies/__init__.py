"""Findings about a whole data set, or about methods, rather than one number an example; one study a file."""
