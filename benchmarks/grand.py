"""Cost and exactness of GraNd and EL2N against plain passes over the same batch, in the same run.

    python -m benchmarks.grand [--repeats 15] [--json]

For each model: CPU-time ratio of exact per-example gradient norms to ONE plain forward + backward with weight gradients,
batch of 256 images 28 x 28, one thread, the two interleaved, median of the paired ratios; and the largest relative
difference from a naive float64 loop over the examples. For EL2N the plain pass is the bare forward pass. Exit 1 when a
bound is missed. CPU time of the thread, not wall time: on a shared machine wall ratios mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.models import build
from scoring.el2n import error_scores
from scoring.grad_norms import PerExampleGradNorm
from scoring.grand import unit_error

SHAPE, CLASSES, BATCH = (1, 28, 28), 10, 256
MODELS: tuple[tuple[str, str, dict[str, Any], float], ...] = (
    ("MLP 784-256-10", "mlp", {"hidden": (256,)}, 0.8),
    ("2-conv CNN", "cnn", {}, 1.3),
    ("GroupNorm ResNet 16-32-64", "resnet_gn", {"widths": (16, 32, 64)}, 1.3),
    ("ViT d 64, 4 layers, 49 tokens", "vit", {"dim": 64, "depth": 4, "patch": 4}, 1.3),
)
EL2N_BOUND, ERROR_BOUND = 1.1, 1e-4


@dataclass(frozen=True)
class Row:
    model: str
    what: str
    measured: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.measured <= self.bound


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


def naive_grand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """float64 norms of the gradient of each example's own cross-entropy, one example at a time."""
    norms = []
    for b in range(len(x)):
        loss = F.cross_entropy(model(x[b : b + 1]), y[b : b + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(sum(float(g.square().sum()) for g in gradients) ** 0.5)
    return torch.tensor(norms, dtype=torch.float64)


def measure(label: str, name: str, config: dict[str, Any], bound: float, *, repeats: int, seed: int) -> list[Row]:
    def fresh() -> nn.Module:
        return build(name, config, input_shape=SHAPE, num_outputs=CLASSES, seed=seed).eval()

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, *SHAPE, generator=generator)
    y = torch.randint(CLASSES, (BATCH,), generator=generator)
    model = fresh()

    def plain() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()

    with PerExampleGradNorm(model) as norms:

        def grand() -> Tensor:
            found = norms(x, y, unit_error)
            return error_scores(found.logits, y)["el2n"] * found.total.sqrt()

        exact = naive_grand(fresh().double(), x.double(), y)
        error = float(((grand() - exact).abs() / exact).max())
        ratio = paired_ratio(grand, plain, repeats=repeats)

    with torch.inference_mode():
        el2n = paired_ratio(lambda: error_scores(model(x), y), lambda: model(x), repeats=repeats)
    return [
        Row(label, "GraNd / forward + backward", ratio, bound),
        Row(label, "GraNd, largest relative error", error, ERROR_BOUND),
        Row(label, "EL2N / forward", el2n, EL2N_BOUND),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="pairs a model; small models take ten times as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    passed = True
    for label, name, config, bound in MODELS:
        repeats = options.repeats * (10 if name == "mlp" else 1)
        for row in measure(label, name, config, bound, repeats=repeats, seed=options.seed):
            passed &= row.passed
            if options.json:
                print(json.dumps(asdict(row) | {"passed": row.passed}), flush=True)
            else:
                mark = "ok  " if row.passed else "MISS"
                print(f"{mark} {row.model:30s} {row.what:30s} {row.measured:9.3g}  (<= {row.bound:g})", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
