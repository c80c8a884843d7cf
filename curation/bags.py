"""Responses in bags: every example with its features, and of its response the mean of its bag, with or without noise.

    x'_i = x_i,   y'_i = ybar_a released (numbers)
    classes: the shares of the bag, as its class counts dealt to its examples at random: who had which is not in it
    column ``bag``: a, numbered from 0, for losses of bags (recipe ``aggregate``)

What is released holds no response: of a bag of k the mean of k (``sources.bags``), under ids of its own, as each made
example comes from all of its bag. Without noise a bag of one would be the response itself, and is refused; a bag whose
responses are all equal shows them, and so does any differencing of bags that overlap: exact means are no privacy.

With ``epsilon`` the release is label-differentially private; ``releases`` bags the examples so many times anew and
releases each: every row says what one release spends (``epsilon``) and all of this data set together
(``epsilon_total``, their sum). Other data sets of the same responses add to it: analysis ``bag_privacy``. Noise comes
from the secret of the data set and from all that is released, so that the same release has the same noise and spends
nothing anew, and no two different ones share noise that could be subtracted.

Source: Javanmard et al., "Learning from Aggregate Responses" (ICLR 2024, arXiv 2401.11081).
Shapes: (N, *shape) -> (R N, *shape) for R releases.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.digests import canonical_json, derive_seed
from contracts.errors import ConfigError, DataError, NotApplicable
from contracts.methods import MakerSpec, made_table, maker
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.tables import Column
from sources.bags import Bags, Release, bags_of, composed, on_simplex, release_of
from sources.example_set import ExampleSet
from sources.made import Made, made_examples
from tasks.base import require

_MOST_PAIRS = 20_000_000  # (made example, original): sum of squared bag sizes

RELEASE = made_table(
    "bag_release",
    doc="The bag of each made example, and what is released of its responses.",
    columns=(
        Column(name="bag_id", dtype="int64", low=0, doc="the bag, numbered over all releases"),
        Column(name="release", dtype="int64", low=0, doc="which of the releases of the same responses"),
        Column(name="example_id", dtype="int64", low=0, doc="the original whose features these are"),
        Column(name="position", dtype="int64", low=0, doc="place within the bag, by id"),
        Column(name="size", dtype="int64", low=1, unit="examples", doc="k, of the bag"),
        Column(name="mean_response", dtype="floats", doc="released: one mean, or the share of each class"),
        Column(name="noise_scale", dtype="float64", low=0, doc="b of the Laplace noise in it; 0 for none"),
        Column(name="epsilon", dtype="float64", low=0, nullable=True, doc="that one release spends; null: exact means"),
        Column(
            name="epsilon_total",
            dtype="float64",
            low=0,
            nullable=True,
            doc="of all releases of this data set together: their sum; null: exact means",
        ),
        Column(name="clip", dtype="float64", low=0, nullable=True, doc="c, responses were clipped to center +- c"),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BagsConfig(Config):
    bag_size: int = param(5, ge=2, le=1_000_000, unit="examples", doc="k, of bags at random")
    column: str = param("", doc="column whose values are the bags, in place of bags at random")
    largest: int | None = param(
        None, ge=2, le=1_000_000, unit="examples", doc="column: larger groups are cut at random into several bags"
    )
    releases: int = param(1, ge=1, le=1000, doc="times that the examples are put in bags anew and released")
    epsilon: float | None = param(None, gt=0, le=1e6, doc="of each release; none: exact means, no privacy")
    clip: float | None = param(
        None, gt=0, le=1e12, doc="numbers: c, of responses around center; public, not computed from them"
    )
    center: float = param(0.0, ge=-1e12, le=1e12, doc="numbers: what responses are clipped around; public")
    paper_scale: bool = param(False, doc="noise of scale c/(k eps) as printed: each release spends twice epsilon")

    def check(self) -> None:
        if self.largest is not None and not self.column:
            raise ConfigError(f"BagsConfig.largest = {self.largest} cuts the groups of a column, and none is given")
        if self.column and self.releases > 1:
            raise ConfigError(f"BagsConfig.releases = {self.releases}: bags of a column are the same every time")
        if self.paper_scale and self.epsilon is None:
            raise ConfigError("BagsConfig.paper_scale is of noise, and epsilon asks for none")


@maker(
    MakerSpec(
        name="bags",
        doc="Releases features, and of the responses only the mean of each bag, with label differential privacy.",
        source="Javanmard et al., Learning from Aggregate Responses, ICLR 2024 (arXiv 2401.11081)",
        config=BagsConfig,
        needs=("secret",),
        wants=("features",),
        tables=(RELEASE,),
        after_erasure="remake",
    )
)
def bags(data: ExampleSet, *, config: BagsConfig, seed: int, progress: Progress, secret: bytes) -> Made:
    """The training examples with the released means of their bags.

    Args:
        seed: of the bags, which are public.
        secret: at least 16 bytes; of the noise, and of who is dealt which class of a bag.

    Raises:
        NotApplicable: targets that are neither classes nor one number each; bags so large that where each made example
            is from cannot be listed.
        ConfigError: no such column; epsilon for numbers without clip.
        DataError: exact means of bags of one example (names them), targets that are none.
    """
    require(data, "bags", "features")
    classes = data.task.gives("classes")
    if not classes and not data.task.gives("numbers"):
        raise NotApplicable(f"bags averages classes or numbers; {data.name} is a {data.task} task")
    data.check_targets()
    data = data.by_id()
    if not len(data):
        raise DataError(f"{data.name}: there is no example to put in bags")
    spent = None if config.epsilon is None else config.epsilon * (2 if config.paper_scale else 1)
    total = None if spent is None else composed([spent] * config.releases)
    base, num = int(data.example_id.max()) + 1, len(data)
    ids, targets, bag_of, frames, drawn = [], [], [], [], []
    first_bag = 0
    for number in range(config.releases):
        found = bags_of(
            data,
            size=config.bag_size,
            column=config.column,
            asked="BagsConfig.column",
            largest=config.largest,
            seed=derive_seed("bags", seed, number),
        )
        if config.epsilon is None and (alone := found.sizes == 1).any():
            raise DataError(
                f"{int(alone.sum())} bags hold one example: their exact mean is the response itself; set epsilon",
                example_ids=data.example_id[alone[found.index]],
            )
        if config.releases * int((found.sizes**2).sum()) > _MOST_PAIRS:
            raise NotApplicable(
                f"the bags of {data.name} have up to {found.sizes.max()} examples, and a made example comes from all "
                "of its bag: too many pairs to list; give largest, a smaller bag_size, or train by recipe aggregate"
            )
        rng = _stream(secret, data, found, config, number)
        said = release_of(
            data,
            found,
            epsilon=config.epsilon,
            clip=config.clip,
            center=config.center,
            paper_scale=config.paper_scale,
            rng=rng,
        )
        made_id = base + number * num + np.arange(num)
        ids.append(made_id)
        targets.append(_dealt(said, found, rng) if classes else said.means[found.index, 0])
        bag_of.append(first_bag + found.index)
        frames.append(_rows(data, found, said, config, made_id, number, first_bag, (spent, total)))
        drawn.append(_pairs(data, found, made_id))
        first_bag += len(found)
        progress(number + 1, config.releases, "releases")
    x = np.asarray(data.x[:])
    return Made(
        examples=made_examples(
            data,
            name=f"{data.name}, in bags",
            x=np.ascontiguousarray(np.concatenate([x] * config.releases)),
            y=np.concatenate(targets),
            example_id=np.concatenate(ids),
            provenance={
                "made_by": "bags",
                "of": data.name,
                "bags": first_bag,
                "releases": config.releases,
                "epsilon": spent,
                "epsilon_total": total,
            },
            columns={"bag": np.concatenate(bag_of)},
        ),
        drawn_from=pl.concat(drawn).sort("made_id", "example_id"),
        tables={RELEASE.name: pl.concat(frames).sort("made_id")},
    ).validate(data)


def _stream(secret: bytes, data: ExampleSet, found: Bags, config: BagsConfig, number: int) -> np.random.Generator:
    """Random numbers under the secret, of their own for every other responses, bags, configuration and release."""
    told = hashlib.sha256(np.ascontiguousarray(data.y)).digest()
    told += hashlib.sha256(np.ascontiguousarray(data.example_id)).digest()
    told += hashlib.sha256(found.index).digest() + f"{number} {canonical_json(config)}".encode()
    return np.random.Generator(np.random.PCG64(int.from_bytes(hmac.digest(secret, told, "sha256"))))


def _dealt(said: Release, found: Bags, rng: np.random.Generator) -> NDArray[np.int64]:
    """Labels (n,) whose counts in each bag are the released shares times its size, to whole numbers (largest
    remainders), dealt at random: a function of the release and of the draws alone."""
    exact = on_simplex(said.means) * found.sizes[:, None]
    counts = np.floor(exact + 1e-9).astype(np.int64)
    rest = found.sizes - counts.sum(axis=1)
    ranks = np.argsort(np.argsort(counts - exact, axis=1, kind="stable"), axis=1)
    counts += ranks < rest[:, None]
    labels = np.repeat(np.tile(np.arange(counts.shape[1]), len(found)), counts.ravel())
    out = np.empty(len(labels), np.int64)
    out[np.lexsort((rng.random(len(labels)), found.index))] = labels
    return out


def _rows(
    data: ExampleSet,
    found: Bags,
    said: Release,
    config: BagsConfig,
    made_id: NDArray[np.int64],
    number: int,
    first_bag: int,
    spent: tuple[float | None, float | None],
) -> pl.DataFrame:
    position = np.empty(len(data), np.int64)
    position[found.order] = np.arange(len(data)) - np.repeat(np.cumsum(found.sizes) - found.sizes, found.sizes)
    return pl.DataFrame(
        {
            "made_id": made_id,
            "bag_id": first_bag + found.index,
            "release": np.full(len(data), number),
            "example_id": data.example_id,
            "position": position,
            "size": found.sizes[found.index],
            "mean_response": pl.Series(said.means[found.index].tolist(), dtype=pl.List(pl.Float64)),
            "noise_scale": said.scale[found.index],
        }
    ).with_columns(
        epsilon=pl.lit(spent[0], pl.Float64),
        epsilon_total=pl.lit(spent[1], pl.Float64),
        clip=pl.lit(None if data.task.gives("classes") else config.clip, pl.Float64),
    )


def _pairs(data: ExampleSet, found: Bags, made_id: NDArray[np.int64]) -> pl.DataFrame:
    """Every made example with all originals of its bag."""
    members = pl.DataFrame({"bag": found.index, "example_id": data.example_id})
    return (
        pl.DataFrame({"bag": found.index, "made_id": made_id}).join(members, on="bag").select("made_id", "example_id")
    )
