"""U-LiRA over 60 shadow runs of the digits MLP, as the audit does it. Run: python -m benchmarks.u_lira

The digits that scikit-learn brings along, MLP 64-128-10, 100 epochs of SGD; 60 runs, each trained once and retrained
once, and fine-tuning on what is retained as a third method; canaries, relearning, tables and verdicts included. Here a
time is promised, not a
ratio: seconds of one core's CPU time (the wall time of a core that is left alone; the second core is spare), printed
    with what
a plain loop over the same trainings would take (one model timed, times their number). Exit status 1 above ``LIMIT``, or
when the audit does not tell no unlearning from retraining: a fast wrong answer has no speed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from attacks.membership.shadow_audit import ShadowUnlearningConfig, shadow_unlearning_audit
from attacks.shadow_verdicts import judge_shadow_unlearning
from benchmarks._common import Row, options, report, timed
from contracts.methods import unlearner
from contracts.subject import Thresholds
from recipes.models import builder
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
from recipes.supervised import supervised
from sources.example_set import ExampleSet
from sources.loading import load
from unlearning.stacked import unlearn_many

LIMIT = 60.0
RECIPE = SupervisedConfig(optimizer="sgd", lr=0.2, momentum=0.9, batch=64, epochs=100, schedule="cosine")
FINETUNE = {"epochs": 10, "lr": 0.05}


def measure(runs: int, seed: int) -> tuple[float, float, dict[str, str]]:
    """CPU seconds of the audit, seconds of the same trainings one by one, and the verdict on U-LiRA of every method."""
    data = load("sklearn", {"dataset": "digits", "test_fraction": 0.5}, seed=seed)
    build = builder("mlp", {"hidden": (128,)}, input_shape=data.input_shape, num_outputs=data.num_classes)

    def train_many(
        members: Sequence[np.ndarray], seeds: Sequence[int], *, data: ExampleSet = data
    ) -> Sequence[nn.Module]:
        rows = [data.positions(ids) for ids in members]
        return StackedTrainer(build=build, config=RECIPE).train(data, members=rows, seeds=seeds)

    def audit() -> list:
        config = ShadowUnlearningConfig(runs=runs)
        tables = shadow_unlearning_audit(
            data, config=config, seed=seed, train_many=train_many, unlearn_from=_UnlearnFrom()
        )
        return judge_shadow_unlearning(tables, Thresholds())

    seconds, found = timed(audit)
    one_model, _ = timed(lambda: supervised(build, data.part("train"), config=RECIPE, seed=seed))
    return seconds, 2 * runs * one_model, {a: f.verdict.value for a, f in found if f.what.endswith("u_lira")}


class _UnlearnFrom:
    """Registered unlearners, for one model or for many at once."""

    def __call__(self, model: nn.Module, name: str, **given: Any) -> nn.Module:
        method = unlearner.get(name)
        return method(model, config=method.spec.config.from_mapping(FINETUNE), **given)

    def many(self, models: Sequence[nn.Module], name: str, **given: Any) -> list[Any] | None:
        method = unlearner.get(name)
        if method.spec.plan is None:
            return None
        return [*unlearn_many(method, models, config=method.spec.config.from_mapping(FINETUNE), **given)]


def rows(o: argparse.Namespace) -> Iterator[Row]:
    seconds, one_by_one, verdicts = measure(o.runs, o.seed)
    yield Row("digits MLP 64-128-10", f"U-LiRA, {o.runs} runs (CPU s)", seconds, LIMIT)
    right = verdicts["shadow/none"] == "fail" and verdicts["shadow/retrain"] == "pass"
    yield Row("digits MLP 64-128-10", "none fails and retrain passes", float(right), 1.0, ">=")
    if not o.json:
        print(f"trainings one by one: about {one_by_one:.0f} s; {verdicts}")


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    return report(rows(o), as_json=o.json)


if __name__ == "__main__":
    sys.exit(main())
