"""Training through steps: bits, resumption, snapshots, members, what is kept, and what protects what."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recipes_examples import make_examples
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, IntegrityError, NotApplicable
from contracts.subject import Ensemble
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.continual.head import CLOSED, GrowingHead
from recipes.continual.rehearsal_free import RehearsalFreeConfig, rehearsal_free
from recipes.continual.replay import ReplayConfig, replay
from recipes.continual.stream import PRETRAINING, StreamConfig, stream_of
from recipes.ensemble import train_ensemble
from recipes.models import builder
from recipes.predict import predict_logits
from recipes.retention import Retained, held, retain, retained_of
from recipes.rng import generator
from recipes.training import Trainer

STEPS = ((1,), (0, 3), (2, 4))
SMALL = {"steps": STEPS, "epochs": 3, "batch": 16, "lr": 0.01}
EVERYTHING = RehearsalFreeConfig(**SMALL, feat=0.01, l2=0.01, ewc=1.0, anchor_old_rows=True, weight_decay=1e-3)
SOFTMAX = RehearsalFreeConfig(**SMALL, loss="ce", ewc=1.0, fisher="average")
REPLAY = ReplayConfig(**SMALL, buffer=12, replay_batch=8)
CASES = [("rehearsal_free", EVERYTHING), ("rehearsal_free", SOFTMAX), ("replay", REPLAY)]
RECIPES = {"rehearsal_free": rehearsal_free, "replay": replay}


def data(num: int = 160, classes: int = 5):
    return make_examples(num, classes=classes)


def mlp(examples, **config):
    return builder("mlp", {"hidden": [8], **config}, input_shape=examples.input_shape, num_outputs=examples.num_classes)


def state(model: nn.Module) -> str:
    return arrays_digest(to_arrays(model))


def run(name, examples, config, seed=0, **given):
    return RECIPES[name](mlp(examples, dropout=0.2), examples, config=config, seed=seed, **given)


@pytest.mark.parametrize(("name", "config"), CASES)
def test_same_seed_same_bits_whatever_the_order_of_the_rows(name, config, rng_left_alone):
    examples = data()
    with rng_left_alone():
        first = run(name, examples, config)
    mixed = examples.take(np.random.default_rng(0).permutation(len(examples)))
    assert state(first) == state(run(name, mixed, config)) != state(run(name, examples, config, seed=1))
    assert not first.training and all(p.requires_grad and p.grad is None for p in first.parameters())
    assert not any(m._forward_pre_hooks for m in first.modules())


@pytest.mark.parametrize(("name", "config"), CASES)
def test_a_killed_run_goes_on_with_the_same_bits_and_the_same_retention(name, config, store):
    examples = data()
    straight = run(name, examples, config)
    run(name, examples, config, stop_after=6, checkpoints=store)
    assert store.saves == [name, name]
    told = []
    again = run(name, examples, config, checkpoints=store, progress=lambda *a: told.append(a))
    assert [t[0] for t in told] == [7, 8, 9] and state(again) == state(straight)
    ours, theirs = (retained_of(m).arrays() for m in (again, straight))
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)
    before = state(run(name, examples, config, stop_after=3))
    assert state(run(name, examples, config, stop_after=3, checkpoints=store)) == before, (
        "a later checkpoint is no start"
    )
    other = run(name, examples, dataclasses.replace(config, lr=0.02), checkpoints=store)
    assert state(other) == state(run(name, examples, dataclasses.replace(config, lr=0.02)))
    store.damaged.add(name)
    with pytest.raises(IntegrityError):
        run(name, examples, config, checkpoints=store)


@pytest.mark.parametrize(("name", "config"), CASES)
def test_many_models_are_the_recipe_itself_on_their_members_at_every_epoch(name, config):
    examples = data()
    trainer = Trainer(recipe=name, build=mlp(examples), config=config)
    members, ends = [np.arange(100), np.arange(40, 160)], [0, 4, 6, None]
    told: list[tuple[int, int]] = []
    found = trainer.snapshots(
        examples, members=members, seeds=[3, 4], epochs=ends, progress=lambda d, t, _: told.append((d, t))
    )
    for models, end in zip(found, ends, strict=True):
        alone = [
            trainer.one(examples.take(rows), seed, stop_after=end) for rows, seed in zip(members, (3, 4), strict=True)
        ]
        assert [state(m) for m in models] == [state(m) for m in alone]
        assert [retained_of(m).example_id.tolist() for m in models] == [
            retained_of(m).example_id.tolist() for m in alone
        ]
    assert told == sorted(told) and told[-1][0] == told[-1][1]
    assert (predict_logits(found[0][0], examples) == CLOSED).all(), "nothing is seen before the first step"
    with pytest.raises(ConfigError, match="stop_after"):
        trainer.one(examples, 0, stop_after=10)


def test_the_total_loss_of_a_step_by_hand():
    """Two epochs of the second step of one full batch, in plain torch: distilled BCE + features + L2 + EWC, Adam."""
    examples = make_examples(30, classes=4)
    config = RehearsalFreeConfig(steps=((0, 2), (3, 1)), epochs=2, batch=100, lr=0.01, feat=0.1, l2=0.2, ewc=3.0)
    build, seed = (lambda s: mlp(examples)(s).double()), 5
    found = rehearsal_free(build, examples, config=config, seed=seed)

    def rows_of(classes):
        rows = np.flatnonzero(np.isin(examples.y, classes))
        return rows[np.argsort(examples.example_id[rows])]

    def order(num, step, epoch):
        return torch.randperm(num, generator=generator(derive_seed("order", seed, step, epoch)))

    def go(model, head, step, classes, extra, place):
        rows = rows_of(classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for epoch in range(2):
            mixed = rows[order(len(rows), step, epoch)]
            x, y = torch.from_numpy(examples.inputs(mixed)).double(), torch.from_numpy(examples.y[mixed])
            target = torch.tensor([place[int(c)] for c in y])
            loss = extra(x, model(x)[:, list(place)], F.one_hot(target, len(place)).double())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    model = build(seed)
    head = GrowingHead(model, 4)
    head.open([0, 2])
    bce = F.binary_cross_entropy_with_logits
    go(model, head, 0, [0, 2], lambda x, o, t: bce(o, t, reduction="sum") / len(x), {0: 0, 2: 1})
    teacher, rows = copy.deepcopy(model), rows_of([0, 2])
    fisher = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for row in rows:
        x = torch.from_numpy(examples.inputs(np.array([row]))).double()
        target = torch.tensor([[float(examples.y[row] == 0), float(examples.y[row] == 2)]]).double()
        model.zero_grad()
        bce(model(x)[:, [0, 2]], target, reduction="sum").backward()
        for n, p in model.named_parameters():
            fisher[n] += p.grad.square() / len(rows)
    model.zero_grad()
    head.open([3, 1])

    def second(x, o, t):
        old = teacher(x)[:, [0, 2]].detach().sigmoid()
        loss = bce(o, torch.cat([old, t[:, 2:]], 1), reduction="sum") / len(x)
        phi, phi_old = (torch.relu(m.hidden[0](x)) for m in (model, teacher))
        loss = loss + 0.1 * (phi - phi_old.detach()).square().sum() / len(x)
        for (n, p), q in zip(model.named_parameters(), teacher.parameters(), strict=True):
            if not n.startswith("head"):
                loss = (
                    loss + 0.2 * (p - q.detach()).square().sum() + 3.0 * (fisher[n] * (p - q.detach()).square()).sum()
                )
        return loss

    go(model, head, 1, [3, 1], second, {0: 0, 2: 1, 3: 2, 1: 3})
    for a, b in zip(found.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_replay_by_hand():
    """The second step of replay: each batch with what is drawn of the buffer, softmax over the seen classes."""
    examples = make_examples(24, classes=2)
    config = ReplayConfig(steps=((0,), (1,)), epochs=1, batch=5, lr=0.01, loss="ce", buffer=4, replay_batch=3)
    build, seed = mlp(examples), 2
    model = build(seed)
    head = GrowingHead(model, 2)
    for step in (0, 1):
        head.open([step])
        rows = np.flatnonzero(examples.y == step)
        rows = rows[np.argsort(examples.example_id[rows])]
        mixed = rows[torch.randperm(12, generator=generator(derive_seed("order", seed, step, 0)))]
        optimizer, draw = torch.optim.Adam(model.parameters(), lr=0.01), generator(derive_seed("replay", seed, step, 0))
        for start in (0, 5, 10):
            batch = mixed[start : start + 5]
            if step:
                priority = np.random.default_rng(derive_seed("buffer", seed, 0)).random(12)
                first = np.flatnonzero(examples.y == 0)
                first = first[np.argsort(examples.example_id[first])]
                kept = np.sort(np.argsort(priority)[:4])
                batch = np.concatenate([batch, first[kept][torch.randperm(4, generator=draw)[:3].numpy()]])
            x, y = torch.from_numpy(examples.inputs(batch)), torch.from_numpy(examples.y[batch])
            optimizer.zero_grad()
            F.cross_entropy(model(x)[:, : step + 1], y).backward()
            optimizer.step()
    found = replay(build, examples, config=config, seed=seed)
    for a, b in zip(found.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_what_is_kept_beside_the_model_is_said_and_travels_with_a_copy():
    examples = data()
    model = copy.deepcopy(run("replay", examples, REPLAY))
    kept = retained_of(model)
    assert len(kept.example_id) == 12 and set(kept.example_id) <= set(examples.example_id)
    assert sorted(np.bincount(examples.y[examples.positions(kept.example_id)])) == [2, 2, 2, 3, 3]
    assert held(model, examples.example_id).sum() == 12 and not kept.derived
    fisher = retained_of(run("rehearsal_free", examples, EVERYTHING))
    names = {"fisher/hidden.0.weight", "fisher/hidden.0.bias", "fisher/head.weight", "fisher/head.bias"}
    assert set(fisher.derived) == names and not len(fisher.example_id)
    assert all(f.min() >= 0 and f.max() > 0 for f in fisher.derived.values())
    plain = run("rehearsal_free", examples, RehearsalFreeConfig(**SMALL))
    assert retained_of(plain).arrays() == {} and retained_of(nn.Linear(1, 1)).arrays() == {}
    retain(plain, Retained(example_id=np.array([4])))
    assert "palimpsest_retained" not in plain.state_dict() and held(plain, np.array([3, 4])).tolist() == [False, True]


def test_a_step_without_examples_is_passed_over_and_its_classes_stay_closed():
    examples = data()
    without = examples.take(np.flatnonzero(~np.isin(examples.y, (0, 3))))
    for name, config in CASES:
        logits = predict_logits(run(name, without, config), examples)
        assert (logits[:, [0, 3]] == CLOSED).all() and (logits[:, [1, 2, 4]] != CLOSED).any(0).all()


def test_pre_training_leaves_the_encoder_the_head_as_built_and_the_first_anchor():
    examples = make_examples(120, shape=(1, 4, 4), classes=4)
    config = RehearsalFreeConfig(
        steps=((0,), (1,)), pretrain=(2, 3), rotations=True, epochs=2, batch=16, pretrain_epochs=3
    )
    build = mlp(examples)
    trained, fresh = rehearsal_free(build, examples, config=config, seed=0, stop_after=0), build(0)
    assert not torch.allclose(trained.hidden[0].weight, fresh.hidden[0].weight)
    assert torch.equal(trained.head.weight, torch.zeros_like(fresh.head.weight))
    near, far = (
        rehearsal_free(build, examples, config=dataclasses.replace(config, l2=weight), seed=0, stop_after=2)
        for weight in (100.0, 0.0)
    )
    moved = [float((m.hidden[0].weight - trained.hidden[0].weight).detach().norm()) for m in (near, far)]
    assert moved[0] < 0.2 * moved[1], "the L2 anchor holds in the first step when there is pre-training"
    bare = dataclasses.replace(config, pretrain=(), steps=((0,), (1,), (2, 3)))
    first, second = (
        rehearsal_free(build, examples, config=dataclasses.replace(bare, l2=weight), seed=0, stop_after=2)
        for weight in (100.0, 0.0)
    )
    assert state(first) == state(second), "and from random weights there is nothing to hold yet"
    given = dataclasses.replace(bare, l2=100.0, built_pretrained=True)
    held_first = rehearsal_free(build, examples, config=given, seed=0, stop_after=2)
    moved = [float((m.hidden[0].weight - fresh.hidden[0].weight).detach().norm()) for m in (held_first, first)]
    assert moved[0] < 0.2 * moved[1], "but a model that is built pre-trained is held where it was built"
    with pytest.raises(NotApplicable, match="square"):
        rehearsal_free(
            mlp(data()), data(), config=RehearsalFreeConfig(steps=STEPS[:2], pretrain=(2, 4), rotations=True), seed=0
        )


def test_transformers_train_their_projections_alone():
    examples = make_examples(60, shape=(1, 8, 8), classes=3)
    build = builder("vit", {"depth": 1, "dim": 8, "heads": 2}, input_shape=(1, 8, 8), num_outputs=3)
    config = RehearsalFreeConfig(steps=((0, 1), (2,)), train="qkv", epochs=2, l2=0.1, ewc=0.1)
    model = rehearsal_free(build, examples, config=config, seed=0)
    moved = {
        n for (n, a), b in zip(model.named_parameters(), build(0).parameters(), strict=True) if not torch.equal(a, b)
    }
    assert moved == {"layers.0.qkv.weight", "head.weight", "head.bias"}
    assert all(p.requires_grad for p in model.parameters())
    assert set(retained_of(model).derived) == {"fisher/layers.0.qkv.weight"}


def with_columns(examples, **columns):
    """The examples with per-example columns, whether or not the class of data sets has a field for them yet."""
    object.__setattr__(examples, "columns", columns)
    return examples


def test_steps_of_a_stream():
    examples = data(20)
    stream = stream_of(examples, StreamConfig(steps=(("c1",), (0, 3)), pretrain=(2, 4)))
    assert stream.classes == ((1,), (0, 3)) and stream.pretrain == (2, 4) and stream.names == ("c1", "c0+c3")
    wanted = np.array([1, 0, PRETRAINING, 1, PRETRAINING])[examples.y]
    assert np.array_equal(stream.step, wanted)
    rows = stream.rows(1, examples.example_id)
    assert np.isin(examples.y[rows], (0, 3)).all() and (np.diff(examples.example_id[rows]) > 0).all()
    for config, words in (
        (StreamConfig(), "needs steps"),
        (StreamConfig(steps=((9,),)), "class 9"),
        (StreamConfig(steps=(("c9",),)), "class 'c9'"),
        (StreamConfig(by="domain"), "not 'class' nor a column"),
    ):
        with pytest.raises(ConfigError, match=words):
            stream_of(examples, config)
    with pytest.raises(DataError, match="belong to no step"):
        stream_of(examples, StreamConfig(steps=((0,), (1,))))
    for wrong in (
        {"steps": ((0,), (1, 0))},
        {"steps": ((),)},
        {"steps": ((0,),), "pretrain": (0,)},
        {"milestones": (3,)},
    ):
        with pytest.raises(ConfigError):
            StreamConfig(**wrong)
    with pytest.raises(ConfigError, match="mask_old"):
        RehearsalFreeConfig(mask_old=True)


def test_steps_named_by_a_column():
    examples = with_columns(data(20), step=np.arange(20) % 3, domain=np.array(["photo", "sketch"])[np.arange(20) % 2])
    stream = stream_of(examples, StreamConfig())
    assert np.array_equal(stream.step, np.arange(20) % 3) and stream.names == ("0", "1", "2")
    stream = stream_of(examples, StreamConfig(by="domain", steps=(("sketch",),), pretrain=("photo",)))
    assert np.array_equal(stream.step, np.array([PRETRAINING, 0])[np.arange(20) % 2])
    assert stream.classes == (tuple(np.unique(examples.y[1::2])),)
    stream = stream_of(examples, StreamConfig(by="step", steps=((2,), (0, 1))))
    assert np.array_equal(stream.step, np.array([1, 1, 0])[np.arange(20) % 3])


def test_domains_are_learnt_though_every_class_is_old():
    """A second domain, shifted features: distillation and the new labels together; replay likewise."""
    examples = make_examples(300, classes=3)
    turned = np.arange(300) % 2 == 1
    shift = np.random.default_rng(1).normal(size=6).astype(np.float32)
    examples = dataclasses.replace(examples, x=np.where(turned[:, None], examples.x + 2 * shift, examples.x))
    with_columns(examples, domain=turned.astype(np.int64))
    for name, config in (
        ("rehearsal_free", RehearsalFreeConfig(by="domain", epochs=30, lr=0.01)),
        ("replay", ReplayConfig(by="domain", epochs=30, lr=0.01, buffer=30)),
    ):
        predicted = predict_logits(RECIPES[name](mlp(examples), examples, config=config, seed=0), examples).argmax(1)
        right = predicted == examples.y
        assert right[turned].mean() > 0.8 and right[~turned].mean() > 0.6, name


def test_schedules():
    assert [
        StreamConfig(lr=1.0, schedule="multistep", milestones=(2, 4)).rate(e) for e in (0, 1, 2, 5)
    ] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = StreamConfig(lr=2.0, schedule="cosine", epochs=50)
    assert cosine.rate(0) == 2.0 and cosine.rate(49) == pytest.approx(2 * np.cos(99 * np.pi / 200))
    assert StreamConfig(lr=2.0, schedule="cosine", epochs=1).rate(0) == 2.0


def test_references_know_what_each_of_them_keeps():
    examples = data()
    plan = Ensemble(num_models=4, block=2, population_fraction=0.5)
    ensemble = train_ensemble(mlp(examples), examples, recipe="replay", config=REPLAY, ensemble=plan, seed=9)
    assert ensemble.held.shape == ensemble.keep.shape and (ensemble.held.sum(1) == 12).all()
    assert not (ensemble.held & ~ensemble.keep).any(), "only what it was trained on can be in a model's buffer"
    again = type(ensemble).from_arrays(ensemble.to_arrays(), {"config_digest": "x"})
    assert np.array_equal(again.held, ensemble.held)
    trainer = Trainer(recipe="replay", build=mlp(examples), config=REPLAY)
    own = examples.subset(ensemble.example_id[ensemble.keep[2]])
    alone = trainer.one(own, derive_seed("reference", 9, 2))
    assert np.array_equal(held(alone, ensemble.example_id), ensemble.held[2])


def test_refusals():
    examples = data()
    with pytest.raises(DataError):
        run("replay", examples.take(np.empty(0, np.int64)), REPLAY)
    huge = dataclasses.replace(examples, x=np.where(examples.y[:, None] == 0, 1e38, examples.x).astype(np.float32))
    with pytest.raises(Diverged, match="epoch 1 of 3 of step 2"):
        run("rehearsal_free", huge, EVERYTHING)
    with pytest.raises(NotApplicable):
        rehearsal_free(lambda s: nn.Linear(6, 5, bias=False), examples, config=EVERYTHING, seed=0)
    with pytest.raises(NotApplicable, match="transformers"):
        run("rehearsal_free", examples, dataclasses.replace(EVERYTHING, train="qkv"))


@pytest.mark.parametrize("how", ["built_pretrained", "pretrain"])
def test_features_of_a_pretrained_model_are_distilled_from_the_first_step_on(how):
    """A large weight leaves the features of the first step's examples where pre-training put them; without it they
    move."""
    examples = data(200)
    config = RehearsalFreeConfig(steps=((0, 1),), pretrain=(2, 3, 4), pretrain_epochs=3, epochs=10, lr=0.01, batch=16)
    build = mlp(examples)
    part = examples.take(np.flatnonzero(examples.y < 2))
    start = rehearsal_free(build, examples, config=config, seed=0, stop_after=0)
    if how == "built_pretrained":
        config, examples = dataclasses.replace(config, pretrain=(), built_pretrained=True), part
        build = lambda seed: copy.deepcopy(start).train()  # noqa: E731

    def moved(feat: float) -> float:
        model = rehearsal_free(build, examples, config=dataclasses.replace(config, feat=feat), seed=0)
        x = torch.from_numpy(part.inputs(slice(None)))
        with torch.no_grad():
            return float((torch.relu(model.hidden[0](x)) - torch.relu(start.hidden[0](x))).square().sum(1).mean())

    assert moved(100.0) < 0.1 * moved(0.0)


def test_features_of_a_random_start_are_held_to_nothing():
    examples = data(60, classes=2)
    plain = RehearsalFreeConfig(steps=((0, 1),), epochs=2)
    held_to = dataclasses.replace(plain, feat=100.0)
    assert state(run("rehearsal_free", examples, plain)) == state(run("rehearsal_free", examples, held_to))
