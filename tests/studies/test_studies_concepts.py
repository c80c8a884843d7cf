"""Concepts: planted directions, the optimum of the head, closed-form and brute-force attributions, and the two
registered methods on a world whose concepts are known."""

from __future__ import annotations

import copy
import dataclasses
import sys
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scoring_data import make_examples
from sklearn.metrics import roc_auc_score
from torch import nn

import explain.concepts as shared
from contracts.errors import ConfigError, DataError, InvalidInput, NotApplicable
from explain.concepts import ClassConcepts, ConceptBank, ConceptConfig, PosthocCBM, discover, entropy_of, fit_concepts
from explain.embeddings import embeddings, last_linear
from recipes.models import builder
from scoring.concept_attribution import concept_attribution, concept_input_gradients, concept_integrated_gradients
from sources.example_set import ExampleSet
from studies.concepts import ConceptsConfig, PosthocHybridCBM, concepts

attribution_module = sys.modules["scoring.concept_attribution"]  # the package exports functions of these names
concepts_module = sys.modules["studies.concepts"]
DIM, CLASSES = 6, 4
GROUPS = {"wide": [0, 1], "tall": ["class 1", "class 2"], "red": [3]}
NAMED = ConceptConfig(concepts=GROUPS, per_side=20)
seeds = st.integers(0, 2**32 - 1)


def halves(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return mask, ~mask


def random_head(seed: int, *, classes: int = 4, num: int = 5) -> PosthocCBM:
    rng = np.random.default_rng(seed)
    return PosthocCBM(rng.normal(size=(classes, num)), rng.normal(size=classes))


@pytest.fixture(scope="module")
def world() -> tuple[ExampleSet, nn.Module]:
    """Each attribute is one input coordinate (wide: 0, tall: 1, red: 2) plus noise; the model is linear, so its
    embedding is the input itself."""
    rng = np.random.default_rng(3)
    y = np.arange(400) % CLASSES
    means = np.zeros((CLASSES, DIM))
    means[[0, 1], 0] = means[[1, 2], 1] = means[3, 2] = 4.0
    x = (means[y] + rng.normal(size=(400, DIM))).astype(np.float32)
    data = make_examples(x, y, num_classes=CLASSES, ids=rng.permutation(5000)[:400].astype(np.int64))
    data = dataclasses.replace(data, split=np.where(np.arange(400) < 300, "train", "test").astype("<U5"))
    model = nn.utils.skip_init(nn.Linear, DIM, CLASSES)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(means))
        model.bias.copy_(torch.from_numpy(-(means**2).sum(1) / 2))
    return data, model.eval()


# ---- the bank ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_planted_directions_are_found_whatever_the_scale_of_the_embeddings(scale: float) -> None:
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(2000, DIM))
    truth = rng.normal(size=(3, DIM))
    bank = ConceptBank.from_examples(
        (phi + 7) * scale, {f"k{i}": halves(phi @ v > 0) for i, v in enumerate(truth)}, per_side=200, seed=1
    )
    cosine = (bank.vectors * truth).sum(1) / np.linalg.norm(bank.vectors, axis=1) / np.linalg.norm(truth, axis=1)
    assert (cosine > 0.98).all() and (bank.val_acc > 0.9).all()
    assert bank.n_pos.tolist() == bank.n_neg.tolist() == [200] * 3
    # The signed distance to a planted boundary through the mean.
    expected = phi @ (truth / np.linalg.norm(truth, axis=1, keepdims=True)).T * scale
    assert np.corrcoef(bank.project((phi + 7) * scale).ravel(), expected.ravel())[0, 1] > 0.98
    assert np.abs(bank.project((phi + 7) * scale) - expected).mean() < 0.3 * scale


@given(seeds, st.floats(1e-6, 1e6))
def test_projections_are_distances_and_do_not_know_the_scale_of_the_normals(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    ones = np.ones(3)
    bank = ConceptBank(("a", "b", "c"), rng.normal(size=(3, DIM)), rng.normal(size=3), ones, ones, ones, ones, ones)
    phi = rng.normal(size=(9, DIM))
    z = bank.project(phi)
    scaled = dataclasses.replace(bank, vectors=bank.vectors * scale, intercepts=bank.intercepts * scale)
    np.testing.assert_allclose(scaled.project(phi), z, rtol=1e-9, atol=1e-9)
    # Going back along the normal by the distance ends on the boundary.
    for k, v in enumerate(bank.vectors):
        foot = phi - z[:, k : k + 1] * v / np.linalg.norm(v)
        np.testing.assert_allclose(foot @ v + bank.intercepts[k], 0, atol=1e-9)


def test_a_concept_does_not_depend_on_the_others() -> None:
    phi = np.random.default_rng(0).normal(size=(200, DIM))
    members = {"a": halves(phi[:, 0] > 0), "b": halves(phi[:, 1] > 0)}
    both = ConceptBank.from_examples(phi, members, seed=4)
    alone = ConceptBank.from_examples(phi, {"b": members["b"]}, seed=4)
    assert np.array_equal(both.vectors[1], alone.vectors[0]) and both.val_acc[1] == alone.val_acc[0]


def test_held_out_accuracy_is_of_other_examples_than_those_fitted_on() -> None:
    """Labels without meaning: 40 points in 60 dimensions are always separable, others are not."""
    rng = np.random.default_rng(0)
    bank = ConceptBank.from_examples(
        rng.normal(size=(400, 60)), {f"k{i}": halves(rng.random(400) < 0.5) for i in range(30)}, per_side=20, seed=0
    )
    assert bank.train_acc.mean() > 0.85
    assert bank.val_acc.mean() < 0.65  # the best of five C on 40 examples, 0.5 in expectation for each


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_few_labels_are_all_used(seed: int) -> None:
    """Ten examples with, ten without, in 20 dimensions: C by cross-validation, the fit on all twenty."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=20)
    direction *= 1.5 / np.linalg.norm(direction)

    def draw(num: int) -> tuple[np.ndarray, np.ndarray]:
        inside = np.arange(num) < num // 2
        return rng.normal(size=(num, 20)) + np.where(inside, 1, -1)[:, None] * direction, inside

    test, true = draw(4000)
    right = []
    for trial in range(10):
        phi, inside = draw(20)
        bank = ConceptBank.from_examples(phi, {"k": halves(inside)}, seed=trial)
        assert bank.n_pos.tolist() == bank.n_neg.tolist() == [10]
        right.append(((bank.project(test)[:, 0] > 0) == true).mean())
    assert np.mean(right) > 0.8


def test_the_sides_weigh_the_same_whatever_their_sizes() -> None:
    """Few with the concept and many without: all are used, and the boundary does not move towards the few."""
    rng = np.random.default_rng(0)
    inside = np.arange(108) < 8
    phi = rng.normal(size=(108, DIM)) + 1.2 * np.where(inside, 1, -1)[:, None] * np.eye(DIM)[0]
    bank = ConceptBank.from_examples(phi, {"k": halves(inside)}, seed=0)
    assert (bank.n_pos[0], bank.n_neg[0]) == (8, 100)
    test = rng.normal(size=(2000, DIM))
    found = bank.project(test + 1.2 * np.eye(DIM)[0])[:, 0] > 0, bank.project(test - 1.2 * np.eye(DIM)[0])[:, 0] <= 0
    assert found[0].mean() > 0.75 and found[1].mean() > 0.75


def test_correlated_concepts_are_named_strongest_first() -> None:
    ones = np.ones(4)
    vectors = np.array([[1, 0, 0], [-3, 0.3, 0], [1, 0.7, 0], [0, 0, 2.0]])
    bank = ConceptBank(("a", "b", "c", "d"), vectors, np.zeros(4), ones, ones, ones, ones, ones)
    found = bank.correlated()
    brute = {
        (bank.names[i], bank.names[j]): vectors[i]
        @ vectors[j]
        / np.linalg.norm(vectors[i])
        / np.linalg.norm(vectors[j])
        for i in range(4)
        for j in range(i + 1, 4)
    }
    assert [(a, b) for a, b, _ in found] == [("a", "b"), ("a", "c")]
    assert all(cosine == pytest.approx(brute[a, b]) for a, b, cosine in found)
    assert [(a, b) for a, b, _ in bank.correlated(0.7)][2:] == [("b", "c")]


def test_discovered_concepts_are_the_planted_clusters_the_largest_first() -> None:
    rng = np.random.default_rng(0)
    own = np.repeat([0, 1, 2], [100, 60, 30])
    phi = 20 * np.eye(3)[own] + rng.normal(size=(190, 3))
    found = discover(phi, num_concepts=3, seed=0)
    assert list(found) == ["c_0", "c_1", "c_2"]
    for rank, (inside, outside) in enumerate(found.values()):
        assert np.array_equal(inside, own == rank) and np.array_equal(outside, ~inside)
    assert discover(np.full((50, 3), 0.1, np.float32), num_concepts=3, seed=0) == {}
    assert len(discover(np.repeat([[0.0], [1.0]], 40, axis=0), num_concepts=10, seed=0)) == 2


def test_what_cannot_be_learned_is_refused_or_left_out() -> None:
    phi = np.random.default_rng(0).normal(size=(30, 2))
    few, fair = np.arange(30) < 3, np.arange(30) < 15
    with pytest.raises(DataError, match="'few' cannot be learned: 3 examples with it"):
        ConceptBank.from_examples(phi, {"few": halves(few)}, seed=0)
    with pytest.raises(DataError, match="are the same with it and without it"):
        ConceptBank.from_examples(np.ones((30, 2)), {"flat": halves(fair)}, seed=0)
    members = {"few": halves(few), "fair": halves(fair)}
    assert ConceptBank.from_examples(phi, members, seed=0, drop_unlearnable=True).names == ("fair",)


# ---- the head ----------------------------------------------------------------------------------------------------


def planted(seed: int, *, num: int, classes: int, dim: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Projections of uneven scale and labels drawn from a multinomial model that does not use the last one."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(classes, dim)) * 2
    weight[:, -1] = weight[0, -2:] = 0
    z = rng.normal(size=(num, dim))
    return z * np.logspace(-2, 2, dim) + 3, (z @ weight.T + rng.gumbel(size=(num, classes))).argmax(1)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_head_is_the_optimum_of_the_elastic_net(classes: int) -> None:
    """Its subgradient conditions, computed by hand in standardised projections."""
    z, y = planted(0, num=1500, classes=classes)
    penalty, l1 = 0.05, 0.9
    head = PosthocCBM.fit(z, y, num_classes=classes, penalty=penalty, l1_ratio=l1, seed=0)
    logits = head.logits(z)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    error = (p - np.eye(classes)[y]) / len(y)
    standardised = (z - z.mean(0)) / z.std(0)
    gradient, weight = error.T @ standardised, head.weight * z.std(0)
    if classes == 2:  # the penalty is on the one logit w, of which the rows are -w/2 and w/2
        gradient, weight = gradient[1:], 2 * weight[1:]
    smooth = gradient + penalty * (1 - l1) * weight
    used = weight != 0
    np.testing.assert_allclose(smooth[used], -penalty * l1 * np.sign(weight[used]), atol=2e-4)
    assert (np.abs(smooth[~used]) <= penalty * l1 + 2e-4).all() and (~used).any()
    np.testing.assert_allclose(error.sum(0), 0, atol=2e-4)


def test_the_penalty_means_the_same_at_every_number_of_examples() -> None:
    z, y = planted(1, num=600, classes=3)
    once = PosthocCBM.fit(z, y, num_classes=3, seed=0)
    twice = PosthocCBM.fit(np.tile(z, (3, 1)), np.tile(y, 3), num_classes=3, seed=1)
    np.testing.assert_allclose(twice.weight * z.std(0), once.weight * z.std(0), atol=5e-3)


def test_a_class_without_examples_is_never_predicted() -> None:
    z, y = planted(2, num=300, classes=3)
    head = PosthocCBM.fit(z, y + 1, num_classes=5, seed=0)
    assert not np.isin(head.logits(z).argmax(1), [0, 4]).any() and not head.weight[[0, 4]].any()
    alone = PosthocCBM.fit(z, np.full(300, 2), num_classes=4, seed=0)
    assert (alone.logits(z).argmax(1) == 2).all() and not alone.weight.any()


def test_the_hybrid_is_the_bottleneck_until_a_residual_finds_what_the_concepts_miss() -> None:
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(600, 3)).astype(np.float32)
    y = (phi[:, 0] > 0).astype(np.int64) + 2 * (phi[:, 1] > 0)
    z = phi[:, :1].astype(np.float64)  # one concept: half of the label
    head = PosthocCBM.fit(z, y, num_classes=4, seed=0)
    none = PosthocHybridCBM(head, np.zeros((4, 3)), np.zeros(4))
    assert np.array_equal(none.logits(z, phi), head.logits(z))
    assert np.array_equal(PosthocHybridCBM.fit(head, phi, z, y, epochs=0, seed=0).logits(z, phi), head.logits(z))
    hybrid = PosthocHybridCBM.fit(head, phi, z, y, seed=0)
    assert (head.logits(z).argmax(1) == y).mean() < 0.6
    assert (hybrid.logits(z, phi).argmax(1) == y).mean() > 0.95
    again = PosthocHybridCBM.fit(head, phi, z, y, seed=0)
    assert np.array_equal(again.weight, hybrid.weight)


# ---- integrated gradients ----------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 60), st.integers(2, 6))
def test_captum_equals_the_closed_form_of_a_linear_head(seed: int, n_steps: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    head = random_head(seed, classes=classes)
    head.weight[:, 2] = 0
    z, start, y = rng.normal(size=(7, 5)) * 10, rng.normal(size=5), rng.integers(0, classes, 7)
    z[3] = start
    found = concept_integrated_gradients(head, z, baseline=start, target=y, n_steps=n_steps)
    closed = head.attributions(z, baseline=start, target=y)
    np.testing.assert_allclose(found.values, closed, atol=1e-5)
    for i, c in enumerate(y):  # by the definition, example by example
        others = [j for j in range(classes) if j != c]
        slope = head.weight[c] - head.weight[others].mean(0)
        np.testing.assert_allclose(closed[i], slope * (z[i] - start), atol=1e-10)
        score = [f[c] - f[others].mean() for f in (head.logits(z[i : i + 1])[0], head.logits(start[None])[0])]
        assert closed[i].sum() == pytest.approx(score[0] - score[1], abs=1e-9)
    assert not closed[3].any() and not found.values[3].any(), "at the baseline"
    assert not found.values[:, 2].any(), "an unused concept"
    assert np.abs(found.delta).max() <= 1e-4


class Quadratic(nn.Module):
    """F(z) = (z_0^2 + z_0 z_1, 0): its integrated gradient is known."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        first = z[:, 0] ** 2 + z[:, 0] * z[:, 1]
        return torch.stack([first, torch.zeros_like(first)], dim=1)


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_a_head_that_is_not_linear_and_swapping_the_ends_flips_the_sign(ends: list[float]) -> None:
    a, b = np.array(ends[:2]), np.array(ends[2:])
    one = np.zeros(1, np.int64)
    d, mean = b - a, (a + b) / 2  # the gradient (2 z_0 + z_1, z_0) is linear, so its mean is taken at the midpoint
    expected = d * np.array([2 * mean[0] + mean[1], mean[0]])
    there = concept_integrated_gradients(Quadratic(), b[None], baseline=a, target=one)
    back = concept_integrated_gradients(Quadratic(), a[None], baseline=b, target=one)
    np.testing.assert_allclose(there.values[0], expected, atol=1e-9)
    np.testing.assert_allclose(back.values, -there.values, atol=1e-9)


def test_probabilities_of_a_saturated_head_are_refused_and_its_logits_are_not() -> None:
    rng = np.random.default_rng(0)
    linear = nn.utils.skip_init(nn.Linear, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(rng.normal(size=(4, 5)) * 300))
        linear.bias.zero_()
    z, y = rng.normal(size=(40, 5)), rng.integers(0, 4, 40)
    with pytest.raises(InvalidInput, match=r"completeness error .* raise n_steps"):
        concept_integrated_gradients(nn.Sequential(linear, nn.Softmax(1)), z, baseline=np.zeros(5), target=y)
    found = concept_integrated_gradients(linear, z, baseline=np.zeros(5), target=y)
    assert np.abs(found.delta).max() < 1e-4
    kept = concept_integrated_gradients(
        nn.Sequential(linear, nn.Softmax(1)), z, baseline=np.zeros(5), target=y, tolerance=10.0
    )
    assert np.abs(kept.delta).max() > 1e-2


def test_attribution_refuses_shapes_and_numbers_that_are_not_meant() -> None:
    head, z, y = random_head(0), np.zeros((2, 5)), np.zeros(2, np.int64)
    with pytest.raises(InvalidInput, match=r"baseline \(4,\)"):
        concept_integrated_gradients(head, z, baseline=np.zeros(4), target=y)
    with pytest.raises(InvalidInput, match="not finite"):
        concept_integrated_gradients(head, z + np.nan, baseline=np.zeros(5), target=y)
    with pytest.raises(InvalidInput, match="n_steps = 0"):
        concept_integrated_gradients(head, z, baseline=np.zeros(5), target=y, n_steps=0)
    empty = concept_integrated_gradients(
        PosthocCBM(np.zeros((3, 0)), np.zeros(3)), z[:, :0], baseline=z[0, :0], target=y
    )
    assert empty.values.shape == (2, 0)


# ---- classes -----------------------------------------------------------------------------------------------------


@given(seeds)
def test_class_profiles_against_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k, classes = 40, 6, 5
    each, z, base = rng.normal(size=(n, k)), rng.normal(size=(n, k)), rng.normal(size=k) * 0.2
    y = rng.integers(0, classes - 1, n)  # the last class has no examples
    found = ClassConcepts.of(each, z, y, baseline=base, num_classes=classes)
    assert np.isnan(found.attribution[-1]).all() and not found.in_set[-1].any() and not found.present[-1].any()
    sets = []
    for c in range(classes):
        rows = y == c
        if not rows.any():
            sets.append(set())
            continue
        mean, here = each[rows].mean(0), z[rows].mean(0) > base
        np.testing.assert_allclose(found.attribution[c], mean, atol=1e-12)
        assert np.array_equal(found.present[c], here)
        mass = sum(mean[j] for j in range(k) if here[j] and mean[j] > 0)
        chosen: list[int] = []
        for j in sorted((j for j in range(k) if here[j] and mean[j] > 0), key=lambda j: -mean[j]):
            if len(chosen) == 3 or sum(mean[i] for i in chosen) >= 0.8 * mass - 1e-12:
                break
            chosen.append(j)
        sets.append(set(chosen))
        assert set(np.flatnonzero(found.in_set[c])) == set(chosen)
        by_rank = np.argsort(found.rank[c])
        assert sorted(found.rank[c]) == list(range(1, k + 1))
        assert all((here[a], mean[a]) >= (here[b], mean[b]) for a, b in pairwise(by_rank))
        shares = np.array([mean[j] / mass for j in range(k) if here[j] and mean[j] > 0])
        expected = -(shares * np.log(shares)).sum() if len(shares) else np.nan
        np.testing.assert_allclose(found.entropy()[c], expected, atol=1e-9)
    overlap = found.overlap()
    for a in range(classes):
        for b in range(classes):
            union = sets[a] | sets[b]
            assert overlap[a, b] == pytest.approx(len(sets[a] & sets[b]) / len(union) if union else 0.0)


def test_absence_does_not_explain_a_class() -> None:
    """Class 0 lacks concept 0 strongly, which attributes most to it, and has concept 1."""
    z = np.array([[-5.0, 1.0], [5.0, -1.0]])
    head = PosthocCBM(np.array([[-2.0, 1.0], [2.0, -1.0]]), np.zeros(2))
    y, base = np.array([0, 1]), z.mean(0)
    each = head.attributions(z, baseline=base, target=y)
    assert each[0].argmax() == 0, "without the filter, 'not concept 0' comes first"
    found = ClassConcepts.of(each, z, y, baseline=base, num_classes=2)
    assert found.rank[0].tolist() == [2, 1] and found.in_set[0].tolist() == [False, True]


def test_entropy_counts_equal_concepts() -> None:
    found = entropy_of(np.array([[1.0, 1, 1, -5], [2, 0, 0, 0], [-1, -1, 0, 0]]))
    np.testing.assert_allclose(found, [np.log(3), 0.0, np.nan])


# ---- on a model --------------------------------------------------------------------------------------------------


def test_the_score_is_what_the_definition_says(world) -> None:
    data, model = world
    train = data.part("train")
    found = fit_concepts(model, train, config=NAMED, seed=0)
    table = concept_attribution(train, config=NAMED, seed=0, model=model)
    assert table["example_id"].to_list() == sorted(train.example_id.tolist())
    for row in table.sample(25, seed=1).to_dicts():
        i = int(train.positions([row["example_id"]])[0])
        c = int(train.y[i])
        z = found.bank.project(train.x[i : i + 1])[0]
        slope = found.head.weight[c] - np.delete(found.head.weight, c, axis=0).mean(0)
        each = slope * (z - found.baseline)
        assert row["attribution"] == pytest.approx(each[found.classes.in_set[c]].sum(), abs=1e-6)
        assert row["evidence"] == pytest.approx(each.sum(), abs=1e-6)
        assert row["concept_share"] == pytest.approx(row["attribution"] / np.abs(each).sum(), abs=1e-6)
        assert row["top_concept"] == (found.bank.names[each.argmax()] if each.max() > 0 else None)


def test_mislabelled_examples_have_the_lowest_share(world) -> None:
    data, model = world
    train = data.part("train")
    rng = np.random.default_rng(0)
    wrong = rng.random(len(train)) < 0.1
    noisy = dataclasses.replace(train, y=np.where(wrong, (train.y + rng.integers(1, 4, len(train))) % 4, train.y))
    for config in (NAMED, ConceptConfig()):
        table = concept_attribution(noisy, config=config, seed=0, model=model)
        planted = wrong[noisy.positions(table["example_id"].to_numpy())]
        assert roc_auc_score(planted, -table["concept_share"].to_numpy()) > 0.9


def test_the_score_does_not_depend_on_batches_blocks_or_the_order_of_the_rows(world, monkeypatch) -> None:
    data, model = world
    train = data.part("train")
    whole = concept_attribution(train, config=ConceptConfig(), seed=0, model=model)
    mixed = train.subset(np.random.default_rng(1).permutation(train.example_id))
    assert concept_attribution(mixed, config=ConceptConfig(), seed=0, model=model).equals(whole)
    monkeypatch.setattr(shared, "_BLOCK", 37)
    cut = concept_attribution(train, config=ConceptConfig(batch=11), seed=0, model=model)
    assert_frame_equal(cut, whole, rel_tol=1e-5, abs_tol=1e-6)


def test_a_bounded_sample_scores_all_examples_and_holds_those_that_are_named(world) -> None:
    data, model = world
    train = data.part("train")
    wide = train.example_id[np.isin(train.y, [0, 1])]
    config = ConceptConfig(concept_examples={"wide": wide[:12].tolist()}, sample=30, per_side=6)
    found = fit_concepts(model, train, config=config, seed=0)
    assert set(wide[:12]) <= set(found.example_id) and len(found.example_id) <= 42
    table = concept_attribution(train, config=config, seed=0, model=model)
    assert len(table) == len(train)


def test_named_concepts_are_learned_as_classes_and_as_examples(world) -> None:
    data, model = world
    train = data.part("train")
    wide = np.isin(train.y, [0, 1])
    ids = {"with": train.example_id[wide][:60].tolist(), "without": train.example_id[~wide][:60].tolist()}
    config = ConceptConfig(concepts=GROUPS, concept_examples={"wide by id": ids})
    bank = fit_concepts(model, train, config=config, seed=0).bank
    assert bank.names == ("wide", "tall", "red", "wide by id")
    unit = bank.vectors / np.linalg.norm(bank.vectors, axis=1, keepdims=True)
    assert np.abs(unit).argmax(1).tolist() == [0, 1, 2, 0], "the coordinates they were planted on"
    assert bank.correlated()[0][:2] == ("wide", "wide by id")


def run(data, model, **fields):
    return concepts(data, config=ConceptsConfig.from_mapping(fields), seed=0, model=model)


def test_the_analysis_finds_the_planted_classes(world) -> None:
    data, model = world
    tables = run(data, model, concepts=GROUPS)
    sets = dict(tables["class_concepts"].select("class_name", "concept_set").rows())
    assert {k: set(v.split(", ")) for k, v in sets.items()} == {
        "class 0": {"wide"},
        "class 1": {"wide", "tall"},
        "class 2": {"tall"},
        "class 3": {"red"},
    }
    overlap = {(a, b): o for a, b, o in tables["class_concept_overlap"].rows()}
    assert overlap[0, 1] == overlap[1, 2] == 0.5 and overlap[0, 3] == 0 and len(overlap) == 12
    alike = dict(tables["class_concepts"].select("class_name", "most_alike").rows())
    assert alike == {"class 0": "class 1", "class 1": "class 0", "class 2": "class 1", "class 3": None}
    accuracy = {(h, s): a for h, s, a in tables["concept_bottleneck"].select("head", "split", "accuracy").rows()}
    assert accuracy["model", "test"] > 0.9 and abs(accuracy["concepts", "test"] - accuracy["model", "test"]) < 0.06
    profile = tables["class_concept_profile"]
    assert profile.height == 12 and profile.group_by("class_id").agg(pl.col("rank").max())["rank"].to_list() == [3] * 4


def test_the_examples_of_a_concept_are_those_of_largest_projection(world, monkeypatch) -> None:
    data, model = world
    monkeypatch.setattr(shared, "_BLOCK", 50)
    shown = run(data, model, concepts=GROUPS, top=5)["concept_examples"]
    train = data.part("train")
    bank = fit_concepts(model, train, config=ConceptConfig(concepts=GROUPS), seed=0).bank
    z = bank.project(train.x)
    for k, name in enumerate(bank.names):
        mine = shown.filter(concept=name)
        assert mine["rank"].to_list() == [1, 2, 3, 4, 5]
        assert mine["example_id"].to_list() == train.example_id[np.argsort(-z[:, k])[:5]].tolist()


def test_attributions_are_of_the_class_set_or_of_all_concepts_and_bounded(world) -> None:
    data, model = world
    train = data.part("train")
    found = fit_concepts(model, train, config=ConceptConfig(concepts=GROUPS), seed=0)
    every = run(data, model, concepts=GROUPS, attributions="all")["concept_attributions"]
    assert every.height == 3 * len(train) and every["delta"].abs().max() <= 1e-4
    sums = every.group_by("example_id").agg(pl.col("attribution").sum(), pl.col("target_class").first()).to_dicts()
    for row in sums[:20]:
        i = int(train.positions([row["example_id"]])[0])
        logits = found.head.logits(np.stack([found.bank.project(train.x[i : i + 1])[0], found.baseline]))
        c = row["target_class"]
        score = logits[:, c] - np.delete(logits, c, axis=1).mean(1)
        assert c == train.y[i] and row["attribution"] == pytest.approx(score[0] - score[1], abs=1e-4)
    few = run(data, model, concepts=GROUPS, max_examples=40)["concept_attributions"]
    assert few["example_id"].n_unique() <= 40 and few.height < 3 * 40
    joined = few.join(every, on=["example_id", "concept"], suffix="_all")
    assert joined.height == few.height and (joined["attribution"] - joined["attribution_all"]).abs().max() < 1e-6
    assert few["model_id"].n_unique() == 1 and len(few["model_id"][0]) == 64


def test_negatives_that_nobody_listed_are_said_to_be_assumed(world) -> None:
    data, model = world
    ids, y = data.part("train").example_id, data.part("train").y
    examples = {
        "bare": ids[y == 3][:12].tolist(),
        "both": {"with": ids[y == 3][:12].tolist(), "without": ids[y == 0][:12].tolist()},
    }
    bank = run(data, model, concepts=GROUPS, concept_examples=examples)["concept_bank"]
    assert bank.filter("assumed_without")["concept"].to_list() == ["bare"]


# ---- through the backbone ----------------------------------------------------------------------------------------


def test_input_attributions_of_a_linear_backbone_are_the_closed_form(world) -> None:
    data, model = world
    train = data.part("train").take(np.arange(30))
    bank = fit_concepts(model, data.part("train"), config=NAMED, seed=0).bank
    which, start = np.arange(30) % 3, np.linspace(-1, 1, DIM)
    found = concept_input_gradients(model, train, bank, concept=which, baseline=start, batch=7)
    unit = bank.vectors / np.linalg.norm(bank.vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found.values, unit[which] * (train.x - start), rtol=1e-4, atol=1e-5)
    assert np.abs(found.delta).max() < 1e-4 and not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("double", [False, True])
def test_input_attributions_of_a_network_are_complete_and_know_what_it_ignores(seed: int, double: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, DIM)).astype(np.float32)
    data = make_examples(x, (x[:, 0] * x[:, 1] > 0).astype(np.int64), num_classes=2)
    model = builder("mlp", {"hidden": (32, 16)}, input_shape=(DIM,), num_outputs=2)(seed)
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim == 2)[:, DIM - 1] = 0  # the last input is not looked at
    if double:
        model.double()
    phi = embeddings(model, data)
    bank = ConceptBank.from_examples(phi, {"a": halves(x[:, 0] > 0), "b": halves(x[:, 1] > 0)}, seed=seed)
    some, which, start = data.take(np.arange(40)), np.arange(40) % 2, x.mean(axis=0)
    found = concept_input_gradients(model, some, bank, concept=which, baseline=start, n_steps=4, tolerance=1e-3)
    # Completeness, against projections that nobody here computed.
    ends = bank.project(embeddings(model, make_examples(start[None], np.zeros(1, np.int64), num_classes=2)))[0, which]
    difference = bank.project(phi[:40])[np.arange(40), which] - ends
    scale = np.abs(found.values).sum(axis=1)
    assert (np.abs(found.values.sum(axis=1) - difference) <= 1e-3 * scale + 1e-5).all()
    assert np.abs(found.delta).max() <= 1e-3 * scale.max() and scale.min() > 0
    assert (found.values[:, DIM - 1] == 0).all()
    # The path integral by hand: gradients by central differences at 2,000 points.
    path = start + (np.arange(2000) + 0.5)[:, None] / 2000 * (x[0] - start)

    seen: list[torch.Tensor] = []
    exact = copy.deepcopy(model).double()
    last_linear(exact)[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))

    def z(points: np.ndarray) -> np.ndarray:
        exact(torch.from_numpy(points))
        return bank.project(seen.pop().numpy())[:, which[0]]

    for d in range(DIM):
        step = 1e-5 * np.eye(DIM)[d]
        by_hand = (x[0, d] - start[d]) * ((z(path + step) - z(path - step)) / 2e-5).mean()
        assert found.values[0, d] == pytest.approx(by_hand, abs=0.01 * scale[0])


def test_attributions_that_stay_incomplete_are_refused(world, monkeypatch) -> None:
    monkeypatch.setattr(attribution_module, "_MOST_STEPS", 8)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, DIM)).astype(np.float32)
    data = make_examples(x, rng.integers(0, 2, 60), num_classes=2)
    model = builder("mlp", {"hidden": (32,)}, input_shape=(DIM,), num_outputs=2)(0)
    bank = ConceptBank.from_examples(embeddings(model, data), {"a": halves(x[:, 0] > 0)}, seed=0)
    given = {"concept": np.zeros(60, np.int64), "baseline": np.zeros(DIM)}
    with pytest.raises(InvalidInput, match="8 steps leave a completeness error"):
        concept_input_gradients(model, data, bank, **given, n_steps=2, tolerance=1e-7)
    for wrong in ({"concept": np.zeros(3, np.int64)}, {"baseline": np.zeros(3)}):
        with pytest.raises(InvalidInput, match="are needed"):
            concept_input_gradients(model, data, bank, **{**given, **wrong})


def test_the_table_of_inputs_is_of_the_best_examples_bounded_and_in_the_range_of_their_pictures(
    world, monkeypatch
) -> None:
    data, model = world
    tables = run(data, model, concepts=GROUPS, inputs=2)
    found, best = tables["concept_inputs"], tables["concept_examples"].filter(pl.col("rank") <= 2)
    assert found.select(best.columns).equals(best)
    values, shown = (np.array(found[name].to_list()) for name in ("attribution", "shown"))
    np.testing.assert_allclose(values.sum(axis=1), found["projection"] - found["baseline"], atol=1e-3)
    x = data.inputs(data.positions(found["example_id"].to_numpy()))
    low, high = x.min(axis=1), x.max(axis=1)
    assert (shown >= low[:, None] - 1e-9).all() and (shown <= high[:, None] + 1e-9).all()
    for a, picture, bottom, top in zip(values, shown, low, high, strict=True):
        assert np.corrcoef(a, picture)[0, 1] == pytest.approx(1)
        assert np.abs(picture - (bottom + top) / 2).max() == pytest.approx((top - bottom) / 2)
    # "wide" is input 0, "tall" input 1, "red" input 2.
    assert np.abs(values).argmax(axis=1).tolist() == [0, 0, 1, 1, 2, 2]
    monkeypatch.setattr(concepts_module, "_MOST_VALUES", 4 * DIM + 1)
    few = run(data, model, concepts=GROUPS, inputs=2)["concept_inputs"]
    assert list(few.select("concept", "rank").iter_rows()) == [("wide", 1), ("wide", 2), ("tall", 1), ("red", 1)]
    assert run(data, model, concepts=GROUPS, inputs=0)["concept_inputs"].is_empty()


def test_images_are_attributed_in_their_own_shape() -> None:
    """Concept: is the upper half bright? The attributions are in the upper half."""
    rng = np.random.default_rng(0)
    bright = np.arange(160) % 2
    x = rng.integers(0, 60, (160, 1, 8, 8)).astype(np.uint8)
    x[:, :, :4] += (bright * 120).astype(np.uint8)[:, None, None, None]
    data = make_examples(x, bright, num_classes=2)
    data = dataclasses.replace(data, split=np.where(np.arange(160) < 120, "train", "test").astype("<U5"))
    model = builder("cnn", {}, input_shape=(1, 8, 8), num_outputs=2)(0)
    found = run(data, model, concepts={"bright": [1]})["concept_inputs"]
    values = np.abs(np.array(found["attribution"].to_list())).reshape(-1, 8, 8)
    assert (values[:, :4].sum(axis=(1, 2)) > 3 * values[:, 4:].sum(axis=(1, 2))).all()


def test_embeddings_that_do_not_differ_have_no_concepts(world) -> None:
    data, model = world
    flat = dataclasses.replace(data, x=np.ones_like(data.x))
    tables = run(flat, model)
    assert tables["concept_bank"].is_empty() and tables["concept_attributions"].is_empty()
    table = concept_attribution(flat.part("train"), config=ConceptConfig(), seed=0, model=model)
    assert table["concept_share"].to_list() == [0.0] * 300 and table["top_concept"].null_count() == 300
    with pytest.raises(DataError, match="'wide' cannot be learned"):
        run(flat, model, concepts=GROUPS)


def test_refusals(world, regression) -> None:
    data, model = world
    train = data.part("train")

    def score(on: ExampleSet = train, **fields):
        return concept_attribution(on, config=ConceptConfig.from_mapping(fields), seed=0, model=model)

    with pytest.raises(ConfigError, match="'wide': no class 'broad'; known: class 0"):
        score(concepts={"wide": ["broad"]})
    with pytest.raises(ConfigError, match="no class 4"):
        score(concepts={"wide": [4]})
    with pytest.raises(ConfigError, match="holds all 4 classes"):
        score(concepts={"wide": [0, 1, 2, 3]})
    for wrong in (3, [], [1.5], [True], {"with": [1]}):
        with pytest.raises(ConfigError, match="concepts"):
            score(concepts={"wide": wrong})
    with pytest.raises(ConfigError, match="'with' and 'without'"):
        score(concept_examples={"wide": {"with": [1]}})
    with pytest.raises(ConfigError, match="in both"):
        score(concepts=GROUPS, concept_examples={"red": [1, 2, 3, 4]})
    stranger = int(data.part("test").example_id[0])
    with pytest.raises(DataError, match="not training examples") as error:
        score(concept_examples={"wide": [stranger]})
    assert error.value.example_ids == (stranger,)
    ids = train.example_id[:8].tolist()
    with pytest.raises(DataError, match="both with and without"):
        score(concept_examples={"wide": {"with": ids, "without": ids}})
    with pytest.raises(NotApplicable, match="regression"):
        score(regression)
    with pytest.raises(DataError, match="no example"):
        score(train.subset([]))
