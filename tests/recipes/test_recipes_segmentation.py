"""Segmentation: the recipe against plain loops, soft maps, colours at random, and what is refused."""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from contracts.errors import ConfigError, InvalidInput, NotApplicable
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.inputs import Inputs
from recipes.models import builder
from recipes.predict import examples_at_once, predict_logits, read
from recipes.schedule import SupervisedConfig, batches_of, epoch_order
from recipes.segmentation.losses import LOSSES
from recipes.segmentation.randhue import rand_hue, rgb, saturation_and_value
from recipes.segmentation.segmentation import segmentation
from recipes.segmentation.self_distillation import self_distillation, soft_maps
from recipes.segmentation.training import Learnt, SegmentationConfig, cost_of, deep_weights
from recipes.supervised import supervised
from recipes.training import Trainer
from sources.brick_walls import BrickWallsConfig, brick_walls

SHORT = SegmentationConfig(lr=0.05, batch=4, epochs=3, loss="ce_dice")


@pytest.fixture(scope="module")
def walls():
    config = BrickWallsConfig(size=32, num_train=10, num_test=3, num_other=0, owners=2)
    return brick_walls(config=config, seed=0).validate().by_id()


@pytest.fixture(scope="module")
def train(walls):
    return walls.part("train")


@pytest.fixture(scope="module")
def build(walls):
    return builder("unet", {"channels": [4, 8]}, input_shape=walls.input_shape, num_outputs=2)


def same(one, other) -> bool:
    return arrays_digest(to_arrays(one)) == arrays_digest(to_arrays(other))


def test_it_is_plain_minibatch_descent_on_the_loss_of_each_batch(train, build) -> None:
    config = dataclasses.replace(SHORT, schedule="constant", momentum=0.9)
    found = segmentation(build, train, config=config, seed=3)
    model = build(3)
    x, y = torch.from_numpy(train.inputs(slice(None))), torch.from_numpy(train.y.astype(np.int64))
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9)
    for epoch in range(config.epochs):
        order = epoch_order(len(y), seed=3, epoch=epoch)
        for batch in batches_of(len(y), config):
            rows = order[batch]
            targets = F.one_hot(y[rows], 2).movedim(-1, 1).float()
            optimizer.zero_grad()
            LOSSES["ce_dice"](model(x[rows]), targets, None, late=False).backward()
            optimizer.step()
    for name, array in to_arrays(found).items():
        np.testing.assert_allclose(array, to_arrays(model)[name], rtol=2e-4, atol=2e-5, err_msg=name)


def test_cross_entropy_is_the_supervised_recipe(train, build) -> None:
    """The task's own loss, so both recipes go the same way."""
    fields = {"lr": 0.05, "batch": 4, "epochs": 2}
    one = segmentation(build, train, config=SegmentationConfig(**fields, loss="ce"), seed=1)
    other = supervised(build, train, config=SupervisedConfig(**fields), seed=1)
    for name, array in to_arrays(one).items():
        np.testing.assert_allclose(array, to_arrays(other)[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_and_every_seed_has_its_bits(train, build, loss) -> None:
    """Its last part included: three epochs of three steps, the last three late."""
    config = dataclasses.replace(SHORT, loss=loss)
    one = segmentation(build, train, config=config, seed=0)
    assert not one.training and same(one, segmentation(build, train, config=config, seed=0))
    assert not same(one, segmentation(build, train, config=config, seed=1))
    assert np.isfinite(read(one, train).values).all()


def test_losses_differ_and_late_parts_are_taken(train, build) -> None:
    models = {loss: segmentation(build, train, config=dataclasses.replace(SHORT, loss=loss), seed=0) for loss in LOSSES}
    assert len({arrays_digest(to_arrays(m)) for m in models.values()}) == len(LOSSES)
    # TopoLoss is cross-entropy until 70% of the run
    config = dataclasses.replace(SHORT, loss="topo")
    plain = dataclasses.replace(SHORT, loss="ce")
    early = [segmentation(build, train, config=c, seed=0, stop_after=2) for c in (config, plain)]
    assert same(*early) and not same(models["topo"], models["ce"])


@pytest.mark.parametrize("recipe", [segmentation, self_distillation])
@pytest.mark.parametrize("loss", ["skeleton_recall", "topo"])
def test_a_run_that_is_taken_up_again_has_the_same_bits(train, build, recipe, loss, store) -> None:
    config = dataclasses.replace(SHORT, loss=loss, rand_hue=0.5)
    whole = recipe(build, train, config=config, seed=2)
    kept = {"checkpoints": store, "checkpoint_every": 1}
    recipe(build, train, config=config, seed=2, stop_after=1, **kept)
    assert same(whole, recipe(build, train, config=config, seed=2, **kept))


def test_members_of_an_ensemble_are_what_the_recipe_gives_on_their_rows(train, build) -> None:
    trainer = Trainer(recipe="segmentation", build=build, config=SHORT)
    rows = [np.array([0, 2, 4, 6]), np.array([1, 3, 5, 7, 8])]
    early, late = trainer.snapshots(train, members=rows, seeds=[4, 5], epochs=[1, None])
    for number, seed in enumerate((4, 5)):
        part = train.take(rows[number])
        assert same(early[number], segmentation(build, part, config=SHORT, seed=seed, stop_after=1))
        assert same(late[number], segmentation(build, part, config=SHORT, seed=seed))


def test_mini_batches_are_shown_as_they_are_learnt(train, build) -> None:
    seen = []
    segmentation(build, train, config=SHORT, seed=0, observe=lambda rows, z: seen.append((rows.clone(), z.clone())))
    assert [len(rows) for rows, _ in seen] == [4, 4, 2] * 3
    assert sorted(torch.cat([rows for rows, _ in seen[:3]]).tolist()) == list(range(10))
    with torch.no_grad():
        torch.testing.assert_close(seen[0][1], build(0)(torch.from_numpy(train.inputs(seen[0][0].numpy()))))


# ---- soft maps -------------------------------------------------------------------------------------------------


def test_the_student_learns_the_teachers_maps_and_not_the_labels(train, build) -> None:
    """A student is nearer to its teacher's map than to the label; from another initialisation."""
    from contracts.digests import derive_seed

    config = dataclasses.replace(SHORT, epochs=20, loss="ce")
    pupil = self_distillation(build, train, config=config, seed=0)
    teacher = segmentation(build, train, config=config, seed=derive_seed("teacher", 0))
    plain = segmentation(build, train, config=config, seed=0)
    assert not same(pupil, plain) and not same(pupil, teacher)
    soft = soft_maps(teacher, Inputs(train, dtype=torch.float32), config=config).numpy()
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-5)

    def share(model):
        z = predict_logits(model, train).astype(np.float64)
        return np.exp(z[:, 1]) / np.exp(z).sum(1)

    to_teacher = [np.abs(share(model) - soft[:, 1]).mean() for model in (pupil, plain)]
    assert to_teacher[0] < 0.8 * to_teacher[1]


def test_maps_of_soft_targets_are_those_of_the_likeliest_class() -> None:
    config = dataclasses.replace(SHORT, loss="skeleton_recall")
    labels = torch.zeros(2, 9, 9, dtype=torch.int64)
    soft = torch.full((2, 2, 9, 9), 0.5)
    soft[:, 1, 3:6] = 0.8
    soft[:, 0] = 1 - soft[:, 1]
    found = Learnt.of(config, 2, labels=labels, soft=soft)
    wanted = torch.zeros(2, 9, 9, dtype=torch.int64)
    wanted[:, 3:6] = 1
    assert torch.equal(found.maps, LOSSES["skeleton_recall"].maps(wanted, 2)) and found.maps.any()
    assert torch.equal(found.targets(torch.tensor([1]), 2, torch.float32), soft[1:])


# ---- deep supervision and colours ------------------------------------------------------------------------------


def test_coarser_answers_weigh_as_the_paper_says(train) -> None:
    make = builder("unet", {"channels": [4, 6, 8], "deep": 2}, input_shape=train.input_shape, num_outputs=2)
    model, inputs = make(0), Inputs(train, dtype=torch.float32)
    learnt = Learnt.of(SHORT, 2, labels=inputs.targets)
    rows = torch.tensor([0, 3, 5])
    got = cost_of(model, inputs, learnt, config=SHORT, done=0, steps=9)(rows)
    targets = learnt.targets(rows, 2, torch.float32)
    each = [LOSSES["ce_dice"](z, targets, None, late=False) for z in model.outputs(inputs.gather(rows))]
    torch.testing.assert_close(got, (each[0] + (0.5 * each[1] + 0.25 * each[2]) / 1.75) / 3)
    assert deep_weights(7)[0] == 1 / 7 and sum(deep_weights(7)) == pytest.approx(
        (1 + (2 - 2**-6 - 1) / (2 - 2**-6)) / 7
    )
    before = {n: a.copy() for n, a in to_arrays(make(0)).items() if n.startswith("deep")}
    after = to_arrays(segmentation(make, train, config=SHORT, seed=0))
    assert before and all(not np.array_equal(after[n], a) for n, a in before.items())


def test_rand_hue_by_the_standard_librarys_colours() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(2, 3, (3, 3, 4, 5)))
    draws = torch.tensor([[0.1, 0.3, 0.2, 0.9], [0.9, 0.3, 0.2, 0.9], [0.4999, 0.77, 0.6, 0.1]]).double()
    found = rand_hue(images, draws, probability=0.5)
    assert torch.equal(found[1], images[1])
    for n in (0, 2):
        low, high = float(images[n].min()), float(images[n].max())
        for i, j in np.ndindex(4, 5):
            r, g, b = ((images[n, :, i, j] - low) / (high - low)).tolist()
            _, s, v = colorsys.rgb_to_hsv(r, g, b)
            u1, u2, u3 = draws[n, 1:].tolist()
            wanted = colorsys.hsv_to_rgb(u1, min(1, s + 0.5 * u2), min(1, v + 0.5 * u3))
            np.testing.assert_allclose((found[n, :, i, j] - low) / (high - low), wanted, atol=1e-9)


def test_colours_of_black_grey_and_constant_pictures() -> None:
    black = torch.zeros(1, 3, 2, 2)
    s, v = saturation_and_value(black)
    assert not s.any() and not v.any()
    assert torch.isfinite(rand_hue(black, torch.full((1, 4), 0.3), probability=1.0)).all()
    grey = torch.rand(1, 1, 2, 2).expand(1, 3, 2, 2)
    torch.testing.assert_close(rgb(torch.rand(1, 1, 1, 1), torch.zeros(1, 1, 2, 2), grey[:, :1]), grey)


def test_rand_hue_changes_training_and_draws_anew_every_epoch(train, build) -> None:
    plain, hued, again = (
        segmentation(build, train, config=dataclasses.replace(SHORT, rand_hue=share), seed=0) for share in (0, 1, 1)
    )
    assert same(hued, again) and not same(plain, hued)


# ---- refusals, bounded reading ---------------------------------------------------------------------------------


def test_what_cannot_be_trained_is_refused_before_work(walls, train, build) -> None:
    grey = dataclasses.replace(train, x=train.x[:, :1], center=train.center[:1], scale=train.scale[:1])
    one = builder("unet", {"channels": [4, 8]}, input_shape=grey.input_shape, num_outputs=2)
    with pytest.raises(NotApplicable, match="RGB"):
        segmentation(one, grey, config=dataclasses.replace(SHORT, rand_hue=0.5), seed=0)
    wrong = builder("cnn", {}, input_shape=walls.input_shape, num_outputs=2)
    with pytest.raises(ConfigError, match=r"\(1, 2, 32, 32\)"):
        segmentation(wrong, train, config=SHORT, seed=0)
    with pytest.raises(ConfigError, match="label_smoothing"):
        SegmentationConfig(label_smoothing=0.1)
    with pytest.raises(ConfigError, match="skeleton_recall"):
        SegmentationConfig(loss="skelrecall")
    with pytest.raises(InvalidInput, match="images"):
        rand_hue(torch.zeros(2, 1, 3, 3), torch.zeros(2, 4), probability=0.5)
    with pytest.raises(InvalidInput, match="probability"):
        rand_hue(torch.zeros(2, 3, 3, 3), torch.zeros(2, 4), probability=1.5)


def test_maps_are_read_a_few_at_a_time_and_the_cut_changes_nothing(walls, build) -> None:
    assert examples_at_once(walls) == 256
    model = build(0)
    whole = predict_logits(model, walls)
    assert whole.shape == (13, 2, 32, 32)
    np.testing.assert_allclose(predict_logits(model, walls, batch=3), whole, rtol=1e-4, atol=1e-5)
    assert predict_logits(model, walls.take(np.empty(0, np.int64))).shape == (0, 2, 32, 32)
