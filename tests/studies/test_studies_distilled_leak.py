"""Membership in what was distilled: planted readings have the AUC that was planted, a small world shows its images."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from contracts.errors import ConfigError
from contracts.methods import analysis
from contracts.progress import silent
from contracts.stores import NoStore
from contracts.subject import Thresholds
from contracts.verdicts import Verdict
from palimpsest.testing.worlds import images
from recipes.design import balanced_design
from sources.example_set import ExampleSet
from studies.distilled_leak import INITIAL, KINDS, MEMBERS, REST, DistilledLeakConfig, judge_distilled_leak, leak

RUNS = 8
SMALL: dict[str, Any] = {
    "runs": RUNS,
    "per_class": 2,
    "width": 8,
    "depth": 2,
    "experts": {"num": 1, "epochs": 25, "batch": 8, "lr": 0.1, "momentum": 0.9, "augment": []},
    "match": {
        "iterations": 2,
        "steps": 3,
        "t_max": 3,
        "lr_img": 1.0,
        "start": "real",
        "threshold": None,
        "augment": [],
    },
    "students": {"epochs": 60, "augment": []},
    "attacks": ["loss"],
}


@pytest.fixture(scope="module")
def data() -> ExampleSet:
    return images().examples.by_id()


def planted(data: ExampleSet, shift: dict[str, float]) -> pl.DataFrame:
    """The table of networks whose loss is lower by ``shift`` for members of each group, of random halves."""
    rng = np.random.default_rng(0)
    pool = data.split == "train"
    keep = np.zeros((RUNS, len(data)), bool)
    keep[:, pool] = balanced_design(RUNS, int(pool.sum()), seed=1)
    held = keep & (rng.random(keep.shape) < 0.3)
    readings = {}
    for kind in KINDS:
        loss = 2 + 0.1 * rng.normal(size=keep.shape)
        if kind == "distilled":
            loss -= shift[INITIAL] * held + shift[REST] * (keep & ~held)
        readings[kind] = np.stack([loss, -loss, -loss, np.full_like(loss, 0.5)], axis=2)
    config = DistilledLeakConfig(runs=RUNS, attacks=("loss",))
    return leak(data, pool, keep, held, readings, config, 0)


def test_only_the_group_that_shows_is_found(data: ExampleSet) -> None:
    table = planted(data, {INITIAL: 1.0, REST: 0.0})
    auc = {(r["trained_on"], r["group"]): r for r in table.iter_rows(named=True)}
    assert auc["distilled", INITIAL]["auc"] > 0.999
    assert auc["distilled", REST]["auc_lo"] < 0.5 < auc["distilled", REST]["auc_hi"]
    assert 0.55 < auc["distilled", MEMBERS]["auc"] < 0.8, "three members in ten show"
    for kind in ("initial", "half"):
        for group in (MEMBERS, INITIAL, REST):
            assert auc[kind, group]["auc_lo"] < 0.5 < auc[kind, group]["auc_hi"], "nothing was planted there"
    members, first, rest = (auc["distilled", g]["num_members"] for g in (MEMBERS, INITIAL, REST))
    assert members == pytest.approx(first + rest) == pytest.approx((data.split == "train").sum() / 2)


def test_the_finding_is_of_all_members_and_for_information(data: ExampleSet) -> None:
    for shift, verdict in (({INITIAL: 1.0, REST: 1.0}, Verdict.FAIL), ({INITIAL: 0.0, REST: 0.0}, Verdict.PASS)):
        limits = Thresholds(max_auc=0.65)
        [(about, finding)] = judge_distilled_leak({"distilled_leak": planted(data, shift)}, limits)
        assert about == "distilled sets" and finding.what == "distilled_leak/loss" and not finding.judged
        assert finding.verdict == verdict and finding.low <= finding.value <= finding.high
        assert f"{finding.value:.3f}" in finding.sentence


def test_networks_show_the_images_that_they_were_trained_on(data: ExampleSet) -> None:
    """Some labels of this world are wrong, to be learnt by heart: networks trained on the initial images know them, and
    not the rest of the half; networks trained on the half know the half. Kept halves are not distilled again."""

    class Store(NoStore):
        def __init__(self) -> None:
            self.held: dict[str, Any] = {}
            self.saves = 0

        def save(self, name, tensors, meta):
            self.held[name] = ({n: np.array(a) for n, a in tensors.items()}, dict(meta))
            self.saves += 1
            return ""

        def load(self, name):
            return self.held.get(name)

    store = Store()
    config = DistilledLeakConfig.from_mapping(SMALL)
    run = analysis.get("distilled_leak")
    found = run(data, config=config, seed=0, progress=silent, checkpoints=store)["distilled_leak"]
    auc = {(r["trained_on"], r["group"]): r["auc"] for r in found.iter_rows(named=True)}
    assert auc["initial", INITIAL] > 0.7 > auc["initial", REST]
    assert auc["half", MEMBERS] > 0.55
    assert found.filter(trained_on="initial", group=INITIAL)["num_members"].to_list() == [6.0]
    assert store.saves == RUNS
    del store.held["half-3"]
    again = run(data, config=config, seed=0, progress=silent, checkpoints=store)["distilled_leak"]
    assert again.equals(found) and store.saves == RUNS + 1


def test_an_odd_number_of_halves_is_refused() -> None:
    with pytest.raises(ConfigError, match="runs = 5 must be even"):
        DistilledLeakConfig(runs=5)
