"""Ground truth by planting: known training examples are changed or added, so that a score can be judged.

Labels:

    flipped = round(fraction * N_train) training ids, drawn without replacement
    y'_i = (y_i + u_i) mod K,  u_i uniform on 1..K-1          (a uniformly drawn *other* class)

The draw depends on (ids, labels, seed), not on the order of the rows. Test examples are never touched.
Not a noise model of real annotators (those confuse alike classes); symmetric noise is what memorization and data-diet
studies measure on.

Interactions (Zhang et al. 2025): every user u gets m_u = floor(ratio * |train_u|) more training items, drawn uniformly
    and without
replacement from the items that are not the user's own. Their ids follow the largest id there is, ordered by (user,
item); provenance["planted_interactions"]["first_id"] tells them apart (`planted_interactions`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from contracts.errors import ConfigError, DataError
from sources.example_set import ExampleSet
from sources.identity import Content
from tasks.base import require

_BLOCK = 2**22  # (user, item) keys drawn at a time


def plant_label_noise(examples: ExampleSet, *, fraction: float, seed: int) -> tuple[ExampleSet, np.ndarray]:
    """Change the labels of a fraction of the training examples.

    Args:
        examples: a classification set.
        fraction: share of the training examples, in (0, 1].
        seed: of the draw.

    Returns:
        the set with the planted labels (same ids, values and hashes), and the changed ids, ascending int64.

    Raises:
        NotApplicable: no class labels.
        ConfigError: fraction out of range.
        DataError: a class would be left without a training example.
    """
    require(examples, "label noise", "classes")
    if not 0 < fraction <= 1:
        raise ConfigError(f"plant_label_noise: fraction = {fraction!r} is outside (0, 1]")
    rng = np.random.default_rng(seed)
    train = np.sort(examples.example_id[examples.split == "train"])
    flipped = np.sort(rng.permutation(train)[: round(fraction * len(train))])
    rows = examples.positions(flipped)
    y = examples.y.copy()
    y[rows] = (y[rows] + rng.integers(1, examples.num_classes, len(rows))) % examples.num_classes
    planted = dataclasses.replace(
        examples,
        y=y,
        provenance={**examples.provenance, "planted_label_noise": {"fraction": fraction, "seed": seed}},
    )
    planted.validate()
    return planted, flipped


def plant_interactions(examples: ExampleSet, *, ratio: float, seed: int) -> tuple[ExampleSet, np.ndarray]:
    """Add interactions that mean nothing to the training split of a ranking set.

    A user's test items are never drawn (in the authors' code they may be, which spoils the test).

    Args:
        examples: a ranking set without planted interactions.
        ratio: added interactions per training interaction of each user, in (0, 10]; m_u is rounded down.
        seed: of the draw.

    Returns:
        the larger set, and the ids of what was planted, ascending int64.

    Raises:
        NotApplicable: another task than ranking.
        ConfigError: ratio out of range.
        DataError: interactions are planted already, or a user has too few items left (names the user's examples).
    """
    require(examples, "planting interactions", "interactions")
    if not 0 < ratio <= 10:
        raise ConfigError(f"plant_interactions: ratio = {ratio!r} is outside (0, 10]")
    if "planted_interactions" in examples.provenance:
        raise DataError(f"{examples.name} has planted interactions already")
    users, train = np.asarray(examples.x)[:, 0], examples.split == "train"
    wanted = np.floor(ratio * np.bincount(users[train], minlength=examples.num_users) + 1e-9).astype(np.int64)
    short = np.flatnonzero(wanted > examples.num_classes - np.bincount(users, minlength=examples.num_users))
    if len(short):
        raise DataError(
            f"{len(short)} users have fewer than {ratio:g} x their training items left to be planted",
            example_ids=examples.example_id[np.isin(users, short)],
        )
    new_users = np.repeat(np.arange(examples.num_users), wanted)
    new_items = _outside(users, examples.y, wanted, num_items=examples.num_classes, seed=seed)
    first_id = int(examples.example_id.max()) + 1
    planted = first_id + np.arange(len(new_users), dtype=np.int64)
    owner_of = np.full(examples.num_users, "", examples.owner.dtype)
    owner_of[users] = examples.owner
    pairs = np.column_stack([new_users, new_items]).astype(np.int64)
    added = {
        "x": pairs[:, :1],
        "y": pairs[:, 1],
        "example_id": planted,
        "split": np.full(len(planted), "train", "<U5"),
        "owner": owner_of[new_users],
        "content_hash": Content(pairs).hashes(),
    }
    what = {"ratio": ratio, "seed": seed, "first_id": first_id, "count": len(planted)}
    origin = examples.origin
    larger = dataclasses.replace(
        examples,
        origin=None if origin is None else np.concatenate([origin, np.full(len(planted), "planted")]),
        **{name: np.concatenate([np.asarray(getattr(examples, name)), new]) for name, new in added.items()},
        provenance={**examples.provenance, "planted_interactions": what},
    )
    return larger.validate(), planted


def planted_interactions(examples: ExampleSet) -> np.ndarray | None:
    """(N,) bool, which interactions were planted; None when nothing is known of any."""
    what = examples.provenance.get("planted_interactions")
    return None if what is None else examples.example_id >= int(what["first_id"])


def without_planted(examples: ExampleSet) -> ExampleSet:
    """The set as it was before interactions were planted; the set itself when none were."""
    planted = planted_interactions(examples)
    if planted is None:
        return examples
    known = {name: value for name, value in examples.provenance.items() if name != "planted_interactions"}
    return dataclasses.replace(examples.take(np.flatnonzero(~planted)), provenance=known)


def _outside(users: np.ndarray, items: np.ndarray, wanted: np.ndarray, *, num_items: int, seed: int) -> np.ndarray:
    """``wanted[u]`` items of each user that are not among the given pairs, uniform, ascending; one block of users at a
    time."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // num_items)
    parts = [np.empty(0, np.int64)]
    for start in range(0, len(wanted), block):
        counts = wanted[start : start + block]
        keys = rng.random((len(counts), num_items))
        mine = (users >= start) & (users < start + block)
        keys[users[mine] - start, items[mine]] = 2.0
        most = int(counts.max(initial=0))
        if not most:
            continue
        lowest = np.argpartition(keys, most - 1, axis=1)[:, :most]
        lowest = np.take_along_axis(lowest, np.argsort(np.take_along_axis(keys, lowest, axis=1), axis=1), axis=1)
        chosen = np.where(np.arange(most) < counts[:, None], lowest, num_items)
        chosen.sort(axis=1)
        parts.append(chosen[chosen < num_items])
    return np.concatenate(parts)
