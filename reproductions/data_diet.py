"""Data diet (Paul, Ganguli, Dziugaite, NeurIPS 2021; Kirsch 2023) on digits and Fashion-MNIST.

1-3. digits with 10% of the training labels changed, MLP-128, R = 10 seeds, scores after 0 and 3 epochs, over several
     plantings of the noise: EL2N and GraNd find the changed labels, but not at initialisation, where GraNd follows the
     norm of the input; averaging over seeds makes EL2N stable. The output layer's GraNd and
     forgetting events over whole runs find the changed labels as well.
4.   Fashion-MNIST, 20,480 training images: keeping the hardest half costs nothing, keeping the easiest half much.
5.   GraNd by closed forms against one backward pass an example.

Thresholds lie two standard deviations inside what fresh seeds gave. Two are below what was first asked for, from two
seeds: over eight the hardest half gained 0.54 to 0.95 points over a random one (mean 0.71, standard deviation 0.16,
asked for 0.35 in place of 0.6), and a loop took 5.1 to 5.9 times GraNd's CPU time (5.5, 0.27, asked for 4.75).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import nn

from contracts.digests import derive_seed
from contracts.methods import score
from contracts.progress import Progress
from recipes.early import early_models, early_snapshots
from recipes.fitting import Observe
from recipes.models import builder
from recipes.predict import predict_logits
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
from recipes.supervised import supervised
from reproductions.framework import Claim, at_least, at_most, mean_of, reproduction
from scoring.el2n import EL2NConfig, el2n
from scoring.forgetting import ForgettingConfig, forgetting
from scoring.grand import GrandConfig, grand
from sources.example_set import ExampleSet
from sources.loading import load
from sources.planted import plant_label_noise

FASHION_MNIST = {"root": "fashion-mnist"}  # below $PALIMPSEST_DATA, or where Debian's dataset-fashion-mnist puts it
NOISY = SupervisedConfig(lr=0.05, momentum=0.9, batch=64, epochs=30, schedule="constant")
PLANTINGS, SEEDS, EPOCH = 5, 10, 3
# The same 2,080 steps for every set, cosine: with a constant rate the noise between seeds (3 points) hides everything.
FINAL = SupervisedConfig(lr=0.1, momentum=0.9, weight_decay=5e-4, batch=128, steps=2_080)
POOLS, PRUNING_SEEDS = 3, 5
# A gentle constant rate for the scores: at the final runs' rate of 0.1 three epochs rank the images so noisily that the
# hardest half gains between -0.0 and +0.8 points over seeds; at 0.02 it gained 0.79 to 0.88 on each of four.
SCORING = SupervisedConfig(lr=0.02, momentum=0.9, batch=64, epochs=30, schedule="constant")


@reproduction(card=26, name="data_diet", paper="Paul et al. 2021")
def data_diet(seed: int, progress: Progress) -> list[Claim]:
    fashion = load("idx", FASHION_MNIST, seed=seed)
    return [*_noise(seed, progress), *_pruning(fashion, seed, progress), *_speed(fashion, seed)]


# ---- 1 to 3: label noise on digits -------------------------------------------------------------------------------


def _noise(seed: int, progress: Progress) -> list[Claim]:
    rows = []
    for planting in range(PLANTINGS):
        rows.append(_one_planting(derive_seed("planting", seed, planting)))
        progress(planting + 1, PLANTINGS, "plantings of label noise")
    mean = mean_of(rows)
    return [
        at_least("1. AUROC of EL2N for changed labels, epoch 3", mean["el2n"], 0.97),
        at_least("1. AUROC of GraNd for changed labels, epoch 3", mean["grand"], 0.97),
        at_least("1. AUROC of the output layer's GraNd, a by-product of EL2N, epoch 3", mean["last layer"], 0.97),
        at_least(
            "1. AUROC of the stored forgetting score over whole runs, never learnt = hardest", mean["forgetting"], 0.97
        ),
        at_most("1. |AUROC - 0.5| of EL2N at initialisation", abs(mean["el2n at 0"] - 0.5), 0.08),
        at_most("1. |AUROC - 0.5| of GraNd at initialisation", abs(mean["grand at 0"] - 0.5), 0.08),
        at_least("2. Spearman of GraNd at initialisation and the input norm", mean["norm at 0"], 0.9),
        at_most("2. |Spearman| of GraNd at epoch 3 and the input norm", abs(mean["norm"]), 0.2),
        at_least("3. Spearman of EL2N, 5 against 5 seeds", mean["halves"], 0.9),
        at_least("3. the same above that of single seeds", mean["halves"] - mean["singles"], 0.02),
    ]


def _one_planting(seed: int) -> dict[str, float]:
    digits = load("sklearn", {"dataset": "digits", "test_fraction": 500 / 1797}, seed=seed)
    data, flipped = plant_label_noise(digits, fraction=0.1, seed=seed)
    data = data.part("train")
    changed = np.isin(data.example_id, flipped)
    build = builder("mlp", {"hidden": (128,)}, input_shape=data.input_shape, num_outputs=data.num_classes)
    seeds = [derive_seed("early", seed, r) for r in range(SEEDS)]

    def scores(models: list[nn.Module]) -> tuple[np.ndarray, np.ndarray]:
        by_error = el2n(data, config=EL2NConfig(), seed=0, early_models=models)["el2n"]
        return by_error.to_numpy(), grand(data, config=GrandConfig(), seed=0, early_models=models)["grand"].to_numpy()

    fresh, models = early_snapshots(
        build, data, recipe="supervised", config=NOISY, seeds=seeds, epochs=(0, EPOCH)
    ).values()
    norm = np.linalg.norm(data.inputs(slice(None)).reshape(len(data), -1), axis=1)
    el2n_0, grand_0 = scores(fresh)
    el2n_t, grand_t = scores(models)
    by_error = el2n(data, config=EL2NConfig(), seed=0, early_models=models)

    def train(data: ExampleSet, seed: int, *, effort: float, observe: Observe) -> nn.Module:
        return supervised(build, data, config=NOISY, seed=seed, observe=observe)

    events = forgetting(data, config=ForgettingConfig(), seed=seed % 2**31, train=train)
    half = SEEDS // 2
    singles = [scores([model])[0] for model in models]
    return {
        "el2n": roc_auc_score(changed, el2n_t),
        "grand": roc_auc_score(changed, grand_t),
        "last layer": roc_auc_score(changed, by_error["grand_last_layer"]),
        "forgetting": roc_auc_score(changed, events[score.get("forgetting").spec.value]),
        "el2n at 0": roc_auc_score(changed, el2n_0),
        "grand at 0": roc_auc_score(changed, grand_0),
        "norm at 0": spearmanr(grand_0, norm).statistic,
        "norm": spearmanr(grand_t, norm).statistic,
        "halves": spearmanr(np.mean(singles[:half], axis=0), np.mean(singles[half:], axis=0)).statistic,
        "singles": np.mean([spearmanr(singles[r], singles[r + half]).statistic for r in range(half)]),
    }


# ---- 4: pruning Fashion-MNIST ------------------------------------------------------------------------------------


def _pruning(fashion: ExampleSet, seed: int, progress: Progress) -> list[Claim]:
    """Mean over pools of images: one pool's margin has a standard deviation of 0.1 points over seeds."""
    pools = []
    for pool in range(POOLS):
        pools.append(_one_pool(fashion, derive_seed("pool", seed, pool)))
        progress(pool + 1, POOLS, "pools of pruned training sets")
    accuracy = mean_of(pools)
    return [
        at_least("4. hardest half above a random half, points", accuracy["hardest"] - accuracy["random"], 0.35),
        at_least("4. hardest half above the full set, points", accuracy["hardest"] - accuracy["full"], -0.5),
        at_most("4. easiest half above a random half, points", accuracy["easiest"] - accuracy["random"], -4.0),
    ]


def _one_pool(fashion: ExampleSet, seed: int) -> dict[str, float]:
    """Test accuracy in percent after training on what is kept, mean over seeds."""
    rng = np.random.default_rng(derive_seed("images", seed))
    train = fashion.part("train")
    train = train.subset(rng.permutation(train.example_id)[:20_480])
    test = fashion.part("test")
    build = builder("mlp", {"hidden": (128,)}, input_shape=train.input_shape, num_outputs=train.num_classes)
    scorers = [derive_seed("scorer", seed, r) for r in range(SEEDS)]
    models = early_models(build, train, recipe="supervised", config=SCORING, seeds=scorers, epoch=EPOCH)
    order = np.argsort(el2n(train, config=EL2NConfig(), seed=0, early_models=models)["el2n"].to_numpy(), kind="stable")
    everything = np.arange(len(train))
    kept = {
        "hardest": [order[len(order) // 2 :]] * PRUNING_SEEDS,
        "easiest": [order[: len(order) // 2]] * PRUNING_SEEDS,
        "random": [rng.permutation(everything)[: len(order) // 2] for _ in range(PRUNING_SEEDS)],
        "full": [everything] * PRUNING_SEEDS,
    }
    seeds = [derive_seed("final", seed, r) for r in range(PRUNING_SEEDS)]  # the same for every set: paired
    accuracy = {}
    for name, members in kept.items():
        trained = StackedTrainer(build=build, config=FINAL).train(train, members=members, seeds=seeds)
        accuracy[name] = 100 * float(np.mean([(predict_logits(m, test).argmax(1) == test.y).mean() for m in trained]))
    return accuracy


# ---- 5: speed ----------------------------------------------------------------------------------------------------


def _three_convolutions(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        ).eval()


def _speed(fashion: ExampleSet, seed: int) -> list[Claim]:
    train = fashion.part("train")
    chosen = np.random.default_rng(derive_seed("speed", seed)).permutation(train.example_id)[:2_000]
    data, model = train.subset(chosen), _three_convolutions(derive_seed("network", seed) % 2**63)
    x, y = torch.from_numpy(data.inputs(slice(None))), torch.from_numpy(data.y)

    def naive() -> np.ndarray:
        norms = []
        for b in range(len(x)):
            gradients = torch.autograd.grad(
                F.cross_entropy(model(x[b : b + 1]), y[b : b + 1]), list(model.parameters())
            )
            norms.append(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
        return torch.stack(norms).double().numpy()

    def ours() -> np.ndarray:
        return grand(data, config=GrandConfig(), seed=0, early_models=[model])["grand"].to_numpy()

    ours()
    fast, slow = [], []
    for _ in range(2):
        spent, exact = _timed(naive)
        slow.append(spent)
        for _ in range(5):  # as long as the loop takes: both have the same chance of a quiet moment
            spent, found = _timed(ours)
            fast.append(spent)
    # 99%: where the input of a ReLU is 1e-7, the two orders of summation may fall on different sides of its kink.
    difference = np.quantile(np.abs(found - exact) / exact, 0.99)
    return [
        at_least("5. CPU time of a loop over the examples / CPU time of GraNd", min(slow) / min(fast), 4.75),
        at_most("5. relative difference from the loop, 99% of the images", difference, 1e-4),
    ]


def _timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result
