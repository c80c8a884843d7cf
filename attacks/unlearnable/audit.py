"""Does anybody learn from a protected data set who tries to? The best of the defences decides.

    reference   accuracy on test images of networks trained on the originals
    defences    the same of networks trained on the protected images with each of ``defences``, and after the filters of
                the classes were estimated from a few pairs and taken out
    controls    other made sets (one filter for all, a weaker dose), and the unprotected images alone: plain training
    learnt      (best defence - chance) / (reference - chance), chance the share of the largest class; its interval
                is over trainings and test examples (``learnt``)

Test images are as they are; ``protected_accuracy`` is on test images under the estimated filters of their classes, and
``permuted_accuracy`` under those of the next class: what a network learnt of the filter. Both are empty where no filter
explains the protection.

Budget: (1 + controls + defences) x seeds trainings of the plan's recipe, one more kind for a set that is protected in
part; one with pgd costs pgd_steps + 1 of them, one with dat 11.

Measured, subject fashion_protected (500 images a class, a network of two convolutions, three trainings of each kind, 39
in all, 5.3 minutes of one core): originals 0.830, one filter for all 0.808, filters of the classes 0.726 at p_b = 0.3,
0.690 at 0.1, 0.672 at 0.03, half of the images protected 0.810. Against 0.3: blur 0.749, noise 0.693, cutout 0.714,
mixup 0.740, RSK+FF 0.721, PGD 0.755, filters estimated from five pairs a class 0.829, which is 100% (91% to 109%) of
what there is to learn: the set does not pass, and the student learns 86% of it without any defence. A weaker dose does
not protect less there; with BatchNorm and a higher rate it does (reproduction ``cuda_unlearnable``).

Subject emoji_protected (colour, 24 x 24, white ground, the same network, 39 trainings, 5.6 minutes of one core):
originals 0.638, chance 0.202, one filter for all 0.617, filters of the classes 0.202 to 0.206 at every dose: the
student learns nothing but the filter (0.98 under the filters, 0.03 under permuted ones, as in the paper). No
augmentation, not PGD, and not even the estimated filters (0.208: taking one out of a white ground leaves its border)
undo that, a fresh blur little (0.269); RSK+FF reaches 0.542, 78% (59% to 102%) of what there is to learn: it does not
pass.

Training: the plan's recipe, on pixels in [0, 1] and the plan's input scale. A set passes when even the upper end of the
best defence's interval has learnt no more than ``tolerated``; what no defence undid here may be undone by another.

Sources: Sadasivan et al., CUDA (CVPR 2023, arXiv 2303.04278), section 5; Kim et al. (AdvML-Frontiers, NeurIPS 2024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks.unlearnable import defences
from attacks.unlearnable.defences import NAMES, PLAIN, Defence
from attacks.unlearnable.filter_estimation import deconvolved, estimate_filter
from attacks.unlearnable.learnt import DOSES, ESTIMATED, SUMMARY, accuracy_column, doses, judged, summary
from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, NotApplicable
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.tables import Column, TableSpec
from explain.class_filters import ClassFilters
from recipes.fitting import descend, smallest_batch
from recipes.schedule import num_epochs
from recipes.training import Trainer
from sources.example_set import ExampleSet
from sources.frames import frame_of
from sources.made import Made
from sources.pixels import full_brightness, pixels
from stats import clopper_pearson
from tasks.base import require

_FITS = 0.05  # of the protected images left unexplained by an estimated filter: no filter made them
_BLOCK = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class UnlearnabilityConfig(Config):
    dataset: str = param(doc="the protected data set", ref="dataset")
    controls: tuple[str, ...] = param((), doc="other made sets that are trained on without defence", ref="dataset")
    defences: tuple[str, ...] = param(
        ("none", "rsk_ff", "pgd", ESTIMATED), doc=f"of {', '.join((*NAMES, ESTIMATED))}; none is always run"
    )
    seeds: int = param(3, ge=1, le=100, doc="trainings of each kind; of 1 the interval is of test examples alone")
    eps: float = param(8 / 255, gt=0, le=1, doc="pgd: largest change of a pixel, in shares of full brightness")
    pgd_steps: int = param(3, ge=1, le=1000, doc="pgd: steps of the ascent")
    pairs: int = param(5, ge=1, le=10_000, unit="images", doc="pairs of a class from which its filter is estimated")
    tolerated: float = param(
        0.5, gt=0, lt=1, doc="share of what the originals teach above chance that the best defence may learn"
    )
    alpha: float = param(0.05, gt=0, lt=0.5, doc="1 - level of the intervals")

    def check(self) -> None:
        known = (*NAMES, ESTIMATED)
        if strange := [name for name in self.defences if name not in known]:
            raise ConfigError(f"UnlearnabilityConfig.defences: {', '.join(strange)}; known: {', '.join(known)}")
        if len(set(self.defences)) < len(self.defences):
            raise ConfigError(f"UnlearnabilityConfig.defences = {self.defences} lists something twice")


TRAININGS = TableSpec(
    schema="audits",
    name="unlearnability",
    key=("trained_on", "defence", "repeat"),
    doc="What networks learnt from protected images, by what was done against the protection.",
    columns=(
        Column(name="trained_on", dtype="str", doc="originals, unprotected (the part that is), or a made data set"),
        Column(name="defence", dtype="str", doc="what was done against the protection; none is plain training"),
        Column(name="repeat", dtype="int64", low=0, doc="number of the training"),
        Column(name="examples", dtype="int64", low=1, doc="trained on"),
        accuracy_column("accuracy", "on test images as they are (as the defence shows them)"),
        accuracy_column("low", "lower end, Clopper-Pearson"),
        accuracy_column("high", "upper end"),
        accuracy_column("protected_accuracy", "on test images under the estimated filters", nullable=True),
        accuracy_column("permuted_accuracy", "on test images under the filters of the next class", nullable=True),
    ),
)


@analysis(
    AnalysisSpec(
        name="unlearnability_audit",
        doc="Trains on a protected data set as somebody would who wants to undo the protection, and takes the best.",
        source="Sadasivan et al., CVPR 2023 (arXiv 2303.04278); Kim et al., AdvML-Frontiers at NeurIPS 2024",
        config=UnlearnabilityConfig,
        needs=("recipe", "made"),
        wants=("outputs", "classes", "images"),
        version=2,
        tables=(SUMMARY, DOSES, TRAININGS),
        pictures=(
            Picture(
                table=TRAININGS.name,
                title="What is learnt from protected images",
                kind="dots",
                x="defence",
                y="accuracy",
                series="trained_on",
                low="low",
                high="high",
            ),
            Picture(
                table=DOSES.name,
                title="What plain training learns, by how the images were protected",
                kind="dots",
                x="trained_on",
                y="accuracy",
                low="low",
                high="high",
            ),
        ),
        judge=judged,
        finds=lambda config, thresholds, in_use: ("unlearnability",),
    )
)
def unlearnability_audit(
    data: ExampleSet,
    *,
    config: UnlearnabilityConfig,
    seed: int,
    progress: Progress,
    recipe: Trainer,
    made: Callable[[str], Made],
) -> dict[str, pl.DataFrame]:
    """See the module.

    Args:
        recipe: the plan's: ``supervised``, whose loop is the one that defences change.

    Raises:
        NotApplicable: no images, another recipe, or a made set of other examples or another shape.
        DataError: no test examples.
    """
    require(data, "unlearnability_audit", "outputs", "classes", "images")
    data.check_targets()
    if recipe.spec.name != "supervised":
        raise NotApplicable(
            f"unlearnability_audit changes batches of the recipe supervised; the plan's is {recipe.spec.name}"
        )
    bench = _Bench.of(data, recipe)
    protected = _Set.of(config.dataset, made(config.dataset), bench)
    filters, unexplained = _estimated(protected, bench, config, seed=seed)
    controls = [_Set.of(name, made(name), bench) for name in config.controls]
    runs = list(_runs(config, protected, controls, bench))
    rows = []
    for number, (trained_on, defence, shown, labels) in enumerate(runs):
        for repeat in range(config.seeds):
            trained = bench.trained(shown, labels, defence, seed=derive_seed(seed, "training", repeat) % 2**31)
            right = bench.right(trained, bench.test, defence, seed=seed)
            low, high = clopper_pearson(int(right.sum()), len(right), alpha=config.alpha)
            under = [bench.right(trained, f, defence, seed=seed).mean() if f is not None else None for f in filters]
            rows.append(
                {
                    "trained_on": trained_on,
                    "defence": defence.name,
                    "repeat": repeat,
                    "examples": len(labels),
                    "accuracy": float(right.mean()),
                    "low": float(low),
                    "high": float(high),
                    "protected_accuracy": under[0],
                    "permuted_accuracy": under[1],
                }
            )
            progress(number * config.seeds + repeat + 1, len(runs) * config.seeds, "trainings")
    trainings = frame_of(TRAININGS, rows)
    measured: dict[str, Any] = {"alpha": config.alpha, "chance": bench.chance, "num_test": len(bench.answers)}
    told = {own.name: own.made_by for own in (protected, *controls)}
    return {
        SUMMARY.name: summary(
            trainings, dataset=config.dataset, tolerated=config.tolerated, unexplained=unexplained, **measured
        ),
        DOSES.name: doses(trainings, told, **measured),
        TRAININGS.name: trainings,
    }


_Run = tuple[str, Defence, Tensor, Tensor]


def _runs(config: UnlearnabilityConfig, protected: _Set, controls: Sequence[_Set], bench: _Bench) -> Iterator[_Run]:
    """What is trained on, and how."""
    yield "originals", PLAIN, bench.originals, bench.labels
    if len(protected.untouched) and len(protected.untouched) < len(protected.labels):
        yield "unprotected", PLAIN, protected.pixels[protected.untouched], protected.labels[protected.untouched]
    for control in controls:
        yield control.name, PLAIN, control.pixels, control.labels
    for name in dict.fromkeys(("none", *config.defences)):
        if name != ESTIMATED:
            how = defences.named(name, eps=config.eps, pgd_steps=config.pgd_steps)
            yield protected.name, how, protected.pixels, protected.labels
        elif protected.undone is not None:
            yield protected.name, dataclasses.replace(PLAIN, name=ESTIMATED), protected.undone, protected.labels


@dataclass(eq=False)
class _Set:
    """A made set as pixels, in the order of its ids; ``untouched`` rows are as the originals were, and ``made_by`` is
    what its maker says of it."""

    name: str
    pixels: Tensor
    labels: Tensor
    originals: Tensor
    untouched: Tensor
    made_by: Mapping[str, Any]
    undone: Tensor | None = None

    @classmethod
    def of(cls, name: str, made: Made, bench: _Bench) -> _Set:
        examples = made.examples
        if (
            examples.input_shape != bench.train.input_shape
            or not np.isin(examples.example_id, bench.train.example_id).all()
        ):
            raise NotApplicable(
                f"unlearnability_audit compares images with their originals; data set {name} has others than "
                f"{bench.train.name}"
            )
        pixels = _pixels(examples)
        originals = bench.originals[torch.from_numpy(bench.train.positions(examples.example_id))]
        same = (pixels - originals).abs().amax((1, 2, 3)) <= 0.5 / 255 + 1e-6
        told = {"share": 1 - float(same.double().mean()), **examples.provenance}
        return cls(name, pixels, torch.from_numpy(examples.y), originals, torch.nonzero(same)[:, 0], told)


def _estimated(
    protected: _Set, bench: _Bench, config: UnlearnabilityConfig, *, seed: int
) -> tuple[list[Tensor | None], float | None]:
    """Test images under the estimated filters of their classes, and of the next classes; what the filters leave
    unexplained. The protected set gets its images with the filters taken out."""
    nothing: list[Tensor | None] = [None, None]
    if ESTIMATED not in config.defences:
        return nothing, None
    changed = torch.ones(len(protected.labels), dtype=torch.bool)
    changed[protected.untouched] = False
    rng = np.random.default_rng(derive_seed(seed, "pairs"))
    found, missed = [], []
    for k in range(bench.train.num_classes):
        mine = torch.nonzero(changed & (protected.labels == k))[:, 0].numpy()
        if not len(mine):
            return nothing, None
        some = torch.from_numpy(np.sort(rng.permutation(mine)[: config.pairs]))
        size = min(3, *protected.pixels.shape[2:])
        each = [
            estimate_filter(protected.originals[some], protected.pixels[some], size=side)
            for side in range(size, min(9, *protected.pixels.shape[2:]) + 1, 2)
        ]
        best = next((pair for pair in each if pair[1] <= _FITS), each[-1])
        found.append(best[0])
        missed.append(best[1])
    side = max(one.shape[-1] for one in found)
    filters = torch.stack([nn.functional.pad(one, [(side - one.shape[-1]) // 2] * 4) for one in found])
    if max(missed) > _FITS:
        return nothing, max(missed)
    undone = deconvolved(protected.pixels, filters, protected.labels)
    undone[protected.untouched] = protected.pixels[protected.untouched]
    protected.undone = undone
    own = ClassFilters(filters)
    return [of(bench.test, bench.answers)[0] for of in (own, own.permuted())], max(missed)


@dataclass(eq=False)
class _Bench:
    """Originals and test images as pixels in [0, 1], and how networks see them.

    Attributes:
        train: the training examples. ``answers``: labels of ``test``.
        low, span: the stored value of pixel 0 and 1 on the plan's input scale, broadcast over (C, H, W).
    """

    train: ExampleSet
    recipe: Trainer
    originals: Tensor
    labels: Tensor
    test: Tensor
    answers: Tensor
    low: Tensor
    span: Tensor

    @classmethod
    def of(cls, data: ExampleSet, recipe: Trainer) -> _Bench:
        train, test = data.part("train").by_id(), data.part("test").by_id()
        if not len(test):
            raise DataError(f"{data.name}: unlearnability_audit needs test examples")
        return cls(
            train=train,
            recipe=recipe,
            originals=_pixels(train),
            labels=torch.from_numpy(train.y),
            test=_pixels(test),
            answers=torch.from_numpy(test.y),
            low=torch.from_numpy(-train.center * train.scale),
            span=torch.from_numpy(np.float32(full_brightness(train)) * train.scale),
        )

    @property
    def chance(self) -> float:
        return float(self.answers.bincount().max() / len(self.answers))

    def trained(self, shown: Tensor, labels: Tensor, defence: Defence, *, seed: int) -> nn.Module:
        """A fresh network after the plan's recipe with every batch as the defence has it."""
        config, device = self.recipe.config, self.recipe.device
        model = self.recipe.build(seed).to(device)
        rng = torch.Generator().manual_seed(derive_seed("defence", seed) % 2**63)
        see = self._eyes(model)

        def cost(rows: Tensor) -> Tensor:
            at = rows.cpu()
            return defence.cost(see, shown[at].to(device), labels[at].to(device), rng)

        last = num_epochs(len(labels), config, smallest=smallest_batch(model))
        descend(model, torch.arange(len(labels), device=device), cost, config=config, seed=seed, stop_after=last)
        return model

    def right(self, model: nn.Module, images: Tensor, defence: Defence, *, seed: int) -> NDArray[np.bool_]:
        """Which test images are answered rightly, shown as the defence shows them."""
        rng, see = torch.Generator().manual_seed(derive_seed("shown", seed) % 2**63), self._eyes(model)
        said = []
        with torch.no_grad():
            for start in range(0, len(images), _BLOCK):
                shown = defence.see(images[start : start + _BLOCK], rng).to(self.recipe.device)
                said.append(see(shown).argmax(1).cpu())
        found: NDArray[np.bool_] = (torch.cat(said) == self.answers).numpy()
        return found

    def _eyes(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        low, span = self.low.to(self.recipe.device), self.span.to(self.recipe.device)
        return lambda p: model(low + span * p)


def _pixels(data: ExampleSet) -> Tensor:
    return torch.from_numpy(pixels(data, slice(0, len(data))))
