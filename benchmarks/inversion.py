"""Cost of gradient inversion of many clients side by side against the same attack on one client after the other.

    python -m benchmarks.inversion [--repeats 5] [--json]

For each model, one thread: CPU-time ratio of 20 DIA steps on 8 clients at once to 8 plain runs of 20 steps
(torch.optim.Adam on the image and the masks, torch.autograd.grad with create_graph, the signed gradient), interleaved,
median of the pairs; and the largest difference of the iterates after 3 steps, in double precision.

Exit 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.gradient_inversion import (
    Instrumented,
    InversionConfig,
    Update,
    dropout_inversion,
    instrument_dropout,
    share,
)
from benchmarks._common import CLASSES, Row, options, paired_ratio, report
from contracts.digests import derive_seed
from recipes.models import build
from recipes.rng import generator

CLIENTS, STEPS = 8, 20
BOX = (torch.tensor(0.0), torch.tensor(1.0))
MODELS: tuple[tuple[str, str, dict[str, Any], tuple[int, int, int], float], ...] = (
    ("MLP 64-128-10", "mlp", {"hidden": [128]}, (1, 8, 8), 0.45),
    ("MLP 784-128-128-10", "mlp", {"hidden": [128, 128], "activation": "gelu"}, (1, 28, 28), 0.9),
    ("2-conv CNN", "cnn", {}, (1, 16, 16), 0.7),
    ("GroupNorm ResNet 16-32", "resnet_gn", {"widths": [16, 32]}, (1, 8, 8), 0.6),
    ("ViT d 32, 2 layers", "vit", {"dim": 32, "depth": 2}, (1, 8, 8), 0.45),
)


def one_by_one(net: Instrumented, update: Update, labels: Tensor, config: InversionConfig, seeds: list[int]) -> Tensor:
    """DIA as published, one client after the other; the last iterate."""
    found = []
    names = list(net.params)
    for r, seed in enumerate(seeds):
        start = torch.randn((1, *net.input_shape), generator=generator(derive_seed("x", seed)), dtype=torch.float64)
        x = start.to(net.dtype).clamp(0, 1).requires_grad_()
        draw = generator(derive_seed("masks", seed))
        masks = [
            (torch.rand(s.shape, generator=draw, dtype=torch.float64) >= s.rate).to(net.dtype).requires_grad_()
            for s in net.sites
        ]
        params = {n: p.clone().requires_grad_() for n, p in net.params.items()}
        target = torch.cat([update.tensors[n][r].flatten() for n in names])
        optimiser = torch.optim.Adam([x, *masks], lr=config.lr)
        for _ in range(config.steps):
            loss = F.cross_entropy(net.logits(params, x, masks=masks), labels[r])
            slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            match = 1 - F.cosine_similarity(torch.cat([s.flatten() for s in slopes]), target, dim=0)
            down, right = (x[..., 1:, :] - x[..., :-1, :]).abs().mean(), (x[..., 1:] - x[..., :-1]).abs().mean()
            penalty = sum((1 - m.mean() - s.rate).abs() for m, s in zip(masks, net.sites, strict=True))
            total = match + config.tv * (down + right) + config.mask_weight * penalty
            for leaf, slope in zip([x, *masks], torch.autograd.grad(total, [x, *masks]), strict=True):
                leaf.grad = slope.sign() if leaf is x else slope
            optimiser.step()
            with torch.no_grad():
                for leaf in (x, *masks):
                    leaf.clamp_(0, 1)
        found.append(x.detach())
    return torch.stack(found)


def measure(
    label: str, name: str, config: dict[str, Any], shape: tuple[int, ...], bound: float, *, repeats: int, seed: int
) -> list[Row]:
    plan = InversionConfig(steps=STEPS, tolerance=0.0)
    seeds = list(range(CLIENTS))
    model = build(name, config, input_shape=shape, num_outputs=CLASSES, seed=seed)

    def clients(net: Instrumented) -> tuple[Update, Tensor]:
        draw = generator(seed)
        x = torch.rand(CLIENTS, 1, *shape, generator=draw, dtype=torch.float64)
        labels = torch.randint(CLASSES, (CLIENTS, 1), generator=draw)
        return share(net, x, labels, seeds=seeds)[0], labels

    net = instrument_dropout(model, input_shape=shape, rate=0.25)
    update, labels = clients(net)
    ratio = paired_ratio(
        lambda: dropout_inversion(net, update, labels=labels, box=BOX, config=plan, seeds=seeds),
        lambda: one_by_one(net, update, labels, plan, seeds),
        repeats=repeats,
    )
    double = instrument_dropout(model.double(), input_shape=shape, rate=0.25)
    update, labels = clients(double)
    few = replace(plan, steps=3)
    together = dropout_inversion(double, update, labels=labels, box=BOX, config=few, seeds=seeds)
    apart = one_by_one(double, update, labels, few, seeds)
    gap = (together.x - apart).abs().max()  # the loss falls in the first steps: the best iterate is the last
    return [
        Row(label, "8 clients at once / one by one", ratio, bound),
        Row(label, "largest difference of iterates", float(gap), 1e-6),
    ]


def rows(o: argparse.Namespace) -> Iterator[Row]:
    for label, name, config, shape, bound in MODELS:
        yield from measure(label, name, config, shape, bound, repeats=o.repeats, seed=o.seed)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="pairs a model")
    o = parser.parse_args()
    torch.set_num_threads(1)
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
