"""From the runs of each method on each forget set to the tables of the leaderboard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contracts.digests import derive_seed
from contracts.leaderboard import (
    CLASSES,
    EXAMPLES,
    GAPS,
    KLOM,
    LAYERS,
    METRICS,
    PAIRS,
    PARTS,
    REFERENCE,
    RUNS,
    SUMMARY,
    TUNING,
    UNTOUCHED,
)
from sources.frames import frame_of
from stats.klom import Klom, binned_kl, klom, normal_kl
from stats.multiple import holm
from stats.pairwise import AllPairs, all_pairs
from studies.leaderboard.observed import Asked, Seen
from studies.retraining import mean_interval

Float = NDArray[np.float64]
Row = dict[str, Any]
_RANDOM = "random"
_WORSE = ("ok", "diverged", "refused", "not_applicable")  # of several runs the last of these is the method's


@dataclass(eq=False)
class Record:
    """One method on one forget set.

    Attributes:
        asked: what its models were asked; None where there is no set.
        tuned: what was chosen in place of the plan's configuration, in words.
        rows: of ``leaderboard_runs``, the runs that were carried out.
        tries: of ``leaderboard_tuning``.
    """

    forget_set: str
    method: str
    asked: Asked | None
    status: str = "ok"
    why: str = ""
    tuned: str = ""
    rows: list[Row] = field(default_factory=list)
    tries: list[Row] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)

    def stop(self, status: str, why: str, **run: Any) -> None:
        """A run did not finish; ``run`` is put on record where one was carried out."""
        self.status = max(self.status, status, key=_WORSE.index)
        self.why = self.why or why
        if run:
            self.rows.append({**run, "status": status, "why": why})

    def values(self, name: str) -> Float:
        """(runs,) a figure of every run, NaN where undefined."""
        return np.array([math.nan if (v := row.get(name)) is None else v for row in self.rows], dtype=np.float64)

    @property
    def whole(self) -> bool:
        """It finished every run."""
        return self.status == "ok" and bool(self.rows)

    def num(self, part: str) -> int | None:
        return None if self.asked is None else int((self.asked.part == part).sum())


def gaps_of(found: Mapping[str, float | None], yard: Mapping[str, float | None]) -> dict[str, float | None]:
    """Distance to retraining of each metric, and their mean; None where either side is undefined."""
    gaps = [None if (a := found.get(m)) is None or (b := yard.get(m)) is None else abs(a - b) for m in METRICS]
    known = [gap for gap in gaps if gap is not None]
    return dict(
        zip((*GAPS, "avg_gap"), (*gaps, sum(known) / len(known) if len(known) == len(gaps) else None), strict=True)
    )


def frames_of(records: Sequence[Record], *, alpha: float, seed: int) -> dict[str, pl.DataFrame]:
    """All tables, by name.

    Args:
        records: those of one forget set side by side, retraining first.
        alpha: 1 - level; family-wise of the comparisons on one set.
        seed: of the halvings and swaps of KLoM.
    """
    sets: dict[str, list[Record]] = {}
    for record in records:
        sets.setdefault(record.forget_set, []).append(record)
    usual = {r.method: r for r in sets.get(_RANDOM, [])}
    alone = next((wall for r in records if r.method == REFERENCE and (wall := _mean(r, "wall_s")) is not None), None)
    found: dict[str, list[Row]] = {name: [] for name in ("summary", "pairs", "klom", "classes", "layers")}
    examples: list[pl.DataFrame] = []
    for kind, own in sets.items():
        marks = _klom(own, seed=derive_seed(kind, seed))
        summary, pairs = _compared(own, usual, marks, alone=alone, alpha=alpha)
        found["summary"] += summary
        found["pairs"] += pairs
        found["klom"] += _klom_rows(own, marks, alpha=alpha)
        found["classes"] += _classes(own)
        found["layers"] += _layers(own)
        examples += _examples(own, marks)
    runs = [{"forget_set": r.forget_set, "method": r.method, **row} for r in records for row in r.rows]
    tries = [{"forget_set": r.forget_set, "method": r.method, **row} for r in records for row in r.tries]
    return {
        SUMMARY.name: frame_of(SUMMARY, found["summary"]),
        RUNS.name: frame_of(RUNS, runs),
        PAIRS.name: frame_of(PAIRS, found["pairs"]),
        TUNING.name: frame_of(TUNING, tries),
        KLOM.name: frame_of(KLOM, found["klom"]),
        EXAMPLES.name: pl.concat([frame_of(EXAMPLES, []), *examples]),
        CLASSES.name: frame_of(CLASSES, found["classes"]),
        LAYERS.name: frame_of(LAYERS, found["layers"]),
    }


# --- the board and its pairs --------------------------------------------------------------------------------------


def _compared(
    own: Sequence[Record],
    usual: Mapping[str, Record],
    marks: Mapping[str, Marks],
    *,
    alone: float | None,
    alpha: float,
) -> tuple[list[Row], list[Row]]:
    """Rows of ``leaderboard`` and of ``leaderboard_pairs`` of one forget set; ``alone``: seconds of a retraining."""
    by_name = {r.method: r for r in own}
    reference, untouched = by_name[REFERENCE], by_name[UNTOUCHED]
    ranked = [r for r in own if r.method != REFERENCE and r.whole and not np.isnan(r.values("avg_gap")).any()]
    ranked.sort(
        key=lambda r: (round(float(r.values("avg_gap").mean()), 9), r.method)
    )  # equal but for rounding: by name
    num_forget = reference.num("forget")
    values = np.stack([r.values("avg_gap") for r in ranked], axis=1) if ranked else np.empty((0, 0))
    pairs = all_pairs(values, alpha=alpha, step=100.0 / (len(METRICS) * num_forget) if num_forget else 0.0)
    letters = pairs.letters(range(len(ranked)))
    place = {r.method: k for k, r in enumerate(ranked)}
    nothing = place.get(UNTOUCHED)
    cost = {r.method: alone if r is reference and r.rows else _mean(r, "wall_s") for r in own}
    floor = _floor(reference)
    rows = []
    for r in own:
        k = place.get(r.method)
        row = {
            "forget_set": r.forget_set,
            "method": r.method,
            "status": r.status,
            "why": r.why,
            "num_forget": num_forget,
            "num_retain": None if r.asked is None else r.asked.num_retain,
            "num_runs": len(r.rows),
            "num_diverged": sum(run["status"] != "ok" for run in r.rows),
            "tuned": r.tuned,
            "groups": "" if k is None else letters[k],
            "rank": None if k is None else k + 1,
            "gap_floor": floor,
            "wall_s": cost[r.method],
            "rte": None if not alone or cost[r.method] is None else cost[r.method] / alone,  # type: ignore[operator]
        }
        if r.whole:
            row |= _figures(r, untouched, usual.get(r.method), alpha=alpha)
        if k is not None:
            row["beats_none"] = None if nothing in (None, k) else _apart(pairs, k, nothing) and k < nothing
            row["pareto"] = not any(_dominates(o, r, cost) for o in ranked)
        if r.method in marks and "forget" in marks[r.method].parts:
            binned = marks[r.method].parts["forget"][0]
            row |= {"klom_forget": _finite(binned.half), "klom_forget_floor": _finite(binned.floor)}
        rows.append(row)
    return rows, [_pair_row(ranked, pairs, p) for p in range(len(pairs.first))]


def _figures(r: Record, untouched: Record, usual: Record | None, *, alpha: float) -> Row:
    """Means, spreads and what is paired with the untouched model and the random set, of a method that finished."""
    row: Row = {}
    for name in (*METRICS, "avg_gap"):
        values = r.values(name)
        known = values[~np.isnan(values)]
        row |= {name: float(known.mean()) if len(known) else None}
        row |= {f"{name}_std": float(known.std(ddof=1)) if len(known) > 1 else None}
    gap = r.values("avg_gap")
    if np.isnan(gap).any():
        return row | {"avg_gap": None, "avg_gap_std": None}
    _, low, high = mean_interval(gap, level=1 - alpha)
    row |= {"avg_gap_low": None if low is None else max(low, 0.0), "avg_gap_high": high, "avg_gap_worst": gap.max()}
    nothing = untouched.values("avg_gap").mean() if untouched.whole else math.nan
    row["gap_ratio"] = float(gap.mean() / nothing) if nothing > 0 else None
    if usual is not None and usual.whole and not np.isnan(usual.values("avg_gap")).any():
        excess = gap - usual.values("avg_gap")
        row |= {"excess": float(excess.mean()), "excess_std": float(excess.std(ddof=1))}
    return row


def _floor(reference: Record) -> float | None:
    """Mean avg_gap of all pairs of retrainings of different seeds."""
    rows = reference.rows
    gaps = [gaps_of(a, b)["avg_gap"] for i, a in enumerate(rows) for b in rows[:i]]
    known = [gap for gap in gaps if gap is not None]
    return sum(known) / len(known) if known else None


def _mean(r: Record, name: str) -> float | None:
    values = r.values(name)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _dominates(one: Record, other: Record, cost: Mapping[str, float | None]) -> bool:
    """As close and as quick, and better in one; a method without a time (the untouched model) takes none."""
    gaps = [float(r.values("avg_gap").mean()) for r in (one, other)]
    times = [cost[r.method] or 0.0 for r in (one, other)]
    return gaps[0] <= gaps[1] and times[0] <= times[1] and (gaps[0] < gaps[1] or times[0] < times[1])


def _apart(pairs: AllPairs, a: int, b: int) -> bool:
    at = np.flatnonzero((pairs.first == min(a, b)) & (pairs.second == max(a, b)))[0]
    return bool(pairs.apart[at])


def _pair_row(ranked: Sequence[Record], pairs: AllPairs, p: int) -> Row:
    a, b = ranked[pairs.first[p]], ranked[pairs.second[p]]
    apart = bool(pairs.apart[p])
    return {
        "forget_set": a.forget_set,
        "method": a.method,
        "other": b.method,
        "num_runs": int(pairs.num[p]),
        "difference": pairs.difference[p],
        "low": pairs.low[p],
        "high": pairs.high[p],
        "p_value": pairs.p_value[p],
        "p_holm": pairs.p_holm[p],
        "told_apart": apart,
        "closer": a.method if apart else "",  # ranked by the mean: the first is never farther
        **{f"same_{part}": _same(a, b, part) for part in ("forget", "test")},
    }


def _same(a: Record, b: Record, part: str) -> float | None:
    """Share of examples of a part that both answer alike, mean over runs."""
    if not a.seen.answer or a.asked is None:
        return None
    rows = a.asked.parts == part
    alike = np.stack(a.seen.answer)[:, rows] == np.stack(b.seen.answer)[:, rows]
    return float(alike.mean()) if alike.size else None


# --- KLoM ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Marks:
    """KLoM of one method: part -> (by the published bins, by normals); rows of a part in the order of the sample."""

    parts: dict[str, tuple[Klom, Klom]]


def _klom(own: Sequence[Record], *, seed: int) -> dict[str, Marks]:
    """Of every method that finished two runs or more, against retraining."""
    reference = own[0]
    if not reference.whole or reference.asked is None or len(reference.rows) < 2:
        return {}
    theirs, parts = np.stack(reference.seen.signal), reference.asked.parts
    found = {}
    for r in own[1:]:
        if not r.whole:
            continue
        ours = np.stack(r.seen.signal)
        found[r.method] = Marks(
            {
                part: tuple(  # type: ignore[misc]
                    klom(ours[:, parts == part], theirs[:, parts == part], estimator=e, seed=derive_seed(part, seed))
                    for e in (binned_kl, normal_kl)
                )
                for part in PARTS
                if (parts == part).any()
            }
        )
    return found


def _klom_rows(own: Sequence[Record], marks: Mapping[str, Marks], *, alpha: float) -> list[Row]:
    rows: list[Row] = []
    for part in PARTS:
        named = [r for r in own if r.method in marks and part in marks[r.method].parts]
        pairs = [marks[r.method].parts[part] for r in named]
        adjusted = holm([normal.p_value for _, normal in pairs])
        for r, (binned, normal), p_holm in zip(named, pairs, adjusted, strict=True):
            rows.append(
                {
                    "forget_set": r.forget_set,
                    "method": r.method,
                    "part": part,
                    "num_runs": len(r.rows),
                    "num_examples": len(binned.value),
                    "klom": binned.value.mean(),
                    "klom_p95": np.quantile(binned.value, 0.95),
                    **{n: _finite(v) for n, v in zip(("half", "floor", "excess"), _halves(binned), strict=True)},
                    "normal": normal.value.mean(),
                    **{
                        f"normal_{n}": _finite(v)
                        for n, v in zip(("half", "floor", "excess"), _halves(normal), strict=True)
                    },
                    "p_value": normal.p_value,
                    "p_holm": p_holm,
                    "beyond_noise": bool(p_holm <= alpha),
                }
            )
    return rows


def _halves(found: Klom) -> tuple[Float, Float, Float]:
    return found.half, found.floor, found.excess


def _finite(values: Float) -> float | None:
    """Mean, or None where it is undefined."""
    return float(values.mean()) if len(values) and np.isfinite(values).all() else None


# --- any two methods from stored rows -----------------------------------------------------------------------------


def _examples(own: Sequence[Record], marks: Mapping[str, Marks]) -> Iterator[pl.DataFrame]:
    whole = [r for r in own if r.whole and r.asked is not None]
    for r in whole:
        asked, seen = r.asked, r.seen
        assert asked is not None
        data, num = asked.sampled, len(asked.sample)
        divergence, floor = np.full((2, num), np.nan)
        for part, (binned, _) in marks[r.method].parts.items() if r.method in marks else ():
            rows = asked.parts == part
            divergence[rows], floor[rows] = binned.half, binned.floor
        place = np.full((num, 2), np.nan) if seen.place is None else seen.place
        classes = data.task.gives("classes")
        yield frame_of(
            EXAMPLES,
            {
                "forget_set": [r.forget_set] * num,
                "method": [r.method] * num,
                "example_id": data.example_id,
                "part": asked.parts.tolist(),
                "label": data.y if classes else [None] * num,
                "answer": seen.answer[0] if seen.answer else [None] * num,
                "quality": np.mean(seen.quality, axis=0),
                "signal": np.mean(seen.signal, axis=0),
                "klom": divergence,
                "floor": floor,
                "x": place[:, 0],
                "y": place[:, 1],
            },
        )


def _classes(own: Sequence[Record]) -> Iterable[Row]:
    by_name = {r.method: _by_class(r) for r in own}
    reference, untouched = by_name[REFERENCE], by_name[UNTOUCHED]
    for r in own:
        for part, accuracy in by_name[r.method].items():
            assert r.asked is not None
            data = r.asked.data
            num = np.bincount(data.y[r.asked.part == part], minlength=data.num_classes)
            for k in np.flatnonzero(num):
                row: Row = {"forget_set": r.forget_set, "method": r.method, "part": part, "label": int(k)}
                row |= {"class_name": data.class_names[k], "num": int(num[k]), "accuracy": accuracy[k]}
                row |= {"change": accuracy[k] - untouched[part][k]} if part in untouched else {}
                yield row | {"off": accuracy[k] - reference[part][k]}


def _by_class(r: Record) -> dict[str, Float]:
    """Part -> (K,) percent, mean over runs; nothing of a method that did not finish, or without classes."""
    if not r.whole or not r.seen.by_class:
        return {}
    return {part: 100.0 * np.mean([run[part] for run in r.seen.by_class], axis=0) for part in r.seen.by_class[0]}


def _layers(own: Sequence[Record]) -> Iterable[Row]:
    for r in own:
        for place, (name, cka) in enumerate(r.seen.cka.items() if r.whole else ()):
            yield {"forget_set": r.forget_set, "method": r.method, "layer": name, "place": place, "cka": cka}
