"""Two versions of a set of examples, by id: who came, who left and why, whose content or label is another one.

    came      in the later one alone          left     in the earlier one alone
    content   in both, with another SHA-256 of the values       label     in both, with another label
    split     in both, in another split

An example may be in two rows: its content and its label changed. Where a hash or a label is not known of one of them,
nothing is said. Not a comparison by content: what comes back under another id has left and come.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from contracts.errors import DataError

INDEX_SCHEMA = {"example_id": pl.Int64, "split": pl.String, "label": pl.String, "content_sha256": pl.String}
REASONS_SCHEMA = {"example_id": pl.Int64, "role": pl.String, "reason": pl.String}
CHANGES = ("came", "left", "content", "label", "split")
_SCHEMA = {name: pl.String for name in ("change", "before", "after", "reason")}


@dataclass(frozen=True, eq=False)
class Version:
    """Attributes:
    name: of the set, for people.
    examples: (example_id, split, label, content_sha256) of those that are in it.
    reasons: (example_id, role, reason) of those of which its curator says something, in it or not.
    """

    name: str
    examples: pl.DataFrame
    reasons: pl.DataFrame


def difference(before: Version, after: Version) -> pl.DataFrame:
    """(example_id, change, before, after, reason), by id and in the order of ``CHANGES``.

    ``before`` and ``after`` are the labels of who came or left, and else the two values. ``reason`` is what the curator
    of the later version says of the example, or that of the earlier one where the later says nothing.

    Raises:
        DataError: a version has an example twice.
    """
    for version in (before, after):
        doubled = version.examples.filter(pl.col("example_id").is_duplicated())["example_id"].unique().sort()
        if len(doubled):
            raise DataError(f"{version.name} has examples twice", example_ids=doubled)
    both = before.examples.join(after.examples, on="example_id", how="full", suffix="_", coalesce=True)
    there = [
        frame.examples.select("example_id", pl.lit(True).alias(name))
        for name, frame in (("old", before), ("new", after))
    ]
    for frame in there:
        both = both.join(frame, on="example_id", how="left")
    old, new = pl.col("old").fill_null(False), pl.col("new").fill_null(False)
    parts = [
        _rows(both.filter(new & ~old), "came", None, "label_"),
        _rows(both.filter(old & ~new), "left", "label", None),
    ]
    for change, column in (("content", "content_sha256"), ("label", "label"), ("split", "split")):
        one, other = pl.col(column), pl.col(f"{column}_")
        known = (one != "") & (other != "") if column == "content_sha256" else pl.lit(True)
        parts.append(_rows(both.filter(old & new & known & (one != other)), change, column, f"{column}_"))
    rows = pl.concat(parts).join(_reasons(before, after), on="example_id", how="left")
    order = pl.col("change").replace_strict({c: n for n, c in enumerate(CHANGES)}, return_dtype=pl.Int8)
    return (
        rows.with_columns(
            pl.when(pl.col("change").is_in(["came", "left"])).then(pl.col("reason").fill_null("")).otherwise(pl.lit(""))
        )
        .sort("example_id", order)
        .select("example_id", *_SCHEMA)
    )


def _rows(found: pl.DataFrame, change: str, before: str | None, after: str | None) -> pl.DataFrame:
    named = [pl.col(name) if name else pl.lit(None, pl.String) for name in (before, after)]
    return found.select("example_id", change=pl.lit(change), before=named[0], after=named[1])


def _reasons(before: Version, after: Version) -> pl.DataFrame:
    """(example_id, reason): of the later version where it says one, else of the earlier."""
    told = pl.when(pl.col("reason") == "").then("role").otherwise(pl.format("{} ({})", "reason", "role"))
    said = [
        version.reasons.select("example_id", reason=pl.format("{}: {}", pl.lit(which), told))
        for which, version in (("now", after), ("before", before))
    ]
    return pl.concat(said).unique("example_id", keep="first", maintain_order=True)


def in_words(rows: pl.DataFrame, before: Version, after: Version) -> str:
    """One sentence.

    >>> one = pl.DataFrame({"example_id": [1], "split": "train", "label": "a", "content_sha256": ""}, INDEX_SCHEMA)
    >>> two = one.with_columns(label=pl.lit("b"))
    >>> none = pl.DataFrame(schema=REASONS_SCHEMA)
    >>> first, second = Version("first", one, none), Version("second", two, none)
    >>> in_words(difference(first, second), first, second)
    'From first (1 example) to second (1 example): 1 label changed, nothing else.'
    """
    count = dict(rows.group_by("change").len().iter_rows())
    said = []
    for change in CHANGES:
        number = count.get(change, 0)
        if number and change in ("came", "left"):
            said.append(f"{number:,} {change}")
        elif number:
            said.append(f"{number:,} {change}{'' if number == 1 else 's'} changed")
    sizes = [
        f"{v.name} ({v.examples.height:,} example{'' if v.examples.height == 1 else 's'})" for v in (before, after)
    ]
    return f"From {sizes[0]} to {sizes[1]}: {', '.join(said) + ', nothing else' if said else 'nothing changed'}."
