"""The command line: ``palimpsest``. Exit status 0 = pass, 1 = fail (or not shown to pass), 2 = error."""

from pipelines.cli.app import main

__all__ = ["main"]
