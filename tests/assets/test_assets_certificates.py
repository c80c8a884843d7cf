"""A certificate says what counted, and never more than its report."""

from __future__ import annotations

import polars as pl
import pytest

from assets.certificates import POWER, judged_findings
from contracts.verdicts import Verdict, overall

ROW = {
    "what": "gap",
    "kind": "distance",
    "sentence": "so it is",
    "value": 1.0,
    "low": 0.5,
    "high": 1.5,
    "threshold": 5.0,
}


@pytest.mark.parametrize(
    ("found", "told", "more"),
    [
        (["pass", "pass"], "pass", []),
        (["pass", "pass"], "inconclusive", [POWER]),  # no attack caught the untouched model
        (["pass", "fail"], "fail", []),
        (["pass", "inconclusive"], "inconclusive", []),
        ([], "not judged", []),
    ],
)
def test_it_never_says_more_than_the_report(found: list[str], told: str, more: list[str]) -> None:
    rows = pl.DataFrame([{**ROW, "what": f"w{i}", "verdict": verdict} for i, verdict in enumerate(found)] or [ROW])
    judged = judged_findings(rows.head(len(found)), told=told, why="no attack caught it")
    assert [f.what for f in judged] == [f"w{i}" for i in range(len(found))] + more
    assert not found or overall(Verdict(f.verdict) for f in judged).value == told
    assert all(f.sentence == "no attack caught it" for f in judged if f.what == POWER)
