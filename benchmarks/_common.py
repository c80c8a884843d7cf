"""What the benchmarks share: measured rows and how they are told, options, paired timings, noise images, a process of
its own."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from sources.example_set import ExampleSet

SHAPE, CLASSES = (1, 28, 28), 10


@dataclass(frozen=True)
class Row:
    """One figure beside its bound: at most it (``<=``), or at least (``>=``)."""

    model: str
    what: str
    measured: float
    bound: float
    direction: Literal["<=", ">="] = "<="

    @property
    def passed(self) -> bool:
        return self.measured <= self.bound if self.direction == "<=" else self.measured >= self.bound


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has: --seed and --json."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser


def paired_ratio(ours: Callable[[], object], plain: Callable[[], object], *, repeats: int) -> float:
    """Median over repeats of CPU time of ``ours`` / CPU time of ``plain``, run turn by turn, order alternating."""
    ratios = []
    for call in (ours, plain, ours, plain):
        call()
    for turn in range(repeats):
        spent = {}
        for call in (ours, plain) if turn % 2 else (plain, ours):
            start = time.thread_time()
            call()
            spent[call] = time.thread_time() - start
        ratios.append(spent[ours] / spent[plain])
    return statistics.median(ratios)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call, all threads of the process together, and what it gave."""
    start = time.process_time()
    given = call()
    return time.process_time() - start, given


def report(rows: Iterable[Row], *, as_json: bool) -> int:
    """Tell every row as soon as it is measured, one line for people or one JSON object; 1 when one misses its bound,
    else 0."""
    passed = True
    for row in rows:
        passed &= row.passed
        if as_json:
            print(json.dumps(asdict(row) | {"passed": row.passed}), flush=True)
        else:
            mark = "ok  " if row.passed else "MISS"
            print(
                f"{mark} {row.model:30s} {row.what:62s} {row.measured:9.3g}  ({row.direction} {row.bound:g})",
                flush=True,
            )
    return 0 if passed else 1


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a fresh process: its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def images(num: int, shape: tuple[int, int, int], seed: int) -> ExampleSet:
    """Noise with labels: uint8 images of ten classes."""
    rng = np.random.default_rng(seed)
    return ExampleSet(
        name="noise",
        task="classification",
        x=rng.integers(0, 256, (num, *shape), dtype=np.uint8),
        y=rng.integers(0, CLASSES, num),
        example_id=np.arange(num),
        split=np.full(num, "train", "<U5"),
        owner=np.full(num, ""),
        content_hash=np.full(num, "", "<U64"),
        class_names=tuple(map(str, range(CLASSES))),
        center=np.zeros(1, np.float32),
        scale=np.full(1, 1 / 255, np.float32),
    )
