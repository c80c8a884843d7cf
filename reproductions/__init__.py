"""Claims of published methods, measured again. Importing the package registers every card's reproduction."""

from reproductions import (  # noqa: F401
    card_03_worst_case_forget,
    card_15_memorization,
    card_24_concepts,
    card_26_data_diet,
    card_29_scaling_laws,
    card_30_explanations,
    card_39_dropout_inversion,
    card_55_personal_loss,
    card_57_membership_inference,
    rehearsal_free,
)
from reproductions.framework import Claim, at_least, at_most, cards, reproduction, run

__all__ = ["Claim", "at_least", "at_most", "cards", "reproduction", "run"]
