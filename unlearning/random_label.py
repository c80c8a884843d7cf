"""RL: train what is to be forgotten towards random labels, and the rest towards its own (Fan et al., ICLR 2024, without
the mask).

    theta <- argmin_theta  E_{x in D_f, y' random} CE(f(x; theta), y') + alpha * E_{(x,y) in D_r} CE(f(x; theta), y)

Fan et al., ICLR 2024, with both orders of the published code:
    sequential  each epoch one pass over D_f with fresh random labels, then one over D_r      (CIFAR-10, SVHN)
    mixed       fresh random labels each epoch, D_f and D_r shuffled into one pass            (CIFAR-100, TinyImageNet)
The paper draws y' among the other classes; the code among all of them, so the true label may come up:
``exclude_true_label`` chooses (default: the paper). The code has no alpha, which is alpha = 1; here it scales the
cross-entropy of the retained examples.

It is not SalUn: no saliency mask, every weight may move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import NotApplicable
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from unlearning.descent import Descent, DescentConfig, Pass, check_sets, descend, inputs_of


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomLabelConfig(DescentConfig):
    lr: float = param(0.003, gt=0, le=1, search=(1e-4, 1e-1), doc="learning rate; published search range 1e-4 to 1e-1")
    order: str = param("sequential", choices=("sequential", "mixed"), doc="forget then retain, or shuffled together")
    exclude_true_label: bool = param(True, doc="true: the paper; false: the published code")
    alpha: float = param(1.0, ge=0, le=1, doc="weight of the retained examples; smaller forgets more")


def random_labels(labels: np.ndarray, *, num_classes: int, exclude_true: bool, rng: np.random.Generator) -> np.ndarray:
    """(n,) int64 labels, uniform over all classes, or over all but the example's own.

    Raises:
        NotApplicable: no other class to choose from.

    >>> y = np.array([0, 1, 2])
    >>> bool((random_labels(y, num_classes=3, exclude_true=True, rng=np.random.default_rng(0)) != y).all())
    True
    """
    if not exclude_true:
        return rng.integers(0, num_classes, len(labels))
    if num_classes < 2:
        raise NotApplicable(f"random labels other than the true one need 2 classes or more, not {num_classes}")
    return (labels + rng.integers(1, num_classes, len(labels))) % num_classes


def random_label_plan(
    model: nn.Module, *, retain: ExampleSet, forget: ExampleSet, config: RandomLabelConfig, seed: int
) -> Descent:
    """What :func:`random_label` does, and raises before any work."""
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True, wants=("classes",))
    rng = np.random.default_rng(derive_seed("random_label", "labels", seed))
    keep = Pass.over(inputs_of(model, retain), weight=config.alpha)
    gone = inputs_of(model, forget, beside=retain)
    labels, num_classes = gone.data.y, gone.data.num_classes

    def passes(_: int) -> Sequence[Pass]:
        targets = random_labels(labels, num_classes=num_classes, exclude_true=config.exclude_true_label, rng=rng)
        wrong = Pass.over(gone, targets=targets)
        return [wrong, keep] if config.order == "sequential" else [wrong.together_with(keep)]

    return Descent(model=model, passes=passes, retain=retain, config=config, seed=seed, name="random_label")


@unlearner(
    UnlearnerSpec(
        name="random_label",
        wants=("outputs", "classes"),
        doc="Trains the examples to be forgotten towards random labels and the others towards their own.",
        source="Fan et al., SalUn, ICLR 2024, arXiv 2310.12508, baseline RL",
        config=RandomLabelConfig,
        plan=random_label_plan,
    )
)
def random_label(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: RandomLabelConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """Relabel ``forget`` at random each epoch and train a copy of ``model`` on both sets.

    Args:
        model: trained classifier; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove.
        config: see :class:`RandomLabelConfig`.
        seed: random labels, batch order and dropout.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_sets``; fewer than two classes with ``exclude_true_label``.
        Diverged: the run left the finite numbers or collapsed.
    """
    return descend(random_label_plan(model, retain=retain, forget=forget, config=config, seed=seed), progress=progress)
