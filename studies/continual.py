"""A stream, step by step: what is learnt, what is forgotten, and how far every layer moves.

The plan's recipe is trained again, ``seeds`` times, each time as one run with a snapshot after every step, and every
snapshot is measured on the test split (studies.step_accuracy). It is trained again, and not recorded while the audited
model was trained, because a recipe sees no test example, and because one run has no interval: the spread over seeds is
what tells a change from chance.

    continual_summary    final accuracy, global and local forgetting, mean drop: mean over seeds with 90% Student
    intervals
    continual_steps      R[i, n] and L[i, n] of every seed
    layer_cka            linear CKA of every layer between the model after the first step and after step n, on the first
    step's test data

Source: Smith et al., "A Closer Look at Rehearsal-Free Continual Learning" (CVPRW 2023, arXiv 2203.17269), section 4;
Kornblith et al.
(ICML 2019) for CKA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from contracts.digests import derive_seed
from contracts.errors import NotApplicable
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.tables import Column, TableSpec
from explain.similarity import cka_of_layers
from recipes.continual.stream import StreamConfig, stream_of
from recipes.training import Trainer
from sources.example_set import ExampleSet
from studies.retraining import mean_interval, splits_by_id
from studies.step_accuracy import StepAccuracy, forgetting, mean_drop, step_accuracy
from tasks.base import require

MEASURES = ("final_accuracy", "global_forgetting", "local_forgetting", "mean_drop")


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinualRunsConfig(Config):
    seeds: int = param(3, ge=1, le=100, doc="trainings of the whole stream")
    cka_examples: int = param(500, ge=2, le=100_000, unit="examples", doc="test examples of the first step, at most")


def _share(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="float64", doc=doc, **{"low": 0, "high": 1, **more})


_SEED = Column(name="repeat", dtype="int64", low=0, doc="number of the training")
_AFTER = Column(name="after", dtype="int64", low=1, doc="the step that has just ended, from 1")
_SUMMARY = TableSpec(
    schema="scores",
    name="continual_summary",
    doc="What a stream leaves at its end, and what was forgotten on the way; mean over trainings.",
    key=("measure",),
    columns=(
        Column(
            name="measure",
            dtype="str",
            choices=MEASURES,
            doc="accuracy over all classes after the last step; F_G over all classes seen; F_L within a step's own; "
            "mean drop",
        ),
        _share("value", "mean over trainings; forgetting is below 0 where later steps helped", low=-1, nullable=True),
        _share(
            "low", "lower end of its 90% Student interval; null for one training", low=None, high=None, nullable=True
        ),
        _share("high", "upper end", low=None, high=None, nullable=True),
        Column(name="num_seeds", dtype="int64", low=1, doc="trainings averaged"),
        Column(name="num_steps", dtype="int64", low=1, doc="steps of the stream"),
    ),
)
_STEPS = TableSpec(
    schema="scores",
    name="continual_steps",
    doc="Accuracy on every step's test examples after every step.",
    key=("repeat", "after", "step"),
    columns=(
        _SEED,
        _AFTER,
        Column(name="step", dtype="int64", low=1, doc="the step whose test examples are answered"),
        Column(name="step_name", dtype="str", doc="its classes, or its value"),
        Column(name="num_train", dtype="int64", low=0, doc="training examples of that step"),
        Column(name="num_test", dtype="int64", low=0, doc="its test examples"),
        _share("accuracy", "over all classes seen after step `after`; null without test examples", nullable=True),
        _share("within_accuracy", "over the step's own classes", nullable=True),
    ),
)
_CKA = TableSpec(
    schema="scores",
    name="layer_cka",
    doc="How much of what the layers say of the first step's test examples is left after each step.",
    key=("repeat", "after", "layer"),
    columns=(
        _SEED,
        _AFTER,
        Column(name="layer", dtype="str", doc="name of the layer in the model"),
        _share(
            "cka",
            "linear CKA with the model after the first step; null where a layer says the same of all",
            nullable=True,
        ),
    ),
)


@analysis(
    AnalysisSpec(
        name="continual_runs",
        wants=("outputs", "classes"),
        doc="Accuracy after every step of a stream, forgetting, and the similarity of every layer with the first "
        "step's.",
        source="Smith et al., CVPRW 2023 (arXiv 2203.17269)",
        config=ContinualRunsConfig,
        needs=("recipe",),
        tables=(_SUMMARY, _STEPS, _CKA),
        pictures=(
            Picture(
                table="continual_steps",
                title="Accuracy on each step's test examples after every step (first training)",
                x="after",
                y="accuracy",
                series="step_name",
                where=(("repeat", 0),),
            ),
            Picture(
                table="layer_cka",
                title="Linear CKA of every layer with the model after the first step (first training)",
                x="after",
                y="cka",
                series="layer",
                where=(("repeat", 0),),
            ),
        ),
    )
)
def continual_runs(
    data: ExampleSet, *, config: ContinualRunsConfig, seed: int, progress: Progress, recipe: Trainer
) -> dict[str, pl.DataFrame]:
    """Tables ``continual_summary``, ``continual_steps`` and ``layer_cka``; see the head of this file.

    Args:
        data: both splits.
        config: trainings, examples for CKA.
        seed: root of the trainings.
        progress: told (trainings done, in all, "trainings of the stream").
        recipe: the plan's, which must train through steps.

    Raises:
        NotApplicable: another recipe, no classification, or no test examples.
        Others: as the recipe raises.
    """
    require(data, "continual_runs", "outputs", "classes")
    plan = stream_config(recipe, name="continual_runs")
    train, test = splits_by_id(data, name="continual_runs")
    stream, steps = stream_of(train, plan), stream_of(test, plan).step
    ends = [(n + 1) * plan.epochs for n in range(stream.num_steps)]
    first = int(np.argmax([bool(own) for own in stream.classes]))  # the first step that has examples
    shown = test.take(np.flatnonzero(steps == first)[: config.cka_examples])
    found: list[StepAccuracy] = []
    rows: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    for repeat in range(config.seeds):
        run_seed = derive_seed("continual runs", seed, repeat)
        snapshots = recipe.snapshots(train, members=[np.arange(len(train))], seeds=[run_seed], epochs=ends)
        models = [models[0] for models in snapshots]
        measured = step_accuracy(models, test, steps, stream)
        found.append(measured)
        for i in range(stream.num_steps):
            for n in range(i + 1):
                rows.append(
                    {
                        "repeat": repeat,
                        "after": i + 1,
                        "step": n + 1,
                        "step_name": stream.names[n],
                        "num_train": int((stream.step == n).sum()),
                        "num_test": int((steps == n).sum()),
                        "accuracy": _known(measured.overall[i, n]),
                        "within_accuracy": _known(measured.within[i, n]),
                    }
                )
            if len(shown) >= 2 and i >= first:
                cka = cka_of_layers(models[first], models[i], shown)
                layers += [
                    {"repeat": repeat, "after": i + 1, "layer": layer, "cka": _known(value)}
                    for layer, value in cka.items()
                ]
        progress(repeat + 1, config.seeds, "trainings of the stream")
    return {
        "continual_summary": _summary(found, [len(own) for own in stream.classes]),
        "continual_steps": _frame(rows, _STEPS),
        "layer_cka": _frame(layers, _CKA),
    }


def stream_config(recipe: Trainer, *, name: str) -> StreamConfig:
    """The configuration of a recipe that trains through steps.

    Raises:
        NotApplicable: it does not.
    """
    if not isinstance(recipe.config, StreamConfig):
        raise NotApplicable(f"{name} is about recipes that train through steps; {recipe.spec.name} does not")
    return recipe.config


def _summary(found: list[StepAccuracy], num_classes: list[int]) -> pl.DataFrame:
    values = {
        "final_accuracy": [f.final for f in found],
        "global_forgetting": [forgetting(f.overall, num_classes) for f in found],
        "local_forgetting": [forgetting(f.within, num_classes) for f in found],
        "mean_drop": [mean_drop(f.overall) for f in found],
    }
    rows = []
    for measure, each in values.items():
        value, low, high = mean_interval(np.array(each))
        figures = {"value": _known(value), "low": _known(low), "high": _known(high)}
        rows.append({"measure": measure, **figures, "num_seeds": len(found), "num_steps": len(num_classes)})
    return _frame(rows, _SUMMARY)


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _frame(rows: list[dict[str, Any]], table: TableSpec) -> pl.DataFrame:
    types = {"int64": pl.Int64, "float64": pl.Float64, "str": pl.String}
    return pl.DataFrame(rows, schema={c.name: types[c.dtype] for c in table.columns}, orient="row")
