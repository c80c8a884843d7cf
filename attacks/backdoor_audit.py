"""Can an unlearner take a manipulation out of the subject's model, when only part of it has been identified?

    manipulated copy S_m  ->  the subject's recipe  ->  for every method and fraction q: remove S_f, a uniform q of S_m
    then: accuracy on clean inputs, accuracy with true labels on affected ones, success of the attack
        (``attacks.planted_harm``)

Source: Goel et al., "Corrective Machine Unlearning", TMLR 2024 (arXiv 2402.14015): fractions from 10% to 100%,
    manipulations by
trigger, confusion of two classes, and random labels. Rows with method ``none`` are the manipulated model itself;
``retrain`` without S_f is not exact removal: only with all of S_m identified is it clean.

The recipe is trained anew on manipulated data; the subject's own model and data are not touched. What is measured is
the method in the plan's configuration: a method tuned on the clean test set would look better than anybody could know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from torch import nn

from attacks.planted_harm import MANIPULATIONS, RATES, HarmConfig, plant, rate_columns, rates_of
from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from sources.example_set import ExampleSet
from sources.frames import frame_of
from sources.planted_poison import sample_deletion_set
from tasks.base import require


@dataclass(frozen=True, kw_only=True, slots=True)
class BackdoorConfig(HarmConfig):
    methods: tuple[str, ...] = param(
        ("finetune",), doc="registered unlearners, beside the references none and retrain", ref="unlearner"
    )
    identified: tuple[float, ...] = param((0.1, 0.5, 1.0), gt=0, le=1, doc="shares of the manipulation that are known")
    repeats: int = param(1, ge=1, le=1000, doc="manipulations and trainings, each with its own seed")

    def check(self) -> None:
        HarmConfig.check(self)
        for name in ("methods", "identified"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"BackdoorConfig.{name} = {values} lists something twice")


BACKDOOR = TableSpec(
    schema="audits",
    name="backdoor",
    key=("method", "identified_fraction", "repeat"),
    version=2,
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
        Column(name="manipulation", dtype="str", choices=MANIPULATIONS, doc="what was planted"),
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
        *(column for name in RATES for column in rate_columns(name)),
    ),
)


@analysis(
    AnalysisSpec(
        name="backdoor_audit",
        wants=("outputs", "classes", "features"),
        doc="Plants a manipulation in a copy of the data and asks how much of it each unlearner takes out of the "
        "model.",
        source="Goel et al., TMLR 2024 (arXiv 2402.14015)",
        version=2,
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
        harm = plant(data, config=config, seed=own)
        planted = harm.data.part("train")
        model = train(planted, derive_seed("train", own))
        common = {"repeat": repeat, "manipulation": config.manipulation, "num_manipulated": len(harm.ids)}
        nothing = np.empty(0, np.int64)
        rows.append(
            common | {"method": "none", "identified_fraction": 0.0} | rates_of(model, harm, nothing, config=config)
        )
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
                    row |= rates_of(changed, harm, found, config=config)
                except (Diverged, DataError):
                    # Outputs that are not finite come as DataError from a model that has just been changed: its fault
                    # too.
                    row |= {"num_identified": len(found), "num_attacked": 0, "status": "diverged"}
                rows.append(row)
                progress(len(rows) - repeat - 1, total, "backdoor audit")
    return {BACKDOOR.name: frame_of(BACKDOOR, rows, nan_to_null=False)}
