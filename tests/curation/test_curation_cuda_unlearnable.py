"""Images under class filters: the batched sum is the naive loop, and the key decides everything and is not told."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contracts.errors import ConfigError, DataError, InvalidInput, NotApplicable
from contracts.methods import maker
from contracts.progress import silent
from curation.unlearnable.cuda_unlearnable import MANIFEST, CudaConfig
from explain.class_filters import ClassFilters
from palimpsest.testing.worlds import class_examples, images
from sources.example_set import ExampleSet
from sources.made import Made, made_from

KEY = bytes(range(32))


def protect(data: ExampleSet, key: bytes = KEY, **config: object) -> Made:
    chosen = CudaConfig.from_mapping(config)
    return maker.get("cuda_unlearnable")(data, config=chosen, seed=0, progress=silent, secret=key)


@pytest.fixture(scope="module")
def train() -> ExampleSet:
    return images().train


def naive(x: torch.Tensor, y: torch.Tensor, filters: ClassFilters) -> torch.Tensor:
    """One image after the other through ``nn.Conv2d``."""
    out = []
    size, channels = filters.weights.shape[-1], x.shape[1]
    for image, label in zip(x, y, strict=True):
        conv = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
        conv.weight.data = filters.weights[label].expand(channels, 1, size, size).clone()
        z = conv(image[None]).detach()[0]
        out.append((z / z.max().clamp_min(1e-12)).clamp(0, 1))
    return torch.stack(out)


@settings(max_examples=20, deadline=None)
@given(
    num=st.integers(0, 9),
    channels=st.integers(1, 3),
    sides=st.tuples(st.integers(5, 40), st.integers(5, 12)),
    size=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 2**31),
)
def test_the_batched_sum_is_the_naive_loop(
    num: int, channels: int, sides: tuple[int, int], size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    filters = ClassFilters.drawn(4, size=size, blur=0.3, rng=rng)
    x = torch.from_numpy(rng.random((num, channels, *sides), np.float32))
    y = torch.from_numpy(rng.integers(0, 4, num))
    before = x.clone()
    out, scale = filters(x, y)
    assert torch.equal(x, before) and out.shape == x.shape and scale.shape == (num,)
    if num:
        assert (out - naive(x, y, filters)).abs().max() <= 1e-6
        assert out.amax((1, 2, 3)).eq(1).all() and out.min() >= 0


def test_blocks_do_not_show() -> None:
    """More images than fit into one block, and images larger than a block."""
    rng = np.random.default_rng(0)
    filters = ClassFilters.drawn(2, size=3, blur=0.3, rng=rng)
    many = torch.from_numpy(rng.random((700, 3, 16, 16), np.float32))
    y = torch.from_numpy(rng.integers(0, 2, 700))
    out = filters(many, y)[0]
    alone = torch.cat([filters(many[k : k + 1], y[k : k + 1])[0] for k in range(0, 700, 50)])
    assert torch.equal(out[::50], alone)
    large = torch.from_numpy(rng.random((2, 3, 320, 300), np.float32))
    assert (filters(large, y[:2])[0] - naive(large, y[:2], filters)).abs().max() <= 1e-6


def test_filters_are_drawn_as_published() -> None:
    filters = ClassFilters.drawn(2000, size=3, blur=0.3, rng=np.random.default_rng(1)).weights.flatten(1)
    ones = filters == 1
    assert (ones.sum(1) == 1).all() and (filters[~ones] <= 0.3).all() and (filters >= 0).all()
    assert abs(float(filters[~ones].mean()) - 0.15) < 0.003
    assert (ones.float().mean(0) - 1 / 9).abs().max() < 0.03, "the one lies anywhere"
    few = ClassFilters.drawn(3, size=3, blur=0.3, rng=np.random.default_rng(1)).weights.flatten(1)
    assert torch.equal(few, filters[:3]), "more classes, the same first filters"
    for wrong in ({"num_classes": 0}, {"size": 2}, {"size": -1}, {"blur": -0.1}):
        with pytest.raises(InvalidInput):
            ClassFilters.drawn(**{"num_classes": 2, "size": 3, "blur": 0.3, **wrong}, rng=np.random.default_rng(0))


def test_without_blur_an_image_is_shifted_by_at_most_half_a_filter() -> None:
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.random((30, 1, 9, 9), np.float32))
    filters = ClassFilters.drawn(30, size=3, blur=0, rng=rng)
    out, scale = filters(x, torch.arange(30))
    padded = nn.functional.pad(x, [1] * 4)
    for image, whole, weight, divisor in zip(out, padded, filters.weights, scale, strict=True):
        a, b = (int(v) for v in weight.nonzero()[0])
        assert torch.equal(image * divisor, whole[:, a : a + 9, b : b + 9]) or torch.allclose(
            image * divisor, whole[:, a : a + 9, b : b + 9], atol=1e-7
        )


def test_the_key_decides_and_nothing_else_does(train: ExampleSet) -> None:
    first, again = protect(train), protect(train.subset(train.example_id[::-1]))
    assert np.array_equal(first.examples.x, again.examples.x) and first.examples.digest == again.examples.digest
    other = protect(train, key=bytes(32))
    assert (first.examples.x != other.examples.x).mean() > 0.5
    assert np.array_equal(first.examples.y, train.by_id().y) and (first.examples.x.max((1, 2, 3)) == 255).all()
    said = str(first.examples.provenance) + first.tables[MANIFEST.name].write_csv() + str(first.kept()[1])
    assert KEY.hex() not in said and not set(first.tables[MANIFEST.name].columns) & {"filter", "kernel", "key"}


def test_part_of_the_images_is_left_as_it_is(train: ExampleSet) -> None:
    made = protect(train, mix=0.5)
    manifest = made.tables[MANIFEST.name]
    left = ~manifest["protected"].to_numpy()
    assert 0.2 < left.mean() < 0.8
    assert np.array_equal(made.examples.x[left], train.by_id().x[left])
    assert manifest.filter(~pl.col("protected"))["filter_id"].null_count() == left.sum()
    assert manifest.filter(~pl.col("protected"))["ssim_to_clean"].min() == 1
    whole = protect(train).tables[MANIFEST.name]
    assert manifest.filter("protected").equals(whole.filter(pl.Series(~left))), "the draws move no filter"
    assert whole["filter_id"].to_list() == made.examples.y.tolist()
    assert whole["ssim_to_clean"].max() < 1 and whole["psnr_to_clean"].max() < 60


def test_models_read_protected_images_on_the_scale_of_the_originals() -> None:
    """Digits are stored from 0 to 16, protected ones from 0 to 255; both are 0 to 1 for a model."""
    train = images().train
    low = dataclasses.replace(
        train,
        x=(train.x // 16).astype(np.uint8),
        center=np.zeros((), np.float32),
        scale=np.full((), 1 / 16, np.float32),
    )
    made = protect(low, mix=0.5)
    left = ~made.tables[MANIFEST.name]["protected"].to_numpy()
    assert np.abs(made.examples.inputs(slice(None)) - low.by_id().inputs(slice(None)))[left].max() <= 0.5 / 255 + 1e-6
    assert made.examples.inputs(slice(None)).max() == pytest.approx(1)
    standard = protect(train, mix=0.5)
    assert np.abs(standard.examples.inputs(slice(None)) - train.by_id().inputs(slice(None)))[left].max() < 1e-5


def test_dark_images_and_quantisation(train: ExampleSet) -> None:
    dark = dataclasses.replace(train, x=np.where(np.arange(len(train))[:, None, None, None] == 3, 0, train.x))
    made = protect(dark)
    at = made.examples.positions([dark.example_id[3]])
    assert not made.examples.x[at].any() and made.tables[MANIFEST.name]["scale"].min() == 0
    down = protect(train, quantize="truncate").examples.x.astype(int) - protect(train).examples.x
    assert set(np.unique(down)) == {-1, 0}


def test_the_control_has_one_filter_for_all(train: ExampleSet) -> None:
    made = protect(train, filters="universal")
    assert set(made.tables[MANIFEST.name]["filter_id"]) == {0}
    zeroth = train.by_id().y == 0
    assert np.array_equal(made.examples.x[zeroth], protect(train).examples.x[zeroth])
    assert not np.array_equal(made.examples.x[~zeroth], protect(train).examples.x[~zeroth])
    filters = ClassFilters.drawn(3, size=3, blur=0.3, rng=np.random.default_rng(0))
    assert torch.equal(filters.permuted().weights, filters.weights[[1, 2, 0]])


def test_what_cannot_be_protected_is_refused(train: ExampleSet) -> None:
    with pytest.raises(NotApplicable, match="an example is an image of numbers"):
        protect(class_examples().part("train"))
    with pytest.raises(NotApplicable, match="at least 9 x 9 pixels; those of images have 8 x 8"):
        protect(train, kernel_size=9)
    with pytest.raises(ConfigError, match="kernel_size = 4 must be odd"):
        protect(train, kernel_size=4)
    bright = dataclasses.replace(train, x=train.x.astype(np.float32))
    with pytest.raises(DataError, match="values from 0 to 1"):
        protect(bright)
    filters = ClassFilters.drawn(2, size=3, blur=0.3, rng=np.random.default_rng(0))
    with pytest.raises(InvalidInput, match="classes 0 to 5; there are filters of 2"):
        filters(torch.zeros(2, 1, 4, 4), torch.tensor([0, 5]))


def test_a_made_data_set_is_kept_and_read_back(train: ExampleSet) -> None:
    made = protect(train)
    back = made_from(*made.kept())
    assert back.digest == made.examples.digest and np.array_equal(back.inputs(slice(4)), made.examples.inputs(slice(4)))
    stranger = dataclasses.replace(
        made, drawn_from=made.drawn_from.with_columns(example_id=pl.col("example_id") + 10**6)
    )
    nothing = dataclasses.replace(made, drawn_from=made.drawn_from[1:])
    twice = dataclasses.replace(made, drawn_from=pl.concat([made.drawn_from, made.drawn_from[:1]]))
    for wrong, says in ((stranger, "no training examples"), (nothing, "drawn from nothing"), (twice, "a pair twice")):
        with pytest.raises(DataError, match=says):
            wrong.validate(train)
    arrays, meta = made.kept()
    with pytest.raises(DataError, match="lacks scale"):
        made_from({k: v for k, v in arrays.items() if k != "scale"}, meta)
