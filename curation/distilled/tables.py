"""What a distilled data set says of itself: its examples, how it came about, what it is worth, and how its experts
moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.methods import made_table
from contracts.tables import Column
from curation.distilled.evaluation import CORESETS
from curation.distilled.experts import ExpertBuffer
from curation.distilled.smoothness import smoothness
from curation.distilled.trajectory import LOG, Distilled

COMPARED = ("distilled", "initial", *CORESETS)


def _whole(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="int64", low=0, doc=doc, **more)


def _share(name: str, doc: str) -> Column:
    return Column(name=name, dtype="float64", low=0, high=1, direction="higher = better", doc=doc)


DISTILLED = made_table(
    "distilled",
    doc="The distilled examples; their values are in the artefact of the data set.",
    columns=(
        _whole("label", "class index that it was made for"),
        _whole("init_example_id", "the training example that its image started from"),
        Column(
            name="logits", dtype="floats", nullable=True, doc="learned label, used through softmax; null of hard labels"
        ),
        Column(name="lr", dtype="float64", low=0, doc="learned step size of students, the same for all"),
    ),
)
LOG_TABLE = made_table(
    "distillation_log",
    doc="Every iteration of the distillation.",
    key=("iteration",),
    columns=(
        _whole("iteration", "from 1"),
        _whole("expert", "whose trajectory was matched"),
        _whole("start_epoch", "epoch of the expert at which the student started"),
        _whole("upper_bound", "the epoch after the last that could be drawn"),
        Column(
            name="match_loss",
            dtype="float64",
            low=0,
            nullable=True,
            direction="lower = nearer to the expert",
            doc="1 = no nearer than the start (one comparison); null: not finite, and skipped",
        ),
        Column(name="skipped", dtype="bool", doc="the loss was above the threshold, and nothing was changed"),
        Column(name="syn_lr", dtype="float64", low=0, doc="the students' step size after it"),
        Column(
            name="floored", dtype="bool", doc="a comparison on the way stood on its floor: the expert had hardly moved"
        ),
    ),
)
EVAL = made_table(
    "distillation_eval",
    doc="Accuracy, on held-out training examples, of networks trained on the distilled set and on others of its size.",
    key=("set_name", "arch", "label_mode", "seed"),
    columns=(
        Column(
            name="set_name",
            dtype="str",
            choices=COMPARED,
            doc="what was trained on; initial: the real images it started from",
        ),
        Column(name="arch", dtype="str", doc="architecture of the students"),
        Column(name="label_mode", dtype="str", choices=("soft", "hard"), doc="learned labels, or classes"),
        Column(name="seed", dtype="int64", doc="of the student: initialisation and order"),
        _whole("ipc", "examples a class"),
        _share("acc", "after the last epoch"),
        _share("random_acc", "the same of as many random real examples, other ones for each seed, with their classes"),
        _share("full_acc", "the same of all examples that were distilled, trained as the experts are"),
        _whole("num_judged", "held-out examples that judge"),
    ),
)
SMOOTHNESS = made_table(
    "trajectory_smoothness",
    doc="How the experts moved, epoch by epoch.",
    key=("expert", "epoch"),
    columns=(
        _whole("expert", "number of the expert"),
        _whole("epoch", "epochs done; 0 is the initialisation"),
        Column(name="variant", dtype="str", doc="how experts are trained"),
        Column(name="step_norm", dtype="float64", low=0, nullable=True, doc="length of the epoch's step; null at 0"),
        Column(
            name="turn_cos",
            dtype="float64",
            low=-1,
            high=1,
            nullable=True,
            direction="higher = straighter",
            doc="cosine of the step and the one before; null where there is none before",
        ),
        _share("test_acc", "accuracy on the held-out examples"),
        Column(name="max_step", dtype="float64", low=0, doc="the expert's longest step"),
        Column(
            name="path_ratio",
            dtype="float64",
            low=1,
            direction="lower = straighter",
            doc="sum of its steps / distance from start to end",
        ),
    ),
)


def log_frame(state: Distilled) -> pl.DataFrame:
    """Table ``distillation_log`` of a distillation."""
    columns = dict(zip(LOG, np.array(state.log, np.float64).reshape(-1, len(LOG)).T, strict=True))
    loss = columns["match_loss"]
    return pl.DataFrame(
        {
            "iteration": np.arange(1, state.iteration + 1),
            **{name: columns[name].astype(np.int64) for name in ("expert", "start_epoch", "upper_bound")},
            "match_loss": pl.Series(np.where(np.isfinite(loss), loss, 0)).set(pl.Series(~np.isfinite(loss)), None),
            **{name: columns[name] > 0 for name in ("skipped", "floored")},
            "syn_lr": columns["syn_lr"],
        }
    )


def smoothness_frame(experts: ExpertBuffer, accuracy: NDArray[np.float64]) -> pl.DataFrame:
    """Table ``trajectory_smoothness``; ``accuracy``: (E, T + 1), in [0, 1]."""
    frames = []
    for number, trajectory in enumerate(experts.trajectories):
        found = smoothness(trajectory)
        epochs = len(trajectory)
        frames.append(
            pl.DataFrame(
                {
                    "expert": np.full(epochs, number),
                    "epoch": np.arange(epochs),
                    "variant": [experts.variant] * epochs,
                    "step_norm": [None, *found.step_norm.tolist()],
                    "turn_cos": [None, None, *found.turn_cos[1:].tolist()],
                    "test_acc": accuracy[number],
                    "max_step": np.full(epochs, found.max_step),
                    "path_ratio": np.full(epochs, found.path_ratio),
                },
                schema_overrides={"step_norm": pl.Float64, "turn_cos": pl.Float64},
            )
        )
    return pl.concat(frames)
