"""The teacher of a rehearsal-free stream after an erasure: one that has seen what was removed teaches it again.

Six classes in two steps. The removed are one class of the first, whose kind the second step's examples resemble, so
that the teacher's answers on them say what the class looks like. Unlearning is exact: retrained without the class.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
from recipes_examples import make_examples
from torch import nn

from recipes.continual.loop import Plan, train_stream
from recipes.continual.rehearsal_free import RehearsalFreeConfig, RehearsalFreeLearner
from recipes.models import builder
from recipes.predict import predict_logits
from sources.example_set import ExampleSet

STEPS, REMOVED, EPOCHS = ((0, 1, 2), (3, 4, 5)), 2, 25
CONFIG = RehearsalFreeConfig(steps=STEPS, epochs=EPOCHS, lr=0.01, batch=32)


class Memory:
    """A checkpoint store that keeps what it was given last."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[dict[str, np.ndarray], dict[str, object]]] = {}

    def save(self, name: str, arrays: dict[str, np.ndarray], meta: dict[str, object]) -> None:
        self.kept[name] = copy.deepcopy((arrays, meta))

    def load(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, object]] | None:
        return copy.deepcopy(self.kept.get(name))


class Stale(RehearsalFreeLearner):
    """Takes a given model, not the one that goes on, for the teacher and for the anchor."""

    def __init__(self, config: RehearsalFreeConfig, before: nn.Module) -> None:
        super().__init__(config)
        self.before = before

    def begin(self, run, step, old) -> None:
        super().begin(run, step, old)
        if self._teacher is not None:
            frozen = copy.deepcopy(self.before).eval().requires_grad_(False)
            self._teacher = frozen, frozen.get_submodule(run.head.name)
        for _, anchor in self._anchors:
            given = dict(self.before.named_parameters())
            anchor.anchor = {name: given[name].detach().clone() for name in anchor.params}


@pytest.fixture(scope="module")
def examples() -> ExampleSet:
    """Six clusters; class 5 lies between class 2 and a place of its own."""
    data = make_examples(360, classes=6)
    rng = np.random.default_rng(0)
    centre = 3.0 * rng.normal(size=(6, *data.input_shape))
    centre[5] = centre[REMOVED] + 0.4 * (centre[5] - centre[REMOVED])
    x = (centre[data.y] + rng.normal(size=data.x.shape)).astype(np.float32)
    return dataclasses.replace(data, x=x)


def trained(data: ExampleSet, config: RehearsalFreeConfig, learner: RehearsalFreeLearner, **plan: object) -> nn.Module:
    build = builder("mlp", {"hidden": [32]}, input_shape=data.input_shape, num_outputs=6)
    return train_stream(build, data, config=config, seed=0, learner=learner, plan=Plan(**plan))[0]  # type: ignore[arg-type]


def recovered(model: nn.Module, examples: ExampleSet) -> float:
    """Mean logit of the removed class on its own examples, above that on the others of its step."""
    logits = predict_logits(model, examples)[:, REMOVED]
    return float(logits[examples.y == REMOVED].mean() - logits[np.isin(examples.y, (0, 1))].mean())


@pytest.mark.parametrize("protects", [{"pred": 1.0}, {"pred": 0.0, "feat": 1.0, "l2": 1.0, "anchor_old_rows": True}])
def test_a_stale_teacher_or_anchor_teaches_again_what_was_removed(examples: ExampleSet, protects: dict) -> None:
    config = dataclasses.replace(CONFIG, **protects)
    left = examples.take(np.flatnonzero(examples.y != REMOVED))
    before = trained(examples, config, RehearsalFreeLearner(config), ends=(EPOCHS,))
    store = Memory()
    unlearned = trained(left, config, RehearsalFreeLearner(config), ends=(EPOCHS,), checkpoints=store)
    ends = {}
    for name, learner in (("renewed", RehearsalFreeLearner(config)), ("stale", Stale(config, before))):
        ends[name] = trained(left, config, learner, checkpoints=copy.deepcopy(store))
    figures = {
        "before": recovered(before, examples),
        "unlearned": recovered(unlearned, examples),
        **{name: recovered(model, examples) for name, model in ends.items()},
    }
    whole = figures["before"] - figures["unlearned"]
    assert whole > 2.0, figures
    assert figures["stale"] - figures["renewed"] > 0.3 * whole, figures
    assert figures["renewed"] - figures["unlearned"] < 0.1 * whole, figures
