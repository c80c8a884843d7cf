"""Per-example scores, one method a file; a file is found by its place here."""
