"""Entry of the command, and ``python -m palimpsest``.

The packages of this program have everyday names: another ``pipelines`` on PYTHONPATH would be imported in place of
ours. Nothing else is named like this package, and importing it puts ours first.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line: see ``pipelines.cli``."""
    from pipelines.cli import main as command

    command()


if __name__ == "__main__":
    main()
