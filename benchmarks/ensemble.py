"""Speed-up per model of stacked training over a plain PyTorch loop, in the same run.

    python -m benchmarks.ensemble [--repeats 7] [--json]

Plain loop: what one would write, a model at a time: ``nn.Module`` forward, ``F.cross_entropy``, ``torch.optim.SGD``
with momentum and weight decay, cosine learning rate set every step, the same batches. Ours: ``StackedTrainer`` on its
own choice of path. Two threads. The two take turns, in alternating order; wall time a model, median and range of the
paired ratios. Before that, both train the same models and must agree. Exit 1 when a bound is missed.

The rows under "other path" carry no bound: they are why the CPU takes the loop for convolutional models.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Threads that spin at a barrier starve each other on a busy machine; both sides are run the same way.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from recipes.models import Build, builder
from recipes.schedule import SupervisedConfig, epoch_order, learning_rates, num_steps
from recipes.stacked import StackedTrainer
from sources.example_set import ExampleSet

AGREE = 1e-3  # largest difference of a parameter between the two, float32, after the timed number of epochs


@dataclass(frozen=True)
class Case:
    """``models`` are trained by us, the first ``looped`` of them by the plain loop; each on half of ``examples``."""

    label: str
    model: str
    config: dict[str, Any]
    shape: tuple[int, ...]
    models: int
    looped: int
    examples: int
    epochs: int
    bound: float | None
    path: str = "auto"


CASES = (
    Case("64 MLPs 64-128-10 (digits)", "mlp", {"hidden": [128]}, (1, 8, 8), 64, 16, 1800, 4, 8.0),
    Case("64 MLPs 784-128-10", "mlp", {"hidden": [128]}, (1, 28, 28), 64, 16, 2000, 3, 2.0),
    Case("8 small CNNs, 28 x 28", "cnn", {}, (1, 28, 28), 8, 8, 512, 1, 0.95),
    Case("4 GroupNorm ResNets, 28 x 28", "resnet_gn", {"widths": [8, 16]}, (1, 28, 28), 4, 4, 1024, 1, 0.95),
    Case("8 small CNNs, vmap: other path", "cnn", {}, (1, 28, 28), 8, 8, 512, 1, None, "vmap"),
)


def plain_loop(
    build: Build, x: torch.Tensor, y: torch.Tensor, *, members: list[np.ndarray], config: SupervisedConfig
) -> list[nn.Module]:
    """The ordinary way."""
    trained = []
    for seed, rows in enumerate(members):
        model = build(seed)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        steps = num_steps(len(rows), config)
        own = torch.from_numpy(rows)
        for epoch in range(config.epochs):
            order = own[epoch_order(len(rows), seed=seed, epoch=epoch)]
            for lr, batch in zip(
                learning_rates(config, steps=steps, epoch=epoch), order.split(config.batch), strict=True
            ):
                optimizer.param_groups[0]["lr"] = float(lr)
                optimizer.zero_grad()
                F.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
        trained.append(model)
    return trained


def measure(case: Case, *, repeats: int, seed: int) -> dict[str, Any]:
    """Median and range over repeats of (seconds a model of the loop) / (seconds a model of ours)."""
    rng = np.random.default_rng(seed)
    data = _examples(case, rng)
    build = builder(case.model, case.config, input_shape=case.shape, num_outputs=10)
    config = SupervisedConfig(epochs=case.epochs, batch=64, lr=0.05, momentum=0.9, weight_decay=5e-4)
    keep = rng.random((case.models, case.examples)).argsort(0) < case.models // 2
    members = [np.flatnonzero(row) for row in keep]
    x, y = torch.from_numpy(data.inputs(slice(0, case.examples))), torch.from_numpy(data.y)
    trainer = StackedTrainer(build=build, config=config, path=case.path)  # type: ignore[arg-type]

    def ours() -> list[nn.Module]:
        return trainer.train(data, members=members, seeds=range(case.models))

    def loop() -> list[nn.Module]:
        return plain_loop(build, x, y, members=members[: case.looped], config=config)

    pairs = [
        (p, q)
        for a, b in zip(ours(), loop(), strict=False)
        for p, q in zip(a.parameters(), b.parameters(), strict=True)
    ]
    error = max(float((p - q).detach().abs().max()) for p, q in pairs)
    ratios = []
    for turn in range(repeats):
        spent: dict[Callable[[], list[nn.Module]], float] = {}
        for call, count in ((ours, case.models), (loop, case.looped))[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            call()
            spent[call] = (time.perf_counter() - start) / count
        ratios.append(spent[loop] / spent[ours])
    ratio = statistics.median(ratios)
    return {
        "case": case.label,
        "ratio": ratio,
        "low": min(ratios),
        "high": max(ratios),
        "bound": case.bound,
        "error": error,
        "passed": error <= AGREE and (case.bound is None or ratio >= case.bound),
    }


def _examples(case: Case, rng: np.random.Generator) -> ExampleSet:
    num = case.examples
    return ExampleSet(
        name="noise",
        task="classification",
        x=rng.integers(0, 256, (num, *case.shape), dtype=np.uint8),
        y=np.arange(num) % 10,
        example_id=np.arange(num),
        split=np.full(num, "train", "<U5"),
        owner=np.full(num, ""),
        content_hash=np.full(num, "", "<U64"),
        class_names=tuple("0123456789"),
        center=np.zeros((1, 1, 1), np.float32),
        scale=np.full((1, 1, 1), 1 / 255, np.float32),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    passed = True
    for case in CASES:
        row = measure(case, repeats=options.repeats, seed=options.seed)
        passed &= row["passed"]
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        mark = "ok  " if row["passed"] else "MISS"
        bound = "" if case.bound is None else f"  (>= {case.bound:g})"
        print(
            f"{mark} {case.label:32s} loop / ours {row['ratio']:6.2f} [{row['low']:.2f}, {row['high']:.2f}]{bound:10s}"
            f"  largest difference {row['error']:.1e}",
            flush=True,
        )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
