"""What a distilled data set says of itself: its examples, how it came about, what it is worth, and how its experts
moved."""

from __future__ import annotations

from typing import Any

from contracts.methods import made_table
from contracts.tables import Column
from curation.distilled.evaluation import CORESETS

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
