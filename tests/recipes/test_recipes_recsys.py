"""Implicit feedback: draws against enumeration and chi-squared, models and metrics against naive loops, the recipe's
promises."""

from __future__ import annotations

import copy
import dataclasses
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recipes_examples import make_examples
from scipy.stats import chi2

from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from recipes.checkpoints import arrays_digest, load_arrays, to_arrays
from recipes.models import build, builder
from recipes.predict import predict_logits
from recipes.recsys import BprConfig, bpr, choose, num_steps, pool_losses, step_losses
from recipes.recsys_lists import Lists
from recipes.recsys_topk import evaluate_topk, top_items
from recipes.rng import generator
from recipes.schedule import SupervisedConfig
from recipes.supervised import supervised
from sources.loading import load
from sources.planted import planted_interactions

QUICK = {"lr": 0.01, "batch": 64, "epochs": 8, "warmup_epochs": 2}


@pytest.fixture(scope="module")
def clicks():
    return load("synthetic_interactions", {"num_users": 60, "num_items": 50, "per_user": 15})


@pytest.fixture
def make():
    return builder("mf", {"dim": 8}, input_shape=(60,), num_outputs=50)


def lists_of(*per_user: list[int], num_items: int) -> Lists:
    users = np.repeat(np.arange(len(per_user)), [len(i) for i in per_user])
    return Lists(
        users, np.array([i for items in per_user for i in items]), num_users=len(per_user), num_items=num_items
    )


def digest(model) -> str:
    return arrays_digest(to_arrays(model))


def uniform(counts: np.ndarray, cells: int) -> bool:
    """Chi-squared at 1e-5: these draws are seeded, so the test passes always or never."""
    counts = np.bincount(counts, minlength=cells)
    if cells == 1:
        return len(counts) == 1
    expected = counts.sum() / cells
    return len(counts) == cells and ((counts - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-5, cells - 1)


# ---- draws -------------------------------------------------------------------------------------------------------


def test_lists_are_in_the_order_of_user_and_item_whatever_the_rows():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 7, 40), rng.permutation(40)
    lists = Lists(users, items, num_users=8, num_items=40)
    assert lists.users.tolist() == sorted(users.tolist()) and lists.count[7] == 0 and 7 not in lists.active
    np.testing.assert_array_equal(users[lists.order], lists.users)
    np.testing.assert_array_equal(items[lists.order], lists.items)
    for u in range(8):
        own = slice(int(lists.start[u]), int(lists.start[u] + lists.count[u]))
        assert lists.items[own].tolist() == sorted(items[users == u].tolist())


@pytest.mark.parametrize("num_items", [9, 12_345], ids=["looked up", "searched"])
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=30), st.integers(0, 2**31))
def test_what_the_lists_contain_equals_a_set(num_items: int, pairs: set[tuple[int, int]], seed: int):
    users, items = (np.array([pair[k] for pair in sorted(pairs)], np.int64) for k in (0, 1))
    lists = Lists(users, items, num_users=6, num_items=num_items)
    assert not pairs or (lists._bits is None) == (num_items > 9)
    rng = np.random.default_rng(seed)
    asked = torch.from_numpy(rng.integers(0, 6, (4, 7))), torch.from_numpy(rng.integers(0, 9, (4, 7)))
    found = lists.contains(*asked)
    assert found.dtype == torch.bool and found.shape == (4, 7)
    for u, i, known in zip(*(v.flatten().tolist() for v in (*asked, found)), strict=True):
        assert known == ((u, i) in pairs)


def test_negatives_are_uniform_over_the_items_that_are_not_the_users():
    lists = lists_of([0, 1, 5, 6, 9], [3], list(range(9)), num_items=10)
    users = torch.tensor([0, 1, 2]).repeat(20_000)
    drawn = lists.draw_negatives(users, generator=generator(3))
    assert not lists.contains(users, drawn).any()
    for user, free in enumerate(([2, 3, 4, 7, 8], [0, 1, 2, 4, 5, 6, 7, 8, 9], [9])):
        found = drawn[users == user].numpy()
        assert set(found) == set(free) and uniform(np.searchsorted(free, found), len(free))


@given(st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=11), min_size=1, max_size=6), st.integers(0, 2**31))
def test_negatives_and_positives_by_brute_force(per_user, seed):
    lists = lists_of(*map(sorted, per_user), num_items=12)
    draw = generator(seed)
    users = lists.draw_users(200, generator=draw)
    negatives, positives = lists.draw_negatives(users, generator=draw), lists.draw_positives(users, generator=draw)
    for u, n, p in zip(users.tolist(), negatives.tolist(), positives.tolist(), strict=True):
        assert 0 <= n < 12 and n not in per_user[u]
        assert lists.users[p] == u and int(lists.items[p]) in per_user[u]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_every_pool_is_as_likely(size):
    lists = lists_of([1, 2], [0, 2, 3, 5, 8, 9], num_items=10)
    pools = lists.draw_pools(torch.ones(60_000, dtype=torch.int64), size, generator=generator(1))
    assert pools.shape == (size, 60_000)
    subsets = {s: i for i, s in enumerate(combinations(range(2, 8), size))}
    found = [subsets[tuple(sorted(p))] for p in pools.T.tolist()]  # KeyError: not a subset of the user's own
    assert len(subsets) == 1 or uniform(np.array(found), len(subsets))


def test_a_short_list_is_drawn_from_with_replacement():
    lists = lists_of([4], [0, 7], num_items=10)
    pools = lists.draw_pools(torch.ones(40_000, dtype=torch.int64), 3, generator=generator(2)) - 1
    assert uniform((pools * torch.tensor([[1], [2], [4]])).sum(0).numpy(), 8)
    assert (lists.draw_pools(torch.zeros(5, dtype=torch.int64), 3, generator=generator(2)) == 0).all()


@pytest.mark.parametrize("tau", [0.05, 0.5, 5.0])
def test_selection_follows_the_softmax(tau):
    losses = torch.tensor([0.1, 0.3, 0.9, 2.0])
    chosen = choose(losses[:, None].expand(4, 100_000), tau=tau, generator=generator(5)).numpy()
    expected = torch.softmax(-losses.double() / tau, 0).numpy() * 100_000
    used = expected > 5
    found = np.bincount(chosen, minlength=4)
    assert ((found - expected) ** 2 / expected)[used].sum() < chi2.ppf(1 - 1e-5, max(used.sum() - 1, 1))


@given(st.floats(-50, 50), st.integers(0, 1000))
def test_a_constant_added_to_a_pool_changes_nothing(shift, seed):
    losses = torch.rand(5, 64, dtype=torch.float64, generator=generator(seed))
    a, b = (choose(v, tau=0.1, generator=generator(seed)) for v in (losses, losses + shift))
    assert (a == b).float().mean() > 0.98  # a draw on the edge of a cell may fall on its other side


def test_one_candidate_and_extreme_losses():
    assert choose(torch.rand(1, 9), tau=0.1, generator=generator(0)).tolist() == [0] * 9
    assert choose(torch.tensor([[1e30], [0.0], [1e30]]), tau=1e-3, generator=generator(0)).tolist() == [1]


def test_losses_are_their_definitions():
    pos, neg = torch.tensor([[0.3, -2.0], [1.5, 40.0]]), torch.tensor([0.1, -0.7])
    sigmoid = 1 / (1 + np.exp(-(pos - neg).double().numpy()))
    np.testing.assert_allclose(pool_losses("bpr", pos, neg), -np.log(sigmoid), rtol=1e-5, atol=1e-7)
    p, n = (1 / (1 + np.exp(-v.double().numpy())) for v in (pos, neg))
    np.testing.assert_allclose(pool_losses("bce", pos, neg), -np.log(p), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(step_losses("bpr", pos, neg), pool_losses("bpr", pos, neg))
    np.testing.assert_allclose(step_losses("bce", pos, neg), -np.log(p) - np.log(1 - n), rtol=1e-5)


# ---- models ------------------------------------------------------------------------------------------------------


def test_lightgcn_is_dense_propagation_and_so_are_its_gradients(clicks):
    train = clicks.part("train")
    model = build("lightgcn", {"dim": 6, "layers": 2}, input_shape=(60,), num_outputs=50, seed=3).double()
    model.set_graph(torch.from_numpy(train.x[:, 0]), torch.from_numpy(train.y))
    adjacency = torch.zeros(110, 110, dtype=torch.float64)
    adjacency[train.x[:, 0], 60 + train.y] = 1
    adjacency += adjacency.T.clone()
    degree = adjacency.sum(1).clamp(min=1).rsqrt()
    normal = degree[:, None] * adjacency * degree
    e = torch.cat([model.user.weight, model.item.weight]).detach().requires_grad_()
    mean = (e + normal @ e + normal @ (normal @ e)) / 3
    p, q = model.train().vectors()
    assert torch.allclose(torch.cat([p, q]), mean, atol=1e-12)
    target = torch.rand(110, 6, dtype=torch.float64, generator=generator(0))
    (torch.cat([p, q]) * target).sum().backward()
    (mean * target).sum().backward()
    assert torch.allclose(torch.cat([model.user.weight.grad, model.item.weight.grad]), e.grad, atol=1e-12)
    scores = model.eval()(torch.tensor([[4], [9]]))
    assert torch.allclose(scores, mean[[4, 9]] @ mean[60:].T, atol=1e-12)


def test_a_stored_lightgcn_ranks_without_its_graph(clicks):
    make = builder("lightgcn", {"dim": 6}, input_shape=(60,), num_outputs=50)
    model = bpr(make, clicks.part("train"), config=BprConfig(**QUICK), seed=0)
    fresh = make(9)
    load_arrays(fresh, to_arrays(model))
    assert np.array_equal(predict_logits(fresh, clicks), predict_logits(model, clicks))
    assert digest(make(9)) != digest(model)


def test_a_node_without_interactions_keeps_its_own_vector():
    model = build("lightgcn", {"dim": 4, "layers": 3}, input_shape=(3,), num_outputs=2, seed=0)
    assert torch.allclose(model(torch.arange(3)), model.user.weight @ model.item.weight.T / 16)
    model.set_graph(torch.tensor([0]), torch.tensor([1]))
    p, _ = model.vectors()
    assert torch.allclose(p[2], model.user.weight[2] / 4) and not torch.allclose(p[0], model.user.weight[0] / 4)


@pytest.mark.parametrize("name", ["mf", "lightgcn"])
def test_initialisation_and_refusals_of_the_models(name, rng_left_alone):
    with rng_left_alone():
        first = digest(build(name, input_shape=(5,), num_outputs=4, seed=1))
    assert first == digest(build(name, input_shape=(5,), num_outputs=4, seed=1))
    assert first != digest(build(name, input_shape=(5,), num_outputs=4, seed=2))
    model = build(name, {"init": 0.5, "dim": 256}, input_shape=(500,), num_outputs=4, seed=1)
    assert float(model.user.weight.detach().std()) == pytest.approx(0.5, rel=0.02)
    with pytest.raises(NotApplicable, match="user indexes"):
        model(torch.rand(3, 1))
    with pytest.raises(NotApplicable, match="num_users"):
        build(name, input_shape=(1, 8, 8), num_outputs=4, seed=0)


# ---- metrics -----------------------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """Scores as given; a parameter, as models have."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(scores)

    def forward(self, users: torch.Tensor) -> torch.Tensor:
        return self.scores[users.flatten()]


def naive(scores, known, test, k, ideal):
    recall, ndcg = [], []
    for u, wanted in enumerate(test):
        if wanted:
            order = [i for i in np.argsort(-scores[u], kind="stable") if i not in known[u]][:k]
            hits = [i in wanted for i in order]
            best = min(k, len(wanted)) if ideal == "truncated" else len(wanted)
            recall.append(sum(hits) / len(wanted))
            dcg = sum(1 / math.log2(r + 2) for r, hit in enumerate(hits) if hit)
            ndcg.append(dcg / sum(1 / math.log2(r + 2) for r in range(best)))
    return np.mean(recall), np.mean(ndcg)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from(["truncated", "full"]))
def test_metrics_against_a_loop(seed, k, ideal):
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, size=(6, 10), p=[0.4, 0.3, 0.3])
    kind[0, 0], kind[1, 1] = 1, 2
    known, test = ([sorted(np.flatnonzero(row == c).tolist()) for row in kind] for c in (1, 2))
    scores = rng.permutation(60).reshape(6, 10).astype(np.float64)
    model = Fixed(torch.from_numpy(scores))
    found = evaluate_topk(
        model, known=lists_of(*known, num_items=10), test=lists_of(*test, num_items=10), ks=(k,), ideal=ideal, batch=4
    )
    recall, ndcg = naive(scores, known, test, k, ideal)
    assert found[f"recall{k}"] == pytest.approx(recall, abs=1e-12)
    assert found[f"ndcg{k}"] == pytest.approx(ndcg, abs=1e-12)


def test_a_perfect_ranking_has_ndcg_one_and_known_items_never_appear(clicks, make):
    known, test = Lists.of(clicks.part("train")), Lists.of(clicks.part("test"))
    perfect = torch.zeros(60, 50)
    perfect[test.users, test.items] = 1.0
    found = evaluate_topk(Fixed(perfect), known=known, test=test, ks=(1, 3, 40))
    assert found["ndcg1"] == found["ndcg3"] == found["ndcg40"] == found["recall40"] == pytest.approx(1.0, abs=1e-12)
    assert evaluate_topk(Fixed(perfect), known=known, test=test, ks=(1,), ideal="full")["ndcg1"] < 1
    users = torch.arange(60)
    best = top_items(make(0), users, known, num=50)
    left = 50 - known.count
    assert (((best >= 0).sum(1)) == left).all()
    assert not known.contains(users[:, None], best.clamp(min=0))[best >= 0].any()
    with pytest.raises(DataError, match="not finite"):
        top_items(Fixed(perfect * torch.nan), users, known, num=3)
    with pytest.raises(DataError, match="no test"):
        evaluate_topk(Fixed(perfect), known=known, test=lists_of([], num_items=50))
    with pytest.raises(ConfigError, match="ideal"):
        evaluate_topk(Fixed(perfect), known=known, test=test, ideal="best")


# ---- the recipe --------------------------------------------------------------------------------------------------


def one_step_by_hand(model, data, config, seed):
    """The first optimiser step with loops and torch's own BPR, from the same draws."""
    lists = Lists.of(data)
    from contracts.digests import derive_seed

    draw = generator(derive_seed("bpr", seed, 0))
    users = lists.draw_users(config.batch, generator=draw)
    negatives = lists.draw_negatives(users, generator=draw)
    positives = lists.items[lists.draw_positives(users, generator=draw)]
    total = 0.0
    for u, i, j in zip(users.tolist(), positives.tolist(), negatives.tolist(), strict=True):
        e, p, n = model.user.weight[u], model.item.weight[i], model.item.weight[j]
        total = total - torch.log(torch.sigmoid(e @ p - e @ n)) + config.reg * (e @ e + p @ p + n @ n)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    (total / config.batch).backward()
    optimizer.step()
    return model


def test_a_step_is_the_formula(clicks, make):
    train = clicks.part("train")
    config = BprConfig(epochs=1, batch=len(train), reg=0.05, lr=0.01, weight_decay=0.1)
    assert num_steps(len(train), config) == 1
    expected = one_step_by_hand(make(4).double(), train, config, 4)
    got = bpr(lambda seed: make(seed).double(), train, config=config, seed=4)
    for name, value in expected.state_dict().items():
        assert torch.allclose(got.state_dict()[name], value, atol=1e-9), name


@pytest.mark.parametrize("name", ["mf", "lightgcn"])
@pytest.mark.parametrize("denoise", ["none", "pld", "truncation"])
def test_same_seed_same_bits_whatever_the_order_of_the_rows(clicks, denoise, name, rng_left_alone):
    make = builder(name, {"dim": 8}, input_shape=(60,), num_outputs=50)
    train, config = clicks.part("train"), BprConfig(denoise=denoise, **QUICK)
    with rng_left_alone():
        model = bpr(make, train, config=config, seed=1)
    mixed = train.take(np.random.default_rng(0).permutation(len(train)))
    assert (
        digest(bpr(make, mixed, config=config, seed=1))
        == digest(model)
        != digest(bpr(make, train, config=config, seed=2))
    )
    assert not model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("validation", [0.0, 0.2])
@pytest.mark.parametrize("killed_after", [3, 6])
def test_a_killed_run_resumes_to_the_same_bits(clicks, make, store, killed_after, validation):
    train = clicks.part("train")
    config = BprConfig(denoise="pld", validation=validation, validate_from=2, validate_every=2, **QUICK)
    straight = bpr(make, train, config=config, seed=0)

    class Killed(Exception):
        pass

    def progress(done, total, what):
        if done == killed_after:
            raise Killed

    with pytest.raises(Killed):
        bpr(make, train, config=config, seed=0, checkpoints=store, checkpoint_every=2, progress=progress)
    seen = []
    resumed = bpr(
        make,
        train,
        config=config,
        seed=0,
        checkpoints=store,
        checkpoint_every=2,
        progress=lambda d, t, w: seen.append(d),
    )
    assert digest(resumed) == digest(straight)
    assert seen[0] == killed_after // 2 * 2 + 1
    other = bpr(make, train, config=config, seed=1, checkpoints=store)  # not this run: trained anew
    assert digest(other) == digest(bpr(make, train, config=config, seed=1))


def test_a_run_that_stopped_early_goes_on_as_if_it_had_not(clicks, make, store):
    train = clicks.part("train")
    config = BprConfig(validation=0.2, validate_from=4, validate_every=4, **QUICK)
    early = bpr(make, train, config=config, seed=0, stop_after=3, checkpoints=store)
    assert digest(early) == digest(bpr(make, train, config=config, seed=0, stop_after=3))
    assert digest(bpr(make, train, config=config, seed=0, checkpoints=store)) == digest(
        bpr(make, train, config=config, seed=0)
    )
    with pytest.raises(ConfigError, match="stop_after"):
        bpr(make, train, config=config, seed=0, stop_after=9)


def test_a_users_own_ranker_by_its_import_path(clicks, make, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    own = builder("recipes_user_models:ranker", {"dim": 8}, input_shape=(60,), num_outputs=50)
    config = BprConfig(**QUICK)
    assert digest(bpr(own, clicks.part("train"), config=config, seed=0)) == digest(
        bpr(make, clicks.part("train"), config=config, seed=0)
    )


def test_copies_and_precision_take_the_graph_along(clicks):
    train = clicks.part("train")
    model = build("lightgcn", {"dim": 4}, input_shape=(60,), num_outputs=50, seed=0)
    model.set_graph(torch.from_numpy(train.x[:, 0]), torch.from_numpy(train.y))
    single = model.train().vectors()[0]
    assert torch.equal(copy.deepcopy(model).vectors()[0], single)
    assert torch.allclose(model.double().vectors()[0].float(), single, atol=1e-6)


def test_validation_is_not_trained_on_and_the_best_epoch_is_kept(clicks, make):
    train = clicks.part("train")
    seen: set[int] = set()
    config = BprConfig(validation=0.2, validate_from=1, validate_every=1, **{**QUICK, "epochs": 30, "lr": 0.1})
    model = bpr(make, train, config=config, seed=3, observe=lambda rows, losses: seen.update(rows.tolist()))
    unseen = np.setdiff1d(np.arange(len(train)), list(seen))
    counts = np.bincount(train.x[unseen, 0], minlength=60)
    np.testing.assert_array_equal(counts, np.bincount(train.x[:, 0]) // 5)
    everything = {n: Lists.of(train.take(rows)) for n, rows in (("test", unseen), ("known", np.array(sorted(seen))))}
    kept = evaluate_topk(model, ks=(20,), **everything)["recall20"]
    last = bpr(make, train, config=dataclasses.replace(config, validate_from=30), seed=3)  # the last epoch alone
    assert kept >= evaluate_topk(last, ks=(20,), **everything)["recall20"]
    assert digest(last) != digest(model)
    with pytest.raises(ConfigError, match="holds out nothing"):
        bpr(make, train, config=BprConfig(validation=0.01, **QUICK), seed=0)


def updates(make, data, **config) -> tuple[np.ndarray, np.ndarray]:
    """How often each row took part in a step, and the sizes of the steps."""
    count, sizes = np.zeros(len(data), np.int64), []

    def observe(rows, losses):
        np.add.at(count, rows.numpy(), 1)
        sizes.append(len(rows))
        assert len(losses) == len(rows) and losses.isfinite().all()

    bpr(make, data, config=BprConfig(**{**QUICK, "warmup_epochs": 0, **config}), seed=0, observe=observe)
    return count, np.array(sizes)


def test_one_candidate_or_a_large_tau_is_plain_training_in_distribution(clicks, make):
    train = clicks.part("train")
    expected = len(train) * 40 / 60 / np.bincount(train.x[:, 0])[train.x[:, 0]]  # 40 epochs
    for config in ({"denoise": "none"}, {"denoise": "pld", "pool": 1}, {"denoise": "pld", "tau": 1e6}):
        count, _ = updates(make, train, epochs=40, batch=len(train), **config)
        statistic = ((count - expected) ** 2 / expected).sum()
        assert statistic < chi2.ppf(1 - 1e-5, len(train) - 1), config


def test_every_user_is_updated_as_often_under_pld(clicks, make):
    train = clicks.part("train")
    for denoise in ("none", "pld"):
        count, _ = updates(make, train, epochs=40, batch=len(train), lr=0.05, denoise=denoise)
        by_user = np.bincount(train.x[:, 0], weights=count)
        assert ((by_user - by_user.mean()) ** 2 / by_user.mean()).sum() < chi2.ppf(1 - 1e-5, 59), denoise


def test_denoising_starts_after_the_warm_up(clicks, make):
    train = clicks.part("train")
    runs = [BprConfig(denoise=d, drop_rate=0.5, **{**QUICK, "epochs": 2}) for d in ("none", "pld", "truncation")]
    plain, *others = (digest(bpr(make, train, config=c, seed=0)) for c in runs)
    assert others == [plain, plain]
    _, sizes = updates(make, train, denoise="truncation", drop_rate=0.3, warmup_epochs=2, epochs=3)
    steps = num_steps(len(train), BprConfig(batch=64))
    assert sizes.tolist() == [64] * 2 * steps + [64 - 19] * steps


@pytest.mark.parametrize("loss", ["bpr", "bce"])
def test_truncation_leaves_out_the_largest_losses(clicks, make, loss):
    """The first step of a plain and of a truncated run draw the same interactions, and the same model judges them."""
    train = clicks.part("train")
    told = {}
    for denoise in ("none", "truncation"):
        config = BprConfig(
            **{**QUICK, "loss": loss, "denoise": denoise, "drop_rate": 0.3, "warmup_epochs": 0, "epochs": 1}
        )
        steps = []
        bpr(make, train, config=config, seed=0, observe=lambda rows, losses, steps=steps: steps.append((rows, losses)))
        told[denoise] = steps[0]
    losses, order = told["none"][1].sort()
    kept = len(losses) - int(0.3 * len(losses))
    assert losses[kept - 1] < losses[kept], "no ties at the cut"
    assert torch.equal(told["truncation"][1].sort().values, losses[:kept])
    assert sorted(told["truncation"][0].tolist()) == sorted(told["none"][0][order[:kept]].tolist())


@pytest.mark.parametrize("loss", ["bpr", "bce"])
def test_pld_spends_fewer_updates_on_planted_noise(loss):
    focused = {"num_users": 100, "num_items": 100, "per_user": 20, "dim": 2, "strength": 20.0}
    train = load("synthetic_interactions", focused).part("train")
    make = builder("mf", {"dim": 4}, input_shape=(100,), num_outputs=100)
    noisy = planted_interactions(train)
    share = {}
    for denoise in ("none", "pld"):
        count, _ = updates(make, train, denoise=denoise, loss=loss, epochs=30, batch=512, warmup_epochs=10, lr=0.05)
        share[denoise] = count[noisy].sum() / count.sum()
    assert abs(share["none"] - noisy.mean()) < 0.01
    assert share["pld"] < 0.7 * share["none"]


def test_predictions_and_other_recipes(clicks, make):
    model = bpr(make, clicks.part("train"), config=BprConfig(**QUICK), seed=0)
    logits = predict_logits(model, clicks, batch=7)
    np.testing.assert_allclose(logits, model(torch.from_numpy(clicks.x)).detach().numpy(), rtol=1e-5, atol=1e-7)
    with pytest.raises(NotApplicable, match="an example is a vector"):
        supervised(make, clicks.part("train"), config=SupervisedConfig(epochs=1), seed=0)


def test_refusals(clicks, make):
    train = clicks.part("train")

    def run(data=train, build=make, **config):
        return bpr(build, data, config=BprConfig(**{**QUICK, **config}), seed=0)

    with pytest.raises(NotApplicable, match="a user who met an item"):
        run(make_examples(30))
    with pytest.raises(NotApplicable, match="mf, lightgcn"):
        run(build=builder("mlp", input_shape=(60,), num_outputs=50))
    with pytest.raises(ConfigError, match="60 and 50"):
        run(build=builder("mf", input_shape=(61,), num_outputs=50))
    with pytest.raises(DataError, match="no interaction"):
        run(train.subset([]))
    for column, value in (("y", 50), ("y", -1), ("x", 60)):
        broken = getattr(train, column).copy()
        broken[3] = value
        with pytest.raises(DataError, match="outside") as error:
            run(dataclasses.replace(train, **{column: broken}))
        assert error.value.example_ids == (int(train.example_id[3]),)
    y = train.y.copy()
    y[train.x[:, 0] == train.x[0, 0]] = y[0]
    with pytest.raises(DataError, match="deduplicate"):
        run(dataclasses.replace(train, y=y))
    with pytest.raises(Diverged, match="epoch 1"):
        run(lr=100.0, reg=1.0, weight_decay=1.0, epochs=30, build=lambda seed: _huge(make(seed)))
    everything = lists_of(list(range(50)), num_items=50)
    all_items = dataclasses.replace(
        train.take(np.arange(50)), x=everything.users.numpy()[:, None], y=everything.items.numpy()
    )
    with pytest.raises(DataError, match="left as a negative"):
        run(all_items)


def _huge(model):
    with torch.no_grad():
        model.user.weight.fill_(1e30)
    return model
