"""What a distilled data set says of itself: its examples, how it came about, what it is worth, and how its experts
moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import stdtrit

from contracts.methods import made_table
from contracts.tables import Column
from curation.distilled.evaluation import CORESETS
from curation.distilled.experts import ExpertBuffer
from curation.distilled.smoothness import smoothness
from curation.distilled.trajectory import LOG, Distilled

COMPARED = ("distilled", "initial", *CORESETS)
RANDOM, EVERYTHING = "random", "everything"


def _whole(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="int64", low=0, doc=doc, **more)


def _share(name: str, doc: str) -> Column:
    return Column(name=name, dtype="float64", low=0, high=1, direction="higher = better", doc=doc)


def _end(name: str, doc: str, *, low: float) -> Column:
    return Column(name=name, dtype="float64", low=low, high=1, nullable=True, doc=doc)


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
WORTH = made_table(
    "distillation_worth",
    doc="What each set is worth: accuracy on held-out training examples of networks trained on it, beside random "
    "examples and everything; means and 95% intervals over the networks, of the one set that was made.",
    key=("set_name", "arch", "label_mode"),
    columns=(
        Column(
            name="set_name",
            dtype="str",
            choices=(*COMPARED, RANDOM, EVERYTHING),
            doc="what was trained on; random: as many real examples, others for each network; everything: all that was "
            "distilled, trained as the experts are",
        ),
        Column(name="arch", dtype="str", doc="architecture of the students"),
        Column(name="label_mode", dtype="str", choices=("soft", "hard"), doc="learned labels, or classes"),
        _whole("num_networks", "networks trained on it"),
        _share("acc", "mean after the last epoch"),
        _end("acc_lo", "lower end (Student's t); null of one network", low=0),
        _end("acc_hi", "upper end", low=0),
        Column(
            name="above_random",
            dtype="float64",
            low=-1,
            high=1,
            nullable=True,
            direction="higher = better",
            doc="acc above that of random examples, network by network; null of random itself",
        ),
        _end("above_random_lo", "lower end (Student's t, paired)", low=-1),
        _end("above_random_hi", "upper end", low=-1),
        _whole("ipc", "examples a class"),
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


def worth_frame(judged: pl.DataFrame, *, alpha: float = 0.05) -> pl.DataFrame:
    """Table ``distillation_worth``, of the rows of ``distillation_eval``: sets in its order, then random and
    everything, architecture by architecture."""
    rows = []
    for (arch,), of_arch in judged.sort("seed", maintain_order=True).group_by("arch", maintain_order=True):
        sets = [
            (*name, own["acc"].to_numpy(), own["random_acc"].to_numpy())
            for name, own in of_arch.group_by("set_name", "label_mode", maintain_order=True)
        ]
        once = of_arch.unique("seed", keep="first").sort("seed")
        random, everything = once["random_acc"].to_numpy(), once["full_acc"].to_numpy()
        sets += [(RANDOM, "hard", random, None), (EVERYTHING, "hard", everything, random)]
        for name, mode, acc, beside in sets:
            acc_lo, acc_hi = _student(acc, alpha, 0.0)
            above = None if beside is None else acc - beside
            low, high = (None, None) if above is None else _student(above, alpha, -1.0)
            rows.append(
                {
                    "set_name": name,
                    "arch": arch,
                    "label_mode": mode,
                    "num_networks": len(acc),
                    "acc": float(acc.mean()),
                    "acc_lo": acc_lo,
                    "acc_hi": acc_hi,
                    "above_random": None if above is None else float(above.mean()),
                    "above_random_lo": low,
                    "above_random_hi": high,
                    "ipc": of_arch["ipc"][0],
                    "num_judged": of_arch["num_judged"][0],
                }
            )
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(_ENDS, pl.Float64))


_ENDS = ("acc_lo", "acc_hi", "above_random", "above_random_lo", "above_random_hi")


def _student(values: NDArray[np.float64], alpha: float, least: float) -> tuple[float | None, float | None]:
    """Student's interval of the mean, within [least, 1]; none of one value."""
    if len(values) < 2:
        return None, None
    reach = float(stdtrit(len(values) - 1, 1 - alpha / 2) * values.std(ddof=1) / np.sqrt(len(values)))
    mean = float(values.mean())
    return max(least, mean - reach), min(1.0, mean + reach)


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
