"""Reference models as adapters on one base: what they cost beside the bare passes that training and reading them are.

    python -m benchmarks.adapters [--repeats 7] [--adapters 4] [--seed 0] [--json]

Bare passes: a base that was wrapped beforehand; for every adapter fresh A and B, AdamW, and forward, backward and step
on the very batches, at the very rates; then every example is read. Ours: ``train_adapters`` on a base as it is loaded:
wrapping it, the order of the batches, clipping, what is watched and kept, are all in it. The two take turns, in CPU
time of one thread. Before that, with clipping in the bare loop as well, both give the same adapters and readings to the
last bit. Exit 1 when the bound is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks._common import Row, options, paired_ratio, report
from recipes.fitting import make_optimizer, trainable
from recipes.inputs import Inputs
from recipes.language.adapters import train_adapters
from recipes.language.lora import LoraConfig, adapter_arrays, attach, restart
from recipes.models import Build, builder
from recipes.predict import read
from recipes.schedule import epoch_order, learning_rates, num_steps
from sources.example_set import ExampleSet
from sources.payloads.tokens import Tokens

BOUND, WORDS, READ = 1.15, 64, 32
CASES = {
    "one batch of 12 short texts an epoch": (24, (4, 10), LoraConfig(rank=2, epochs=25, batch=12)),
    "six batches of 8 longer texts an epoch": (96, (20, 40), LoraConfig(rank=8, epochs=2, batch=8)),
}


def texts(num: int, lengths: tuple[int, int], seed: int) -> ExampleSet:
    rng = np.random.default_rng(seed)
    made = [rng.integers(1, WORDS, rng.integers(*lengths)).astype(np.int32) for _ in range(num)]
    return ExampleSet(
        name="texts",
        task="language",  # type: ignore[arg-type]
        x=Tokens.of(made, [np.ones(len(text), np.uint8) for text in made], vocab_size=WORDS),
        y=np.zeros(num, np.int64),
        example_id=np.arange(num),
        split=np.full(num, "train", "<U5"),
        owner=np.full(num, ""),
        content_hash=np.full(num, "", "<U64"),
        class_names=(),
        center=np.zeros((), np.float32),
        scale=np.ones((), np.float32),
    )


def bare(
    model: nn.Module, data: ExampleSet, members: list[np.ndarray], *, config: LoraConfig, clip: bool
) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """The passes, on a base that is wrapped already."""
    made = []
    for seed, rows in enumerate(members):
        restart(model, seed=seed)
        parameters, own = trainable(model), data.take(rows)
        optimizer, steps = make_optimizer(parameters, config), num_steps(len(rows), config)
        inputs = Inputs(own, dtype=torch.float32)
        model.train()
        for epoch in range(config.epochs):
            order = epoch_order(len(rows), seed=seed, epoch=epoch)
            rates = learning_rates(config, steps=steps, epoch=epoch)
            for lr, batch in zip(rates, order.split(config.batch), strict=True):
                optimizer.param_groups[0]["lr"] = float(lr)
                data.task.losses(model, inputs.batch(batch)).mean().backward()
                if clip and config.grad_clip is not None:
                    nn.utils.clip_grad_norm_(parameters, config.grad_clip)
                optimizer.step()
                optimizer.zero_grad()
        model.eval()
        made.append((adapter_arrays(model), read(model, data, batch=READ).values))
    return made


def ratio(case: str, build: Build, o: argparse.Namespace) -> float:
    """CPU time of ours / of the bare passes; both first give the same bits.

    Raises:
        ArithmeticError: they do not.
    """
    num, lengths, config = CASES[case]
    data, rng = texts(num, lengths, o.seed), np.random.default_rng(o.seed)
    members = [np.sort(rng.permutation(num)[: num // 2]) for _ in range(o.adapters)]
    wrapped = attach(build(0), config, seed=0)
    bases = [build(0) for _ in range(o.repeats + 3)]  # loading it is nobody's pass

    def ours() -> list[Any]:
        given = {"config": config, "members": members, "seeds": range(o.adapters), "batch": READ}
        return list(train_adapters(bases.pop(), data, **given))

    for one, (arrays, reading) in zip(ours(), bare(wrapped, data, members, config=config, clip=True), strict=True):
        same = all(np.array_equal(arrays[name], value) for name, value in one.arrays.items())
        if not same or not np.array_equal(reading, one.reading.values):
            raise ArithmeticError(f"{case}: the bare passes give other adapters, or other readings")
    return paired_ratio(ours, lambda: bare(wrapped, data, members, config=config, clip=False), repeats=o.repeats)


def rows(o: argparse.Namespace) -> Iterator[Row]:
    sizes = {"hidden": 128, "intermediate": 344, "layers": 4, "heads": 4}
    build = builder("tiny_llama", sizes, input_shape=(40,), num_outputs=WORDS)
    for case in CASES:
        yield Row(f"{o.adapters} adapters", f"{case}: ours / bare passes", ratio(case, build, o), BOUND)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--adapters", type=int, default=4)
    o = parser.parse_args()
    torch.set_num_threads(1)
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
