"""CUDA (Sadasivan, Soltanolkotabi, Feizi, CVPR 2023) on Fashion-MNIST, by the project's own maker and audit.

1. Images under one secret filter a class: a network of three convolutions, trained on them, answers clean images badly
   and filtered ones well; one filter for all classes, which changes images as much, costs little. Less blur costs less.
2. A set of which half is protected teaches what its unprotected half teaches alone: no poison.
3. What undoes the protection is reported: sharpening with a frequency filter on training and test images (RSK+FF),
   adversarial training, five pairs a class from which the filters are estimated. The verdict is the best of them.
   The paper's resistance to adversarial training (ResNet, 100 epochs) does not carry over to this small setting, and
   is not claimed.
4. The maker: batches equal a loop over images, the key decides every byte, and what else the paper's algorithm 1 says.
5. The paper's theory on two Gaussians: tridiagonal Toeplitz filters, Bayes rules before and after protection.

Over ten fresh seeds all of 1, 2 and 4 were met by more than two standard deviations, with one exception: the smaller
dose gains 0.098 to 0.217 (mean 0.150, standard deviation 0.037, four keys), so that 0.07 is asked for and not the 0.10
of a single measurement. The gain of five pairs a class is 0.295 (0.086). With one key RSK+FF gained 0.013 to 0.294
(mean 0.185, standard deviation 0.082) and adversarial training 0.024 to 0.281 (0.168, 0.072), each below 0.10 on two
seeds; the mean of four independent keys halves the deviations, which is two of them above the 0.10 and 0.09 asked for
(not run on ten seeds; on the worst of them the four gained 0.134 and 0.122). One seed takes 275 s of one core. The best
defence learns 0.82 to 0.92 of what there is to learn.

Where there is CUDA, networks are trained on it; figures then differ in rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, norm
from torch import nn

from attacks.unlearnable.audit import TRAININGS, UnlearnabilityConfig, unlearnability_audit
from attacks.unlearnable.learnt import ESTIMATED, SUMMARY
from contracts.digests import derive_seed
from contracts.progress import Progress, silent
from curation.unlearnable.cuda_unlearnable import MANIFEST, CudaConfig, cuda_unlearnable
from explain.class_filters import ClassFilters
from recipes.plan import default_device
from recipes.rng import local_rng
from recipes.schedule import SupervisedConfig
from recipes.training import Trainer
from reproductions.framework import Claim, at_least, at_most, reproduction
from sources.example_set import ExampleSet
from sources.loading import load
from sources.made import Made
from sources.pixels import pixels

TRAIN, TEST = 10_000, 4_000
KEYS = 4
DEFENDED = 5_000  # images of the comparison of defences, four epochs
RECIPE = SupervisedConfig(lr=0.1, momentum=0.9, weight_decay=5e-4, batch=128, epochs=5, warmup_epochs=1)
DIM, DRAWS = 16, 200_000  # of the Gaussians

Accuracy = Mapping[tuple[str, str], Mapping[str, float]]


@reproduction(card=43, name="cuda_unlearnable", paper="Sadasivan et al. 2023")
def cuda_unlearnable_(seed: int, progress: Progress) -> list[Claim]:
    data = _images(seed)
    return [
        *_maker(data.part("train"), seed),
        *_theory(seed),
        *_learnt(data, seed, progress),
        *_defences(data, seed, progress),
    ]


# ---- 1 and 2: what is learnt -------------------------------------------------------------------------------------


def _learnt(data: ExampleSet, seed: int, progress: Progress) -> list[Claim]:
    """Means over keys of the protected set and of a weaker dose; a key draws the same filters for both, scaled."""
    train = data.part("train")
    half = _protected(train, seed, mix=0.5)
    strong = {f"protected{k or ''}": _protected(train, seed, key=k) for k in range(KEYS)}
    weak = {f"weaker{k or ''}": _protected(train, seed, key=k, blur=0.1) for k in range(KEYS)}
    others = {
        "universal": _protected(train, seed, filters="universal"),
        "half": half,
        "its clean half": _unprotected(train, half),
    }
    tables = _audited(data, strong | weak | others, seed, progress, defences=(ESTIMATED,), config=RECIPE)
    found = _accuracies(tables[TRAININGS.name])

    def accuracy(*names: str) -> float:
        return float(np.mean([found[name, "none"]["accuracy"] for name in names]))

    plain, universal = accuracy(*strong), accuracy("universal")
    of_filtered = found["protected", "none"]["protected_accuracy"]
    undone = found["protected", ESTIMATED]["accuracy"] - accuracy("protected")
    unexplained = tables[SUMMARY.name]["unexplained"][0]
    return [
        at_least("1. clean accuracy, trained on the originals", accuracy("originals"), 0.84),
        at_least("1. clean accuracy under one filter for all classes, p_b = .3", universal, 0.70),
        at_most("1. clean accuracy under one filter a class, p_b = .3", plain, 0.55),
        at_least("1. its accuracy on filtered test images", of_filtered, 0.94),
        at_least("1. one filter for all above one a class", universal - plain, 0.20),
        at_least("1. clean accuracy at p_b = .1 above p_b = .3", accuracy(*weak) - plain, 0.07),
        at_least("2. clean accuracy, half of the images protected", accuracy("half"), 0.82),
        at_least(
            "2. the same above training on the unprotected half alone",
            accuracy("half") - accuracy("its clean half"),
            -0.03,
        ),
        at_least("3. filters estimated from five pairs a class: gain over plain training", undone, 0.10),
        at_most("3. share of the protected images that the estimated filters leave unexplained", unexplained, 0.05),
    ]


# ---- 3: what undoes it -------------------------------------------------------------------------------------------


def _defences(data: ExampleSet, seed: int, progress: Progress) -> list[Claim]:
    """Means over keys: with one key the gains have standard deviations of 0.08 and 0.07 over seeds."""
    rng = np.random.default_rng(derive_seed("defended", seed))
    ids = rng.permutation(data.part("train").example_id)[:DEFENDED]
    fewer = data.subset(np.sort(np.concatenate([ids, data.part("test").example_id])))
    shorter = dataclasses.replace(RECIPE, epochs=4)
    accuracy: dict[str, list[float]] = {"none": [], "rsk_ff": [], "pgd": []}
    learnt, off = [], []
    for key in range(KEYS):
        sets = {"protected": _protected(fewer.part("train"), seed, key=key)}
        tables = _audited(fewer, sets, seed, progress, defences=("rsk_ff", "pgd"), config=shorter)
        found = _accuracies(tables[TRAININGS.name])
        for name, values in accuracy.items():
            values.append(found["protected", name]["accuracy"])
        summary = tables[SUMMARY.name].row(0, named=True)
        learnt.append(summary["learnt"])
        off.append(abs(summary["best_accuracy"] - max(values[-1] for values in accuracy.values())))
    plain, sharpened, adversarial = (float(np.mean(accuracy[name])) for name in ("none", "rsk_ff", "pgd"))
    return [
        at_least("3. RSK+FF on training and test images: gain over plain training", sharpened - plain, 0.10),
        at_least("3. adversarial training (8/255, three steps): gain over plain training", adversarial - plain, 0.09),
        at_most("3. the verdict is the best defence: distance of its accuracy from the largest", max(off), 0.0),
        at_least(
            "3. share of what the originals teach above chance that the best defence learns",
            float(np.mean(learnt)),
            0.5,
        ),
    ]


# ---- 4: the maker ------------------------------------------------------------------------------------------------


def _maker(train: ExampleSet, seed: int) -> list[Claim]:
    some = train.subset(train.example_id[:500])
    black = some.example_id[7]
    x = np.array(some.x)
    x[some.example_id == black] = 0
    some = dataclasses.replace(some, x=x)
    made, again = _protected(some, seed), _protected(some, seed)
    other = _protected(some, seed, key=1)
    mixed = _protected(some, seed, mix=0.5)
    light = some.example_id != black
    published = np.asarray(made.examples.x)
    said = mixed.tables[MANIFEST.name]["protected"].to_numpy()
    changed = (np.asarray(mixed.examples.x) != x).any((1, 2, 3))
    images, labels = torch.from_numpy(pixels(some, slice(0, len(some)))), torch.from_numpy(some.y)
    return [
        at_most("4. largest difference of a batch from a loop over its images", _from_loop(images, labels, seed), 1e-6),
        at_most("4. pixels that differ under the same key", (published != again.examples.x).sum(), 0),
        at_least(
            "4. share of images that differ under another key", _differ(published[light], other.examples.x[light]), 0.9
        ),
        at_most("4. labels or ids that changed", _out_of_order(some, made), 0),
        at_most("4. images whose maximum is not 255", (published[light].max((1, 2, 3)) != 255).sum(), 0),
        at_most("4. pixels of a black image that are not black", (published[~light] != 0).sum(), 0),
        at_most("4. p_b = 0: distance from a shift of at most one pixel, levels", _from_shift(some, seed), 0.501),
        at_most("4. half protected: images that changed and are not recorded so", (changed & ~said).sum(), 0),
        at_most("4. half protected: distance of the recorded share from 0.5, standard errors", _from_half(said), 4.0),
    ]


def _from_loop(images: torch.Tensor, labels: torch.Tensor, seed: int) -> float:
    filters = ClassFilters.drawn(10, size=3, blur=0.3, rng=np.random.default_rng(derive_seed("loop", seed)))
    loop = []
    for image, label in zip(images, labels, strict=True):
        weight = filters.weights[label].expand(len(image), 1, 3, 3)
        out = F.conv2d(image[None], weight, padding=1, groups=len(image))[0]
        loop.append((out / out.max().clamp_min(1e-12)).clamp(0, 1))
    return float((filters(images, labels)[0] - torch.stack(loop)).abs().max())


def _from_shift(some: ExampleSet, seed: int) -> float:
    """The largest difference of a pixel from the best of the nine shifts, the same for all images of a class."""
    x = np.asarray(some.x).astype(np.float64)
    published = np.asarray(_protected(some, seed, blur=0.0).examples.x).astype(np.float64)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    side = x.shape[-1]
    worst = 0.0
    for k in np.unique(some.y):
        mine = some.y == k
        off = []
        for a in range(3):
            for b in range(3):
                moved = padded[mine, :, a : a + side, b : b + side]
                white = moved.max((1, 2, 3), keepdims=True)
                off.append(np.abs(published[mine] - moved * (255 / np.where(white > 0, white, 1))).max())
        worst = max(worst, min(off))
    return worst


def _differ(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return float((first != second).any((1, 2, 3)).mean())


def _out_of_order(some: ExampleSet, made: Made) -> int:
    return int((made.examples.example_id != some.example_id).sum() + (made.examples.y != some.y).sum())


def _from_half(said: NDArray[np.bool_]) -> float:
    return float(abs(said.mean() - 0.5) / np.sqrt(0.25 / len(said)))


# ---- 5: the theory -----------------------------------------------------------------------------------------------


def _theory(seed: int) -> list[Claim]:
    """x given y in {-1, 1} is N(y mu, I); protected it is A_y x, A_y = T(d; a_y, 1, a_y) symmetric tridiagonal."""
    rng = np.random.default_rng(derive_seed("gaussians", seed))
    mu = rng.normal(size=DIM)
    mu *= 1.2 / np.linalg.norm(mu)
    less, more = 0.1, 0.45  # a_-, a_+
    waves = np.arange(1, DIM + 1)
    base = np.sqrt(2 / (DIM + 1)) * np.sin(np.outer(waves, waves) * np.pi / (DIM + 1))

    def spectrum(a: float) -> NDArray[np.float64]:
        return 1 + 2 * a * np.cos(waves * np.pi / (DIM + 1))

    def toeplitz(a: float) -> NDArray[np.float64]:
        return np.eye(DIM) + a * (np.eye(DIM, k=1) + np.eye(DIM, k=-1))

    def power(a: float, exponent: int) -> NDArray[np.float64]:
        return (base * spectrum(a) ** exponent) @ base.T

    constant = 2 * float((np.log(spectrum(less)) - np.log(spectrum(more))).sum())
    square, line = power(less, -2) - power(more, -2), 2 * (power(less, -1) + power(more, -1)) @ mu

    def rule(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.einsum("ni,ij,nj->n", x, square, x) + x @ line + constant

    y = rng.choice([-1, 1], DRAWS)
    clean = y[:, None] * mu + rng.normal(size=(DRAWS, DIM))
    protected = np.where(y[:, None] > 0, clean @ toeplitz(more), clean @ toeplitz(less))
    some = protected[:1000]
    ratio = 2 * (
        multivariate_normal(toeplitz(more) @ mu, toeplitz(more) @ toeplitz(more)).logpdf(some)
        - multivariate_normal(-toeplitz(less) @ mu, toeplitz(less) @ toeplitz(less)).logpdf(some)
    )
    accuracy, expected = float((np.sign(clean @ mu) == y).mean()), float(norm.cdf(np.linalg.norm(mu)))
    own, shifted = float((np.sign(rule(protected)) == y).mean()), float((np.sign(rule(clean)) == y).mean())
    off = max(np.abs(power(a, 1) - toeplitz(a)).max() for a in (less, more))
    apart = max(np.abs(np.sort(spectrum(a)) - np.linalg.eigvalsh(toeplitz(a))).max() for a in (less, more))
    return [
        at_most("5. Q D Q of the Toeplitz filter against the matrix and numpy's eigenvalues", max(off, apart), 1e-12),
        at_most("5. quadratic Bayes rule against the ratio of densities, relative", _relative(rule(some), ratio), 1e-9),
        at_most(
            "5. clean rule on clean draws against Phi(|mu|), standard errors",
            abs(accuracy - expected) / np.sqrt(expected * (1 - expected) / DRAWS),
            3.0,
        ),
        at_least(
            "5. Bayes rule of the protected draws on them above the clean rule on clean ones", own - accuracy, 0.02
        ),
        at_least("5. clean rule above the Bayes rule of the protected draws, on clean draws", accuracy - shifted, 0.05),
    ]


def _relative(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


# ---- shared ------------------------------------------------------------------------------------------------------


def _images(seed: int) -> ExampleSet:
    """Some of the training and of the test images."""
    fashion = load("idx", {"root": "fashion-mnist"}, seed=seed)
    train, test = fashion.part("train"), fashion.part("test")
    rng = np.random.default_rng(derive_seed("images", seed))
    ids = [rng.permutation(part.example_id)[:num] for part, num in ((train, TRAIN), (test, TEST))]
    return fashion.subset(np.sort(np.concatenate(ids)))


def _protected(train: ExampleSet, seed: int, *, key: int = 0, **config: object) -> Made:
    secret = derive_seed("secret", seed, key).to_bytes(32)
    chosen = CudaConfig.from_mapping(config)
    return cuda_unlearnable(train, config=chosen, seed=0, progress=silent, secret=secret)


def _unprotected(train: ExampleSet, made: Made) -> Made:
    """The examples that were left as they are, alone."""
    manifest = made.tables[MANIFEST.name]
    ids = manifest.filter(~pl.col("protected"))["made_id"].to_numpy()
    return Made(
        examples=made.examples.subset(ids), drawn_from=pl.DataFrame({"made_id": ids, "example_id": ids})
    ).validate(train)


def _audited(
    data: ExampleSet,
    sets: Mapping[str, Made],
    seed: int,
    progress: Progress,
    *,
    defences: tuple[str, ...],
    config: SupervisedConfig,
) -> dict[str, pl.DataFrame]:
    trainer = Trainer(recipe="supervised", build=three_convolutions, config=config, device=default_device())
    chosen = UnlearnabilityConfig(
        dataset="protected",
        controls=tuple(name for name in sets if name != "protected"),
        defences=("none", *defences),
        seeds=1,
    )
    made: Callable[[str], Made] = sets.__getitem__
    return unlearnability_audit(data, config=chosen, seed=seed, progress=progress, recipe=trainer, made=made)


def _accuracies(trainings: pl.DataFrame) -> Accuracy:
    return {(row["trained_on"], row["defence"]): row for row in trainings.to_dicts()}


def three_convolutions(seed: int) -> nn.Module:
    """16, 32 and 32 channels, each with BatchNorm, ReLU and pooling, then a linear layer: (B, 1, 28, 28) -> (B, 10)."""
    layers: list[nn.Module] = []
    with local_rng(seed):
        for before, after in ((1, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 3 * 3, 10))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
