"""The exact gradient of trajectory matching, against its bare passes and against unrolling. Run:

    python -m benchmarks.distillation [--repeats 5] [--json]

A ConvNet of width 32 and two poolings on images of 8 x 8, 10 and 50 of them, N = 20 steps, one thread:
- CPU time of the adjoint / CPU time of what it cannot do without, counted alone: N gradients of the loss, and N times
  the gradient of <gradient, vector>; the two interleaved, median of the paired ratios. At most 1.3.
- peak memory of tensors, by the allocator's own count: the adjoint's above what is there before, against the peak of
  one step's double backward pass plus N + 1 vectors of parameters. At most 1; six more vectors are its own (two
  adjoints, the ball, and what is being computed of each). Beside it the unrolled gradient's, which holds N graphs.
- the largest difference from unrolling, relative to its largest value, in float32. At most 2e-6.
- experts under ``torch.func.vmap`` / one after the other, CPU time: what the descent's choice on the CPU stands on.

Ratios, not seconds: on a shared machine seconds say nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks._common import Row, options, paired_ratio, report
from curation.distilled.descent import Descent
from curation.distilled.flat import FlatNetwork
from curation.distilled.matching import Inner, batches, match, targets
from recipes.models import builder
from recipes.rng import generator

STEPS, RATE, CLASSES = 20, 0.05, 10
TIME_BOUND, MEMORY_BOUND, EXACT_BOUND, UNROLLED, STACKED = 1.3, 1.0, 2e-6, 2.0, 0.5


def world(num: int, seed: int) -> tuple[Inner, Tensor, Tensor]:
    """A student's run on ``num`` noise images, with labels to learn."""
    build = builder("convnet", {"width": 32, "depth": 2}, input_shape=(1, 8, 8), num_outputs=CLASSES)
    network, g = FlatNetwork(build), generator(seed)
    start = network.initial(seed)
    trajectory = torch.stack([start, start + 0.01 * torch.randn(len(start), generator=g)])
    inner = Inner(
        network=network,
        start=start,
        targets=targets(start, trajectory, epoch=0, steps=STEPS, on_the_way=[]),
        batches=batches(num, num, STEPS, seed),
        seeds=[0] * STEPS,
    )
    return inner, torch.randn(num, 1, 8, 8, generator=g), torch.randn(num, CLASSES, generator=g)


def bare(inner: Inner, x: Tensor, y: Tensor) -> None:
    """N gradients and N double backward passes, and nothing of what they are for."""
    vector = torch.ones_like(inner.start)
    for step, batch in enumerate(inner.batches):
        theta = inner.start.detach().requires_grad_()
        torch.autograd.grad(inner.loss(theta, x[batch], y[batch], step), theta)
    for step, batch in enumerate(inner.batches):
        twice(inner, x[batch], y[batch], step, vector)


def twice(inner: Inner, x: Tensor, y: Tensor, step: int, vector: Tensor) -> tuple[Tensor, ...]:
    """One double backward pass."""
    theta, x, y = inner.start.detach().requires_grad_(), x.requires_grad_(), y.requires_grad_()
    (gradient,) = torch.autograd.grad(inner.loss(theta, x, y, step), theta, create_graph=True)
    return torch.autograd.grad(gradient @ vector, (x, y, theta))


def peak(work: Callable[[], object]) -> int:
    """Most bytes that tensors held at once above those there were before, as the CPU allocator counts them."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells of its own beginning and end
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    now = most = 0
    events = found.profiler.kineto_results.events() if found.profiler else []
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def rows(o: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(1)
    for num in (10, 50):
        inner, x, y = world(num, o.seed)
        model = f"ConvNet 32-32, {num} images"
        exact, ours = match(inner, x, y, RATE, mode="unroll"), match(inner, x, y, RATE, mode="adjoint")
        apart = float((ours.images - exact.images).abs().max() / exact.images.abs().max())
        yield Row(model, "adjoint against unrolling, relative difference", apart, EXACT_BOUND)
        adjoint = partial(match, inner, x, y, RATE, mode="adjoint")
        ratio = paired_ratio(adjoint, partial(bare, inner, x, y), repeats=o.repeats)
        yield Row(model, f"adjoint / its {STEPS} + {STEPS} bare passes, CPU time", ratio, TIME_BOUND)
        vector = torch.ones_like(inner.start)
        first = inner.batches[0]
        graph = peak(partial(twice, inner, x[first], y[first], 0, vector))
        allowed = graph + (STEPS + 1 + 6) * vector.numel() * vector.element_size()
        most = peak(partial(match, inner, x, y, RATE, mode="adjoint"))
        unrolled = peak(partial(match, inner, x, y, RATE, mode="unroll"))
        yield Row(model, "adjoint's peak / a step's graph + N + 7 vectors, bytes", most / allowed, MEMORY_BOUND)
        yield Row(model, "unrolled peak / adjoint's, bytes", unrolled / most, UNROLLED, ">=")
    yield stacked(o)


def stacked(o: argparse.Namespace) -> Row:
    """Eight experts on batches of 64."""
    inner, x, y = world(64, o.seed)
    thetas = torch.stack([inner.network.initial(number) for number in range(8)])
    loop = Descent(epochs=4, batch=64, rate=lambda epoch: 0.01, path="loop")
    stack = dataclasses.replace(loop, path="vmap")

    def run(how: Descent) -> Tensor:
        return how.run(inner.network, thetas, x, y.softmax(1), seeds=list(range(8)))

    ratio = paired_ratio(lambda: run(stack), lambda: run(loop), repeats=o.repeats)
    return Row("8 experts, batches of 64", "under vmap / one after the other, CPU time", ratio, STACKED, ">=")


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    o = parser.parse_args()
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
