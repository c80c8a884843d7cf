"""Per-example scores, one method a file. Importing the package registers them all."""

from scoring.el2n import el2n
from scoring.grand import grand
from scoring.memorization import memorization, memorization_scores

__all__ = ["el2n", "grand", "memorization", "memorization_scores"]
