"""Cost of the importance of parameters against one plain forward and backward pass over the same data, in the same run.

    python -m benchmarks.importance [--repeats 15] [--json]

CPU-time ratio, one thread, of ``unlearning.corrective.importance`` (inputs read, shuffled batches, squared gradients
summed and averaged, checked) to reading the same images 28 x 28 and taking the gradient of the mean loss of every batch
of the same size, the two turn by turn, median of the paired ratios. Selective synaptic dampening takes two importances:
its cost is that of one pass over what is forgotten and one over the rest, times this ratio.

Exit 1 when a bound is missed, or when the importance is not the mean of the squared gradients. CPU time of the thread,
not wall time: on a shared machine wall ratios mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._common import CLASSES, SHAPE, Row, images, options, paired_ratio, report
from benchmarks.grand import MODELS
from contracts.digests import derive_seed
from recipes.models import build
from recipes.rng import generator
from sources.example_set import ExampleSet
from unlearning.corrective.importance import parameter_importance

BOUND, EXACT_BOUND = 1.3, 1e-5
SIZES = {"mlp": (20_480, 512), "cnn": (1024, 128), "resnet_gn": (256, 64), "vit": (512, 64)}


def plain_pass(model: nn.Module, data: ExampleSet, batch: int) -> None:
    """The gradient of the mean loss of every batch, read in order."""
    for start in range(0, len(data), batch):
        rows = slice(start, start + batch)
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(torch.from_numpy(data.inputs(rows))), torch.from_numpy(data.y[rows])).backward()


def naive_importance(model: nn.Module, data: ExampleSet, *, batch: int, seed: int) -> Tensor:
    """The mean of the squared gradients, flat, by its definition."""
    order = torch.randperm(len(data), generator=generator(derive_seed("importance", seed)))
    squares = []
    for rows in order.split(batch):
        x, y = torch.from_numpy(data.inputs(rows.numpy())), torch.from_numpy(data.y[rows.numpy()])
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        squares.append(torch.cat([g.flatten() for g in gradients]) ** 2)
    return torch.stack(squares).mean(dim=0)


def rows(o: argparse.Namespace) -> Iterator[Row]:
    for label, name, config, _ in MODELS:
        num, batch = SIZES[name]
        data = images(num, SHAPE, o.seed)
        model = build(name, config, input_shape=SHAPE, num_outputs=CLASSES, seed=o.seed).eval()
        found = parameter_importance(model, data, batch=batch, seed=o.seed)
        flat, expected = (
            torch.cat([value.flatten() for value in found.values.values()]),
            naive_importance(model, data, batch=batch, seed=o.seed),
        )
        error = float((flat - expected).abs().max() / expected.max())
        yield Row(label, "importance, relative error", error, EXACT_BOUND)
        ratio = paired_ratio(
            lambda model=model, data=data, batch=batch: parameter_importance(model, data, batch=batch, seed=o.seed),  # type: ignore[misc]
            lambda model=model, data=data, batch=batch: plain_pass(model, data, batch),  # type: ignore[misc]
            repeats=o.repeats,
        )
        yield Row(label, "importance / forward + backward", ratio, BOUND)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="pairs a model")
    o = parser.parse_args()
    torch.set_num_threads(1)
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
