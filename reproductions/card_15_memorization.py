"""Memorization (Feldman, STOC 2020; Feldman & Zhang, NeurIPS 2020) on digits with planted label noise.

Setting: 500 digits, 10% of the labels changed, MLP 64-128-10 trained to interpolation on T = 200 random subsets of 70%.
An under-trained control, the exact oracle of the 1-nearest-neighbour rule, and the long-tail theorem by simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from contracts.digests import derive_seed
from contracts.methods import score
from contracts.progress import Progress
from curation.long_tail import LongTailMixture, frequency_prior_tau, zipf_prior
from recipes import SupervisedConfig, builder, predict_logits
from recipes.stacked import StackedTrainer
from reproductions.framework import Claim, at_least, at_most, reproduction
from scoring.memorization import memorization_scores
from sources import load, plant_label_noise
from sources.example_set import ExampleSet

NUM, RATIO, RUNS, CONTROL_RUNS, BASELINES = 500, 0.7, 200, 60, 5
ORACLE_RUNS = 8000  # the card's 4000 leave the largest of 200 errors a chance of 1% to exceed 0.05; these, 1e-4
INTERPOLATING = SupervisedConfig(lr=0.1, momentum=0.9, batch=60, epochs=150, schedule="constant")
UNDER_TRAINED = SupervisedConfig(lr=0.05, momentum=0.9, batch=60, epochs=60, schedule="constant")


@dataclass(frozen=True)
class _Runs:
    keep: np.ndarray  # (T, N) bool
    correct: np.ndarray  # (T, N) bool, on all examples


@reproduction(card=15)
def long_tail_memorization(seed: int, progress: Progress) -> list[Claim]:
    return [
        *_planted_noise(seed, progress),
        *_oracle(derive_seed("oracle", seed)),
        _long_tail(derive_seed("long tail", seed), draws=200),
    ]


def _planted_noise(seed: int, progress: Progress) -> list[Claim]:
    data, flipped = _noisy_digits(derive_seed("noise", seed))
    runs = _train(data, INTERPOLATING, runs=RUNS, seed=derive_seed("runs", seed), progress=progress)
    found = memorization_scores(runs.keep, runs.correct)
    auroc = roc_auc_score(flipped, found.mem)
    control = _train(data, UNDER_TRAINED, runs=CONTROL_RUNS, seed=derive_seed("control", seed), progress=progress)
    few = memorization_scores(control.keep, control.correct)
    gate = score.get("memorization").spec.gates[0].at_least
    halves = [memorization_scores(runs.keep[start::2], runs.correct[start::2]).mem for start in (0, 1)]
    return [
        at_least("1. accuracy of the runs on their own subsets", found.acc_in.mean(), 0.995),
        at_least("1. mean mem of changed labels", found.mem[flipped].mean(), 0.9),
        at_most("1. mean mem of unchanged labels", found.mem[~flipped].mean(), 0.3),
        at_least("1. AUROC of mem for changed labels", auroc, 0.95),
        at_least(
            "1. AUROC above that of the loss of one interpolating model", auroc - _loss_auroc(data, flipped, seed), 0.02
        ),
        at_most(
            "2. under-trained control: mean acc_in, which the gate refuses below 0.98", few.acc_in.mean(), gate - 1e-9
        ),
        at_most("2. under-trained control: AUROC of mem", roc_auc_score(flipped, few.mem), 0.85),
        at_least("3. Spearman of mem, odd against even runs", spearmanr(*halves).statistic, 0.85),
        at_most("3. RMSE of mem, 50 against 200 runs", _rmse_of_quarters(runs, found.mem), 0.08),
    ]


def _noisy_digits(seed: int) -> tuple[ExampleSet, np.ndarray]:
    """500 training digits with 10% of the labels changed, and which (N,) bool."""
    digits = load("sklearn", {"dataset": "digits"}, seed=seed).part("train")
    chosen = digits.subset(np.random.default_rng(seed).permutation(digits.example_id)[:NUM])
    data, flipped = plant_label_noise(chosen, fraction=0.1, seed=seed)
    return data, np.isin(data.example_id, flipped)


def _train(data: ExampleSet, config: SupervisedConfig, *, runs: int, seed: int, progress: Progress) -> _Runs:
    """T models on uniform subsets without replacement, each judged on every example."""
    rng = np.random.default_rng(seed)
    members = [np.sort(rng.permutation(NUM)[: round(RATIO * NUM)]) for _ in range(runs)]
    build = builder("mlp", {"hidden": (128,)}, input_shape=data.input_shape, num_outputs=data.num_classes)
    seeds = [derive_seed("run", seed, t) for t in range(runs)]
    models = StackedTrainer(build=build, config=config).train(data, members=members, seeds=seeds, progress=progress)
    keep = np.zeros((runs, NUM), bool)
    for row, chosen in zip(keep, members, strict=True):
        row[chosen] = True
    return _Runs(keep, np.stack([predict_logits(model, data).argmax(1) == data.y for model in models]))


def _loss_auroc(data: ExampleSet, flipped: np.ndarray, seed: int) -> float:
    """The baseline: AUROC of the training loss of one model that interpolates, mean over several such models."""
    build = builder("mlp", {"hidden": (128,)}, input_shape=data.input_shape, num_outputs=data.num_classes)
    seeds = [derive_seed("baseline", seed, r) for r in range(BASELINES)]
    models = StackedTrainer(build=build, config=INTERPOLATING).train(
        data, members=[np.arange(NUM)] * BASELINES, seeds=seeds
    )
    aurocs = []
    for model in models:
        z = predict_logits(model, data).astype(np.float64)
        z -= z.max(1, keepdims=True)
        aurocs.append(roc_auc_score(flipped, np.log(np.exp(z).sum(1)) - z[np.arange(NUM), data.y]))
    return float(np.mean(aurocs))


def _rmse_of_quarters(runs: _Runs, mem: np.ndarray) -> float:
    """Root mean squared difference between mem of 50 runs and of all 200, over the four quarters."""
    parts = [memorization_scores(runs.keep[q::4], runs.correct[q::4]).mem - mem for q in range(4)]
    return float(np.sqrt(np.mean(np.square(parts))))


# ---- the exact oracle --------------------------------------------------------------------------------------------


def nearest_neighbour_oracle(x: np.ndarray, y: np.ndarray, *, subset: int) -> np.ndarray:
    """Exact memorization of the 1-nearest-neighbour rule over uniform subsets of size m: float64 (N,).

    mem_i = 1 - sum_r 1[y_(r) = y_i] C(n-1-r, m-1) / C(n-1, m),   y_(r) label of the r-th nearest of the other n-1.

    Args:
        x: (N, D) points without equal distances.
        y: (N,) labels.
        subset: m.
    """
    n, rank = len(y), np.arange(1, len(y))
    fits = n - 1 - rank >= subset - 1
    top = np.where(fits, n - 1 - rank, subset - 1)
    log_share = _log_binomial(top, subset - 1) - _log_binomial(np.array(n - 1), subset)
    share = np.where(fits, np.exp(log_share), 0.0)
    return 1.0 - ((y[_neighbours(x)] == y[:, None]) * share).sum(1)


def nearest_neighbour_runs(
    x: np.ndarray, y: np.ndarray, *, subset: int, runs: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(keep, correct), both bool (runs, N), of the 1-nearest-neighbour rule on random subsets."""
    rng, n = np.random.default_rng(seed), len(y)
    keep = rng.random((runs, n)).argsort(1).argsort(1) < subset
    order = _neighbours(x)
    right = y[order] == y[:, None]
    correct = np.empty((runs, n), bool)
    for start in range(0, runs, 64):
        block = slice(start, start + 64)
        nearest = keep[block][:, order].argmax(2)  # (64, N): first neighbour that is in the subset
        correct[block] = np.take_along_axis(right[None], nearest[..., None], axis=2)[..., 0] | keep[block]
    return keep, correct


def _neighbours(x: np.ndarray) -> np.ndarray:
    """The other points of each point, nearest first: (N, N-1)."""
    distance = np.square(x[:, None] - x[None]).sum(2)
    np.fill_diagonal(distance, -1.0)
    return distance.argsort(1)[:, 1:]


def _log_binomial(n: np.ndarray, k: int) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _oracle(seed: int) -> Sequence[Claim]:
    digits = load("sklearn", {"dataset": "digits"}, seed=seed).part("train")
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(digits))[:200]
    # Integer pixels give equal distances, between which the rule and the formula may choose differently.
    x = digits.inputs(rows).reshape(200, -1).astype(np.float64) * 16 + rng.uniform(0, 1e-4, (200, 64))
    y = digits.y[rows]
    exact = nearest_neighbour_oracle(x, y, subset=140)
    found = memorization_scores(*nearest_neighbour_runs(x, y, subset=140, runs=ORACLE_RUNS, seed=seed)).mem
    return [
        at_most("4. RMSE against the exact memorization of 1-NN", np.sqrt(np.mean((found - exact) ** 2)), 0.012),
        at_most("4. largest error against the exact memorization of 1-NN", np.abs(found - exact).max(), 0.05),
    ]


# ---- the theorem -------------------------------------------------------------------------------------------------


def _long_tail(seed: int, *, draws: int, num: int = 1000, num_classes: int = 10) -> Claim:
    """Extra test error of guessing the labels of singletons, simulated, against tau_1 * #singletons * (1 - 1/k)."""
    prior = zipf_prior(num)
    cost, singletons = 0.0, 0
    for draw in range(draws):
        mixture = LongTailMixture.draw(prior, num_classes=num_classes, seed=derive_seed("domain", seed, draw))
        counts = np.bincount(mixture.sample(num, seed=derive_seed("sample", seed, draw)), minlength=num)
        guess = np.random.default_rng(derive_seed("guess", seed, draw)).integers(0, num_classes, num)
        once = counts == 1
        cost += mixture.frequency[once & (guess != mixture.label)].sum()
        singletons += int(once.sum())
    tau = frequency_prior_tau(prior, num_samples=num, ell=1, draws=1000, seed=seed)
    predicted = tau * singletons * (1 - 1 / num_classes)
    return at_most("5. cost of ignoring singletons, relative difference from tau_1", abs(cost / predicted - 1), 0.03)
