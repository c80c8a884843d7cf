"""Brick walls drawn by ``sources.brick_wall``: a segmentation data set whose labels are as good or bad as one asks for.

    train   num_train walls of group id, their labels accurate, noisy or pseudo
    test    num_test walls of group id, then num_other of each of the six other groups, their labels accurate

Column ``domain`` is the group of a wall. Owners ``site_0`` ... take the training walls in turn, as if several people
had taken the pictures. A wall follows from the seed and its place, whatever the sizes are: a larger set holds the
smaller one.

Source: Valverde, Koga et al., "TopoMortar" (BMVC 2025, arXiv 2503.03365), for use without its photographs; those are
read by ``topomortar``. Groups that are not ``id`` differ from the training walls on purpose: a membership attack that
compares members with them finds the shift; set ``num_other`` to 0 where models are audited.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contracts.digests import derive_seed
from contracts.methods import SourceSpec, source
from contracts.params import Config, param
from sources.assemble import assemble
from sources.brick_wall import GROUPS, LABELS, brick_wall
from sources.example_set import ExampleSet
from sources.files import check_size

_MAX_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class BrickWallsConfig(Config):
    """How many walls, how large, and which labels are learnt."""

    name: str = param("brick_walls", doc="of the data set")
    size: int = param(96, ge=32, le=1024, unit="pixels", doc="of each side")
    labels: str = param("noisy", choices=LABELS, doc="of the training walls; those of the test walls are accurate")
    num_train: int = param(50, ge=1, le=100_000, unit="walls", doc="training walls")
    num_test: int = param(50, ge=1, le=100_000, unit="walls", doc="test walls like them")
    num_other: int = param(50, ge=0, le=100_000, unit="walls", doc="test walls of each other group")
    owners: int = param(10, ge=0, le=1000, doc="owners of the training walls, in turn; 0: nobody's")
    standardise: bool = param(True, doc="mean 0 and standard deviation 1 a channel, on the training walls")


@source(
    SourceSpec(
        name="brick_walls",
        doc="Brick walls drawn from the seed, mortar as the mask: labels of three qualities, six shifted groups.",
        source="after Valverde, Koga et al., TopoMortar, BMVC 2025 (arXiv 2503.03365)",
        config=BrickWallsConfig,
        self_contained=True,
    )
)
def brick_walls(*, config: BrickWallsConfig, seed: int) -> ExampleSet:
    """Every wall, uint8 (N, 3, S, S), with its mask.

    Raises:
        DataError: more than 2 GiB of pictures.
    """
    asked = [("train", "id", config.num_train), ("test", "id", config.num_test)]
    asked += [("test", group, config.num_other) for group in GROUPS[1:]]
    places = [(split, group, number) for split, group, num in asked for number in range(num)]
    side = config.size
    check_size(4 * len(places) * side**2, _MAX_BYTES, "the walls")
    x, y = np.empty((len(places), 3, side, side), np.uint8), np.empty((len(places), side, side), np.uint8)
    for at, (split, group, number) in enumerate(places):
        wall = brick_wall(derive_seed("wall", seed, split, group, number), size=side, group=group)
        x[at], y[at] = wall.image, wall.masks[config.labels if split == "train" else "accurate"]
    owner = [f"site_{n % config.owners}" if s == "train" and config.owners else "" for s, _, n in places]
    return assemble(
        x,
        y,
        name=config.name,
        task="segmentation",
        class_names=("brick", "mortar"),
        seed=seed,
        test_fraction=0.5,
        split=np.array([split for split, _, _ in places], "<U5"),
        owner=np.array(owner, dtype=str),
        origin=np.array([f"{split} {group} {number}" for split, group, number in places], dtype=str),
        standardise=config.standardise,
        columns={"domain": np.array([group for _, group, _ in places], dtype=str)},
        provenance={
            "source": "brick_walls",
            "licence": "made by this program",
            "split": "drawn as such",
            "notes": [f"labels of training walls are {config.labels}, those of test walls accurate"],
        },
    )
