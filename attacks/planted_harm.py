"""A planted manipulation, and what of its harm is seen in a model.

    manipulated copy of the data: S_m by a trigger in images, two classes swapped, or labels permuted
    rates of a model: accuracy on clean, affected and unaffected inputs, on S_m and on what of it is identified; success
    of the attack (``attacks.backdoor``)

Source: Goel et al., "Corrective Machine Unlearning", TMLR 2024 (arXiv 2402.14015), section 4. The subject's own model
and data are not touched. With random labels there is no unaffected input, and no answer that an attacker wants.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from attacks.backdoor import Rate, accuracy, attack_success_rate, confusion_rate
from contracts.digests import derive_seed
from contracts.errors import ConfigError
from contracts.params import Config, param
from contracts.tables import Column
from recipes.predict import predict_logits
from sources.example_set import ExampleSet
from sources.planted_poison import add_poison_trigger, interclass_confusion, random_label_swap, triggered

MANIPULATIONS = ("poison", "confusion", "random_label")

RATES = {
    "acc_clean": "accuracy on the test split as it is",
    "acc_corr": "accuracy against true labels on affected test inputs",
    "acc_retain": "accuracy on unaffected test inputs; null when all are affected",
    "attack_success": "affected test inputs answered as the manipulator wants; null for random labels",
    "manip_acc": "accuracy against true labels on the manipulated training examples",
    "delete_acc": "accuracy against true labels on the identified examples; null when none is identified",
    "delete_err": "identified examples still answered with their wrong label; null when none is identified",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class HarmConfig(Config):
    """What is planted."""

    manipulation: str = param(
        "poison", choices=MANIPULATIONS, doc="trigger in images, two classes swapped, labels permuted"
    )
    share: float = param(0.05, gt=0, le=0.5, doc="of the training split, manipulated")
    target: int = param(0, ge=0, le=1_000_000, doc="poison: class that triggered images are to get")
    patch: int = param(3, ge=1, le=1024, unit="pixels", doc="poison: side of the trigger, bottom right")
    classes: tuple[int, ...] = param((0, 1), ge=0, le=1_000_000, doc="confusion: the two classes")
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of the intervals")

    def check(self) -> None:
        if len(self.classes) != 2 or self.classes[0] == self.classes[1]:
            raise ConfigError(f"{type(self).__name__}.classes = {self.classes} must be two different classes")


def rate_columns(name: str) -> tuple[Column, ...]:
    """The column of a rate and those of its interval."""
    low_is_good = name in ("attack_success", "delete_err")
    direction = "higher = more of the harm is left" if low_is_good else "higher = better"
    return (
        Column(name=name, dtype="float64", low=0, high=1, nullable=True, doc=RATES[name], direction=direction),
        Column(name=f"{name}_lo", dtype="float64", low=0, high=1, nullable=True, doc="lower bound, Clopper-Pearson"),
        Column(name=f"{name}_hi", dtype="float64", low=0, high=1, nullable=True, doc="upper bound, Clopper-Pearson"),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Harm:
    """A planted manipulation.

    Attributes:
        data: the manipulated set, both splits; the test split is as it was.
        ids: S_m, ascending.
        true_labels: of ``ids``, before the manipulation.
        clean: the test split.
        affected: test inputs of the affected domain, with the trigger where there is one.
        spared: (N_test,) the unaffected rows of ``clean``.
    """

    data: ExampleSet
    ids: NDArray[np.int64]
    true_labels: NDArray[np.int64]
    clean: ExampleSet
    affected: ExampleSet
    spared: NDArray[np.bool_] = field(repr=False)


def plant(data: ExampleSet, *, config: HarmConfig, seed: int) -> Harm:
    """Manipulate a copy of ``data``, both splits.

    Raises:
        NotApplicable: no class labels, no images for a trigger.
        ConfigError: target, classes or patch that the data does not have.
    """
    test = data.part("test")
    count = max(2, round(config.share * int((data.split == "train").sum())))
    draw = derive_seed("manipulated", seed)
    affected, spared = test, np.zeros(len(test), dtype=bool)
    if config.manipulation == "poison":
        planted, ids = add_poison_trigger(data, count=count, target=config.target, patch=config.patch, seed=draw)
        affected = triggered(data, test.example_id, patch=config.patch).part("test")
        spared[:] = True
    elif config.manipulation == "confusion":
        first, second = config.classes
        planted, ids = interclass_confusion(data, classes=(first, second), count=count)
        spared = ~np.isin(test.y, config.classes)
        affected = test.subset(test.example_id[~spared])
    else:
        planted, ids = random_label_swap(data, count=count, seed=draw)
    return Harm(
        data=planted, ids=ids, true_labels=data.y[data.positions(ids)], clean=test, affected=affected, spared=spared
    )


def rates_of(model: nn.Module, harm: Harm, found: NDArray[np.int64], *, config: HarmConfig) -> dict[str, Any]:
    """The columns of every rate and of its interval, ``num_identified``, ``num_attacked`` and ``status``.

    Args:
        found: ids of S_f, the identified ones among ``harm.ids``.

    Raises:
        DataError: the model's outputs are not finite.
    """
    alpha = config.alpha
    clean, affected = predict_logits(model, harm.clean), predict_logits(model, harm.affected)
    manipulated = harm.data.subset(harm.ids)
    answers = predict_logits(model, manipulated)
    identified = np.isin(harm.ids, found)
    wrong = identified & (manipulated.y != harm.true_labels)
    rates = {
        "acc_clean": accuracy(clean, harm.clean.y, alpha=alpha),
        "acc_corr": accuracy(affected, harm.affected.y, alpha=alpha),
        "acc_retain": accuracy(clean[harm.spared], harm.clean.y[harm.spared], alpha=alpha),
        "manip_acc": accuracy(answers, harm.true_labels, alpha=alpha),
        "delete_acc": accuracy(answers[identified], harm.true_labels[identified], alpha=alpha),
        "delete_err": accuracy(answers[wrong], manipulated.y[wrong], alpha=alpha),
    }
    if config.manipulation == "poison":
        rates["attack_success"] = attack_success_rate(affected, harm.affected.y, target=config.target, alpha=alpha)
    elif config.manipulation == "confusion":
        first, second = config.classes
        rates["attack_success"] = confusion_rate(affected, harm.affected.y, classes=(first, second), alpha=alpha)
    attacked = rates.get("attack_success", Rate(value=None, low=None, high=None, n=0))
    row: dict[str, Any] = {"num_identified": len(found), "num_attacked": attacked.n, "status": "ok"}
    for name, r in rates.items():
        row |= {name: r.value, f"{name}_lo": r.low, f"{name}_hi": r.high}
    return row
