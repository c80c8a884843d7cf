"""Personal loss: against a loop over the definition, selection against exact enumeration, ranks and refusals; the
analysis."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import chi2, rankdata
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, InvalidInput, NotApplicable
from contracts.progress import silent
from recipes.models import builder
from recipes.recsys import BprConfig, bpr, choose, pool_losses
from recipes.recsys_lists import Lists
from recipes.rng import generator
from scoring.personal_loss import PersonalLossConfig, personal_loss, ranks_within, selection_probability
from sources.example_set import ExampleSet
from sources.loading import load
from sources.planted import planted_interactions
from studies.recsys_eval import RecsysEvalConfig, measure, recsys_eval

CONFIG = PersonalLossConfig()


class Scores(nn.Module):
    """A model that is its score matrix."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, users: torch.Tensor) -> torch.Tensor:
        return self.scores[users.flatten()]


@pytest.fixture(scope="module")
def clicks() -> ExampleSet:
    return load("synthetic_interactions", {"num_users": 60, "num_items": 50, "per_user": 15})


@pytest.fixture(scope="module")
def train(clicks) -> ExampleSet:
    return clicks.part("train")


@pytest.fixture
def model() -> nn.Module:
    return Scores(torch.randn(60, 50, generator=torch.Generator().manual_seed(0)) * 2)


# ---- the score ---------------------------------------------------------------------------------------------------


def test_losses_are_the_mean_over_negatives_shared_by_the_user(train, model) -> None:
    found = personal_loss(train, config=CONFIG, seed=7, model=model)
    lists = Lists.of(train)
    draw = generator(derive_seed("personal loss", 7))
    negatives = lists.draw_negatives(lists.active.repeat_interleave(32), generator=draw).view(-1, 32)
    scores = model.scores.detach().double().numpy()
    for row in range(0, len(train), 17):
        u, i = int(train.x[row, 0]), int(train.y[row])
        mine = [math.log1p(math.exp(scores[u, n] - scores[u, i])) for n in negatives[u].tolist()]
        assert found["mean_loss"][row] == pytest.approx(np.mean(mine), rel=1e-9)
        assert found["loss_stderr"][row] == pytest.approx(np.std(mine, ddof=1) / math.sqrt(32), rel=1e-9)


@pytest.mark.parametrize("loss", ["bpr", "bce"])
def test_ranks_and_z_against_a_loop_over_users(train, model, loss) -> None:
    found = personal_loss(train, config=PersonalLossConfig(loss=loss), seed=0, model=model)
    losses = found["mean_loss"].to_numpy()
    if loss == "bce":
        of_pair = model.scores.detach().double()[train.x[:, 0], train.y]
        np.testing.assert_allclose(losses, torch.nn.functional.softplus(-of_pair).numpy(), rtol=1e-12)
        assert (found["loss_stderr"] == 0).all()
    for u in range(60):
        mine = train.x[:, 0] == u
        own = losses[mine]
        np.testing.assert_allclose(
            found["personal_z"].to_numpy()[mine], (own - own.mean()) / own.std(), rtol=1e-7, atol=1e-9
        )
        np.testing.assert_allclose(found["personal_rank"].to_numpy()[mine], (rankdata(own) - 1) / (len(own) - 1))
        assert set(found["n_interactions"].to_numpy()[mine]) == {int(mine.sum())}
    np.testing.assert_allclose(found["global_rank"], (rankdata(losses) - 1) / (len(losses) - 1))


@given(hnp.arrays(np.int64, 30, elements=st.integers(0, 4)), hnp.arrays(np.int64, 30, elements=st.integers(0, 5)))
def test_ranks_within_groups(groups, values) -> None:
    found = ranks_within(values.astype(np.float64), groups)
    for g in np.unique(groups):
        own = values[groups == g]
        expected = (rankdata(own) - 1) / (len(own) - 1) if len(own) > 1 else np.zeros(1)
        np.testing.assert_allclose(found[groups == g], expected)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_batch_and_order_of_the_rows_do_not_matter(train, model, batch) -> None:
    whole = personal_loss(train, config=CONFIG, seed=3, model=model)
    mixed = train.take(np.random.default_rng(0).permutation(len(train)))
    cut = personal_loss(mixed, config=PersonalLossConfig(batch=batch), seed=3, model=model)
    assert cut["example_id"].to_list() == mixed.example_id.tolist()
    assert whole.sort("example_id").equals(cut.sort("example_id"))


def test_selections_follow_the_exact_probability(train) -> None:
    """Counted over many rounds, with one score for all negatives, so that the losses are known."""
    scores = torch.zeros(60, 50)
    lists = Lists.of(train)
    scores[lists.users, lists.items] = torch.randn(len(lists), generator=torch.Generator().manual_seed(1)) * 0.3
    config = PersonalLossConfig(rounds=3000, pool=3, tau=0.2)
    found = personal_loss(train, config=config, seed=0, model=Scores(scores))
    statistic, cells = 0.0, 0
    for u in range(0, 60, 6):
        own = found.filter(pl.Series(train.x[:, 0] == u))
        probability = selection_probability(own["mean_loss"].to_numpy(), pool=3, tau=0.2)
        assert own["n_selected"].sum() == 3000 and own["n_pool"].sum() == 9000
        expected = 3000 * probability
        statistic += float(((own["n_selected"].to_numpy() - expected) ** 2 / expected).sum())
        cells += len(own) - 1
        pools = 9000 / len(own)
        assert abs(own["n_pool"].to_numpy() - pools).max() < 5 * math.sqrt(pools)
    assert statistic < chi2.ppf(1 - 1e-5, cells)


def test_planted_noise_is_told_where_it_is_known(train, clicks, model) -> None:
    found = personal_loss(train, config=CONFIG, seed=0, model=model)
    np.testing.assert_array_equal(found["is_noise"].to_numpy(), planted_interactions(train))
    quiet = dataclasses.replace(train, provenance={"num_users": 60})
    assert personal_loss(quiet, config=CONFIG, seed=0, model=model)["is_noise"].null_count() == len(train)


def test_a_user_with_every_item_has_no_pairwise_loss(model) -> None:
    users, items = np.repeat([0, 1], [50, 3]), np.concatenate([np.arange(50), [4, 5, 6]])
    data = _ranking(users, items)
    found = personal_loss(data, config=CONFIG, seed=0, model=model)
    assert found["mean_loss"].is_null().to_list() == (users == 0).tolist()
    assert found["personal_rank"].drop_nulls().sort().to_list() == [0.0, 0.5, 1.0]
    assert (
        personal_loss(data, config=PersonalLossConfig(loss="bce"), seed=0, model=model)["personal_rank"].null_count()
        == 0
    )


def test_alike_losses_share_their_rank(train) -> None:
    found = personal_loss(train, config=CONFIG, seed=0, model=Scores(torch.zeros(60, 50)))
    assert set(found["personal_rank"]) == {0.5} and set(found["personal_z"]) == {0.0}
    assert found["mean_loss"].to_numpy() == pytest.approx(math.log(2))
    one = train.subset(train.example_id[:1])
    assert personal_loss(one, config=CONFIG, seed=0, model=Scores(torch.zeros(60, 50)))["personal_rank"].to_list() == [
        0.0
    ]
    assert len(personal_loss(train.subset([]), config=CONFIG, seed=0, model=Scores(torch.zeros(60, 50)))) == 0


def test_modes_and_generators_are_left_alone(train) -> None:
    model = nn.Sequential(Scores(torch.randn(60, 50)), nn.Dropout(0.9)).train()
    before = torch.get_rng_state()
    runs = [personal_loss(train, config=CONFIG, seed=0, model=model) for _ in range(2)]
    assert runs[0].equals(runs[1]) and model.training and model[1].training
    assert torch.equal(before, torch.get_rng_state())
    double = personal_loss(train, config=CONFIG, seed=0, model=model.double())
    np.testing.assert_allclose(double["mean_loss"], runs[0]["mean_loss"], rtol=1e-6)


def test_refusals(train, examples, mlp, model) -> None:
    with pytest.raises(NotApplicable, match="classification"):
        personal_loss(examples, config=CONFIG, seed=0, model=mlp(0))
    with pytest.raises(NotApplicable, match=r"\(60, 50\) is needed"):
        personal_loss(train, config=CONFIG, seed=0, model=Scores(torch.zeros(60, 49)))
    victim = int(train.example_id[3])
    for column, value in (("y", 50), ("y", -1), ("x", 60)):
        broken = getattr(train, column).copy()
        broken[3] = value
        with pytest.raises(DataError, match="outside") as error:
            personal_loss(dataclasses.replace(train, **{column: broken}), config=CONFIG, seed=0, model=model)
        assert error.value.example_ids == (victim,)
    with torch.no_grad():
        model.scores[5, 0] = torch.nan
    with pytest.raises(DataError, match="NaN") as error:
        personal_loss(train, config=CONFIG, seed=0, model=model)
    assert set(error.value.example_ids) == set(train.example_id[train.x[:, 0] == 5].tolist())


def _ranking(users: np.ndarray, items: np.ndarray) -> ExampleSet:
    num = len(users)
    return ExampleSet(
        name="pairs",
        task="ranking",
        x=users[:, None].astype(np.int64),
        y=items.astype(np.int64),
        example_id=np.arange(num, dtype=np.int64),
        split=np.full(num, "train", "<U5"),
        owner=users.astype(str),
        content_hash=np.full(num, "", "<U64"),
        class_names=tuple(map(str, range(50))),
        center=np.zeros(1, np.float32),
        scale=np.ones(1, np.float32),
        provenance={"num_users": 60},
    )


# ---- exact selection ---------------------------------------------------------------------------------------------


def test_no_choice_is_the_share_in_the_data() -> None:
    losses = np.array([0.1, 3.0, 0.2, 5.0, 1.0, 0.0])
    for pool, tau in ((1, 0.1), (4, 1e9)):
        np.testing.assert_allclose(selection_probability(losses, pool=pool, tau=tau), 1 / 6, rtol=1e-6)


def test_no_temperature_is_the_best_of_the_pool() -> None:
    """The r-th lowest of n is the best of a k-pool when the others come from the n - r above: C(n - r, k - 1) / C(n,
    k)."""
    found = selection_probability(np.arange(7.0), pool=3, tau=1e-6)
    expected = [math.comb(7 - r, 2) / math.comb(7, 3) for r in range(1, 8)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(hnp.arrays(np.float64, 6, elements=st.floats(0, 4)), st.integers(1, 6), st.floats(0.05, 5), st.floats(-9, 9))
def test_it_is_a_distribution_and_a_constant_changes_nothing(losses, pool, tau, shift) -> None:
    found = selection_probability(losses, pool=pool, tau=tau)
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    np.testing.assert_allclose(selection_probability(losses + shift, pool=pool, tau=tau), found, atol=1e-9)
    order = np.argsort(losses)
    assert (np.diff(found[order]) <= 1e-9).all()  # a lower loss is never drawn less


@pytest.mark.parametrize("size", [2, 4])
def test_against_what_training_draws(size) -> None:
    """The recipe's own pools and choice, for a list as long as the pool and shorter than it."""
    losses = torch.tensor([0.2, 0.05, 0.6])[: 4 if size == 2 else 3]
    lists = Lists(np.zeros(3, np.int64), np.arange(3), num_users=1, num_items=9)
    draw = generator(0)
    pools = lists.draw_pools(torch.zeros(100_000, dtype=torch.int64), size, generator=draw)
    chosen = pools.gather(0, choose(losses[pools], tau=0.3, generator=draw)[None]).flatten().numpy()
    expected = 100_000 * selection_probability(losses.numpy(), pool=size, tau=0.3)
    assert ((np.bincount(chosen) - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-5, 2)


def test_one_negative_for_all_makes_the_loss_monotone_in_the_score() -> None:
    positive = torch.randn(5, 200, generator=torch.Generator().manual_seed(0))
    losses = pool_losses("bpr", positive, torch.randn(200, generator=torch.Generator().manual_seed(1)))
    assert (losses.argsort(0) == positive.argsort(0, descending=True)).all()


def test_refusals_of_enumeration() -> None:
    for losses, pool, tau in (([], 1, 1.0), ([1.0, np.nan], 1, 1.0), ([1.0], 0, 1.0), ([1.0], 1, 0.0)):
        with pytest.raises(InvalidInput):
            selection_probability(losses, pool=pool, tau=tau)
    with pytest.raises(InvalidInput, match="too many"):
        selection_probability(np.zeros(100), pool=5, tau=1.0)


# ---- the analysis ------------------------------------------------------------------------------------------------

SHORT = {"epochs": 4, "count_from": 1, "warmup_epochs": 1, "batch": 256, "dim": 4, "seeds": 2}


def test_the_analysis_has_a_row_a_training_and_their_means(clicks) -> None:
    found = recsys_eval(clicks, config=RecsysEvalConfig(**SHORT), seed=0, progress=silent)
    runs, means = found["recsys_eval"], found["recsys_eval_means"]
    # nothing to tell truncation where no noise is planted
    assert sorted(runs.select("method", "noise_ratio").unique().rows()) == [
        ("none", 0.0),
        ("none", 0.3),
        ("pld", 0.0),
        ("pld", 0.3),
        ("truncation", 0.3),
    ]
    assert runs.height == 10 and means.height == 5
    for row in means.iter_rows(named=True):
        own = runs.filter(pl.col("method") == row["method"], pl.col("noise_ratio") == row["noise_ratio"])
        assert row["recall20"] == pytest.approx(own["recall20"].mean())
        assert row["recall20_low"] <= row["recall20"] <= row["recall20_high"]
        assert row["noisy_update_share"] == own["noisy_update_share"].mean()
    assert runs.filter(pl.col("noise_ratio") == 0)["noisy_update_share"].null_count() == 4
    shares = runs.filter(pl.col("noise_ratio") == 0.3)["noise_share"]
    assert shares.to_list() == pytest.approx([3 / 15] * 6)  # 12 training items and floor(3.6) planted ones a user
    again = recsys_eval(
        clicks.take(np.arange(len(clicks))[::-1]), config=RecsysEvalConfig(**SHORT), seed=0, progress=silent
    )
    assert again["recsys_eval"].equals(runs)


def test_updates_are_counted_from_the_epoch_asked_for(clicks, train) -> None:
    build = builder("mf", {"dim": 4}, input_shape=(60,), num_outputs=50)
    noisy = planted_interactions(train)
    config = BprConfig(epochs=3, batch=200, lr=0.01)
    seen: list[np.ndarray] = []
    bpr(build, train, config=config, seed=1, observe=lambda rows, losses: seen.append(rows.numpy()))
    steps = -(-len(train) // 200)
    found = measure(build, train, Lists.of(clicks.part("test")), config=config, seed=1, noisy=noisy, count_from=2)
    assert found["noisy_update_share"] == noisy[np.concatenate(seen[2 * steps :])].mean()
    assert set(found) == {"recall20", "recall50", "ndcg20", "ndcg50", "noisy_update_share"}


def test_refusals_of_the_analysis(clicks, train, examples) -> None:
    with pytest.raises(NotApplicable, match="classification"):
        recsys_eval(examples, config=RecsysEvalConfig(**SHORT), seed=0, progress=silent)
    with pytest.raises(DataError, match="no test interaction"):
        recsys_eval(train, config=RecsysEvalConfig(**SHORT), seed=0, progress=silent)
    with pytest.raises(ConfigError, match="count_from"):
        RecsysEvalConfig(epochs=10)
    with pytest.raises(ConfigError, match="increasing"):
        RecsysEvalConfig(noise_ratios=(0.3, 0.1))
