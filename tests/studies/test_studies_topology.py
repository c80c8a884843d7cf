"""Topology of masks: hand-made shapes, naive floods and identities."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from assets import analyses
from assets.examples import examples_in
from contracts.errors import ConfigError, InvalidInput, NotApplicable
from contracts.methods import analysis
from recipes.models import builder
from recipes.predict import predict_logits
from recipes.schedule import SupervisedConfig
from recipes.segmentation.training import SegmentationConfig
from recipes.training import Trainer
from reports.plots import outlined
from sources.brick_walls import BrickWallsConfig, brick_walls
from studies.topology.measures import (
    betti_error,
    betti_numbers,
    cl_dice_score,
    components,
    dice_score,
    hd95,
    holes,
    unmatched,
)
from studies.topology.region_errors import RegionErrorsConfig, region_errors


def shape(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in text.split()])


RING = shape("..... .###. .#.#. .###. .....")
SHAPES = {
    "empty": (shape("... ... ..."), (0, 0)),
    "full": (shape("### ### ###"), (1, 0)),
    "ring": (RING, (1, 1)),
    "two rings at a corner": (shape("###... #.#... ###... ...### ...#.# ...###"), (1, 2)),
    "full frame": (shape("#### #..# #..# ####"), (1, 1)),
    "a gap at the border is no hole": (shape("#.## #..# ####"), (1, 0)),
    "holes that touch at a corner are two": (shape("#### #.## ##.# ####"), (1, 2)),
    "pieces that touch at a corner are one": (shape("#. .#"), (1, 0)),
    "three pieces": (shape("#.# ... ..#"), (3, 0)),
    "a piece within a hole": (shape("##### #...# #.#.# #...# #####"), (2, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_betti_numbers_of_shapes(name) -> None:
    mask, wanted = SHAPES[name]
    assert tuple(betti_numbers(mask)) == wanted


def flood(cells: set[tuple[int, int]], near) -> list[set[tuple[int, int]]]:
    found = []
    while cells:
        piece, edge = set(), {cells.pop()}
        while edge:
            at = edge.pop()
            piece.add(at)
            reach = {(at[0] + i, at[1] + j) for i, j in near} & cells
            cells -= reach
            edge |= reach
        found.append(piece)
    return found


EIGHT = [p for p in itertools.product((-1, 0, 1), repeat=2) if p != (0, 0)]
FOUR = [(-1, 0), (1, 0), (0, -1), (0, 1)]


def naive(mask: np.ndarray):
    """Components and holes as sets of cells."""
    whole = flood({(int(i), int(j)) for i, j in np.argwhere(mask)}, EIGHT)
    height, width = mask.shape
    empty = {
        (i, j)
        for i, j in itertools.product(range(-1, height + 1), range(-1, width + 1))
        if not (0 <= i < height and 0 <= j < width and mask[i, j])
    }
    return whole, [piece for piece in flood(empty, FOUR) if (-1, -1) not in piece]


def partners(predicted, true) -> int:
    """Pairs of pieces each of which overlaps the other most."""
    best = lambda piece, others: max(((len(piece & o), -n) for n, o in enumerate(others)), default=(0, 0))  # noqa: E731
    found = 0
    for n, piece in enumerate(true):
        size, at = best(piece, predicted)
        if size and best(predicted[-at], true) == (size, -n):
            found += 1
    return found


@st.composite
def stacks(draw):
    height, width = draw(st.integers(2, 8)), draw(st.integers(2, 8))
    seed, share = draw(st.integers(0, 10**6)), draw(st.sampled_from([0.3, 0.6, 0.8]))
    return np.random.default_rng(seed).random((2, 3, height, width)) < share


@settings(max_examples=60, deadline=None)
@given(stacks())
def test_pieces_of_a_stack_are_those_of_a_flood_of_each_mask(stack) -> None:
    predicted, true = stack
    found = {"whole": (components(predicted), components(true)), "hole": (holes(predicted), holes(true))}
    betti = betti_numbers(predicted), betti_numbers(true)
    error = betti_error(predicted, true)
    for n in range(3):
        sides = naive(predicted[n]), naive(true[n])
        for kind, of in (("whole", 0), ("hole", 1)):
            p, g = sides[0][of], sides[1][of]
            assert (betti[0][n, of], betti[1][n, of], error[n, of]) == (len(p), len(g), abs(len(p) - len(g)))
            missed, invented = unmatched(*found[kind], 3)[n]
            assert missed - invented == len(g) - len(p)
            assert 0 <= missed <= len(g) and 0 <= invented <= len(p)
            # numbers of pieces may be given in another order than the flood's, which only ties can show
            sizes = [len(a & b) for a in p for b in g if a & b]
            if len(set(sizes)) == len(sizes):
                assert missed == len(g) - partners(p, g)


def test_what_is_missed_and_invented_by_hand() -> None:
    true = shape("####### #..#..# #..#..# #######")
    merged = shape("####### #.....# #.....# #######")  # the wall between two bricks is gone
    halved = shape("####### #..#..# #####.# #######")
    none = np.zeros_like(true)
    pairs = {"merged": (merged, (0, 0), (1, 0)), "halved": (halved, (0, 0), (0, 0)), "none": (none, (1, 0), (2, 0))}
    for name, (predicted, whole, inner) in pairs.items():
        p, g = predicted[None], true[None]
        assert tuple(unmatched(components(p), components(g), 1)[0]) == whole, name
        assert tuple(unmatched(holes(p), holes(g), 1)[0]) == inner, name
    assert tuple(unmatched(holes(true[None]), holes(merged[None]), 1)[0]) == (0, 1)


def test_hd95_by_brute_force_and_null_for_an_empty_mask() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((2, 4, 9, 11)) < 0.5
    masks[0, 2] = False
    found = hd95(masks[0], masks[1])
    assert np.isnan(found[2])

    def edge(mask):
        inside = lambda i, j: 0 <= i < 9 and 0 <= j < 11 and mask[i, j]  # noqa: E731
        return np.array([p for p in np.argwhere(mask) if not all(inside(p[0] + i, p[1] + j) for i, j in FOUR)])

    for n in (0, 1, 3):
        a, b = edge(masks[0, n]), edge(masks[1, n])
        far = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
        assert found[n] == pytest.approx(max(np.percentile(far.min(1), 95), np.percentile(far.min(0), 95)))
    assert np.isnan(hd95(np.zeros((1, 4, 4), bool), np.zeros((1, 4, 4), bool))).all()
    line = np.zeros((1, 9, 9), bool)
    line[0, 2] = True
    assert hd95(line, np.roll(line, 3, 1)).tolist() == [3.0]


def test_overlap_of_masks_and_of_skeletons() -> None:
    from skimage.morphology import skeletonize

    rng = np.random.default_rng(1)
    p, g = rng.random((2, 5, 12, 12)) < 0.6
    p[3], g[4] = False, False
    p[4] = False
    dice, thin = dice_score(p, g), cl_dice_score(p, g)
    for n in range(5):
        if n == 4:
            assert dice[n] == 1 and thin[n] == 1
            continue
        assert dice[n] == pytest.approx(2 * (p[n] & g[n]).sum() / (p[n].sum() + g[n].sum()))
        sp, sg = skeletonize(p[n]), skeletonize(g[n])
        a, b = (sp & g[n]).sum() / max(sp.sum(), 1), (sg & p[n]).sum() / max(sg.sum(), 1)
        assert thin[n] == pytest.approx(2 * a * b / (a + b) if a + b else 0)
    assert (cl_dice_score(g, g) == 1).all() and (dice_score(g, g) == 1).all()


def test_connectivity_the_other_way_round_is_seen() -> None:
    """4-connected masks and 8-connected holes, the common slip, are another answer on these."""
    mask = SHAPES["holes that touch at a corner are two"][0]
    swapped = ndimage.label(~np.pad(mask, 1), np.ones((3, 3)))[1] - 1
    assert betti_numbers(mask)[1] == 2 and swapped == 1


def test_odd_input_is_refused() -> None:
    with pytest.raises(InvalidInput, match="bool"):
        betti_numbers(np.zeros((1, 3, 3)))
    with pytest.raises(InvalidInput, match="shape"):
        betti_error(np.zeros((1, 3, 3), bool), np.zeros((2, 3, 3), bool))


# ---- the analysis ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walls():
    return (
        brick_walls(config=BrickWallsConfig(size=32, num_train=6, num_test=4, num_other=2), seed=0).validate().by_id()
    )


@pytest.fixture(scope="module")
def found(walls):
    """The analysis of a model that knows the masks but for what is broken on purpose, and of two losses."""
    recipe = Trainer(
        recipe="segmentation",
        build=builder("unet", {"channels": [4, 8]}, input_shape=walls.input_shape, num_outputs=2),
        config=SegmentationConfig(lr=0.05, batch=3, epochs=2, loss="cldice"),
    )
    config = RegionErrorsConfig(by="domain", losses=("ce_dice", "cldice"), seeds=2, shown=3)
    model = Oracle(walls)
    return recipe, model, region_errors(walls, config=config, seed=0, model=model, recipe=recipe)


class Oracle(torch.nn.Module):
    """Answers the true mask of each test image, but for one row of the first, which it gives to the other class."""

    def __init__(self, data) -> None:
        super().__init__()
        test = data.part("test")
        self.keys = torch.from_numpy(test.inputs(slice(None)))
        masks = torch.from_numpy(test.targets(slice(None)))
        masks[0, 10] = 1 - masks[0, 10]
        self.masks, self.first = masks, int(test.example_id[0])
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        at = [int((self.keys == image).flatten(1).all(1).nonzero()[0, 0]) for image in x]
        return torch.nn.functional.one_hot(self.masks[at], 2).movedim(-1, 1).float() * self.weight


def test_a_perfect_mask_has_no_error_and_a_broken_row_has_its_own(walls, found) -> None:
    _, model, tables = found
    errors = tables["region_errors"].filter(pl.col("model") == "audited")
    assert errors.height == 16 and set(errors["class_name"]) == {"mortar"}
    domain = dict(zip(walls.example_id.tolist(), walls.columns["domain"].tolist(), strict=True))
    assert errors["about"].to_list() == [domain[i] for i in errors["example_id"]]
    test = walls.part("test")
    for row in errors.to_dicts():
        true = test.targets(test.positions(np.array([row["example_id"]]))) > 0
        if row["example_id"] != model.first:
            assert (row["dice"], row["cl_dice"]) == (1, 1) and not row["hd95_px"]
            assert not any(row[m] for m in ("b0_error", "b1_error", "holes_missed", "components_invented"))
        else:
            broken = model.masks[:1].numpy() > 0
            assert row["dice"] == pytest.approx(dice_score(broken, true)[0]) and row["dice"] < 1
            assert row["b1_error"] == betti_error(broken, true)[0, 1]
            assert row["holes_missed"] - row["holes_invented"] == (betti_numbers(true) - betti_numbers(broken))[0, 1]


def test_the_summary_is_the_mean_of_each_group_over_images_and_trainings(found) -> None:
    tables = found[2]
    errors, summary = tables["region_errors"], tables["region_summary"]
    assert not summary.select("model", "class_name", "about", "measure").is_duplicated().any()
    assert set(summary["model"]) == {"audited", "ce_dice", "cldice"} and "all" not in summary["about"]
    for row in summary.filter(pl.col("measure").is_in(["dice", "b0_error"])).to_dicts():
        own = errors.filter((pl.col("model") == row["model"]) & (pl.col("about") == row["about"]))
        each = own.group_by("example_id").agg(pl.col(row["measure"]).mean())[row["measure"]].to_numpy()
        assert row["value"] == pytest.approx(each.mean()) and row["num_images"] == len(each)
        assert row["value_low"] <= row["value"] <= row["value_high"]
        assert (row["p_value"] is None) == (row["difference"] is None) == (row["model"] != "cldice")
        if row["model"] == "cldice":
            base = errors.filter((pl.col("model") == "ce_dice") & (pl.col("about") == row["about"]))
            other = base.group_by("example_id").agg(pl.col(row["measure"]).mean())[row["measure"]].to_numpy()
            assert row["difference"] == pytest.approx(each.mean() - other.mean())


def test_compared_models_are_of_the_plans_recipe_with_the_loss_named(walls, found) -> None:
    from contracts.digests import derive_seed

    recipe, _, tables = found
    wanted = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, loss="ce_dice"))
    model = wanted.one(walls.part("train"), derive_seed("region_errors", 0, 1))
    test = walls.part("test").by_id()
    predicted = predict_logits(model, test).argmax(1) > 0
    own = tables["region_errors"].filter((pl.col("model") == "ce_dice") & (pl.col("seed") == 1)).sort("example_id")
    assert own["dice"].to_list() == pytest.approx(dice_score(predicted, test.targets(slice(None)) > 0).tolist())


def test_outlines_are_of_the_worst_images_and_their_runs_are_the_masks(walls, found) -> None:
    _, model, tables = found
    shown = tables["region_outlines"]
    assert shown.height == 3 and shown["example_id"][0] == model.first and shown["unmatched"][0] > 0
    runs = np.array(shown["predicted_runs"][0], int)
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(32, 32)
    np.testing.assert_array_equal(mask, model.masks[0].numpy() > 0)


def test_what_cannot_be_compared_is_refused(walls, found) -> None:
    recipe, model, _ = found
    plain = Trainer(recipe="supervised", build=recipe.build, config=SupervisedConfig(epochs=1))
    ask = lambda **fields: RegionErrorsConfig(**fields)  # noqa: E731
    with pytest.raises(NotApplicable, match="no loss of masks"):
        region_errors(walls, config=ask(losses=("ce", "topo")), seed=0, model=model, recipe=plain)
    with pytest.raises(ConfigError, match="domain"):
        region_errors(walls, config=ask(by="site"), seed=0, model=model, recipe=plain)
    with pytest.raises(NotApplicable, match="no test image"):
        region_errors(walls.part("train"), config=ask(), seed=0, model=model, recipe=plain)
    for wrong in (("ce",), ("ce", "ce")):
        with pytest.raises(ConfigError, match="losses"):
            ask(losses=wrong)
    alone = region_errors(walls, config=ask(), seed=0, model=model, recipe=plain)
    assert set(alone["region_summary"]["about"]) == {"all"} and set(alone["region_errors"]["model"]) == {"audited"}


def test_a_sheet_shows_both_outlines(walls, found) -> None:
    """On a page: the true outline outside its mask, the predicted one inside its own, nothing else changed."""
    spec = analysis.get("region_errors").spec
    picture = next(p for p in spec.pictures if p.kind == "outlines")
    (group,) = examples_in(walls, picture, found[2]["region_outlines"])
    assert group.images.shape == (3, 3, 96, 96) and "green" in group.heading
    plain = outlined(np.stack([walls.inputs(walls.positions(group.example_id))[0]]), np.zeros((1, 32, 32), bool))
    image, mask = group.images[0].transpose(1, 2, 0), found[1].masks[0].numpy() > 0
    large = mask.repeat(3, 0).repeat(3, 1)
    predicted = (image == (233, 30, 140)).all(-1)
    edge = large & ~ndimage.binary_erosion(large, border_value=1)
    np.testing.assert_array_equal(predicted, edge)
    true = (image == (0, 200, 90)).all(-1)
    assert true.any() and plain.shape == (1, 3, 96, 96)
    inside = walls.targets(walls.positions(group.example_id[:1]))[0] > 0
    assert not (true & inside.repeat(3, 0).repeat(3, 1)).any()
    for previews in (False, True):  # Dagster's page shows pictures of examples only where the plan says so
        run = SimpleNamespace(data=walls, subject=SimpleNamespace(previews=previews))
        png = analyses._png(run, picture, found[2]["region_outlines"])
        assert png.startswith(b"\x89PNG") if previews else png is None
    with pytest.raises(InvalidInput, match="do not fit"):
        outlined(np.zeros((1, 1, 4, 4)), np.zeros((1, 4, 5), bool))
