"""Whether scores and exposures moved since the audit before: ``audits.baseline`` against what is current.

    compared   the same examples: ids that both audits have a value for; others are counted, not compared
    values     every current score of the plan, and the score of every attack on the audited model ("attack:NAME")
    alarm      Holm's p-value over all that is compared <= alpha, and the distance >= min_distance (``stats.drift``)
    baseline   the values of this audit, which the next is compared with; an audit of another plan begins a new one

An audit that recomputed nothing compares nothing. Erasure takes an example's rows from the baseline as from any table.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from contracts import schema
from contracts.errors import DataError, NotReady, NotTrusted, UnknownName
from contracts.operations import Drift
from stats.drift import moved
from stats.multiple import holm

if TYPE_CHECKING:
    from contracts.subject import Subject
    from warehouse import Warehouse

LARGEST = 50_000  # examples compared; of more, so many that the seed draws
TARGET = "target"
_SCHEMA = {
    c.name: t
    for c, t in zip(
        schema.DRIFT.columns,
        (pl.String, pl.Int64, pl.Int64, pl.Float64, pl.Float64, pl.Float64, pl.Boolean),
        strict=True,
    )
}


def drift(w: Warehouse, subject: Subject, config: Drift, *, run_id: str) -> pl.DataFrame:
    """Compare, record the comparison in ``audits.drift`` and make this audit the baseline.

    Returns:
        The rows of ``audits.drift``: (score, num_examples, num_others, distance, p_value, p_holm, moved), by score; a
        score that is new has nulls.
    """
    name = subject.subject
    values = current(w, subject)
    plan = subject.digest()
    stored = w.read(schema.BASELINE, subject=name, columns=("score", "example_id", "value", "config_digest"))
    known = set(stored["score"].to_list())
    stored = stored.filter(pl.col("config_digest") == plan)
    before = {str(score): frame.select("example_id", "value") for (score,), frame in stored.group_by("score")}
    rows = compare(before, values, config, seed=subject.seed)
    common: dict[str, Any] = {"subject": name, "run_id": run_id, "config_digest": plan}
    with w.transaction() as t:
        t.replace(schema.DRIFT, rows, partition={}, **common)
        for score in sorted({*known, *values}):
            frame = values.get(score, _nothing())
            t.replace(schema.BASELINE, frame, partition={"score": score}, **common)
    return rows


def current(w: Warehouse, subject: Subject) -> dict[str, pl.DataFrame]:
    """(example_id, value) of everything that is compared, finite values only, by id."""
    found = {}
    for choice in subject.scores:
        try:
            found[choice.name] = w.latest_score(subject.subject, choice.name)
        except (NotReady, NotTrusted, UnknownName, DataError):
            continue  # not made, or missed its gates: there is nothing to compare
    scores = w.read(schema.ATTACK_SCORES, subject=subject.subject).filter(pl.col("audited") == TARGET)
    for (attack,), group in scores.group_by("attack"):
        mean = group.group_by("example_id").agg(value=pl.col("score").mean())
        found[f"attack:{attack}"] = mean
    return {
        name: frame.select("example_id", pl.col("value").cast(pl.Float64))
        .filter(pl.col("value").is_finite())
        .sort("example_id")
        for name, frame in sorted(found.items())
    }


def compare(
    before: dict[str, pl.DataFrame], after: dict[str, pl.DataFrame], config: Drift, *, seed: int
) -> pl.DataFrame:
    """The rows of ``audits.drift``; reads and writes nothing.

    Args:
        before, after: score -> (example_id, value).
        seed: of the swaps, and of the examples that are drawn of more than ``LARGEST``.
    """
    both = {
        name: after[name].join(before[name], on="example_id", suffix="_before").sort("example_id")
        for name in after
        if name in before
    }
    tested = [name for name, frame in both.items() if frame.height]
    draws = max(999, math.ceil(4 * len(tested) / config.alpha))  # else no p-value could survive Holm's correction
    figures = {}
    for name in tested:
        pair = both[name]
        if pair.height > LARGEST:
            chosen = np.random.default_rng(seed).choice(pair.height, LARGEST, replace=False)
            pair = pair[np.sort(chosen).tolist()]
        figures[name] = moved(pair["value_before"].to_numpy(), pair["value"].to_numpy(), seed=seed, draws=draws)
    adjusted = dict(zip(tested, holm([figures[name][1] for name in tested]).tolist(), strict=True))
    rows = []
    for name in sorted(after):
        n = both[name].height if name in both else 0
        others = after[name].height + (before[name].height if name in before else 0) - 2 * n
        distance, p = figures.get(name, (None, None))
        p_holm = adjusted.get(name)
        alarm = (
            p_holm is not None and distance is not None and p_holm <= config.alpha and distance >= config.min_distance
        )
        rows.append((name, n, others, distance, p, p_holm, alarm))
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def _nothing() -> pl.DataFrame:
    return pl.DataFrame(schema={"example_id": pl.Int64, "value": pl.Float64})
