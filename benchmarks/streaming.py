"""Memory of the streaming scores on 10% and on 100% of 2 million memory-mapped examples.

    python -m benchmarks.streaming [--num 2000000] [--scores el2n grand ...] [--seed 0] [--json]

Each measurement is a child process of its own. It maps a file of uint8 images 1 x 4 x 4, loads the columns of the
examples it scores, calls the score with two models, and samples its anonymous resident memory every two milliseconds
meanwhile (pages of the mapped file are the page cache's, not the program's). What is compared is

    working memory = peak during the call - (columns of the examples, held before it) - (the table returned)

that is interpreter, libraries, model, batches and everything the method keeps on the way; the first and the last term
are one row an example whatever the method does. It may grow by 10% while the examples grow tenfold. The logits of the
reference ensemble are mapped as well; the recipe that ``forgetting`` observes trains nothing, as its memory is not the
score's; near duplicates and neighbours are searched in cells. Two scores cannot be flat, because their unknowns are one
number an example or their input is kept: ``worst_case_forget`` (weights, losses, and, as every training, the inputs up
to 1 GiB) and ``personal_loss`` (the interactions by user). Of these the bytes that one more example costs are bounded
instead. Linux only.

Exit 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._common import Row, in_child, options, report
from contracts.methods import score
from recipes.ensemble import ReferenceEnsemble
from recipes.models import build
from sources.example_set import ExampleSet

SHAPE, CLASSES, MODELS, BOUND, CHUNK = (1, 4, 4), 10, 2, 1.1, 100_000
SCORES = (
    "el2n",
    "grand",
    "forgetting",
    "memorization",
    "label_quality",
    "concept_attribution",
    "near_duplicates",
    "knn_disagreement",
)
NUMBERS = ("worst_case_forget", "personal_loss")
PER_EXAMPLE = 400  # bytes
USERS, ITEMS = 20_000, 1_000
CONFIG: dict[str, dict[str, Any]] = {
    "near_duplicates": {"index": "cells"},
    "knn_disagreement": {"index": "cells"},
    "worst_case_forget": {"upper_steps": 2, "lower_epochs": 1, "batch": 1024},
}


def write(path: Path, num: int, seed: int) -> None:
    """Images about 4,000 prototypes, as data has: noise alone is equally far from everything."""
    rng = np.random.default_rng(seed)
    prototypes = rng.uniform(0, 256, (4_000, *SHAPE)).astype(np.float32)
    with path.open("wb") as file:
        for start in range(0, num, CHUNK):
            few = min(CHUNK, num - start)
            block = prototypes[rng.integers(0, len(prototypes), few)]
            block += 12 * rng.standard_normal(block.shape, np.float32)
            block.clip(0, 255, out=block).astype(np.uint8).tofile(file)


def examples(path: Path, num: int, seed: int) -> ExampleSet:
    return ExampleSet(
        name="mapped",
        task="classification",
        x=np.memmap(path, np.uint8, "r", shape=(num, *SHAPE)),
        y=np.random.default_rng(seed).integers(0, CLASSES, num),
        example_id=np.arange(num),
        split=np.full(num, "train", "<U5"),
        owner=np.full(num, ""),
        content_hash=np.full(num, "", "<U64"),
        class_names=tuple(map(str, range(CLASSES))),
        center=np.zeros(1, np.float32),
        scale=np.full(1, 1 / 255, np.float32),
    )


def clicks(path: Path, num: int, seed: int) -> ExampleSet:
    """Interactions of 20,000 users with 1,000 items, none twice."""
    pair = np.sort(np.random.default_rng(seed).choice(USERS * ITEMS, num, replace=False))
    return ExampleSet(
        name="clicks",
        task="ranking",
        x=(pair // ITEMS)[:, None],
        y=pair % ITEMS,
        example_id=np.arange(num),
        split=np.full(num, "train", "<U5"),
        owner=np.full(num, ""),
        content_hash=np.full(num, "", "<U64"),
        class_names=tuple(map(str, range(ITEMS))),
        center=np.zeros(1, np.float32),
        scale=np.ones(1, np.float32),
        provenance={"num_users": USERS},
    )


def anonymous() -> int:
    """Bytes of anonymous resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("this kernel does not tell RssAnon")


class Peak(threading.Thread):
    """The largest anonymous memory seen until :meth:`stop`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self._stopped = anonymous(), threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.002):
            self.bytes = max(self.bytes, anonymous())

    def stop(self) -> int:
        self._stopped.set()
        self.join()
        return max(self.bytes, anonymous())


def ensemble_of(data: ExampleSet, folder: Path, seed: int) -> ReferenceEnsemble:
    """Four reference models' logits in a mapped file; every example is in two of them."""
    num, path = len(data), folder / f"logits{len(data)}.f32"
    if not path.exists():
        rng = np.random.default_rng(seed)
        with path.open("wb") as file:
            for _ in range(4):
                for start in range(0, num, CHUNK):
                    rng.standard_normal((min(CHUNK, num - start), CLASSES), np.float32).tofile(file)
    keep = np.zeros((4, num), bool)
    keep[::2, ::2], keep[1::2, 1::2] = True, True
    return ReferenceEnsemble.of_logits(
        example_id=data.example_id,
        pool=np.ones(num, bool),
        labels=data.y,
        keep=keep,
        logits=np.memmap(path, np.float32, "r", shape=(4, num, CLASSES)),
        config_digest="",
    )


def observed(data: ExampleSet, seed: int, *, effort: float = 1.0, observe: Any = None) -> None:
    """A recipe that draws every example twice and trains nothing: its own memory is not the score's."""
    for epoch in range(2):
        for start in range(0, len(data), 1024):
            rows = torch.arange(start, min(start + 1024, len(data)))
            observe(rows, torch.eye(CLASSES)[(rows + epoch) % CLASSES])


def working(name: str, folder: str, num: int, seed: int) -> int:
    """Working memory in bytes of one call; run in a process of its own."""
    torch.set_num_threads(1)
    method, home = score.get(name), Path(folder)
    models = [
        build("mlp", {"hidden": (64,)}, input_shape=SHAPE, num_outputs=CLASSES, seed=seed + r).eval()
        for r in range(MODELS)
    ]
    config = method.spec.config.from_mapping(CONFIG.get(name, {}))
    examples_of = clicks if name == "personal_loss" else examples
    if name == "personal_loss":
        models = [build("mf", {"dim": 8}, input_shape=(USERS,), num_outputs=ITEMS, seed=seed).eval()]
    have = {
        "early_models": lambda d: models,
        "model": lambda d: models[0],
        "encoder": lambda d: models[0],
        "train": lambda d: observed,
        "ensemble": lambda d: ensemble_of(d, home, seed),
        "ensemble_outputs": lambda d: ensemble_of(d, home, seed),
        "unlearn": lambda d: None,
    }

    def call(data: ExampleSet, needs: Any) -> Any:
        return method(data, config=config, seed=0, **needs)

    def needs_of(data: ExampleSet) -> Any:
        return {need: have[need](data) for need in method.spec.needs}

    small = examples_of(home / "images.u8", 20_000, seed)
    call(small, needs_of(small))  # what is loaded on first use is not the method's
    without = anonymous()
    data = examples_of(home / "images.u8", num, seed)
    needs = needs_of(data)
    given = anonymous() - without
    peak = Peak()
    peak.start()
    frame = call(data, needs)
    return peak.stop() - given - int(frame.estimated_size())


def rows(o: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "images.u8", o.num, o.seed)
        for name in o.scores:
            few, many = (in_child(working, name, folder, num, o.seed) for num in (o.num // 10, o.num))
            if name in NUMBERS:
                yield Row(name, "bytes more an example", (many - few) / (o.num - o.num // 10), PER_EXAMPLE)
            else:
                yield Row(name, f"{few >> 20} -> {many >> 20} MiB", many / few, BOUND)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--num", type=int, default=2_000_000)
    parser.add_argument("--scores", nargs="+", default=[*SCORES, *NUMBERS])
    o = parser.parse_args()
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
