"""Claims of published methods, measured again. Importing the package registers every card's reproduction."""

from reproductions import card_15_memorization, card_26_data_diet, card_57_membership_inference  # noqa: F401
from reproductions.framework import Claim, at_least, at_most, cards, reproduction, run

__all__ = ["Claim", "at_least", "at_most", "cards", "reproduction", "run"]
