"""Declarations and frames that the tests of this package share."""

from __future__ import annotations

from typing import Any

import polars as pl

from contracts.methods import EXAMPLE_ID, Call, ScoreSpec
from contracts.tables import Column, TableSpec

EL2N = ScoreSpec(
    name="el2n",
    doc="a score",
    value="el2n",
    stderr="spread",
    higher_means="harder",
    calls=Call("hard"),
    columns=(
        Column(name="el2n", dtype="float64", low=0, high=1.5, doc="the score", unit="1", direction="higher = harder"),
        Column(name="spread", dtype="float64", nullable=True, doc="its standard error"),
        Column(name="wall_s", dtype="float64", doc="time", volatile=True),
    ),
)

EVERYTHING = TableSpec(
    schema="test",
    name="everything",
    doc="Every type.",
    key=("example_id", "part"),
    partition=("part",),
    columns=(
        EXAMPLE_ID,
        Column(name="part", dtype="str", doc="partition"),
        Column(name="number", dtype="float64", doc="any finite number", nullable=True),
        Column(name="flag", dtype="bool", doc="yes or no", nullable=True),
        Column(name="text", dtype="str", doc="any text", nullable=True),
        Column(name="at", dtype="timestamp", doc="a moment", nullable=True),
        Column(name="facts", dtype="json", doc="JSON", nullable=True),
        Column(name="kind", dtype="str", doc="one of two", choices=("a", "b")),
        Column(name="shape", dtype="floats", doc="finite numbers", nullable=True),
    ),
)

COMMON: dict[str, Any] = {"subject": "digits", "run_id": "run-1", "config_digest": "c" * 64}


def score_frame(ids: list[int], *, base: float = 0.1) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": ids,
            "el2n": [base + (i % 10) / 10 for i in ids],
            "spread": [None if i % 3 else 0.01 for i in ids],
            "wall_s": [1.0] * len(ids),
        },
        schema={"example_id": pl.Int64, "el2n": pl.Float64, "spread": pl.Float64, "wall_s": pl.Float64},
    )


def score_run(name: str = "el2n", *, passed: bool = True, reason: str = "") -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "score": name,
                "num_examples": 3,
                "passed": passed,
                "reason": reason,
                "higher_means": "harder",
                "wall_s": 1.0,
            }
        ]
    )
