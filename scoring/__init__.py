"""Per-example scores, one method a file. Importing the package registers them all."""

from scoring.el2n import el2n
from scoring.grand import grand

__all__ = ["el2n", "grand"]
