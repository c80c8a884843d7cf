"""The distilled data set as a maker: what touched it, what it says of itself, and going on after a stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from contracts.methods import Picture, curator, maker
from contracts.progress import silent
from contracts.stores import NoStore
from curation.distilled.evaluation import CORESETS, StudentConfig, activations, coreset, train_students
from curation.distilled.experts import ExpertBuffer, ExpertConfig, train_experts
from curation.distilled.flat import FlatNetwork, one_hot
from curation.distilled.maker import FIRST_ID, DistilledConfig, parted
from curation.distilled.matching import match
from curation.distilled.tables import DISTILLED, EVAL, LOG_TABLE, SMOOTHNESS, WORTH, worth_frame
from curation.distilled.trajectory import LEAST_RATE, Distilled, MatchConfig, TrajectoryMatcher, perturbed
from curation.distilled.whitening import Scale
from explain.embeddings import embeddings
from palimpsest.testing.worlds import images
from recipes.models import builder
from sources.example_set import ExampleSet
from sources.made import Made, made_from

SMALL: dict[str, Any] = {
    "per_class": 2,
    "width": 4,
    "depth": 2,
    "seeds": 2,
    "held_out": 0.2,
    "experts": {"num": 2, "epochs": 5, "batch": 16, "lr": 0.1, "together": 1},
    "match": {"iterations": 6, "steps": 3, "t_max": 3, "lr_img": 5.0, "start": "real", "threshold": None},
    "students": {"epochs": 5},
    "keep_every": 2,
}


class Stopped(Exception):
    """The process ends here."""


class Store:
    """Keeps arrays in memory; ends the process at a save when it is told to."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        self.held: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.saves, self.stop_at = 0, stop_at

    def save(self, name: str, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
        self.held[name] = ({n: np.array(a) for n, a in tensors.items()}, dict(meta))
        self.saves += 1
        if self.saves == self.stop_at:
            raise Stopped
        return ""

    def load(self, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return self.held.get(name)


@pytest.fixture(scope="module")
def train() -> ExampleSet:
    return images().train


def make(data: ExampleSet, *, store: Any = NoStore(), seed: int = 3, **changed: Any) -> Made:  # noqa: B008
    config = DistilledConfig.from_mapping({**SMALL, **changed})
    return maker.get("distilled")(data, config=config, seed=seed, progress=silent, checkpoints=store)


@pytest.fixture(scope="module")
def made(train: ExampleSet) -> Made:
    return make(train)


def test_what_touched_a_distilled_example_is_told(train: ExampleSet, made: Made) -> None:
    """By name the one it started from, of its class; together all that experts learnt from; the judges apart."""
    assert made.examples.example_id.tolist() == [FIRST_ID + i for i in range(6)]
    assert made.examples.y.tolist() == [0, 0, 1, 1, 2, 2]
    table = made.tables[DISTILLED.name]
    assert table["made_id"].to_list() == made.drawn_from["made_id"].to_list()
    assert table["init_example_id"].to_list() == made.drawn_from["example_id"].to_list()
    origin = train.y[train.positions(table["init_example_id"].to_numpy())]
    assert origin.tolist() == table["label"].to_list()
    everyone = np.sort(train.example_id)
    assert np.array_equal(np.union1d(made.sources, made.judged_on), everyone)
    assert not np.intersect1d(made.learnt_from, made.judged_on).size and set(table["init_example_id"]) <= set(
        made.learnt_from
    )
    roles = dict(zip(everyone.tolist(), made.roles(everyone).tolist(), strict=True))
    assert {roles[i] for i in table["init_example_id"]} == {"source"}
    assert sum(r == "judged_on" for r in roles.values()) == len(made.judged_on) == 11


def test_its_tables_say_what_was_done_and_what_it_is_worth(made: Made) -> None:
    log, worth, moved = (made.tables[t.name] for t in (LOG_TABLE, EVAL, SMOOTHNESS))
    assert log["iteration"].to_list() == [1, 2, 3, 4, 5, 6] and set(log["expert"][:2]) == {0, 1}
    assert (log["start_epoch"] < log["upper_bound"]).all() and (log["upper_bound"] <= 3).all()
    # 2 architectures x 2 seeds x (distilled and initial, soft and hard; three coresets)
    assert worth.height == 2 * 2 * (4 + 3) and set(worth["arch"]) == {"convnet", "mlp"}
    assert not worth.select("set_name", "arch", "label_mode", "seed").is_duplicated().any()
    assert (worth.group_by("arch", "seed").agg(pl.col("random_acc").n_unique())["random_acc"] == 1).all()
    assert moved.height == 2 * 6 and moved.filter(epoch=0)["step_norm"].null_count() == 2
    longest = moved.group_by("expert").agg(pl.col("step_norm").max(), pl.col("max_step").first())
    assert longest["step_norm"].to_list() == pytest.approx(longest["max_step"].to_list())
    assert (made.tables[DISTILLED.name]["logits"].list.len() == 3).all()


def test_the_worth_of_a_set_is_that_of_its_networks_beside_random_ones(made: Made) -> None:
    """Every row against scipy's interval of what each network said, one by one."""
    judged, worth = made.tables[EVAL.name], made.tables[WORTH.name]
    assert worth.height == 2 * (4 + 3 + 2), "random and everything stand beside the sets"
    for row in worth.iter_rows(named=True):
        own = judged.filter(arch=row["arch"])
        if row["set_name"] in ("random", "everything"):
            one = own.filter(set_name="herding").sort("seed")
            acc = one["random_acc" if row["set_name"] == "random" else "full_acc"].to_list()
        else:
            one = own.filter(set_name=row["set_name"], label_mode=row["label_mode"]).sort("seed")
            acc = one["acc"].to_list()
        above = [a - b for a, b in zip(acc, one["random_acc"].to_list(), strict=True)]
        for name, values, least in (("acc", acc, 0.0), ("above_random", above, -1.0)):
            if (row["set_name"], name) == ("random", "above_random"):
                assert row[name] is row[f"{name}_lo"] is row[f"{name}_hi"] is None
                continue
            error = np.std(values, ddof=1) / np.sqrt(len(values))
            low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error) if error else (values[0],) * 2
            ends = (row[name], row[f"{name}_lo"], row[f"{name}_hi"])
            assert ends == pytest.approx((np.mean(values), max(low, least), min(high, 1.0))), (row["set_name"], name)
        assert (row["num_networks"], row["ipc"], row["num_judged"]) == (2, 2, 11)
    alone = worth_frame(judged.filter(seed=0))
    assert alone["acc"].null_count() == 0 and alone["acc_lo"].null_count() == alone.height
    assert (
        worth_frame(judged.sample(fraction=1, shuffle=True, seed=1))
        .sort(worth.columns[:3])
        .equals(worth.sort(worth.columns[:3]))
    ), "the order of the rows does not matter"


def test_a_picture_of_what_a_maker_does_not_store_is_refused() -> None:
    spec = maker.get("distilled").spec
    with pytest.raises(ConfigError, match="maker distilled: picture 't' draws a, b of distillation_worth"):
        dataclasses.replace(spec, pictures=(Picture(table=WORTH.name, title="t", x="a", y="b"),))
    with pytest.raises(ConfigError, match="maker distilled: picture 't' is no chart"):
        sheet = Picture(table=DISTILLED.name, title="t", x="init_example_id", y="lr", kind="examples")
        dataclasses.replace(spec, pictures=(sheet,))


def test_a_stopped_distillation_goes_on_to_the_same_bits(train: ExampleSet, made: Made) -> None:
    """Stopped after every save there is: between experts, in the middle of the matching, at its end."""
    first = Store()
    whole = make(train, store=first)
    assert whole.examples.digest == made.examples.digest, "a store changes nothing"
    assert first.saves == 5, "two experts, and iterations 2, 4 and 6"
    for stop_at in range(1, 6):
        store = Store(stop_at=stop_at)
        with pytest.raises(Stopped):
            make(train, store=store)
        again = make(train, store=store)
        assert again.examples.digest == made.examples.digest
        for name, frame in made.tables.items():
            assert frame.equals(again.tables[name]), name
        assert store.saves == 5, "nothing was done twice"


def test_a_choice_is_made_on_other_examples_than_the_judges(train: ExampleSet) -> None:
    config = DistilledConfig.from_mapping({**SMALL, "choose_every": 2})
    parts = parted(train.by_id(), config, 3)
    assert len(np.unique(np.concatenate(parts))) == len(train)
    assert (len(parts.choose), len(parts.judge)) == (5, 6)
    chosen = make(train, choose_every=2)
    assert chosen.examples.provenance["iteration"] in (2, 4, 6)
    assert set(chosen.judged_on) == set(train.by_id().example_id[parts.judge])
    assert set(train.by_id().example_id[parts.choose]) <= set(chosen.learnt_from), "what chooses has touched it"
    for stop_at in (3, 4, 5):
        store = Store(stop_at=stop_at)
        with pytest.raises(Stopped):
            make(train, store=store, choose_every=2)
        assert make(train, store=store, choose_every=2).examples.digest == chosen.examples.digest


def test_a_model_sees_the_distilled_images_as_the_students_did(train: ExampleSet) -> None:
    """Standardised on what was distilled: the images that were started from, unmoved, are the originals."""
    still = make(train, match={**SMALL["match"], "lr_img": 0.0, "lr_y": 0.0})
    origin = train.subset(still.tables[DISTILLED.name]["init_example_id"].to_numpy())
    assert np.abs(still.examples.x - origin.x).max() < 1e-3
    seen = still.examples.inputs(slice(None))
    learnt = train.subset(still.learnt_from).inputs(slice(None))
    wanted = (origin.inputs(slice(None)) - learnt.mean()) / learnt.std()
    assert np.abs(seen - wanted).max() < 1e-4
    white = make(train, zca=True, match={**SMALL["match"], "lr_img": 0.0, "lr_y": 0.0})
    assert np.abs(white.examples.x - train.subset(white.drawn_from["example_id"].to_numpy()).x).max() < 0.05
    assert made_from(*white.kept()).digest == white.examples.digest


def test_hard_labels_have_no_logits_and_ast_runs_whole(train: ExampleSet) -> None:
    ast = {**SMALL["match"], "labels": "hard", "start": "representative", "momentum": 0.9, "perturb": 1.0}
    ast |= {"balance": True, "intermediate": "equal"}
    strong = {
        **SMALL["experts"],
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "decay": 0.6,
        "clip_loss": True,
        "penalty": 0.1,
    }
    made = make(train, match=ast, experts=strong)
    assert made.tables[DISTILLED.name]["logits"].null_count() == 6
    assert set(made.tables[EVAL.name]["label_mode"]) == {"hard"}
    assert set(made.tables[SMOOTHNESS.name]["variant"]) == {"sgd+momentum+clip+penalty"}


def test_what_cannot_be_made_is_refused_in_words(train: ExampleSet) -> None:
    with pytest.raises(DataError, match="16 are to be made of them, and 4 are held out"):
        make(train, per_class=16)
    with pytest.raises(NotApplicable, match="at least 16 x 16"):
        make(train, depth=4)
    with pytest.raises(ConfigError, match=r"match.t_max - 1 \+ match.expert_epochs = 6 must be <= experts.epochs = 5"):
        make(train, match={**SMALL["match"], "t_max": 5})
    with pytest.raises(DataError, match="judge it too"):
        made = make(train)
        dataclasses.replace(made, judged_on=made.learnt_from[:1]).validate(train)


# ---- the matcher -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matched() -> tuple[FlatNetwork, ExpertBuffer, torch.Tensor, torch.Tensor]:
    data = images().train
    x = torch.from_numpy(data.inputs(slice(None)))
    network = FlatNetwork(builder("convnet", {"width": 4, "depth": 2}, input_shape=(1, 8, 8), num_outputs=3))
    config = ExpertConfig(num=3, epochs=6, lr=0.1, batch=16, augment=())
    experts = train_experts(network, x, torch.from_numpy(data.y), num_classes=3, config=config, seed=0)
    return network, experts, x[:6], torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


SHORT = MatchConfig(iterations=12, steps=4, t_max=4, lr_img=1.0, augment=(), threshold=None)


def test_an_iteration_is_sgd_with_momentum_written_out(matched) -> None:
    network, experts, x, y = matched
    matcher = TrajectoryMatcher(network=network, experts=experts, config=SHORT)
    state = matcher.run(Distilled.start(x, y, 0.01), seed=1, stop_after=3)
    images, labels, rate = x.clone(), y.clone(), 0.01
    of_x, of_y, of_rate = torch.zeros_like(x), torch.zeros_like(y), 0.0
    for iteration in range(3):
        inner, _ = matcher.inner(Distilled.start(images, labels, rate), iteration, seed=1)
        found = match(inner, images, labels, rate)
        of_x, of_y, of_rate = 0.5 * of_x + found.images, 0.9 * of_y + found.labels, 0.5 * of_rate + found.rate
        images, labels, rate = images - of_x, labels - 2 * of_y, max(rate - 1e-5 * of_rate, LEAST_RATE)
    assert torch.equal(state.images, images) and torch.equal(state.labels, labels) and state.rate == rate


def test_experts_take_turns_and_the_schedule_is_kept(matched) -> None:
    network, experts, x, y = matched
    config = dataclasses.replace(SHORT, t_cur=1, it_end=9)
    log = np.array(
        TrajectoryMatcher(network=network, experts=experts, config=config).run(Distilled.start(x, y, 0.01), seed=1).log
    )
    for turn in range(4):
        assert sorted(log[3 * turn : 3 * turn + 3, 0]) == [0, 1, 2]
    assert log[:, 2].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4] and (log[:, 1] < log[:, 2]).all()
    with pytest.raises(ConfigError, match="t_max has to be <= 5"):
        TrajectoryMatcher(network=network, experts=experts, config=dataclasses.replace(SHORT, t_max=6))


def test_a_loss_above_the_threshold_changes_nothing(matched) -> None:
    network, experts, x, y = matched
    config = dataclasses.replace(SHORT, threshold=1e-6)
    state = TrajectoryMatcher(network=network, experts=experts, config=config).run(Distilled.start(x, y, 0.01), seed=1)
    assert torch.equal(state.images, x) and torch.equal(state.labels, y) and state.rate == 0.01
    assert all(row[4] for row in state.log)
    wild = Distilled.start(x * 1e30, y, 0.01)
    skipped = TrajectoryMatcher(network=network, experts=experts, config=dataclasses.replace(SHORT, threshold=1.0))
    far = Distilled.start(x, y, 1e20)
    assert all(row[4] for row in skipped.run(far, seed=1).log), "what is not finite is above any threshold"
    with pytest.raises(Diverged, match="loss of iteration 1 is not finite"):
        TrajectoryMatcher(network=network, experts=experts, config=SHORT).run(far, seed=1)
    assert wild.iteration == 0


def test_the_step_size_stays_positive(matched) -> None:
    network, experts, x, y = matched
    config = dataclasses.replace(SHORT, lr_lr=1.0, lr_start=0.3, lr_img=0.0)
    state = TrajectoryMatcher(network=network, experts=experts, config=config).run(Distilled.start(x, y, 0.3), seed=1)
    rates = [row[5] for row in state.log]
    assert min(rates) >= LEAST_RATE and len(set(rates)) > 1


def test_perturbation_changes_convolutions_alone_by_its_size(matched) -> None:
    network, experts, _, _ = matched
    theta = experts.final(0, network)
    before, weights = theta.clone(), network.named(theta)
    moved = network.named(perturbed(network, theta, scale=1.0, seed=2))
    assert torch.equal(theta, before)
    for name, weight in weights.items():
        if weight.ndim == 4:
            noise = (moved[name] - weight) / weight
            assert float(noise.norm()) == pytest.approx(1.0, abs=1e-3), "E / |E|_F has length 1"
        else:
            assert torch.equal(moved[name], weight)


def test_coresets_are_those_of_their_rules_within_every_class(matched) -> None:
    """Seen as the expert sees them, on the scale it was trained on: the curators' own choices on such data."""
    network, experts, _, _ = matched
    data = images().train.by_id()
    expert, x, y = experts.final(0, network), torch.from_numpy(data.inputs(slice(None))), torch.from_numpy(data.y)
    found = {name: coreset(name, network, expert, x, y, per_class=3, num_classes=3) for name in CORESETS}
    model = network.module(expert)
    given = {"encoder": model, "outputs": lambda data: network.logits(expert, x).numpy()}
    for name, rows in found.items():
        assert data.y[rows].tolist() == [0] * 3 + [1] * 3 + [2] * 3 and len(set(rows.tolist())) == 9
        rule = curator.get(name)
        count = rule.spec.config.from_mapping({"count": 9})
        needs = {need: given[need] for need in rule.spec.needs}
        chosen = rule(data, config=count, seed=0, **needs).filter(pl.col("role") == "keep")["example_id"]
        counts = np.bincount(data.y[data.positions(chosen.to_numpy())])
        if counts.tolist() == [3, 3, 3]:  # its shares are in proportion to the classes
            assert set(data.example_id[rows]) == set(chosen), name
    assert len({tuple(sorted(rows.tolist())) for rows in found.values()}) == 3
    assert np.allclose(activations(model, x, batch=7), embeddings(model, data), atol=1e-6)


def test_students_learn_from_probabilities_with_one_softmax(matched) -> None:
    """A student of hard labels is that of their indicators; half way the rate falls and the momentum with it."""
    network, _, x, _ = matched
    config = StudentConfig(epochs=4, batch=6, augment=(), late_momentum=0.5, weight_decay=0.01)
    targets = one_hot(torch.tensor([0, 0, 1, 1, 2, 2]), 3, x.dtype)
    (found,) = train_students(network, x, targets, rate=0.1, config=config, seeds=[4])
    from contracts.digests import derive_seed

    theta = network.initial(derive_seed("student", 4))
    ball = torch.zeros_like(theta)
    for epoch in range(4):
        at = theta.detach().requires_grad_()
        loss = -(targets * network(at, x).log_softmax(1)).sum(1).mean()
        gradient = torch.autograd.grad(loss, at)[0] + 0.01 * theta
        ball = (0.9 if epoch < 2 else 0.5) * ball + gradient
        theta = theta - 0.1 * (1.0 if epoch < 2 else 0.1) * ball
    assert torch.allclose(found, theta, atol=1e-5)


def test_whitening_whitens_and_is_undone() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400, 2, 3, 3, generator=rng) @ (torch.eye(3) + 0.3 * torch.randn(3, 3, generator=rng))
    scale = Scale.fit(x, zca=True, eps=1e-6)
    flat = scale.to(x).flatten(1)
    assert torch.allclose(flat.T @ flat / len(flat), torch.eye(18), atol=1e-2)
    assert torch.allclose(scale.standardised(scale.to(x)) * scale.spread + scale.shift, x, atol=1e-3)
    assert torch.allclose(scale.whiten, scale.whiten.T, atol=1e-4), "ZCA is the symmetric one"
    flat_channel = torch.ones(5, 1, 2, 2)
    assert torch.isfinite(Scale.fit(flat_channel).to(flat_channel)).all()
    with pytest.raises(NotApplicable, match="ZCA of images of 12,288 values"):
        Scale.fit(torch.zeros(2, 3, 64, 64), zca=True)
