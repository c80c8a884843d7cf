"""Attribution and value from the plan to stored tables and the report."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from recorded_state import PLAN, run

from contracts.subject import Subject

pytestmark = pytest.mark.journey


def test_a_plan_lists_them_and_its_report_shows_them(tmp_path: Path) -> None:
    source = {"name": "sklearn", "config": {"dataset": "digits", "test_fraction": 0.85}}
    small = {"dim": 64, "models": 2, "targets": 6}
    plan = Subject.from_mapping(
        PLAN
        | {
            "subject": "attributed",
            "source": source,
            "ensemble": {"num_models": 8, "block": 8, "pool_size": 200},
            "scores": ["knn_shapley"],
            "attacks": [],
            "analyses": [{"name": "trak", "config": small}, {"name": "lds", "config": small}],
        }
    )
    w = run(tmp_path / "state", plan)
    values = w.query("SELECT * FROM scores.knn_shapley")
    trained = w.query("SELECT count(*) AS n FROM data.examples WHERE split = 'train'")["n"][0]
    assert values.height == w.latest_score("attributed", "knn_shapley").height == trained
    pairs = w.query("SELECT * FROM scores.trak_pairs")
    assert pairs.height == 6 * 2 * 5 and pairs.filter(pl.col("kind") == "helps")["influence"].min() > 0
    judged = w.query("SELECT * FROM studies.lds")
    assert set(judged["method"]) == {"trak", "gradient_dot", "influence", "margin", "random"}
    page = w.artifacts.load_bytes("attributed/reports/audit.html").decode()
    assert "How well attributions predict training on other subsets" in page
