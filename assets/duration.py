"""How long an audit will take on this machine, from a few timed steps of its own recipe, before any work is done.

    minutes = overhead + (alone * t_1 + stacked * t_B) * steps of one training

    alone     trainings one by one, in parts of a full one: audited model, early models, unlearning (controls and
              methods, each seed), retrainings of a split that is not random, shadow runs
    stacked   reference models, unless they are given, B at a time, each on half of the pool; and those that a given
              model is compared with
    t_1, t_B  seconds a step of one model, and a step of B at once for each of them, timed here

A forecast, good to a factor of two or so, more on a machine that others use: scores and analyses that train models of
their own are not in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from assets.in_use import tried
from assets.needs import read_of_references
from contracts.methods import curator, unlearner
from contracts.subject import GIVEN, Subject
from sources.example_set import ExampleSet

if TYPE_CHECKING:
    from recipes.training import Trainer

_OVERHEAD_S = 70.0  # start-up, the stages that only read outputs, and the processes of unlearning jobs
_STEPS, _LONG_S = (8, 32, 128), 0.1  # tried until they take so long
_SLOW_S = 0.5  # a training of one step that takes so long is a step
_TIMED = 8  # models at once


def minutes(subject: Subject, data: ExampleSet) -> float:
    """Minutes that a first audit takes, about; a few steps are trained to know."""
    from recipes.plan import trainer

    found = trainer(subject, data)
    train = data.part("train")
    batch, epochs = getattr(found.config, "batch", 1), getattr(found.config, "epochs", 1)
    steps = epochs * math.ceil(len(train) / batch)
    if found.spec.counts_steps:
        alone = _a_step(lambda n: found.of_length(steps=n).one(train, 0))
    else:  # it is timed over one of its epochs
        alone = _timed(lambda: found.of_length(effort=1 / epochs).one(train, 0)) * epochs / steps
    seconds = _OVERHEAD_S + _trainings(subject, epochs) * steps * alone
    if read_of_references(subject):
        half = np.arange(len(train))[: max(1, len(train) // 2)]
        counts = found.spec.counts_steps and alone < _SLOW_S
        each = _of_several(found, train, half, min(subject.ensemble.block, _TIMED)) if counts else alone
        given = subject.ensemble.policy.name == GIVEN
        alike = subject.model.alike * steps if subject.model.checkpoint or given else 0
        trained = 0 if given else subject.ensemble.num_models
        seconds += each * (trained * epochs * math.ceil(len(half) / batch) + alike)
    return seconds / 60


def _trainings(subject: Subject, epochs: int) -> float:
    """Trainings one by one, in parts of a full one."""
    num = float(not subject.model.checkpoint) + subject.early.seeds * subject.early.epoch / epochs
    num += sum(2 * choice.config.get("runs", 0) for choice in subject.analyses if choice.name == "shadow_unlearning")
    plan = subject.unlearning
    if plan is None:
        return num
    split = next(s for s in subject.splits if s.name == plan.split)
    per_seed = 1.0 + sum(
        _share(choice.name, choice.config, epochs) for choice in plan.methods
    )  # 1: the control retrain
    num += plan.seeds * per_seed + (0 if curator.get(split.method).spec.random else plan.retrainings)
    if plan.acceptance and plan.acceptance.split != plan.split and (methods := tried(subject)):
        listed = {choice.name: choice.config for choice in plan.methods}
        shares = sum(_share(name, listed.get(name, {}), epochs) for name in methods)
        num += plan.seeds * (1 + shares) + plan.retrainings  # 1: the control retrain
    return num


def _of_several(found: Trainer, train: ExampleSet, half: np.ndarray, num: int) -> float:
    """Seconds a step of one of ``num`` models that are trained together."""
    members, seeds = [half] * num, list(range(num))
    return _a_step(lambda n: found.of_length(steps=n).many(train, members=members, seeds=seeds)) / num


def in_words(minutes: float) -> str:
    """The forecast with its factor: "2 to 7 minutes"; hours from two hours on.

    >>> in_words(3.6), in_words(0.5), in_words(200)
    ('2 to 7 minutes', '1 minute', '2 to 7 hours')
    """
    low, high = minutes / 1.5, minutes * 2
    unit, size = ("hour", 60) if low >= 120 else ("minute", 1)
    first, last = max(1, round(low / size)), max(1, round(high / size))
    return f"{first} to {last} {unit}s" if first < last else f"{first} {unit}{'s' if first > 1 else ''}"


def _share(name: str, config: dict[str, object], epochs: int) -> float:
    """What a method trains, in parts of a full training."""
    if unlearner.get(name).spec.exact:
        return 1.0
    wanted = config.get("epochs")
    return float(wanted) / epochs if isinstance(wanted, int) else 0.2


def _a_step(train: Callable[[int], object]) -> float:
    """Seconds a step, by the difference of two lengths, so that what a training costs once is not in it."""
    train(1)  # loads what is loaded once
    first = _timed(lambda: train(1))
    if first >= _SLOW_S:
        return first
    for steps in _STEPS:
        spent = _timed(lambda steps=steps: train(1 + steps)) - first  # type: ignore[misc]
        if spent >= _LONG_S:
            break
    return max(spent, 1e-6) / steps


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
