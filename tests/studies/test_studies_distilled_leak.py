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
from curation.distilled.evaluation import CORESETS
from palimpsest.testing.worlds import images
from recipes.design import balanced_design
from sources.example_set import ExampleSet
from studies.distilled_leak import DRAWN, KINDS, MEMBERS, REST, DistilledLeakConfig, judge_distilled_leak, leak

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


def planted(
    data: ExampleSet, shift: dict[str, float], *, kind: str = "distilled", known: float = 0.0, runs: int = RUNS
) -> pl.DataFrame:
    """The table of networks of ``kind`` whose loss is lower by ``shift`` for members of each group of their own set, of
    random halves; and lower by ``known`` for all members in networks trained on the halves, and for the initial images
    in networks trained on these. Every kind is drawn from other members."""
    rng = np.random.default_rng(0)
    pool = data.split == "train"
    keep = np.zeros((runs, len(data)), bool)
    keep[:, pool] = balanced_design(runs, int(pool.sum()), seed=1)
    drawn = {name: keep & (rng.random(keep.shape) < 0.3) for name in KINDS}
    readings = {}
    for name in KINDS:
        loss = 2 + 0.1 * rng.normal(size=keep.shape)
        if name == kind:
            loss -= shift[DRAWN] * drawn[name] + shift[REST] * (keep & ~drawn[name])
        if name == "half":
            loss -= known * keep
        if name == "initial":
            loss -= known * drawn[name]
        readings[name] = np.stack([loss, -loss, -loss, np.full_like(loss, 0.5)], axis=2)
    config = DistilledLeakConfig(runs=runs, attacks=("loss",))
    return leak(data, pool, keep, drawn, readings, config, 0)


@pytest.mark.parametrize("kind", ["distilled", "random", "herding"])
def test_only_the_group_that_shows_is_found(data: ExampleSet, kind: str) -> None:
    """Each kind by what its own set was drawn from: another's would have no AUC of 1."""
    table = planted(data, {DRAWN: 1.0, REST: 0.0}, kind=kind)
    auc = {(r["trained_on"], r["group"]): r for r in table.iter_rows(named=True)}
    assert auc[kind, DRAWN]["auc"] > 0.999
    assert auc[kind, REST]["auc_lo"] < 0.5 < auc[kind, REST]["auc_hi"]
    assert 0.55 < auc[kind, MEMBERS]["auc"] < 0.8, "three members in ten show"
    for other in set(KINDS) - {kind}:
        for group in (MEMBERS, DRAWN, REST):
            assert auc[other, group]["auc_lo"] < 0.5 < auc[other, group]["auc_hi"], "nothing was planted there"
    members, first, rest = (auc[kind, g]["num_members"] for g in (MEMBERS, DRAWN, REST))
    assert members == pytest.approx(first + rest) == pytest.approx((data.split == "train").sum() / 2)


@pytest.mark.parametrize(
    ("shift", "known", "verdicts"),
    [
        ((0.2, 0.2), 0.2, (Verdict.FAIL, Verdict.FAIL)),
        ((0.0, 0.0), 0.2, (Verdict.PASS, Verdict.PASS)),
        ((0.2, 0.0), 0.2, (Verdict.INCONCLUSIVE, Verdict.FAIL)),  # few stand out: an average over all hides it
        ((0.0, 0.0), 0.0, (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)),  # an attack without power clears nobody
        ((0.2, 0.2), 0.0, (Verdict.FAIL, Verdict.FAIL)),
    ],
)
def test_findings_are_of_all_members_and_of_those_started_from(
    data: ExampleSet, shift: tuple[float, float], known: float, verdicts: tuple[Verdict, Verdict]
) -> None:
    table = planted(data, dict(zip((DRAWN, REST), shift, strict=True)), known=known, runs=16)
    found = judge_distilled_leak({"distilled_leak": table}, Thresholds(max_auc=0.65))
    assert [about for about, _ in found] == ["distilled sets", "what distilled images started from"]
    assert tuple(finding.verdict for _, finding in found) == verdicts
    for (_, finding), group in zip(found, (MEMBERS, DRAWN), strict=True):
        assert finding.what == "distilled_leak/loss" and not finding.judged
        for kind in ("distilled", "random", "half"):
            [row] = table.filter(trained_on=kind, group=group).to_dicts()
            assert f"{row['auc']:.3f} ({row['auc_lo']:.3f} to {row['auc_hi']:.3f})" in finding.sentence
        [own] = table.filter(trained_on="distilled", group=group).to_dicts()
        assert (finding.value, finding.low, finding.high) == (own["auc"], own["auc_lo"], own["auc_hi"])
        assert ("no power" in finding.sentence) == (finding.verdict is Verdict.INCONCLUSIVE and known == 0)


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
    for kind in ("initial", "random", *CORESETS):
        assert auc[kind, DRAWN] > 0.7 > auc[kind, REST], kind
    assert auc["half", MEMBERS] > 0.55
    assert set(found.filter((pl.col("trained_on") != "half") & (pl.col("group") == DRAWN))["num_members"]) == {6.0}
    first = {kind: store.held["half-0"][0][f"{kind}/rows"] for kind in KINDS}
    assert all(data.y[rows].tolist() == [0, 0, 1, 1, 2, 2] and len(set(rows.tolist())) == 6 for rows in first.values())
    assert first["initial"].tolist() == first["distilled"].tolist() == first["half"].tolist()
    others = {tuple(sorted(first[kind].tolist())) for kind in ("initial", "random", *CORESETS)}
    assert len(others) == 5, "each chooses others"
    assert store.saves == RUNS
    del store.held["half-3"]
    again = run(data, config=config, seed=0, progress=silent, checkpoints=store)["distilled_leak"]
    assert again.equals(found) and store.saves == RUNS + 1


def test_an_odd_number_of_halves_is_refused() -> None:
    with pytest.raises(ConfigError, match="runs = 5 must be even"):
        DistilledLeakConfig(runs=5)
