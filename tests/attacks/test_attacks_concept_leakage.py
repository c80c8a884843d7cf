"""Concept leakage: probes on planted embeddings, controls, head swaps, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from shadow_world import Subject, gaussians

from attacks.concept_leakage import ConceptLeakageConfig, concept_leakage
from attacks.concept_probes import paired_difference
from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from recipes.predict import predict_logits
from sources.example_set import ExampleSet
from stats import clopper_pearson, mcnemar

CONCEPTS = {"warm": ["a", "b"], "first": [0]}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(gaussians(400, classes=4, spread=0.6))


def mute(model: Any, **_: Any) -> Any:
    """The method that only suppresses the output of the last class."""
    muted = copy.deepcopy(model)
    with torch.no_grad():
        muted.head.bias[-1] = -1e3
    return muted


def blank(model: Any, **_: Any) -> Any:
    """Embeddings that are the same for everybody."""
    gone = copy.deepcopy(model)
    with torch.no_grad():
        for p in gone.hidden.parameters():
            p.zero_()
    return gone


def run(subject: Subject, *, data: ExampleSet | None = None, seed: int = 0, **config: Any) -> dict[str, pl.DataFrame]:
    data = data or subject.data
    model = subject.train(subject.data.part("train"), 1)
    return concept_leakage(
        data,
        config=ConceptLeakageConfig.from_mapping({"concepts": CONCEPTS, "methods": ["no-op"], **config}),
        seed=seed,
        model=model,
        unlearn=lambda name, **given: subject.unlearn_from(model, name, **given),
    )


def row(frame: pl.DataFrame, **key: str) -> dict[str, Any]:
    return frame.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in key.items()), named=True)


def test_a_probe_reads_what_is_there_and_not_what_is_not(subject: Subject) -> None:
    subject.unlearners |= {"mute": mute, "blank": blank}
    found = run(subject, methods=["mute", "blank"])["concept_leakage"]
    assert found["concept"].unique(maintain_order=True).to_list() == ["forgotten", "warm", "first"]
    for concept in ("forgotten", "warm", "first"):
        original = row(found, method="none", concept=concept)
        assert original["leak_lo"] > 0.7 and original["control_lo"] < 0.5 < original["control_hi"] + 0.05
        assert (
            row(found, method="mute", concept=concept)["leak"] == original["leak"]
        )  # its embeddings are the original's
        nothing = row(found, method="blank", concept=concept)
        assert nothing["leak"] == 0.5 and nothing["excess"] < -0.2 and nothing["p_value"] < 0.01
    retrained = row(found, method="retrain", concept="forgotten")
    assert retrained["excess"] is None and retrained["leak"] > 0.7  # a class is readable from a model that never saw it


def test_the_head_swap_tells_muting_from_unlearning(subject: Subject) -> None:
    subject.unlearners["mute"] = mute
    frame = run(subject, methods=["mute"])["concept_head_swap"]
    original, muted, retrained = (row(frame, method=m) for m in ("none", "mute", "retrain"))
    assert muted["own_forget_acc"] == 0.0 and retrained["own_forget_acc"] == 0.0
    assert muted["swapped_forget_acc"] == original["own_forget_acc"] > 0.8
    test = subject.data.part("test")
    right = predict_logits(subject.train(subject.data.part("train"), 1), test).argmax(axis=1) == test.y
    assert original["own_retain_acc"] == pytest.approx(right[test.y != 3].mean())
    low, high = clopper_pearson(right[test.y == 3].sum(), (test.y == 3).sum())
    assert (original["own_forget_acc_lo"], original["own_forget_acc_hi"]) == (float(low), float(high))


def test_a_method_that_does_nothing_is_row_for_row_the_original(subject: Subject) -> None:
    for frame in run(subject).values():
        none, noop = (frame.filter(pl.col("method") == m).drop("method") for m in ("none", "no-op"))
        assert none.equals(noop)


def test_unlearners_see_training_examples_of_the_classes_and_nothing_else(subject: Subject) -> None:
    seen: list[tuple[ExampleSet, ExampleSet]] = []

    def spy(model: Any, *, retain: ExampleSet, forget: ExampleSet, **_: Any) -> Any:
        seen.append((retain, forget))
        return model

    subject.unlearners["spy"] = spy
    run(subject, methods=["spy"], forget=["b", 2])
    retain, forget = seen[0]
    train = subject.data.part("train")
    assert set(forget.y) == {1, 2} and set(retain.y) == {0, 3} and len(retain) + len(forget) == len(train)
    assert (retain.split == "train").all() and (forget.split == "train").all()


def test_clusters_stand_in_for_names_and_rows_may_be_in_any_order(subject: Subject) -> None:
    first = run(subject, concepts={}, num_concepts=3)
    concepts = first["concept_leakage"]["concept"].unique(maintain_order=True).to_list()
    assert concepts[0] == "forgotten" and len(concepts) >= 2 and all(c.startswith("c_") for c in concepts[1:])
    mixed = subject.data.subset(np.random.default_rng(0).permutation(subject.data.example_id))
    second = run(subject, data=mixed, concepts={}, num_concepts=3)
    assert all(first[name].equals(second[name]) for name in first)


def test_the_control_is_a_coin_over_many_draws(subject: Subject) -> None:
    controls = [run(subject, seed=s, methods=[])["concept_leakage"]["control"].mean() for s in range(6)]
    assert abs(np.mean(controls) - 0.5) < 0.04


def test_paired_difference_covers_and_agrees_with_mcnemar() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(500):
        u = rng.random(60)
        a, b = u < 0.8, (u < 0.65) | (u > 0.95)  # P[a] - P[b] = 0.15 - 0.05
        value, low, high = paired_difference(a, b, alpha=0.05)
        assert low <= value <= high and value == pytest.approx(a.mean() - b.mean())
        covered.append(low <= 0.1 <= high)
        if mcnemar(a, b) < 0.01:
            assert low > 0 or high < 0
    assert np.mean(covered) >= 0.94
    same = rng.random(50) < 0.5
    value, low, high = paired_difference(same, same, alpha=0.05)
    assert value == 0 and low == -high and 0 < high < 0.12


def test_divergence_is_a_row_and_what_does_not_apply_is_refused(subject: Subject) -> None:
    def unstable(model: Any, **_: Any) -> Any:
        raise Diverged("loss nan")

    subject.unlearners["unstable"] = unstable
    frames = run(subject, methods=["unstable"])
    assert row(frames["concept_leakage"], method="unstable", concept="warm")["leak"] is None
    assert row(frames["concept_head_swap"], method="unstable")["status"] == "diverged"
    data = subject.data
    with pytest.raises(NotApplicable):
        run(subject, data=dataclasses.replace(data, task="regression", y=data.y.astype(float), class_names=()))
    with pytest.raises(NotApplicable, match="nothing to compare"):
        run(subject, forget=[0, 1, 2, 3])
    with pytest.raises(ConfigError, match="no class"):
        run(subject, forget=["z"])
    with pytest.raises(ConfigError, match="forgotten"):
        ConceptLeakageConfig(concepts={"forgotten": [0]})
    few = data.subset(np.concatenate([data.part("train").example_id, data.part("test").example_id[:12]]))
    with pytest.raises(DataError, match="8 each are needed"):
        run(subject, data=few)
