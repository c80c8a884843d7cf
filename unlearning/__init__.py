"""Removal methods, one a file, and what is measured on their results. Importing the package registers them."""

from unlearning.concept_poisoning import concept_poisoning
from unlearning.finetune import finetune
from unlearning.gradient_ascent import gradient_ascent
from unlearning.metrics import add_gaps, evaluate, summarise
from unlearning.none import none
from unlearning.random_label import random_label
from unlearning.retrain import retrain

__all__ = [
    "add_gaps",
    "concept_poisoning",
    "evaluate",
    "finetune",
    "gradient_ascent",
    "none",
    "random_label",
    "retrain",
    "summarise",
]
