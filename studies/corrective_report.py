"""Corrective unlearning, method by method: how much of a manipulation leaves the model when part of it is identified,
with every method's settings tried and one of them chosen without a look at the truth.

    hold out a validation part of the training split; manipulate the rest (S_m); train the subject's recipe on it
    for every share identified (S_f), method and setting:   model' = method(model; D \\ S_f, S_f)
    chosen setting of a method: the largest  (validation accuracy + 1 - delete_err) / 2  among those that lose no more
        than ``most_lost`` of the manipulated model's validation accuracy; where all lose more, among all
    corrected: acc_corr gained >= 10 points and acc_retain lost <= 2 points, against the manipulated model

The validation part is clean, as nobody manipulates what is not trained on. delete_err, the share of S_f still answered
with its wrong label, needs no clean label. Test inputs decide nothing: the published code chooses its checkpoints on
the test set. Rows with method ``none`` are the manipulated model; ``eu_k`` and ``retrain`` are no gold standard here:
what nobody identified of S_m brings the harm back.

Source: Goel et al., "Corrective Machine Unlearning", TMLR 2024 (arXiv 2402.14015), sections 3 to 5. The rule of the
choice is this project's: the paper does not state its own. A method in the plan's one configuration, without a search,
is in ``attacks.backdoor_audit``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from attacks.backdoor import accuracy
from attacks.planted_harm import MANIPULATIONS, RATES, Harm, HarmConfig, plant, rate_columns, rates_of
from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged
from contracts.methods import AnalysisSpec, Picture, analysis, unlearner
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from recipes.predict import predict_logits
from sources.example_set import ExampleSet
from sources.frames import frame_of
from sources.planted_poison import sample_deletion_set
from studies.retraining import hold_out
from tasks.base import require

GAINED, LOST = 0.10, 0.02  # of accuracy: what a report of "corrected" takes


@dataclass(frozen=True, kw_only=True, slots=True)
class TriedMethod(Config):
    """An unlearner, and the settings of it that are tried."""

    name: str = param(doc="registered unlearner", ref="unlearner")
    settings: tuple[dict, ...] = param(({},), doc="fields in place of those of the plan's configuration of it")  # type: ignore[type-arg]

    def check(self) -> None:
        if not self.settings:
            raise ConfigError(f"TriedMethod.settings of {self.name} lists none; [{{}}] is the plan's configuration")


_DAMPENINGS = tuple(
    {"alpha": alpha, "lambda_": alpha * ratio}
    for alpha in (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
    for ratio in (0.1, 1.0)
)
_METHODS = (
    TriedMethod(name="eu_k", settings=({"k": 2}, {"k": -1, "epochs": 40})),
    TriedMethod(name="cf_k", settings=({"k": 2}, {"k": -1})),
    TriedMethod(name="scrub", settings=tuple({"alpha": alpha} for alpha in (0.001, 0.01, 0.1, 1.0, 10.0))),
    TriedMethod(name="bad_teacher"),
    TriedMethod(name="selective_synaptic_dampening", settings=_DAMPENINGS),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectiveReportConfig(HarmConfig):
    """What is planted, how much of it is known, and what is tried against it."""

    methods: tuple[TriedMethod, ...] = param(_METHODS, doc="unlearners and their settings, each method once")
    identified: tuple[float, ...] = param((0.1, 0.5, 1.0), gt=0, le=1, doc="shares of the manipulation that are known")
    validation: float = param(0.15, gt=0, lt=1, doc="of the training split, held out to choose settings")
    most_lost: float = param(
        1.0, ge=0, le=1, doc="validation accuracy that a chosen setting may cost; 1: any, delete_err may outweigh it"
    )
    repeats: int = param(1, ge=1, le=1000, doc="manipulations and trainings, each with its own seed")

    def check(self) -> None:
        HarmConfig.check(self)
        for name, values in (("methods", tuple(m.name for m in self.methods)), ("identified", self.identified)):
            if len(set(values)) < len(values):
                raise ConfigError(f"CorrectiveReportConfig.{name} = {values} lists something twice")


def choose_setting(
    validation: NDArray[np.float64], delete_err: NDArray[np.float64], *, before: float, most_lost: float
) -> int:
    """Which setting is taken, by what can be seen without a clean label of what was manipulated.

    Args:
        validation: (n,) accuracy on clean held-out examples, in [0, 1]; NaN for a run that diverged, never taken.
        delete_err: (n,) share of the identified examples still answered with their wrong label, in [0, 1]; NaN where
            none is identified, and then it does not count.
        before: validation accuracy of the manipulated model.
        most_lost: of it, that a setting may cost.

    Returns:
        Position of the largest (validation + 1 - delete_err) / 2, the first of equals; among those within
        ``most_lost``, or among all where none is.

    Raises:
        DataError: every run diverged.

    >>> choose_setting(np.array([0.9, 0.8, 0.5]), np.array([1.0, 0.3, 0.0]), before=0.9, most_lost=0.2)
    1
    """
    alive = np.isfinite(validation)
    if not alive.any():
        raise DataError("every setting diverged: there is none to choose")
    within = alive & (before - np.where(alive, validation, 0.0) <= most_lost + 1e-12)
    merit = (validation + 1 - np.where(np.isfinite(delete_err), delete_err, 0.0)) / 2
    return int(np.argmax(np.where(within if within.any() else alive, merit, -np.inf)))


CORRECTIVE = TableSpec(
    schema="audits",
    name="corrective_report",
    key=("method", "identified_fraction", "setting", "repeat"),
    doc="How much of a planted manipulation each unlearner takes out, by the share that was identified and by setting.",
    columns=(
        Column(name="method", dtype="str", doc="unlearner; none is the manipulated model; retraining is no reference"),
        Column(name="identified_fraction", dtype="float64", low=0, high=1, doc="share identified; 0 for none"),
        Column(name="setting", dtype="int64", low=0, doc="number of the setting among those of the method"),
        Column(name="repeat", dtype="int64", low=0, doc="number of the repeat: another manipulation and training"),
        Column(name="hparams", dtype="str", doc="the setting, JSON; empty for none"),
        Column(name="selected", dtype="bool", doc="chosen by validation accuracy and delete_err, see choose_setting"),
        Column(
            name="corrected",
            dtype="bool",
            doc="acc_corr gained 10 points or more and acc_retain lost 2 or fewer; never without acc_retain",
        ),
        Column(name="manipulation", dtype="str", choices=MANIPULATIONS, doc="what was planted"),
        Column(name="num_manipulated", dtype="int64", low=1, unit="examples", doc="manipulated training examples"),
        Column(name="num_identified", dtype="int64", low=0, unit="examples", doc="of them given to the unlearner"),
        Column(name="num_attacked", dtype="int64", low=0, unit="examples", doc="test inputs under attack_success"),
        Column(name="status", dtype="str", choices=("ok", "diverged"), doc="diverged: it gave up; no figures"),
        Column(
            name="acc_validation",
            dtype="float64",
            low=0,
            high=1,
            nullable=True,
            doc="accuracy on the held-out part of the training split",
            direction="higher = better",
        ),
        *(column for name in RATES for column in rate_columns(name)),
        Column(name="unlearn_seconds", dtype="float64", low=0, unit="s", doc="wall time of the unlearner"),
    ),
)


def _pictures() -> tuple[Picture, ...]:
    titles = {
        "acc_corr": "Accuracy on affected inputs, true labels (higher is better)",
        "acc_retain": "Accuracy on unaffected inputs (higher is better)",
    }
    return tuple(
        Picture(
            table="corrective_report",
            title=title,
            kind="dots",
            x="identified_fraction",
            y=name,
            series="method",
            low=f"{name}_lo",
            high=f"{name}_hi",
            where=(("repeat", 0), ("selected", True)),
        )
        for name, title in titles.items()
    )


@analysis(
    AnalysisSpec(
        name="corrective_report",
        wants=("outputs", "classes", "features"),
        doc="Plants a manipulation in a copy of the data and asks how much of it each unlearner takes out, in the "
        "setting that validation chooses.",
        source="Goel et al., TMLR 2024 (arXiv 2402.14015)",
        config=CorrectiveReportConfig,
        needs=("train", "unlearn_from", "clock"),
        tables=(CORRECTIVE,),
        pictures=_pictures(),
    )
)
def corrective_report(
    data: ExampleSet,
    *,
    config: CorrectiveReportConfig,
    seed: int,
    train: Callable[..., nn.Module],
    unlearn_from: Callable[..., nn.Module],
    clock: Callable[[], float],
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Manipulate, train, unlearn in every setting, choose, measure.

    Args:
        data: both splits; the manipulation is in the training split, its harm is measured on the test split.
        config: the manipulation, methods, settings and shares.
        seed: root of the draws, trainings and unlearners.
        train: (data, seed) -> model of the subject's recipe.
        unlearn_from: (model, method, *, retain, forget, seed, changed) -> model after a registered unlearner.
        clock: seconds.
        progress: called with (unlearning runs done, all, "corrective report").

    Returns:
        ``corrective_report``: rows by repeat, then ``none``, then shares, methods and settings.

    Raises:
        NotApplicable: no class labels, no images for a trigger, too few examples to hold out.
        DataError: labels out of range, no test example.
        ConfigError: target, classes or patch that the data does not have, or a setting that is none of its method.
        Diverged: training on the manipulated data left the finite numbers.
    """
    require(data, "corrective_report", "classes")
    for tried in config.methods:
        for setting in tried.settings:
            unlearner.get(tried.name).spec.config.from_mapping(setting)
    data = data.validate().by_id()
    if not (data.split == "test").any():
        raise DataError(f"{data.name} has no test example on which a manipulation could be seen")
    total = config.repeats * len(config.identified) * sum(len(tried.settings) for tried in config.methods)
    rows: list[dict[str, Any]] = []
    for repeat in range(config.repeats):
        own = derive_seed("corrective", seed, repeat)
        harm, validation = _harm(data, config=config, seed=own)
        model = train(harm.data.part("train"), derive_seed("train", own))
        common = {"repeat": repeat, "manipulation": config.manipulation, "num_manipulated": len(harm.ids)}
        nothing = rates_of(model, harm, np.empty(0, np.int64), config=config)
        before = nothing | {"acc_validation": _accuracy(model, validation)}
        rows.append(
            common
            | before
            | {"method": "none", "identified_fraction": 0.0, "setting": 0, "hparams": "", "selected": True}
            | {"corrected": False, "unlearn_seconds": 0.0}
        )
        for fraction in config.identified:
            for tried in config.methods:
                runs = []
                for number, setting in enumerate(tried.settings):
                    runs.append(
                        common
                        | {"method": tried.name, "identified_fraction": fraction, "setting": number}
                        | {"hparams": json.dumps(setting, sort_keys=True)}
                        | _run(model, harm, validation, tried.name, setting, fraction, config, unlearn_from, clock, own)
                    )
                    progress(len(rows) + len(runs) - repeat - 1, total, "corrective report")
                rows += _judged(runs, before, config)
    return {CORRECTIVE.name: frame_of(CORRECTIVE, rows, nan_to_null=False)}


def _harm(data: ExampleSet, *, config: CorrectiveReportConfig, seed: int) -> tuple[Harm, ExampleSet]:
    """A manipulated copy of the data without the validation part, and that part, clean."""
    train = data.part("train")
    _, _, validation = hold_out(
        train, np.zeros(len(train)), config.validation, seed=derive_seed("validation", seed), name="corrective_report"
    )
    rest = data.subset(data.example_id[~np.isin(data.example_id, validation.example_id)])
    return plant(rest, config=config, seed=seed), validation


def _accuracy(model: nn.Module, data: ExampleSet) -> float | None:
    return accuracy(predict_logits(model, data), data.y).value


def _run(
    model: nn.Module,
    harm: Harm,
    validation: ExampleSet,
    name: str,
    setting: Mapping[str, Any],
    fraction: float,
    config: CorrectiveReportConfig,
    unlearn_from: Callable[..., nn.Module],
    clock: Callable[[], float],
    seed: int,
) -> dict[str, Any]:
    """The figures of one method in one setting."""
    planted = harm.data.part("train")
    found = sample_deletion_set(harm.ids, fraction=fraction, seed=derive_seed("identified", seed))
    retain, forget = planted.subset(np.setdiff1d(planted.example_id, found)), planted.subset(found)
    started, row = clock(), {"num_identified": len(found), "num_attacked": 0, "status": "diverged"}
    try:
        changed = unlearn_from(
            model, name, retain=retain, forget=forget, seed=derive_seed("unlearn", name, seed), changed=setting
        )
        spent = clock() - started
        row |= rates_of(changed, harm, found, config=config) | {"acc_validation": _accuracy(changed, validation)}
    except (Diverged, DataError):
        # Outputs that are not finite come as DataError from a model that has just been changed: its fault too.
        spent = clock() - started
    return row | {"unlearn_seconds": spent}


def _judged(
    runs: list[dict[str, Any]], before: Mapping[str, Any], config: CorrectiveReportConfig
) -> list[dict[str, Any]]:
    """The settings of one method, with the chosen one marked, and those that correct."""
    validation, wrong = (
        np.array([np.nan if run.get(key) is None else run[key] for run in runs])
        for key in ("acc_validation", "delete_err")
    )
    chosen = -1
    if np.isfinite(validation).any():
        chosen = choose_setting(validation, wrong, before=before["acc_validation"], most_lost=config.most_lost)
    return [run | {"selected": number == chosen, "corrected": corrects(run, before)} for number, run in enumerate(runs)]


def corrects(run: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a method may be reported as correcting the manipulation.

    Args:
        run: a row of the table; one that diverged, or without unaffected inputs, corrects nothing.
        before: ``acc_corr`` and ``acc_retain`` of the manipulated model.
    """
    if run["status"] != "ok" or run["acc_retain"] is None:
        return False
    gained, lost = run["acc_corr"] - before["acc_corr"], before["acc_retain"] - run["acc_retain"]
    return bool(gained >= GAINED - 1e-12 and lost <= LOST + 1e-12)
