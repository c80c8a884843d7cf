"""Copies of known kinds, planted among examples of which none is one."""

from __future__ import annotations

import hashlib

import numpy as np
from scoring_data import make_examples

from scoring.near_duplicates import NearDuplicatesConfig, near_duplicates
from sources.example_set import ExampleSet


def hashed(x: np.ndarray, y: np.ndarray, *, num_classes: int, seed: int = 0) -> ExampleSet:
    """Examples with content hashes, ids out of order."""
    data = make_examples(
        x, y, num_classes=num_classes, ids=np.random.default_rng(seed).permutation(9 * len(y))[: len(y)]
    )
    content = np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in np.ascontiguousarray(x)])
    object.__setattr__(data, "content_hash", content)
    return data


def copies(x: np.ndarray, rows: np.ndarray, kind: str, rng: np.random.Generator, *, white: float = 0.0) -> np.ndarray:
    """Copies of some rows: "byte"; "noise<s>", s in shares of white (tables: of each column's spread); "crop<m>", out
    of pictures padded by m with 0, never where the picture was."""
    y = x[rows].astype(np.float64)
    if kind.startswith("noise"):
        y += rng.normal(size=y.shape) * float(kind[5:]) * (white or x.std(0))
    if kind.startswith("crop"):
        m, side = int(kind[4:]), np.arange(y.shape[2])
        y = np.pad(y, ((0, 0), (0, 0), (m, m), (m, m)))
        down, right = np.divmod(
            rng.permutation((2 * m + 1) ** 2 - 1)[rng.integers(0, (2 * m + 1) ** 2 - 1, len(y))], 2 * m + 1
        )
        centre = (down == m) & (right == m)
        down[centre] = 0
        at = np.arange(len(y))[:, None, None]
        y = y[at, :, (down[:, None] + side)[:, :, None], (right[:, None] + side)[:, None, :]].transpose(0, 3, 1, 2)
    return (np.clip(np.round(y), 0, white) if white else y).astype(x.dtype)


def recall_and_precision(
    x: np.ndarray, y: np.ndarray, kind: str, *, num: int, seed: int, white: float = 0.0
) -> tuple[float, float]:
    """Planted copies in the group of their original, and examples called duplicates whose group holds one origin
    only."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(x))[:num]
    both = np.concatenate([x, copies(x, rows, kind, rng, white=white)])
    data = hashed(both, np.concatenate([y, y[rows]]), num_classes=int(y.max()) + 1, seed=seed)
    found = near_duplicates(data, config=NearDuplicatesConfig(), seed=0).sort("example_id")
    place = np.argsort(np.argsort(data.example_id))
    group, size = found["group_id"].to_numpy()[place], found["group_size"].to_numpy()[place]
    origin = np.concatenate([np.arange(len(x)), rows])
    names, code = np.unique(group, return_inverse=True)
    kinds = np.zeros(len(names), np.int64)
    np.add.at(kinds, np.unique(np.stack([code, origin]), axis=1)[0], 1)
    return float((group[len(x) :] == group[rows]).mean()), float((kinds[code] == 1)[size > 1].mean())
