"""Reference evidence of many classes: what it takes on disk, and what memory while it is made and read.

    disk      float32 logits (M, N, K) / the stored evidence                   K = 1,000
    making    anonymous memory at its peak by the product's ``train_ensemble``, more for four times the examples, / more
              readings
    reading   anonymous memory after loading it and reading every number, / size of the evidence (it is mapped)

1.28 million examples x 1,000 classes x 64 models are 328 GB as logits and 2.6 GB as readings.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks._common import Row, in_child, options, report
from benchmarks.streaming import Peak, anonymous
from contracts.methods import RecipeSpec
from contracts.params import Config
from contracts.registry import Method
from contracts.subject import Ensemble
from recipes.ensemble import ReferenceEnsemble, train_ensemble
from sources.example_set import ExampleSet
from warehouse.artifacts import ArtifactStore

FEATURES, AT_LEAST, MADE, READ = 8, 50.0, 2.0, 0.1


def examples(num: int, classes: int, seed: int) -> ExampleSet:
    rng = np.random.default_rng(seed)
    return ExampleSet(
        name="noise",
        task="classification",
        x=rng.standard_normal((num, FEATURES), np.float32),
        y=np.arange(num) % classes,
        example_id=np.arange(num),
        split=np.where(np.arange(num) % 10 == 9, "test", "train").astype("<U5"),
        owner=np.full(num, ""),
        content_hash=np.array([f"{i:064x}" for i in range(num)]),
        class_names=tuple(map(str, range(classes))),
        center=np.zeros(1, np.float32),
        scale=np.ones(1, np.float32),
    )


def untrained(build: Any, data: ExampleSet, *, config: Config, seed: int) -> nn.Module:
    """A recipe that trains nothing: its own memory is not the evidence's."""
    model: nn.Module = build(seed)
    return model


def made(folder: str, num: int, classes: int, models: int, seed: int) -> dict[str, float]:
    torch.set_num_threads(1)
    data = examples(num, classes, seed)

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Linear(FEATURES, classes)

    recipe = Method(RecipeSpec(name="untrained", doc=""), untrained)
    plan = Ensemble(num_models=models, block=8)
    _ = data.digest
    before, peak = anonymous(), Peak()
    peak.start()
    found = train_ensemble(build, data, recipe=recipe, config=Config(), ensemble=plan, seed=seed)
    highest = peak.stop() - before
    stored = ArtifactStore(Path(folder)).save("ensemble", found.to_arrays(), {"config_digest": found.config_digest})
    return {"bytes": stored.size_bytes, "peak": highest, "reading": found.reading.nbytes}


def read(folder: str) -> float:
    store = ArtifactStore(Path(folder))
    before = anonymous()
    arrays, meta = store.load("ensemble")
    found = ReferenceEnsemble.from_arrays(arrays, meta)
    total = sum(float(found.readings.signal[m].sum()) for m in range(found.num_models))
    assert np.isfinite(total)
    return anonymous() - before


def rows(o: Any) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        found = in_child(made, folder, o.num, o.classes, o.models, o.seed)
        loaded = in_child(read, folder)
        what = f"{o.num:,} x {o.classes:,} x {o.models}"
        logits = 4.0 * o.num * o.classes * o.models
        yield Row(what, "disk: float32 logits / evidence", logits / found["bytes"], AT_LEAST, ">=")
        few = in_child(made, folder, o.num // 4, o.classes, o.models, o.seed)
        more = (found["peak"] - few["peak"]) / (found["reading"] - few["reading"])
        yield Row(what, "making: more peak memory / more readings", more, MADE)
        yield Row(what, "reading: memory / evidence", loaded / found["bytes"], READ)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--num", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--models", type=int, default=64)
    o = parser.parse_args()
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
