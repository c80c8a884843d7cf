"""Can an unlearner take a manipulation out of the subject's model, when only part of it has been identified?

    manipulated copy S_m  ->  the subject's recipe  ->  for every method and fraction q: remove S_f, a uniform q of S_m
    then: accuracy on clean inputs, accuracy with true labels on affected ones, success of the attack
        (``attacks.backdoor``)

Source: Goel et al., "Corrective Machine Unlearning", TMLR 2024 (arXiv 2402.14015): fractions from 10% to 100%,
    manipulations by
trigger, confusion of two classes, and random labels. Rows with method ``none`` are the manipulated model itself;
``retrain`` without S_f is not exact removal: only with all of S_m identified is it clean.

The recipe is trained anew on manipulated data; the subject's own model and data are not touched. What is measured is
the method in the plan's configuration: a method tuned on the clean test set would look better than anybody could know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from attacks.backdoor import Rate, accuracy, attack_success_rate, confusion_rate
from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from recipes.predict import predict_logits
from sources.example_set import ExampleSet
from sources.frames import frame_of
from sources.planted_poison import (
    add_poison_trigger,
    interclass_confusion,
    random_label_swap,
    sample_deletion_set,
    triggered,
)
from tasks.base import require

_RATES = {
    "acc_clean": "accuracy on the test split as it is",
    "acc_corr": "accuracy against true labels on affected test inputs",
    "acc_retain": "accuracy on unaffected test inputs; null when all are affected",
    "attack_success": "affected test inputs answered as the manipulator wants; null for random labels",
    "manip_acc": "accuracy against true labels on the manipulated training examples",
    "delete_err": "identified examples still answered with their wrong label; null when none is identified",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BackdoorConfig(Config):
    manipulation: str = param(
        "poison",
        choices=("poison", "confusion", "random_label"),
        doc="trigger in images, two classes swapped, labels permuted",
    )
    share: float = param(0.05, gt=0, le=0.5, doc="of the training split, manipulated")
    target: int = param(0, ge=0, le=1_000_000, doc="poison: class that triggered images are to get")
    patch: int = param(3, ge=1, le=1024, unit="pixels", doc="poison: side of the trigger, bottom right")
    classes: tuple[int, ...] = param((0, 1), ge=0, le=1_000_000, doc="confusion: the two classes")
    methods: tuple[str, ...] = param(
        ("finetune",), doc="registered unlearners, beside the references none and retrain", ref="unlearner"
    )
    identified: tuple[float, ...] = param((0.1, 0.5, 1.0), gt=0, le=1, doc="shares of the manipulation that are known")
    repeats: int = param(1, ge=1, le=1000, doc="manipulations and trainings, each with its own seed")
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of the intervals")

    def check(self) -> None:
        for name in ("methods", "identified"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"BackdoorConfig.{name} = {values} lists something twice")
        if len(self.classes) != 2 or self.classes[0] == self.classes[1]:
            raise ConfigError(f"BackdoorConfig.classes = {self.classes} must be two different classes")


def _rate_columns(name: str) -> tuple[Column, ...]:
    low_is_good = name in ("attack_success", "delete_err")
    direction = "higher = more of the harm is left" if low_is_good else "higher = better"
    return (
        Column(name=name, dtype="float64", low=0, high=1, nullable=True, doc=_RATES[name], direction=direction),
        Column(name=f"{name}_lo", dtype="float64", low=0, high=1, nullable=True, doc="lower bound, Clopper-Pearson"),
        Column(name=f"{name}_hi", dtype="float64", low=0, high=1, nullable=True, doc="upper bound, Clopper-Pearson"),
    )


BACKDOOR = TableSpec(
    schema="audits",
    name="backdoor",
    key=("method", "identified_fraction", "repeat"),
    doc="How much of a planted manipulation each unlearner takes out, by the share of it that was identified.",
    columns=(
        Column(
            name="method",
            dtype="str",
            doc="unlearner; none is the manipulated model, retrain is not exact removal here",
        ),
        Column(
            name="identified_fraction",
            dtype="float64",
            low=0,
            high=1,
            doc="share of the manipulation identified; 0 for none",
        ),
        Column(name="repeat", dtype="int64", low=0, doc="number of the repeat: another manipulation and training"),
        Column(
            name="manipulation", dtype="str", choices=("poison", "confusion", "random_label"), doc="what was planted"
        ),
        Column(name="num_manipulated", dtype="int64", low=1, unit="examples", doc="manipulated training examples"),
        Column(name="num_identified", dtype="int64", low=0, unit="examples", doc="of them given to the unlearner"),
        Column(
            name="num_attacked",
            dtype="int64",
            low=0,
            unit="examples",
            doc="test inputs that the attack success is over",
        ),
        Column(
            name="status", dtype="str", choices=("ok", "diverged"), doc="diverged: the unlearner gave up; no figures"
        ),
        *(column for name in _RATES for column in _rate_columns(name)),
    ),
)


@analysis(
    AnalysisSpec(
        name="backdoor_audit",
        wants=("outputs", "classes", "features"),
        doc="Plants a manipulation in a copy of the data and asks how much of it each unlearner takes out of the "
        "model.",
        source="Goel et al., TMLR 2024 (arXiv 2402.14015)",
        config=BackdoorConfig,
        needs=("train", "unlearn_from"),
        tables=(BACKDOOR,),
        pictures=(
            Picture(
                table="backdoor",
                title="Attack success by the share identified (lower is better)",
                kind="dots",
                x="identified_fraction",
                y="attack_success",
                series="method",
                low="attack_success_lo",
                high="attack_success_hi",
                where=(("repeat", 0),),
            ),
            Picture(
                table="backdoor",
                title="Accuracy on affected inputs, true labels (higher is better)",
                kind="dots",
                x="identified_fraction",
                y="acc_corr",
                series="method",
                low="acc_corr_lo",
                high="acc_corr_hi",
                where=(("repeat", 0),),
            ),
        ),
    )
)
def backdoor_audit(
    data: ExampleSet,
    *,
    config: BackdoorConfig,
    seed: int,
    train: Callable[..., nn.Module],
    unlearn_from: Callable[..., nn.Module],
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Manipulate, train, unlearn, measure.

    Args:
        data: both splits; the manipulation is in the training split, what is left of it is measured on the test split.
        config: the manipulation, methods and fractions.
        seed: root of the draws, trainings and unlearners.
        train: (data, seed) -> model of the subject's recipe.
        unlearn_from: (model, method, *, retain, forget, seed) -> model after a registered unlearner.
        progress: called with (unlearning runs done, all, "backdoor audit").

    Returns:
        ``backdoor``: rows by repeat, then ``none``, then methods by identified fraction.

    Raises:
        NotApplicable: no class labels, no images for a trigger.
        DataError: labels out of range, no test example.
        ConfigError: target, classes or patch that the data does not have.
        Diverged: training on the manipulated data left the finite numbers.
    """
    require(data, "backdoor_audit", "classes")
    data = data.validate().by_id()
    if not (data.split == "test").any():
        raise DataError(f"{data.name} has no test example on which a backdoor could be seen")
    names = [*(m for m in config.methods if m not in ("none", "retrain")), "retrain"]
    total, rows = config.repeats * len(names) * len(config.identified), []
    for repeat in range(config.repeats):
        own = derive_seed("backdoor", seed, repeat)
        harm = _plant(data, config=config, seed=own)
        planted = harm.data.part("train")
        model = train(planted, derive_seed("train", own))
        common = {"repeat": repeat, "manipulation": config.manipulation, "num_manipulated": len(harm.ids)}
        nothing = np.empty(0, np.int64)
        rows.append(common | {"method": "none", "identified_fraction": 0.0} | _measure(model, harm, nothing, config))
        for name in names:
            for fraction in config.identified:
                found = sample_deletion_set(harm.ids, fraction=fraction, seed=derive_seed("identified", own))
                kept = np.setdiff1d(planted.example_id, found)
                row = common | {"method": name, "identified_fraction": fraction}
                try:
                    changed = unlearn_from(
                        model,
                        name,
                        retain=planted.subset(kept),
                        forget=planted.subset(found),
                        seed=derive_seed("unlearn", name, own),
                    )
                    row |= _measure(changed, harm, found, config)
                except (Diverged, DataError):
                    # Outputs that are not finite come as DataError from a model that has just been changed: its fault
                    # too.
                    row |= {"num_identified": len(found), "num_attacked": 0, "status": "diverged"}
                rows.append(row)
                progress(len(rows) - repeat - 1, total, "backdoor audit")
    return {BACKDOOR.name: frame_of(BACKDOOR, rows, nan_to_null=False)}


@dataclass(frozen=True, eq=False, kw_only=True)
class _Harm:
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


def _plant(data: ExampleSet, *, config: BackdoorConfig, seed: int) -> _Harm:
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
    return _Harm(
        data=planted, ids=ids, true_labels=data.y[data.positions(ids)], clean=test, affected=affected, spared=spared
    )


def _measure(model: nn.Module, harm: _Harm, found: NDArray[np.int64], config: BackdoorConfig) -> dict[str, Any]:
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
