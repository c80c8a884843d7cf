"""Splits that the data brings along: what a folder, a column or an array calls training, test and validation rows.

One vocabulary for all of them. A name speaks of a split when exactly one of its words is in it, whatever the case and
whatever stands beside it: "TRAIN", "Training", "seg_train", "x_test", "train-00000-of-00002.parquet".

Validation rows are kept apart. An audit compares what a model was trained on with what it never saw; rows that somebody
chose the model by are neither. ``val`` says what is done with them, and the note that comes back says so to people:

    auto    left out where there are test rows; the test split where there are none
    drop    left out; where nothing is left to test on, a test split is drawn from the training rows
    train   trained on
    test    tested on
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from contracts.errors import DataError

WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation", "holdout"),
    "val": ("val", "valid", "validation", "dev"),
}
VAL = ("auto", "drop", "train", "test")
COLUMNS = ("split", "subset", "partition", "set")  # what a column of such words is called
_SPOKEN = ", ".join(word for words in WORDS.values() for word in words)


def split_of(name: str) -> str | None:
    """ "train", "test" or "val" where a name speaks of exactly one of them.

    >>> split_of("seg_train"), split_of("Testing"), split_of("X_val"), split_of("dog"), split_of("train_test")
    ('train', 'test', 'val', None, None)
    """
    parts = re.split(r"[^a-z]+", name.lower())
    found = {split for split, words in WORDS.items() if any(part in words for part in parts)}
    return found.pop() if len(found) == 1 else None


def read_splits(values: np.ndarray, origin: np.ndarray, *, name: str) -> np.ndarray:
    """The split of each row as its column says it, "train", "test" or "val", as "<U5".

    Args:
        values: (N,) text, or anything else, which is refused.
        origin: (N,) where the rows lie, for the message.
        name: of the column or array.

    Raises:
        DataError: numbers (which of 0 and 1 is training cannot be known), or a word that is not in the vocabulary.
    """
    if values.dtype.kind != "U":
        some = ", ".join(map(str, np.unique(values)[:5].tolist()))
        raise DataError(
            f"split {name!r} holds {some}: which of them is training cannot be known; write words in its place "
            f"({_SPOKEN})"
        )
    words, which = np.unique(values, return_inverse=True)
    splits = [split_of(word) for word in words.tolist()]
    unknown = np.array([split is None for split in splits], bool)[which]
    if unknown.any():
        raise DataError(
            f"split {name!r} holds {str(values[unknown][0])!r}, which is none of {_SPOKEN}",
            where=origin[unknown].tolist(),
        )
    return np.array([split or "" for split in splits], "<U5")[which]


def settle(words: np.ndarray, *, val: str, what: str = "rows") -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """What becomes of validation rows.

    Args:
        words: (N,) "<U5": "train", "test" or "val".
        val: one of ``VAL``.
        what: the examples, for the note.

    Returns:
        (N,) bool, the rows that take part; their splits "train" and "test" as "<U5", None where one is to be drawn; a
        note for people, where there are validation rows.
    """
    is_val = words == "val"
    num, tested = int(is_val.sum()), bool((words == "test").any())
    if not num:
        return np.ones(len(words), bool), words, without_splits(val)
    does = val if val != "auto" else "drop" if tested else "test"
    if does != "drop":
        role = "trained on" if does == "train" else "the test split" if not tested else "tested on, with the test rows"
        why = ", as there is no other" if val == "auto" else ""
        return np.ones(len(words), bool), np.where(is_val, does, words), [f"{num:,} validation {what} are {role}{why}"]
    kept = words[~is_val]
    rest = "" if tested else "; a test split is drawn from the others"
    note = f"{num:,} validation {what} are left out of the audit (--val train or --val test takes them in){rest}"
    return ~is_val, kept if tested else None, [note]


def without_splits(val: str) -> list[str]:
    """The note on ``val`` where no row is for validation."""
    return [] if val == "auto" else [f"no rows are for validation, so that val: {val} changes nothing"]


def spoken_for(names: Iterable[str]) -> dict[str, str]:
    """Name -> split, of the names that speak of one, in their order.

    Raises:
        DataError: two names for one split.
    """
    found = {name: split for name in names if (split := split_of(name))}
    for split in WORDS:
        same = [name for name, of in found.items() if of == split]
        if len(same) > 1:
            raise DataError(f"{' and '.join(map(repr, same))} both speak of the {split} split; leave one of them")
    return found
