"""Metrics of runs as rows: what is known, with its bounds, and nothing else."""

from __future__ import annotations

import polars as pl

from assets.unlearning import measured

RUN = {"split": "random", "method": "finetune", "seed": 1, "num_forget": 3, "num_retain": 7, "kind": "random"}
ENDED = {"wall_s": 1.0, "rte": 0.1, "status": "ok", "reason": ""}


def test_a_metric_is_a_row_with_its_bounds_and_an_unknown_one_is_none():
    figures = {"ua": 5.0, "ra": None, "avg_gap": 2.0, "avg_gap_lo": 1.0, "avg_gap_hi": 3.0, "of_another_task": 0.5}
    rows = measured(pl.DataFrame([{**RUN, **figures, **ENDED}]))
    of = {"split": "random", "method": "finetune", "seed": 1}
    assert rows == [
        {**of, "metric": "ua", "value": 5.0, "low": None, "high": None},
        {**of, "metric": "avg_gap", "value": 2.0, "low": 1.0, "high": 3.0},
        {**of, "metric": "of_another_task", "value": 0.5, "low": None, "high": None},
    ]


def test_a_run_of_which_nothing_was_measured_has_no_rows():
    assert measured(pl.DataFrame([{**RUN, **dict.fromkeys(("ua", "avg_gap")), **ENDED}])) == []
