"""A buffer of at most K examples of a stream, chosen without looking at the model.

Every example draws a priority, uniform in (0, 1), when its step ends; low ones stay. With it

    reservoir        the K lowest of all examples so far: a uniform sample of them, what Vitter's algorithm R keeps
    class_balanced   the K_c lowest of each class c: uniform within the class, sum_c K_c = K, the K_c as equal as the
    examples allow

An example that has left does not come back. Which examples are in the buffer depends on their ids, classes and steps
and on the seed, never on the model or the order of the rows.

Source: Vitter, "Random sampling with a reservoir" (ACM TOMS 1985); Prabhu et al., "GDumb" (ECCV 2020), greedy class
balance;
Chaudhry et al., "On Tiny Episodic Memories in Continual Learning" (arXiv 1902.10486).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from contracts.digests import derive_seed
from contracts.errors import InvalidInput

Policy = Literal["reservoir", "class_balanced"]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Buffer:
    """Attributes:
    example_id: (n,) int64, n <= K, ascending.
    label: (n,) int64.
    priority: (n,) float64.
    """

    example_id: Ints
    label: Ints
    priority: NDArray[np.float64]

    @classmethod
    def empty(cls) -> Buffer:
        """No examples."""
        return cls(example_id=np.empty(0, np.int64), label=np.empty(0, np.int64), priority=np.empty(0))

    def __len__(self) -> int:
        return len(self.example_id)


def updated(
    buffer: Buffer, example_id: Ints, label: Ints, *, size: int, policy: Policy, seed: int, step: int
) -> Buffer:
    """The buffer after a step.

    Args:
        buffer: before it.
        example_id, label: (n,) of the step's examples, in any order, none of them seen before.
        size: K >= 1.
        policy: see the module.
        seed: of the run; with ``step`` it draws the priorities.
        step: number of the step.

    Raises:
        InvalidInput: an unknown policy, K < 1, or an example a second time.
    """
    if policy not in ("reservoir", "class_balanced") or size < 1:
        raise InvalidInput(f"policy = {policy!r} must be 'reservoir' or 'class_balanced', size = {size} >= 1")
    order = np.argsort(example_id, kind="stable")
    drawn = np.random.default_rng(derive_seed("buffer", seed, step)).random(len(example_id))
    ids = np.concatenate([buffer.example_id, example_id[order]])
    labels = np.concatenate([buffer.label, label[order]])
    priority = np.concatenate([buffer.priority, drawn])
    if len(np.unique(ids)) != len(ids):
        raise InvalidInput("an example is in the buffer, or in the step, twice")
    ranked = np.lexsort((ids, priority))
    if policy == "reservoir":
        kept = ranked[:size]
    else:
        classes, counts = np.unique(labels, return_counts=True)
        own = {c: ranked[labels[ranked] == c] for c in classes.tolist()}
        shares = quotas(counts, size)
        kept = np.concatenate([own[c][:k] for c, k in zip(classes.tolist(), shares.tolist(), strict=True)])
    kept = kept[np.argsort(ids[kept], kind="stable")]
    return Buffer(example_id=ids[kept], label=labels[kept], priority=priority[kept])


def quotas(counts: Ints, size: int) -> Ints:
    """How many of each class are kept: as equal as the counts allow, ``size`` in all (or everything, if that is less).

    >>> quotas(np.array([10, 1, 10]), 8).tolist()
    [4, 1, 3]
    """
    given = np.zeros_like(counts)
    while (left := min(size, int(counts.sum())) - int(given.sum())) > 0:
        hungry = np.flatnonzero(given < counts)
        if left < len(hungry):
            given[hungry[:left]] += 1
        else:
            given[hungry] += np.minimum(left // len(hungry), counts[hungry] - given[hungry])
    return given
