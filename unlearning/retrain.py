"""Retrain: the reference. A fresh model trained by the original recipe on what is kept, and nothing else.

    theta ~ recipe(D_r),   fresh initialisation, original schedule

Exact by definition; every other method is measured by its distance to it (Fan et al., ICLR 2024).
It is not cheap, and not one number: two retrainings with different seeds differ, so compare within a seed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from contracts.errors import DataError
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import Config
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from unlearning.descent import check_disjoint, check_finite


@unlearner(
    UnlearnerSpec(
        name="retrain",
        doc="Trains a fresh model on the retained examples with the subject's own recipe.",
        source="definition; reference of Fan et al., SalUn, ICLR 2024, arXiv 2310.12508",
        needs=("train",),
        exact=True,
    )
)
def retrain(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: Config,
    seed: int,
    train: Callable[[ExampleSet, int], nn.Module],
    progress: Progress = silent,
) -> nn.Module:
    """Call ``train(retain, seed)``, the retained examples in the order of their ids.

    Args:
        model: the model to be replaced; not looked at and not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove; used only to check that the two sets are disjoint.
        config: no fields.
        seed: of the fresh initialisation and of the batch order.
        train: the subject's recipe, (data, seed) -> model; it has its own progress.
        progress: called once at the end.

    Returns:
        The fresh model, eval mode.

    Raises:
        DataError: an example in both sets, a label out of range, or none retained.
        Diverged: the recipe gave non-finite weights.
    """
    check_disjoint(retain, forget)
    retain.check_targets()
    if retain.num_examples == 0:
        raise DataError("the retain set is empty: nothing is left to train on")
    fresh = train(retain.by_id(), seed).eval()
    check_finite(fresh, what="retrain, by the subject's recipe")
    progress(1, 1, "retrain")
    return fresh
