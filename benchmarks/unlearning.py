"""What unlearning costs: many models at once against one by one, and one run against its bare passes.
Run: python -m benchmarks.unlearning

stacked   60 models of the digits MLP 64-128-10, each with a third of 400 targets to forget: the loop over the
          registered method / ``unlearning.stacked``, as the shipped plan of the digits sets each method, or by its
          defaults. At batches of 64, as these models are trained, it is eight times faster. At the methods' own 256 and
          512 it was 3.7 to 4.1 times (medians of five on a busy machine), and 2.8 for the five steps of
          gradient_ascent. The matrix products take as long stacked as one by one there (at 64 three quarters of it) and
          are two fifths of the time together: alone they would be nine to eleven times faster than the loop. The rest
          is activations, losses and the optimiser, and what each model costs once (its inputs in order, a copy, a look
          for a collapse), which is most of what five steps cost. "All trainings of U-LiRA": the same with what is
          trained beside, each run's model as it was and without what is forgotten; one model of the loop is timed on
          five of them. Where a step of the loop costs less beside its products (an EPYC of 2026, one core beside a busy
          one), it was 5.1 to 5.6 times at batches of 64, 2.1 to 3.0 at 256 and 512, of which the products alone would
          be 4.2 to 5.3, and 4.0 to 4.3 of all trainings: the bounds hold on both.
run       a CNN (conv 16, conv 32, 64) on 10,000 images of 28 x 28, 2 epochs: the registered method, with its checks,
          batches, optimiser and looks at a collapse / nothing but forward and backward passes over as many batches

Both sides of a ratio are CPU time of one thread, run turn by turn. Exit status 1 when a bound is missed, or when both
sides of ``stacked`` do not end in the same models: a fast wrong answer has no speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks._common import Row, images, options, paired_ratio, report, timed
from benchmarks.u_lira import RECIPE
from contracts.methods import unlearner
from recipes.inputs import Inputs
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
from recipes.supervised import supervised
from sources.example_set import ExampleSet
from sources.loading import load
from unlearning.descent import Descent, sizes_of
from unlearning.stacked import unlearn_many

STACKED: tuple[tuple[str, dict[str, float], float], ...] = (  # method, its settings, times faster than the loop
    ("finetune", {"lr": 0.05, "epochs": 10, "batch": 64}, 4.0),
    ("random_label", {"lr": 0.01, "epochs": 10, "batch": 64}, 4.0),
    ("finetune", {"lr": 0.05, "epochs": 10}, 2.5),
    ("gradient_ascent", {"lr": 0.001, "epochs": 5}, 2.0),
    ("random_label", {"lr": 0.01, "epochs": 10}, 2.6),
    ("salun", {}, 2.3),
    ("l1_sparse", {}, 2.4),
    ("scrub", {}, 1.9),
    ("bad_teacher", {}, 1.8),
)
WHOLE, RUN = 4.0, 1.15
APART = 0.01  # rounding alone, but for a unit that is 0 to rounding and so takes part in one of both
TARGETS, IMAGES, FORGOTTEN, TIMED = 400, 10_000, 1_000, 5


def shadow_runs(runs: int, seed: int) -> tuple[list[nn.Module], list[ExampleSet], list[ExampleSet]]:
    """Trained models, and what each has to keep and to forget."""
    data = load("sklearn", {"dataset": "digits", "test_fraction": 0.5}, seed=seed).part("train")
    build = builder("mlp", {"hidden": (128,)}, input_shape=data.input_shape, num_outputs=data.num_classes)
    rng, members = np.random.default_rng(seed), []
    for _ in range(runs):
        order = rng.permutation(len(data))
        members.append((order[:-TARGETS], *np.array_split(order[-TARGETS:], 3)))
    trained = StackedTrainer(build=build, config=RECIPE).train(
        data, members=[np.concatenate(own[:3]) for own in members], seeds=range(runs)
    )
    return trained, [data.take(np.concatenate(own[:2])) for own in members], [data.take(own[2]) for own in members]


def stacked(runs: int, seed: int, repeats: int) -> Iterator[Row]:
    models, retain, forget = shadow_runs(runs, seed)
    build = builder("mlp", {"hidden": (128,)}, input_shape=retain[0].input_shape, num_outputs=retain[0].num_classes)
    # What U-LiRA trains beside: each run's model as it was and without what is forgotten, alike in cost.
    trained_together = 2 * timed(lambda: shadow_runs(runs, seed))[0]
    one_model = timed(lambda: [supervised(build, own, config=RECIPE, seed=seed) for own in retain[:TIMED]])[0] / TIMED
    trained_one_by_one = 2 * runs * one_model
    for name, fields, bound in STACKED:
        method = unlearner.get(name)
        config = method.spec.config.from_mapping(fields)
        given = {"config": config} | ({"build": build} if "build" in method.spec.needs else {})

        def together(method=method, given=given) -> list:
            return unlearn_many(method, models, retain=retain, forget=forget, seeds=range(runs), **given)

        def one_by_one(method=method, given=given) -> list[nn.Module]:
            sets = zip(models, retain, forget, strict=True)
            return [
                method(model, retain=kept, forget=gone, seed=seed, **given)
                for seed, (model, kept, gone) in enumerate(sets)
            ]

        what = f"{name}, batch {config.batch}"
        apart = max(_apart(a, b) for a, b in zip(together(), one_by_one(), strict=True))
        yield Row(f"digits MLP, {runs} models", f"{what}: largest difference of a weight", apart, APART)
        ratio = 1 / paired_ratio(together, one_by_one, repeats=repeats)
        yield Row(f"digits MLP, {runs} models", f"{what}: times faster than the loop", ratio, bound, ">=")
        whole = (trained_one_by_one + timed(one_by_one)[0]) / (trained_together + timed(together)[0])
        yield Row(f"digits MLP, {runs} models", f"{what}: all trainings of U-LiRA, times faster", whole, WHOLE, ">=")
        plans = [
            method.spec.plan(model, retain=kept, forget=gone, seed=seed, **given)
            for seed, (model, kept, gone) in enumerate(zip(models, retain, forget, strict=True))
        ]
        products = _products(plans)
        limit = ratio / paired_ratio(products, together, repeats=repeats)
        yield Row(f"digits MLP, {runs} models", f"{what}: its products alone would be", limit, bound, ">=")
    for batch in (64, 256, 512):
        alone = 1 / paired_ratio(*_both_products(models, batch), repeats=10 * repeats)
        yield Row(
            f"digits MLP, {runs} models", f"products, batch {batch}: times faster than one by one", alone, 0.5, ">="
        )


def _products(plans: Sequence[Descent]) -> Callable[[], None]:
    """The matrix products of all forward and backward passes of ``plans``, stacked as they are, and nothing else."""
    epochs = [plans[0].passes(epoch) for epoch in range(plans[0].config.epochs)]
    widths = [size for epoch in epochs for one in epoch for size in sizes_of(len(one), plans[0].config.batch)]
    size, models = 24, [plan.model for plan in plans]
    chunks = [models[start : start + size] for start in range(0, len(models), size)]
    stacks = {width: [_both_products(chunk, width)[0] for chunk in chunks] for width in set(widths)}

    def run() -> None:
        for width in widths:
            for stack in stacks[width]:
                stack()

    return run


def _both_products(models: Sequence[nn.Module], batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """The products of one forward and backward pass of every model over a batch: stacked, and one after another."""
    layers = [(m.hidden[0].weight.detach(), m.head.weight.detach()) for m in models]  # type: ignore[index,union-attr]
    first, last = (torch.stack([own[k] for own in layers]) for k in (0, 1))
    (num, hidden, inputs), outputs = first.shape, last.shape[1]
    x, z = torch.randn(num, batch, inputs), torch.randn(num, outputs, batch)
    h, back = torch.randn(num, hidden, batch), torch.empty(num, hidden, batch)
    rooms = torch.empty(num, hidden, batch), torch.empty_like(z), torch.empty_like(first), torch.empty_like(last)
    rows = [(own, a.T.contiguous(), d.T.contiguous()) for own, a, d in zip(x, h, z, strict=True)]

    def stacked() -> None:
        torch.bmm(first, x.transpose(1, 2), out=rooms[0])
        torch.bmm(last, h, out=rooms[1])
        torch.bmm(z, h.transpose(1, 2), out=rooms[3])
        torch.bmm(last.transpose(1, 2), z, out=back)
        torch.bmm(back, x, out=rooms[2])

    def one_by_one() -> None:
        for (w, v), (own, a, d) in zip(layers, rows, strict=True):
            torch.mm(own, w.T)
            torch.mm(a, v.T)
            torch.mm(d.T, a)
            torch.mm(torch.mm(d, v).T, own)

    return stacked, one_by_one


def _apart(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


def striped(seed: int) -> ExampleSet:
    """Noise images whose class is where a bright stripe lies: soon learned, so that a collapse is looked for."""
    data = images(IMAGES, (1, 28, 28), seed)
    x = data.x // 2
    rows = 2 * data.y[:, None] + np.arange(3)
    x[np.arange(IMAGES)[:, None], 0, rows] = 255
    return dataclasses.replace(data, x=x)


def run(seed: int, repeats: int) -> Iterator[Row]:
    data = striped(seed)
    build = builder("cnn", input_shape=data.input_shape, num_outputs=data.num_classes)
    model = supervised(build, data, config=SupervisedConfig(lr=0.05, epochs=2), seed=seed)
    chosen = np.arange(IMAGES) < FORGOTTEN
    retain, forget = data.take(np.flatnonzero(~chosen)), data.take(np.flatnonzero(chosen))
    for name, visited in (("finetune", (retain,)), ("random_label", (forget, retain))):
        method = unlearner.get(name)
        config = method.spec.config.from_mapping({"lr": 0.001, "epochs": 2})
        bare = _bare(build(seed), visited, epochs=config.epochs, batch=config.batch)

        def whole(method=method, config=config) -> nn.Module:
            return method(model, retain=retain, forget=forget, config=config, seed=seed)

        yield Row("CNN, 10,000 images", f"{name}: run / its passes", paired_ratio(whole, bare, repeats=repeats), RUN)


def _bare(model: nn.Module, visited: tuple[ExampleSet, ...], *, epochs: int, batch: int) -> Callable[[], None]:
    """Forward and backward passes alone, over batches that lie ready."""
    parts = [Inputs(data, dtype=torch.float32) for data in visited]
    batches = [
        (part.block(start, min(start + batch, len(part))), part.targets[start : start + batch])
        for part in parts
        for start in range(0, len(part), batch)
    ]

    def passes() -> None:
        for _ in range(epochs):
            for x, y in batches:
                model.zero_grad(set_to_none=True)
                F.cross_entropy(model(x), y).backward()

    return passes


def rows(o: argparse.Namespace) -> Iterator[Row]:
    yield from stacked(o.runs, o.seed, o.repeats)
    yield from run(o.seed, o.repeats)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args()
    torch.set_num_threads(1)
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
