"""Claims of published methods, measured again. Importing the package registers every card's reproduction."""

from reproductions.framework import Claim, at_least, at_most, cards, reproduction, run

__all__ = ["Claim", "at_least", "at_most", "cards", "reproduction", "run"]
