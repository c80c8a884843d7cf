"""Concept poisoning: which examples and labels, against loops; the fine-tuning against a naive one; what it removes."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from explain.concepts import Concepts
from explain.embeddings import embeddings
from recipes.predict import predict_logits
from sources.example_set import ExampleSet
from unlearning.concept_poisoning import ConceptPoisoningConfig, _random_other, choose_poison, concept_poisoning

GROUPS = {"first": ["a", "b"], "second": ["b", "c"], "third": ["d"]}


@pytest.fixture(scope="module")
def by_class(world) -> dict[str, ExampleSet]:
    """Class c is to be forgotten."""
    ids = np.concatenate([world.retain.example_id, world.forget.example_id])
    y = np.concatenate([world.retain.y, world.forget.y])
    everything = joined(world)
    return {"retain": everything.subset(ids[y != 2]), "forget": everything.subset(ids[y == 2])}


def joined(world) -> ExampleSet:
    """The training examples again."""
    columns = ("y", "example_id", "split", "owner", "content_hash")
    parts = world.retain, world.forget
    return dataclasses.replace(
        world.retain,
        x=np.concatenate([np.asarray(p.x[np.arange(len(p))]) for p in parts]),
        **{c: np.concatenate([getattr(p, c) for p in parts]) for c in columns},
    )


def concepts_of(world, sets: dict[str, ExampleSet], config: ConceptPoisoningConfig, *, seed: int) -> Concepts:
    both = joined(world).subset(np.sort(np.concatenate([s.example_id for s in sets.values()])))
    return Concepts.from_features(
        embeddings(world.model, both), both.y, both.example_id, class_names=both.class_names, config=config, seed=seed
    )


def accuracy(model: nn.Module, data: ExampleSet) -> float:
    return float((predict_logits(model, data).argmax(1) == data.y).mean())


# ---- labels ------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 6), min_size=2), st.integers(0, 2**32))
def test_random_labels_are_uniform_over_the_other_retained_classes(labels: set[int], seed: int) -> None:
    kept = np.array(sorted(labels))
    own = np.tile(np.arange(8), 600)
    drawn = _random_other(own, kept, seed=seed, draw=0)
    assert not np.array_equal(drawn, _random_other(own, kept, seed=seed, draw=1)) or len(kept) == 2
    for c in range(8):
        allowed = kept[kept != c]
        values, counts = np.unique(drawn[own == c], return_counts=True)
        assert set(values) <= set(allowed)
        expected = 600 / len(allowed)
        assert len(values) == len(allowed) and (np.abs(counts - expected) < 6 * np.sqrt(expected) + 1).all()


@pytest.mark.parametrize("labels", ["random", "targeted", "runner_up"])
@pytest.mark.parametrize("which", ["a class", "a part"])
def test_no_poisoned_label_is_the_true_one_or_of_a_class_that_is_not_retained(world, by_class, labels, which) -> None:
    sets = by_class if which == "a class" else world.sets
    poison = choose_poison(world.model, **sets, config=ConceptPoisoningConfig(labels=labels), seed=1)
    assert poison.example_id.tolist() == sorted(sets["forget"].example_id.tolist())
    own = sets["forget"].y[sets["forget"].positions(poison.example_id)]
    assert (poison.labels != own).all() and set(poison.labels) <= set(sets["retain"].y)


def test_runner_up_is_the_best_other_retained_class_of_each_example(world, by_class) -> None:
    for sets in (world.sets, by_class):
        poison = choose_poison(world.model, **sets, config=ConceptPoisoningConfig(labels="runner_up"), seed=1)
        logits = predict_logits(world.model, sets["forget"].subset(poison.example_id))
        own = sets["forget"].y[sets["forget"].positions(poison.example_id)]
        kept = set(sets["retain"].y.tolist())
        for row, y, label in zip(logits, own, poison.labels, strict=True):
            assert label == max(kept - {int(y)}, key=lambda k: row[k])


def test_targeted_is_the_class_with_the_most_parallel_mean_projection(world, by_class) -> None:
    for sets in (world.sets, by_class):
        config = ConceptPoisoningConfig(labels="targeted", concepts=GROUPS)
        poison = choose_poison(world.model, **sets, config=config, seed=1)
        found = concepts_of(world, sets, config, seed=1)
        z = (found.projections - found.projections.mean(0)) / found.projections.std(0)
        means = np.array([z[found.labels == c].mean(0) for c in range(4)])
        own = sets["forget"].y[sets["forget"].positions(poison.example_id)]
        kept = set(sets["retain"].y.tolist())
        for y, label in zip(own, poison.labels, strict=True):
            cosine = {
                j: means[y] @ means[j] / np.linalg.norm(means[y]) / np.linalg.norm(means[j]) for j in kept - {int(y)}
            }
            assert label == max(cosine, key=cosine.__getitem__)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.99])
def test_a_fraction_is_the_strongest_of_each_class(world, by_class, fraction: float) -> None:
    for sets in (world.sets, by_class):
        config = ConceptPoisoningConfig(fraction=fraction, concepts=GROUPS)
        poison = choose_poison(world.model, **sets, config=config, seed=1)
        found = concepts_of(world, sets, config, seed=1)
        forget = sets["forget"].by_id()
        z = found.bank.project(embeddings(world.model, forget))
        each = found.head.attributions(z, baseline=found.baseline, target=forget.y)
        carried = (each * found.classes.in_set[forget.y]).sum(1)
        expected: list[int] = []
        for c in np.unique(forget.y):
            rows = np.flatnonzero(forget.y == c)
            most = int(np.ceil(fraction * len(rows)))
            expected += forget.example_id[sorted(rows, key=lambda i: -carried[i])[:most]].tolist()
        assert poison.example_id.tolist() == sorted(expected)


# ---- fine-tuning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redraw", [False, True])
def test_the_fine_tuning_equals_a_naive_loop_with_retained_labels_untouched(world, flat, redraw: bool) -> None:
    config = ConceptPoisoningConfig(steps=7, batch_size=20, lr=0.05, weight_decay=0.01, retain_ratio=1.5, redraw=redraw)
    got = concept_poisoning(world.model, **world.sets, config=config, seed=3)
    truth = joined(world)
    gone = np.sort(world.forget.example_id)
    order = torch.Generator().manual_seed(derive_seed("concept_poisoning", "order", 3))
    model = copy.deepcopy(world.model)
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    step, number = 0, 0
    while step < 7:
        draw = number if redraw else 0
        labels = _random_other(world.forget.y[world.forget.positions(gone)], np.arange(4), seed=3, draw=draw)
        rng = np.random.default_rng(derive_seed("concept_poisoning", "retain", 3, draw))
        kept = np.sort(rng.choice(np.sort(world.retain.example_id), 36, replace=False))
        ids = np.concatenate([gone, kept])
        x, y = truth.inputs(truth.positions(ids)), np.concatenate([labels, truth.y[truth.positions(kept)]])
        for rows in torch.randperm(60, generator=order).split(20):
            total = sum(F.cross_entropy(model(torch.from_numpy(x[i : i + 1])), torch.tensor([y[i]])) for i in rows)
            grads = torch.autograd.grad(total / 20, list(model.parameters()))
            with torch.no_grad():
                for p, v, g in zip(model.parameters(), velocity, grads, strict=True):
                    v.mul_(0.9).add_(g + 0.01 * p)
                    p.sub_(0.05 * v)
            step += 1
            if step == 7:
                break
        number += 1
    torch.testing.assert_close(flat(got), flat(model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(flat(got), flat(world.model), atol=1e-3)


@pytest.mark.parametrize("labels", ["random", "targeted", "runner_up"])
def test_a_class_is_gone_and_the_others_stay(world, by_class, labels: str) -> None:
    test = world.test
    gone, kept = (test.subset(test.example_id[mask]) for mask in (test.y == 2, test.y != 2))
    before = accuracy(world.model, gone), accuracy(world.model, kept)
    for seed in range(3):
        config = ConceptPoisoningConfig(labels=labels, lr=0.05, batch_size=32)
        model = concept_poisoning(world.model, **by_class, config=config, seed=seed)
        assert before[0] > 0.8 and accuracy(model, gone) <= 0.1
        assert accuracy(model, kept) >= before[1] - 0.12
        assert not model.training


def test_the_budget_and_the_early_stop(world, by_class, flat) -> None:
    def run(**fields) -> tuple[nn.Module, int]:
        done: list[int] = []
        model = concept_poisoning(
            world.model,
            **by_class,
            config=ConceptPoisoningConfig(lr=0.05, **fields),
            seed=0,
            progress=lambda step, total, what: done.append(step),
        )
        assert done == list(range(1, len(done) + 1))
        return model, len(done)

    assert run(steps=13)[1] == 13
    untouched, steps = run(steps=0)
    assert steps == 0 and torch.equal(flat(untouched), flat(world.model))
    stopped, steps = run(steps=500, stop_accuracy=0.05, check_every=4)
    assert steps < 500 and steps % 4 == 0
    assert accuracy(stopped, by_class["forget"]) < 0.05
    earlier, _ = run(steps=steps - 4)
    assert accuracy(earlier, by_class["forget"]) >= 0.05, "it stops at the first look that allows it"


def test_nothing_to_forget_changes_nothing(world, flat) -> None:
    sets = {"retain": world.retain, "forget": world.forget.subset([])}
    model = concept_poisoning(world.model, **sets, config=ConceptPoisoningConfig(), seed=0)
    assert model is not world.model and torch.equal(flat(model), flat(world.model))


# ---- refusals ----------------------------------------------------------------------------------------------------


def test_refusals(world, by_class) -> None:
    def run(model: nn.Module = world.model, **given):
        fields = {k: given.pop(k) for k in list(given) if k not in ("retain", "forget")}
        sets = {**by_class, **given}
        return concept_poisoning(model, **sets, config=ConceptPoisoningConfig.from_mapping(fields), seed=0)

    only = world.retain.subset(world.retain.example_id[world.retain.y == 1])
    with pytest.raises(NotApplicable, match="no other retained class to be taught; retained: b"):
        run(retain=only, forget=world.forget)
    with pytest.raises(DataError, match="twice"):
        run(retain=by_class["forget"])
    with pytest.raises(ConfigError, match="no class 'e'"):
        run(concepts={"first": ["e"]}, labels="targeted")
    dead = copy.deepcopy(world.model)
    first = next(m for m in dead.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        first.weight.zero_()
        first.bias.fill_(1.0)
    with pytest.raises(DataError, match="no concept can be found"):
        run(dead, fraction=0.5)
    with pytest.raises(Diverged, match="the best constant answer"):
        run(lr=0.5, weight_decay=1.0, momentum=0.0, steps=100)
