"""Harm by planting: a known part of the training data is manipulated, so that a correction or an audit can be judged.

    poisoning trigger     n_m training images drawn uniformly; their bottom-right p x p patch := v in every channel, in
                          the model's normalised space, v = max over the training inputs; label := target
    interclass confusion  the first n_m / 2 training examples (by id) of class a and of class b: labels swapped
    random label swap     the labels of n_m random training examples permuted among them
    label flips           the labels of n_m random training examples, to another class: any (symmetric), or the next one
                          (asymmetric: c -> c + 1 mod K)
    label noise           every training label drawn anew from a transition matrix C (K, K), row = true class:
                          symmetric  1 - r on the diagonal, r / (K - 1) elsewhere
                          pair       1 - r on the diagonal, r at ONE other class a row, drawn once
    deletion set          S_f = uniform subset of the manipulated S_m: the part that has been identified
    canaries              copies of test examples under a wrong target, each ``repeats`` times in the training split

Source: Goel et al., "Corrective Machine Unlearning", TMLR 2024 (arXiv 2402.14015), section 4; flips as in Patrini et
al., CVPR 2017; transition matrices as in Chen et al., ERASE, CIKM 2024 (arXiv 2312.08852); canaries after Jagielski et
al., NeurIPS 2020, and Carlini et al., S&P 2022. Goel et al. set the patch after augmentation; the recipes here do not
augment, so the patch of the stored image is the patch the model sees. With a uint8 image and an affine that differs
between channels the raw value that stands for v may not exist: the nearest one does (white at most).

Draws depend on ids and seed, not on the order of the rows. Test examples are never touched; nothing on disk is read
whole.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, NotApplicable
from sources.example_set import ExampleSet
from sources.identity import Content
from sources.rows import blocks, replaced
from tasks.base import require


def add_poison_trigger(
    examples: ExampleSet, *, count: int, target: int, patch: int = 3, seed: int
) -> tuple[ExampleSet, np.ndarray]:
    """Plant a backdoor: a bright patch in ``count`` training images, all labelled ``target``.

    Args:
        examples: images with class labels.
        count: n_m, 1 to all training images; those of the class ``target`` itself may be drawn too, as published.
        target: class index.
        patch: p, side of the patch in pixels.
        seed: of the draw.

    Returns:
        the set with the planted images (same ids, new values, hashes and labels), and their ids, ascending int64.

    Raises:
        NotApplicable: no class labels, or no images.
        ConfigError: count, target or patch out of range.
        DataError: a class would be left without a training example.
    """
    _check_classes(examples, target)
    ids = _draw(examples, count, seed=seed)
    planted = triggered(examples, ids, patch=patch)
    y = planted.y.copy()
    y[planted.positions(ids)] = target
    what = {"count": count, "target": target, "patch": patch, "seed": seed}
    return _with(planted, "poison_trigger", what, y=y), ids


def triggered(examples: ExampleSet, ids: np.ndarray, *, patch: int = 3) -> ExampleSet:
    """The set with the trigger in the images of ``ids`` (of either split), labels as they were.

    Raises:
        NotApplicable: no images.
        ConfigError: the patch does not fit.
        DataError: an unknown id.
    """
    if examples.x.ndim != 4:
        raise NotApplicable(
            f"a trigger is a patch of an image; an example of {examples.name} is {examples.input_shape}"
        )
    if not 1 <= patch <= min(examples.input_shape[1:]):
        raise ConfigError(f"trigger: patch = {patch} is outside 1..{min(examples.input_shape[1:])} pixels")
    rows = examples.positions(ids)
    values = np.array(examples.x[rows])
    values[:, :, -patch:, -patch:] = _brightest(examples)[:, -patch:, -patch:]
    hashes = examples.content_hash.copy()
    hashes[rows] = Content(values).hashes()
    return dataclasses.replace(examples, x=replaced(examples.x, rows, values), content_hash=hashes)


def interclass_confusion(
    examples: ExampleSet, *, classes: tuple[int, int], count: int
) -> tuple[ExampleSet, np.ndarray]:
    """Swap the labels of the first ``count // 2`` training examples of each of two classes.

    Returns:
        the set with the swapped labels, and the ids concerned, ascending.

    Raises:
        NotApplicable, ConfigError: no class labels; classes out of range or equal; count below 2, or a class with
            fewer.
    """
    for k in classes:
        _check_classes(examples, k)
    if classes[0] == classes[1]:
        raise ConfigError(f"interclass_confusion: classes = {classes} must be two different ones")
    half, train = count // 2, examples.split == "train"
    members = [np.sort(examples.example_id[train & (examples.y == k)]) for k in classes]
    if not 1 <= half <= min(map(len, members)):
        raise ConfigError(
            f"interclass_confusion: count = {count} is outside 2..{2 * min(map(len, members))} "
            f"(classes {classes[0]} and {classes[1]} have {len(members[0])} and {len(members[1])} training examples)"
        )
    y = examples.y.copy()
    for own, other in zip(members, classes[::-1], strict=True):
        y[examples.positions(own[:half])] = other
    ids = np.sort(np.concatenate([own[:half] for own in members]))
    return _with(examples, "interclass_confusion", {"classes": list(classes), "count": 2 * half}, y=y), ids


def random_label_swap(examples: ExampleSet, *, count: int, seed: int) -> tuple[ExampleSet, np.ndarray]:
    """Permute the labels among ``count`` random training examples; some may get their own back, as published.

    Returns:
        the set with the permuted labels, and the ids that took part, ascending.
    """
    _check_classes(examples)
    ids = _draw(examples, count, seed=seed)
    rows = examples.positions(ids)
    y = examples.y.copy()
    y[rows] = np.random.default_rng([seed, 1]).permutation(y[rows])
    return _with(examples, "random_label_swap", {"count": count, "seed": seed}, y=y), ids


def label_flips(examples: ExampleSet, *, count: int, symmetric: bool, seed: int) -> tuple[ExampleSet, np.ndarray]:
    """Give ``count`` random training examples another label: any other class, uniformly, or the next one.

    Returns:
        the set with the flipped labels, and the ids concerned, ascending; every one of them has a wrong label.

    Raises:
        NotApplicable, ConfigError: no class labels, one class only, or a count out of range.
    """
    _check_classes(examples)
    if examples.num_classes < 2:
        raise ConfigError("label_flips: there is one class, and no other to flip to")
    ids = _draw(examples, count, seed=seed)
    rows = examples.positions(ids)
    rng = np.random.default_rng([seed, 2])
    step = rng.integers(1, examples.num_classes, len(rows)) if symmetric else np.ones(len(rows), np.int64)
    y = examples.y.copy()
    y[rows] = (y[rows] + step) % examples.num_classes
    return _with(examples, "label_flips", {"count": count, "symmetric": symmetric, "seed": seed}, y=y), ids


NOISE_KINDS = ("symmetric", "pair")


def transition_matrix(num_classes: int, *, rate: float, kind: str, seed: int) -> np.ndarray:
    """C, float64 (K, K): how likely an example of a class (row) is given each label (column).

    Args:
        num_classes: K >= 2.
        rate: r in [0, 1), share of a class that is given another label.
        kind: "symmetric" or "pair".
        seed: of the pairs.

    Raises:
        ConfigError: out of range.

    >>> transition_matrix(3, rate=0.5, kind="symmetric", seed=0)[0].tolist()
    [0.5, 0.25, 0.25]
    """
    if num_classes < 2 or not 0 <= rate < 1 or kind not in NOISE_KINDS:
        raise ConfigError(
            f"label noise: num_classes = {num_classes} >= 2, rate = {rate!r} in [0, 1) and kind = {kind!r} in "
            f"{', '.join(NOISE_KINDS)} are needed"
        )
    own = np.eye(num_classes)
    if kind == "symmetric":
        return (1 - rate) * own + rate / (num_classes - 1) * (1 - own)
    step = np.random.default_rng(seed).integers(1, num_classes, num_classes)
    return (1 - rate) * own + rate * own[(np.arange(num_classes) + step) % num_classes]


def corrupt_labels(y: np.ndarray, *, num_classes: int, rate: float, kind: str, seed: int) -> np.ndarray:
    """Labels (N,) drawn from the rows of :func:`transition_matrix` for the labels ``y`` (N,), int64, in their order.

    Raises:
        ConfigError: as of :func:`transition_matrix`.
    """
    steps = np.cumsum(transition_matrix(num_classes, rate=rate, kind=kind, seed=derive_seed("pairs", seed)), axis=1)
    drawn = np.random.default_rng(seed).random(len(y))
    noisy = (drawn[:, None] >= steps[y]).sum(axis=1)
    return np.minimum(noisy, num_classes - 1).astype(np.int64)  # a row may sum to a hair below 1


def label_noise(
    examples: ExampleSet, *, rate: float, kind: str, seed: int, everywhere: bool = False
) -> tuple[ExampleSet, np.ndarray]:
    """Draw every training label anew from the row of its class in a transition matrix.

    Args:
        rate: r in [0, 1); 0 changes nothing.
        kind: "symmetric" or "pair".
        everywhere: test labels too. Examples that a model was trained on and others are then alike, as an audit of
            membership needs them.

    Returns:
        the set with the noisy labels, and the ids of those that were changed, ascending.

    Raises:
        NotApplicable, ConfigError: no class labels, rate or kind out of range.
        DataError: a class would be left without a training example.
    """
    _check_classes(examples)
    ids = np.sort(examples.example_id[(examples.split == "train") | everywhere])
    rows = examples.positions(ids)
    y = examples.y.copy()
    y[rows] = corrupt_labels(y[rows], num_classes=examples.num_classes, rate=rate, kind=kind, seed=seed)
    what = {"rate": rate, "kind": kind, "seed": seed, "everywhere": everywhere}
    return _with(examples, "label_noise", what, y=y), ids[y[rows] != examples.y[rows]]


def sample_deletion_set(ids: np.ndarray, *, fraction: float, seed: int) -> np.ndarray:
    """round(fraction * n), at least one, of the manipulated ids, uniformly; ascending. Nested: a larger fraction holds
    a smaller.

    >>> sample_deletion_set(np.arange(10), fraction=1.0, seed=0).tolist() == list(range(10))
    True
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"sample_deletion_set: fraction = {fraction!r} is outside (0, 1]")
    ordered = np.sort(np.asarray(ids, dtype=np.int64))
    if not len(ordered):
        raise DataError("sample_deletion_set: there is no manipulated example to identify")
    return np.sort(np.random.default_rng(seed).permutation(ordered)[: max(1, round(fraction * len(ordered)))])


def plant_canaries(
    examples: ExampleSet, *, count: int, repeats: int, seed: int
) -> tuple[ExampleSet, np.ndarray, np.ndarray]:
    """Add ``count`` canaries, ``repeats`` copies each, to the training split: what a model must memorise to fit.

    They are test examples (which stay where they are) under a wrong target: another class drawn uniformly, a number or
    an item that is not theirs (``tasks.base.Task.wrong_targets``). Readings go on by the constants of the data without
    them.

    Returns:
        the larger set; the copies' ids, int64 (count, repeats), new ones above the largest id; the ids of the
        originals, int64 (count,), ascending.

    Raises:
        NotApplicable: a task without wrong targets.
        ConfigError: count beyond the test split, repeats below 1, or above 1 where no example may be there twice.
    """
    test = np.sort(examples.example_id[examples.split == "test"])
    if not 1 <= count <= len(test) or repeats < 1:
        raise ConfigError(
            f"plant_canaries: count = {count}, repeats = {repeats}: needs 1..{len(test)} test examples, each once at "
            "least"
        )
    if repeats > 1 and not examples.task.repeatable:
        raise ConfigError(f"plant_canaries: repeats = {repeats}: no example of a {examples.task} task is there twice")
    rng = np.random.default_rng(seed)
    originals = np.sort(rng.permutation(test)[:count])
    rows = examples.positions(originals)
    wrong = examples.task.wrong_targets(examples, rows, rng)
    copies = int(examples.example_id.max()) + 1 + np.arange(count * repeats, dtype=np.int64)
    larger = examples.take(np.concatenate([np.arange(len(examples)), np.repeat(rows, repeats)]))
    columns = {
        "y": (examples.y, np.repeat(wrong, repeats)),
        "example_id": (examples.example_id, copies),
        "split": (examples.split, np.full(len(copies), "train", "<U5")),
    }
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    what = {"count": count, "repeats": repeats, "seed": seed, "first_id": int(copies[0])}
    return _with(larger, "canaries", what, **joined), copies.reshape(count, repeats), originals


def _with(examples: ExampleSet, name: str, what: dict[str, Any], **columns: np.ndarray) -> ExampleSet:
    """The set with these columns and a line of provenance, validated."""
    provenance = {**examples.provenance, f"planted_{name}": what}
    return dataclasses.replace(examples, provenance=provenance, **columns).validate()


def _draw(examples: ExampleSet, count: int, *, seed: int) -> np.ndarray:
    train = np.sort(examples.example_id[examples.split == "train"])
    if not 1 <= count <= len(train):
        raise ConfigError(f"count = {count} manipulated examples is outside 1..{len(train)}, the training split")
    return np.sort(np.random.default_rng(seed).permutation(train)[:count])


def _check_classes(examples: ExampleSet, label: int = 0) -> None:
    require(examples, "a manipulation of labels", "classes")
    if not 0 <= label < examples.num_classes:
        raise ConfigError(f"class {label} is outside 0..{examples.num_classes - 1}")


def _brightest(examples: ExampleSet) -> np.ndarray:
    """Raw values (C, H, W) whose model input is, at every place, the largest one of the training split."""
    train = examples.part("train")
    if not len(train):
        raise DataError(f"{examples.name} has no training example to take the trigger's brightness from")
    brightest = max(float(train.inputs(rows).max()) for rows in blocks(train.x))
    raw = np.broadcast_to(brightest / examples.scale.astype(np.float64) + examples.center, examples.input_shape)
    if examples.x.dtype == np.uint8:
        raw = np.clip(np.rint(raw), 0, 255)
    return raw.astype(examples.x.dtype)
