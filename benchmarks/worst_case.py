"""Cost of the worst-case selection against the work it cannot avoid, in the same run.

    python -m benchmarks.worst_case [--repeats 9] [--seed 0] [--json]

For each model and group, one thread: CPU time of a whole selection (S upper steps of E lower epochs, all steps taken)
over CPU time of a plain loop that does S * E epochs of signSGD (forward, backward, p -= lr sign(g)) on the same batches
and S forward passes over the same 2,048 examples. The two are interleaved, order alternating; median of the paired
ratios. What is left is the projection, the ranking and the copies of the model. Exit 1 above the bound.

CPU time of the thread, not wall time: on a shared machine wall ratios mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks._common import CLASSES, SHAPE, Row, images, options, paired_ratio, report
from recipes.models import build
from scoring.worst_case_forget import WorstCaseForgetConfig, select_worst_case
from sources.example_set import ExampleSet

NUM, BOUND = 2048, 1.1
SEARCH = WorstCaseForgetConfig(upper_steps=3, lower_epochs=2, tolerance=0.0)
MODELS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("MLP 784-128-10", "mlp", {"hidden": (128,)}),
    ("2-conv CNN", "cnn", {}),
)


def measure(label: str, name: str, model_config: dict[str, Any], group: str, *, repeats: int, seed: int) -> Row:
    data, config = _images(seed), replace(SEARCH, group=group)
    model = build(name, model_config, input_shape=SHAPE, num_outputs=CLASSES, seed=seed).eval()
    x, y = torch.from_numpy(data.inputs(slice(None))), torch.from_numpy(data.y)

    def bare() -> None:
        for _ in range(config.upper_steps):
            student = copy.deepcopy(model).train()
            parameters = list(student.parameters())
            for _ in range(config.lower_epochs):
                for rows in torch.randperm(NUM).split(config.batch):
                    loss = F.cross_entropy(student(x[rows]), y[rows], reduction="sum")
                    gradients = torch.autograd.grad(loss, parameters)
                    with torch.no_grad():
                        for p, g in zip(parameters, gradients, strict=True):
                            p.sub_(g.sign(), alpha=config.lr_lower)
            student.eval()
            with torch.no_grad():
                for start in range(0, NUM, 1024):
                    F.cross_entropy(student(x[start : start + 1024]), y[start : start + 1024], reduction="none")

    ratio = paired_ratio(lambda: select_worst_case(model, data, config=config, seed=seed), bare, repeats=repeats)
    return Row(label, f"selection by {group} / bare loop", ratio, BOUND)


def _images(seed: int) -> ExampleSet:
    """In float32: both sides then read the same tensor, and the conversion of pixels is not what is compared."""
    values = np.random.default_rng(seed).random((NUM, *SHAPE), dtype=np.float32)
    return replace(images(NUM, SHAPE, seed), x=values, scale=np.ones(1, np.float32))


def rows(o: argparse.Namespace) -> Iterator[Row]:
    for label, name, config in MODELS:
        for group in ("example", "class"):
            yield measure(label, name, config, group, repeats=o.repeats, seed=o.seed)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="pairs a model")
    o = parser.parse_args()
    torch.set_num_threads(1)
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
