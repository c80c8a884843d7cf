"""Data sets written for other programs: one file a family of formats, ``formats`` lists them."""
