"""Worst-case forget sets (Zhang et al., "Challenging Forgets", ECCV 2024) on digits and Fashion-MNIST.

1-4. digits, several splits into 1,297 and 500, MLP 64-128-10, a tenth is forgotten: after retraining without it, the
worst-case
     set is still fitted, random sets less and the easiest least; the search moves away from its start where the
     published fixed steps do not; every lower level finds such sets; the cheap rivals by loss.
5.   Fashion-MNIST, 10,000 images: the same for examples. For pairs of classes the truth is known, by unlearning each of
     the 45. (A retrained model never names a class it has not seen, so classes are compared after approximate
     unlearning.)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from contracts.digests import derive_seed
from contracts.progress import Progress
from recipes.inputs import Inputs
from recipes.models import Build, builder
from recipes.predict import predict_logits
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
from recipes.supervised import supervised
from reproductions.framework import Claim, at_least, at_most, mean_of, reproduction
from scoring.lower_level import unlearn_weighted
from scoring.worst_case_forget import Selection, WorstCaseForgetConfig, losses_of, select_worst_case
from sources.example_set import ExampleSet
from sources.loading import load
from studies.forget_selectors import choose
from unlearning.finetune import FinetuneConfig, finetune

FASHION_MNIST = {"root": "fashion-mnist", "standardise": True}  # of Debian's dataset-fashion-mnist
DIGITS = SupervisedConfig(lr=0.1, momentum=0.9, batch=64, epochs=60)
FASHION = SupervisedConfig(lr=0.05, momentum=0.9, batch=128, epochs=30)
SEARCH = WorstCaseForgetConfig()
PUBLISHED_STEP = WorstCaseForgetConfig(scale_aware=False, lr_upper=1e-2, decay=0.0, tolerance=0.0)
# From a fresh initialisation five epochs of signSGD do not fit digits, and a fresh output layer alone takes larger
# steps.
LOWER_LEVELS: tuple[tuple[str, WorstCaseForgetConfig], ...] = (
    ("ft_l1", WorstCaseForgetConfig(lower="ft_l1")),
    ("retrain", WorstCaseForgetConfig(lower="retrain", lower_epochs=20)),
    ("eu", WorstCaseForgetConfig(lower="eu", lower_epochs=10, lr_lower=1e-2)),
    ("the unlearner finetune", WorstCaseForgetConfig(lower="unlearner", unlearner="finetune")),
)
# Five epochs at 1e-3 wipe out any class; as the paper does for classes, fewer and smaller steps.
CLASSES = WorstCaseForgetConfig(
    group="class", fraction=0.2, lower_epochs=1, lr_lower=1e-4, upper_steps=15, tolerance=0.0
)
# A random set of 130 digits has a UA with a standard deviation of 1.5 points, so the threshold of 2 needs many sets:
# with 8 a split the mean over seven seeds was 2.4 to 3.2.
SPLITS, RANDOM_SETS, RETRAININGS = 3, 16, 3


@dataclass(frozen=True)
class _World:
    train: ExampleSet
    test: ExampleSet
    build: Build
    config: SupervisedConfig
    model: nn.Module


@reproduction(card=3, name="worst_case_forget", paper="Zhang et al. 2024")
def worst_case_forget(seed: int, progress: Progress) -> list[Claim]:
    splits = []
    for number in range(SPLITS):
        splits.append(_one_split(derive_seed("split", seed, number)))
        progress(number + 1, SPLITS, "splits of digits")
    mean = mean_of(splits)
    claims = [
        at_most("1. digits: UA of retraining, worst-case set, percent", mean["worst UA"], 0.8),
        at_least("1. digits: UA of retraining, random sets", mean["random UA"], 2.0),
        at_least("1. digits: UA of retraining, easiest set", mean["easiest UA"], 15.0),
        at_most("1. digits: test accuracy, |worst - random|, points", abs(mean["worst TA"] - mean["random TA"]), 1.5),
        at_most("2. digits: upper objective, last / first step", mean["objective"], 0.5),
        at_most("2. digits: overlap of the worst-case set with its start", mean["overlap"], 0.6),
        at_least("2. digits: overlap with the start at the published fixed step", mean["published overlap"], 0.9),
        at_most("3. digits: cross-entropy after retraining, worst / random", mean["worst CE"] / mean["random CE"], 0.2),
        at_most("4. digits: UA of retraining, lowest losses", mean["lowest UA"], 0.8),
        at_least("4. digits: UA of retraining, highest losses", mean["highest UA"], 15.0),
        # The search is not needed for the hardest set here: 0.24 to 0.49 on eight splits.
        at_most(
            "4. digits: cross-entropy after retraining, lowest losses / worst-case set",
            mean["lowest CE"] / mean["worst CE"],
            0.9,
        ),
        at_most("4. digits: Jaccard index of the worst-case set and the lowest losses", mean["jaccard"], 0.9),
    ]
    claims += _lower_levels(derive_seed("lower levels", seed), progress)
    return claims + _fashion(derive_seed("fashion", seed), progress)


# ---- 1 to 4: digits ----------------------------------------------------------------------------------------------


def _digits(seed: int) -> _World:
    digits = load("sklearn", {"dataset": "digits", "test_fraction": 500 / 1797}, seed=seed)
    return _world(digits.part("train"), digits.part("test"), DIGITS, seed)


def _world(train: ExampleSet, test: ExampleSet, config: SupervisedConfig, seed: int) -> _World:
    build = builder("mlp", {"hidden": (128,)}, input_shape=train.input_shape, num_outputs=train.num_classes)
    model = supervised(build, train, config=config, seed=derive_seed("audited", seed))
    return _World(train, test, build, config, model)


def _one_split(seed: int) -> dict[str, float]:
    world = _digits(seed)
    worst, easiest = _searches(world, SEARCH, seed)
    published = select_worst_case(world.model, world.train, config=PUBLISHED_STEP, seed=seed)
    lowest = _chosen(world, "lowest_loss", seed)
    found = {
        "objective": worst.objective[-1] / worst.objective[0],
        "overlap": worst.overlap_with_start,
        "published overlap": published.overlap_with_start,
        "jaccard": len(np.intersect1d(worst.forget_ids, lowest)) / len(np.union1d(worst.forget_ids, lowest)),
    }
    sets = {
        "random": [_chosen(world, "random", derive_seed("random", seed, k)) for k in range(RANDOM_SETS)],
        "worst": [worst.forget_ids] * RETRAININGS,
        "easiest": [easiest.forget_ids] * RETRAININGS,
        "lowest": [lowest] * RETRAININGS,
        "highest": [_chosen(world, "highest_loss", seed)] * RETRAININGS,
    }
    for name, forget in sets.items():
        found |= {f"{name} {metric}": value for metric, value in _retrain_without(world, forget, seed).items()}
    return found


def _searches(world: _World, config: WorstCaseForgetConfig, seed: int, **more: Any) -> tuple[Selection, Selection]:
    """The hardest and the easiest set."""
    hardest, easiest = (
        select_worst_case(world.model, world.train, config=config.turned(direction), seed=seed, **more)
        for direction in ("hardest", "easiest")
    )
    return hardest, easiest


def _chosen(world: _World, selector: str, seed: int) -> np.ndarray:
    return choose(selector, world.model, world.train, config=SEARCH, seed=seed).example_id


def _retrain_without(world: _World, forget: list[np.ndarray], seed: int) -> dict[str, float]:
    """UA and TA in percent and mean cross-entropy of the forget set, over one retraining a set."""
    members = [np.flatnonzero(~np.isin(world.train.example_id, ids)) for ids in forget]
    seeds = [derive_seed("retraining", seed, k) for k in range(len(forget))]
    models = StackedTrainer(build=world.build, config=world.config).train(world.train, members=members, seeds=seeds)
    rows = []
    for model, ids in zip(models, forget, strict=True):
        gone = world.train.subset(ids)
        nats = losses_of(model, Inputs(gone, dtype=torch.float32)).mean()
        rows.append((100 - _accuracy(model, gone), _accuracy(model, world.test), nats))
    return dict(zip(("UA", "TA", "CE"), np.mean(rows, axis=0).tolist(), strict=True))


def _accuracy(model: nn.Module, data: ExampleSet) -> float:
    """Percent."""
    return 100 * float((predict_logits(model, data).argmax(1) == data.y).mean())


def _lower_levels(seed: int, progress: Progress) -> list[Claim]:
    world, claims = _digits(seed), []
    for number, (name, config) in enumerate(LOWER_LEVELS):
        hardest, easiest = _searches(world, config, seed, unlearn=partial(_finetune, world.model))
        fits = _retrain_without(world, [hardest.forget_ids] * RETRAININGS, seed)
        loses = _retrain_without(world, [easiest.forget_ids] * RETRAININGS, seed)
        claims += [
            at_most(f"1. digits: UA of retraining, worst-case set by {name}", fits["UA"], 0.8),
            at_least(f"1. digits: UA of retraining, easiest set by {name}", loses["UA"], 15.0),
        ]
        progress(number + 1, len(LOWER_LEVELS), "lower levels on digits")
    return claims


def _finetune(model: nn.Module, name: str, *, retain: ExampleSet, forget: ExampleSet, seed: int) -> nn.Module:
    return finetune(model, retain=retain, forget=forget, config=FinetuneConfig(epochs=5, lr=0.05), seed=seed)


# ---- 5: Fashion-MNIST --------------------------------------------------------------------------------------------


def _fashion(seed: int, progress: Progress) -> list[Claim]:
    everything = load("idx", FASHION_MNIST, seed=seed)
    train = everything.part("train")
    train = train.subset(np.random.default_rng(seed).permutation(train.example_id)[:10_000])
    world = _world(train, everything.part("test"), FASHION, seed)
    progress(1, 4, "Fashion-MNIST")
    worst, easiest = _searches(world, SEARCH, seed)
    progress(2, 4, "Fashion-MNIST")
    usual = _retrain_without(world, [_chosen(world, "random", derive_seed("random", seed, k)) for k in range(4)], seed)
    hard = _retrain_without(world, [worst.forget_ids] * 2, seed)
    easy = _retrain_without(world, [easiest.forget_ids] * 2, seed)
    progress(3, 4, "Fashion-MNIST")
    classes = _pairs_of_classes(world, seed)
    progress(4, 4, "Fashion-MNIST")
    return [
        # Standard deviation over seeds: 0.5 points for four sets of 1,000, 0.3 for the test split.
        at_most(
            "5. Fashion-MNIST: |UA of random sets - test error|, points", abs(usual["UA"] - 100 + usual["TA"]), 2.5
        ),
        at_most("5. Fashion-MNIST: UA of retraining, worst-case set, percent", hard["UA"], 0.8),
        at_least("5. Fashion-MNIST: UA of retraining, easiest set", easy["UA"], 40.0),
        at_most("5. Fashion-MNIST: test accuracy, |worst - random|, points", abs(hard["TA"] - usual["TA"]), 1.5),
        at_most("5. Fashion-MNIST: cross-entropy after retraining, worst / random", hard["CE"] / usual["CE"], 0.2),
        at_most(
            "5. two classes: place of the hardest pair found among all 45, hardest first", classes["hardest place"], 6
        ),
        at_least("5. two classes: place of the easiest pair found", classes["easiest place"], 40),
        at_most("5. two classes: UA after unlearning, hardest pair / mean pair", classes["hardest UA"], 0.5),
        at_least("5. two classes: UA after unlearning, easiest pair / mean pair", classes["easiest UA"], 1.5),
    ]


def _pairs_of_classes(world: _World, seed: int) -> Mapping[str, float]:
    """The pairs found by the search against every pair, each unlearned whole by the same lower level, other seed."""
    inputs = Inputs(world.train, dtype=torch.float32)
    pairs = list(itertools.combinations(range(world.train.num_classes), 2))
    loss, ua = np.empty(len(pairs)), np.empty(len(pairs))
    for number, pair in enumerate(pairs):
        gone = np.isin(world.train.y, pair)
        student = unlearn_weighted(
            world.model,
            inputs,
            torch.from_numpy(gone.astype(np.float64)),
            lower=CLASSES.lower,
            epochs=CLASSES.lower_epochs,
            lr=CLASSES.lr_lower,
            batch=CLASSES.batch,
            seed=derive_seed("pair", seed),
        )
        loss[number] = losses_of(student, inputs)[gone].sum()
        ua[number] = 100 - _accuracy(student, world.train.subset(world.train.example_id[gone]))
    place = rankdata(loss)
    found = {}
    for name, chosen in zip(("hardest", "easiest"), _searches(world, CLASSES, seed), strict=True):
        own = pairs.index(tuple(np.unique(world.train.subset(chosen.forget_ids).y).tolist()))
        found |= {f"{name} place": float(place[own]), f"{name} UA": float(ua[own] / ua.mean())}
    return found
