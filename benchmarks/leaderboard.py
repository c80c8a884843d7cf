"""The leaderboard of removal methods on 10,000 images of Fashion-MNIST, whole. Run: python -m benchmarks.leaderboard

8,000 training and 2,000 test images, MLP 784-128-10; every registered method that applies, on every kind of forget set,
three runs, two tries of each method's learning rate, reference models for the influence set. As in ``u_lira`` a time is
promised: seconds of CPU time of one thread (the wall time of a core that is left alone). Beside it what of that goes
into neither training, unlearning nor UA/RA/TA/MIA, but into sets, margins, layers, tables and comparisons. A fast wrong
answer has no speed: on a whole class the best method must be nearer than doing nothing, and not surely nearer than
retraining a second time.

Needs Debian's dataset-fashion-mnist, or PALIMPSEST_DATA.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import torch

from assets.provider import Provider, UnlearnFrom
from benchmarks._common import Row, options, report
from contracts.progress import silent
from contracts.subject import Subject
from recipes.ensemble import train_ensemble
from recipes.plan import load_examples, model_builder, recipe_config, trainer
from studies.leaderboard.leaderboard import LeaderboardConfig, leaderboard

LIMIT, SHARE = 600.0, 0.5
NAME = "Fashion-MNIST, 10,000, MLP"
PLAN: dict[str, Any] = {
    "subject": "bench",
    "source": {
        "name": "idx",
        "config": {"root": "fashion-mnist", "standardise": True, "train_per_class": 800, "test_per_class": 200},
    },
    "model": {"name": "mlp", "config": {"hidden": [128]}},
    "recipe": {
        "name": "supervised",
        "config": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "batch": 64, "epochs": 15, "schedule": "cosine"},
    },
    "ensemble": {"num_models": 16, "block": 16},
}


class _Bench(Provider):
    """What a stage gives to the analysis, with the CPU time that its callables take."""

    def __init__(self, seed: int) -> None:
        self.subject = Subject.from_mapping({**PLAN, "seed": seed})
        self.data, self.progress, self.spent = load_examples(self.subject), silent, 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent += time.process_time() - start

        return run


class _Timed(UnlearnFrom):
    """Runs of methods, their CPU time counted."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.provider.timed(super().__call__)(*args, **kwargs)  # type: ignore[attr-defined]


def measure(config: LeaderboardConfig, seed: int) -> tuple[float, float, dict[str, pl.DataFrame]]:
    """CPU seconds of the analysis, those of them in training, unlearning and metrics, and its tables."""
    bench = _Bench(seed)
    subject, data = bench.subject, bench.data
    model = trainer(subject, data).one(data.part("train"), seed)
    ensemble = train_ensemble(
        model_builder(subject, data),
        data,
        recipe=subject.recipe.name,
        config=recipe_config(subject),
        ensemble=subject.ensemble,
        seed=seed,
    )
    start = time.process_time()
    tables = leaderboard(
        data,
        config=config,
        seed=seed,
        model=model,
        train_many=bench.timed(bench.train_many()),
        unlearn_from=_Timed(bench),
        evaluate=bench.timed(bench.evaluate()),
        ensemble_if_any=ensemble,
        clock=time.perf_counter,
    )
    return time.process_time() - start, bench.spent, tables


def rows(o: argparse.Namespace) -> Iterator[Row]:
    seconds, spent, tables = measure(LeaderboardConfig(seeds=o.seeds, tuning_runs=o.tries), o.seed)
    board = tables["leaderboard"]
    yield Row(NAME, f"leaderboard, {o.seeds} runs, {o.tries} tries (CPU s)", seconds, LIMIT)
    yield Row(NAME, "not in training, unlearning and metrics (share)", 1 - spent / seconds, SHARE)
    of_class = board.filter((pl.col("forget_set") == "class") & pl.col("rank").is_not_null())
    nothing = of_class.filter(pl.col("method") == "none")
    best = of_class.filter(pl.col("method") != "none").sort("avg_gap").row(0, named=True)
    yield Row(NAME, "class: best gap / gap of doing nothing", best["avg_gap"] / nothing["avg_gap"].item(), 0.5)
    floor = nothing["gap_floor"].item()
    yield Row(NAME, "class: gap of a second retraining / upper end of the best gap", floor / best["avg_gap_high"], 1.0)
    if not o.json:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160):
            shown = board.filter(pl.col("rank").is_not_null()).sort("forget_set", "rank")
            print(shown.select("forget_set", "rank", "method", "groups", "avg_gap", "gap_floor", "tuned", "rte"))


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tries", type=int, default=2)
    o = parser.parse_args()
    torch.set_num_threads(1)
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
