"""Forgetting events: against a plain loop over a planted history, and over real runs of the recipe."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scoring_data import make_examples

from contracts.digests import derive_seed
from contracts.errors import DataError, NotApplicable
from contracts.methods import curator, score
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised
from scoring.forgetting import ForgettingConfig, ForgettingEvents, forgetting

RECIPE = SupervisedConfig(lr=0.1, epochs=6, batch=10)


def recipe_train(data, seed, *, effort=1.0, observe=None):
    build = builder("mlp", {"hidden": (5,)}, input_shape=data.input_shape, num_outputs=data.num_classes)
    config = dataclasses.replace(RECIPE, epochs=round(RECIPE.epochs * effort))
    return supervised(build, data, config=config, seed=seed, observe=observe)


def planted(history):
    """A recipe whose answers are laid down: history (R, T, N) bool, right or wrong at every presentation."""
    history, run = np.asarray(history), iter(range(len(history)))

    def train(data, seed, *, effort=1.0, observe=None):
        rng = np.random.default_rng(seed)
        y = torch.from_numpy(data.y)
        for right in history[next(run)]:
            order = torch.from_numpy(rng.permutation(len(data)))
            for rows in order.split(4):
                answer = torch.where(torch.from_numpy(right)[rows], y[rows], (y[rows] + 1) % data.num_classes)
                observe(rows, torch.nn.functional.one_hot(answer, data.num_classes).float())

    return train


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 7))
def test_counts_equal_a_plain_loop(seed, runs, presentations):
    num = 11
    rng = np.random.default_rng(seed)
    data = make_examples(
        np.zeros((num, 2), np.float32), rng.integers(0, 3, num), num_classes=3, ids=rng.permutation(99)[:num]
    )
    history = rng.random((runs, presentations, num)) < rng.choice([0.1, 0.5, 0.9])
    found = forgetting(data, config=ForgettingConfig(seeds=runs), seed=0, train=planted(history))
    assert found["example_id"].to_list() == data.example_id.tolist()
    by_id = {row["example_id"]: row for row in found.iter_rows(named=True)}
    for position, example in enumerate(sorted(data.example_id.tolist())):  # the runs see the examples ordered by id
        events, first, never, hardness = [], [], 0, []
        for run in history[:, :, position].tolist():
            if True not in run:
                never += 1
                hardness.append(presentations)
                continue
            events.append(sum(a and not b for a, b in itertools.pairwise(run)))
            first.append(run.index(True) + 1)
            hardness.append(events[-1])
        row = by_id[example]
        assert row["hardness"] == pytest.approx(np.mean(hardness))
        if runs > 1:
            assert row["hardness_stderr"] == pytest.approx(np.std(hardness, ddof=1) / runs**0.5, abs=1e-12)
        else:
            assert row["hardness_stderr"] is None
        assert row["never_correct"] == (never == runs) and row["n_seeds"] == runs
        assert row["never_correct_share"] == pytest.approx(never / runs)
        if not events:
            assert row["forgetting"] is None and row["first_learned"] is None and row["forgetting_std"] is None
            continue
        assert row["forgetting"] == pytest.approx(np.mean(events))
        assert row["first_learned"] == pytest.approx(np.mean(first))
        if len(events) > 1:
            assert row["forgetting_std"] == pytest.approx(np.std(events, ddof=1), abs=1e-12)
            assert row["forgetting_stderr"] == pytest.approx(np.std(events, ddof=1) / len(events) ** 0.5, abs=1e-12)
        else:
            assert row["forgetting_std"] is None and row["forgetting_stderr"] is None


def test_a_real_run_against_its_own_log(examples):
    """Every mini-batch of the recipe is logged whole; the events are then counted example by example."""
    ordered = examples.by_id()
    log = []
    recipe_train(
        ordered,
        derive_seed("forgetting", 4, 0) % 2**31,
        observe=lambda rows, logits: log.append((rows.tolist(), logits.argmax(1).tolist())),
    )
    answers: dict[int, list[int]] = {i: [] for i in range(len(ordered))}
    for rows, predicted in log:
        for row, answer in zip(rows, predicted, strict=True):
            answers[row].append(answer == ordered.y[row])
    assert {len(a) for a in answers.values()} == {RECIPE.epochs}
    found = forgetting(examples, config=ForgettingConfig(seeds=1), seed=4, train=recipe_train).sort("example_id")
    want = [sum(p and not q for p, q in itertools.pairwise(a)) if any(a) else None for a in answers.values()]
    assert found["forgetting"].to_list() == want
    assert sum(w or 0 for w in want) > 0, "nothing was forgotten: the test shows nothing"


def test_every_run_has_a_seed_of_its_own(examples):
    """Runs with one seed are one run: its events would be averaged with themselves, and their spread would be 0."""
    seeds = []

    def train(data, seed, *, effort=1.0, observe=None):
        seeds.append(seed)
        return recipe_train(data, seed, effort=effort, observe=observe)

    found = forgetting(examples, config=ForgettingConfig(seeds=4), seed=3, train=train)
    assert len(set(seeds)) == 4 and (found["hardness_stderr"] > 0).mean() > 0.25
    again = len(seeds)
    forgetting(examples, config=ForgettingConfig(seeds=4), seed=8, train=train)
    assert not set(seeds[:again]) & set(seeds[again:]), "another root seed, other runs"


def test_noisy_labels_are_learnt_late_and_forgotten_more():
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = (2.0 * (2 * y - 1)[:, None] + rng.normal(size=(200, 8))).astype(np.float32)
    flipped = np.zeros(200, bool)
    flipped[rng.permutation(200)[:20]] = True
    data = make_examples(x, np.where(flipped, 1 - y, y), num_classes=2)
    found = forgetting(data, config=ForgettingConfig(seeds=3), seed=1, train=recipe_train)
    share = found["never_correct_share"].to_numpy()
    assert share[flipped].mean() > 0.5 and share[~flipped].mean() < 0.05


def test_what_is_never_learnt_is_the_hardest_of_the_stored_values_and_is_taken_by_its_readers():
    """Three runs of five presentations: 0 never learnt, 1 in one run only, 2 forgotten twice in each, 3 always
    right."""
    never, always, twice = [False] * 5, [True] * 5, [True, False, True, False, True]
    history = np.array([[never, always if r == 0 else never, twice, always] for r in range(3)]).transpose(0, 2, 1)
    data = make_examples(
        np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]), num_classes=2, ids=np.array([3, 5, 7, 9])
    )
    found = forgetting(data, config=ForgettingConfig(seeds=3), seed=0, train=planted(history))
    assert found["hardness"].to_list() == pytest.approx([5, 10 / 3, 2, 0])
    spec = score.get("forgetting").spec
    assert (spec.value, spec.stderr, spec.version) == ("hardness", "hardness_stderr", 2)
    values = found.select("example_id", value=spec.value)
    for name, config, roles in (
        ("top_score", {"count": 2}, {"forget"}),
        ("keep_hardest", {"count": 2}, {"keep"}),
    ):
        method = curator.get(name)
        plan = method.spec.config(score="forgetting", **config)
        members = method(data, config=plan, seed=0, scores=lambda name: values)
        assert set(members.filter(pl.col("role").is_in(roles))["example_id"]) == {3, 5}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused_by_id(examples, value):
    def train(data, seed, *, effort=1.0, observe=None):
        for epoch in range(2):
            logits = torch.zeros(len(data), data.num_classes)
            if epoch == 0:  # what comes later does not hide it
                logits[[2, 5], 1] = value
            observe(torch.arange(len(data)), logits)

    with pytest.raises(DataError, match="NaN or infinite logits") as error:
        forgetting(examples, config=ForgettingConfig(seeds=1), seed=0, train=train)
    assert error.value.example_ids == tuple(np.sort(examples.example_id)[[2, 5]].tolist())


def test_the_order_of_rows_does_not_matter_and_effort_lengthens_runs(examples):
    config = ForgettingConfig(seeds=2)
    whole = forgetting(examples, config=config, seed=3, train=recipe_train)
    mixed = examples.subset(np.random.default_rng(1).permutation(examples.example_id))
    again = forgetting(mixed, config=config, seed=3, train=recipe_train)
    assert again["example_id"].to_list() == mixed.example_id.tolist()
    assert_frame_equal(whole.sort("example_id"), again.sort("example_id"), check_exact=True)
    short = forgetting(examples, config=ForgettingConfig(seeds=2, effort=0.5), seed=3, train=recipe_train)
    assert short["first_learned"].max() <= 3 and whole["first_learned"].max() <= 6
    assert not whole.equals(forgetting(examples, config=config, seed=5, train=recipe_train))


def test_progress_and_schema(examples):
    told = []
    found = forgetting(
        examples, config=ForgettingConfig(seeds=2), seed=0, train=recipe_train, progress=lambda *a: told.append(a)
    )
    assert told == [(1, 2, "runs observed"), (2, 2, "runs observed")]
    assert found.schema["never_correct"] == pl.Boolean and found.schema["forgetting"] == pl.Float64


def test_refusals(examples, regression):
    def run(data, train=recipe_train):
        return forgetting(data, config=ForgettingConfig(), seed=0, train=train)

    with pytest.raises(NotApplicable, match="regression"):
        run(regression)
    with pytest.raises(NotApplicable, match="observe"):
        run(examples, lambda data, seed, *, effort, observe: None)
    with pytest.raises(DataError, match="never drew") as error:
        run(examples, lambda data, seed, *, effort, observe: observe(torch.arange(36), torch.zeros(36, 4)))
    assert error.value.example_ids == (int(examples.example_id.max()),)
    with pytest.raises(DataError):
        run(dataclasses.replace(examples, example_id=np.zeros(37, np.int64)))
    with pytest.raises(DataError, match="no example"):
        run(examples.subset([]))


def test_the_observer_counts_repeated_presentations_across_batches():
    events = ForgettingEvents(np.zeros(3, np.int64))
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for rows, logits in ((0, right), (1, wrong), (0, wrong), (0, right), (1, right), (0, wrong)):
        events(torch.tensor([rows]), logits)
    assert (
        events.count.tolist() == [2, 0, 0] and events.first.tolist() == [1, 2, 0] and events.seen.tolist() == [4, 2, 0]
    )
