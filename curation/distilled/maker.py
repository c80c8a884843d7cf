"""Maker ``distilled``: a few synthetic examples a class, with learned labels and step size, by matching trajectories.

    held out    a share of every class is not distilled: it judges the result, and half of it chooses an iteration where
                that is asked for; the figures are of the other half
    experts     trained on the rest, kept as they are made
    distilled   by ``TrajectoryMatcher``, kept every ``keep_every`` iterations: a run that was stopped goes on from
                there and comes to the same bits
    judged      students on it, on what it started from, on random examples, on coresets, on everything

What touched a distilled example: the image it started from, by name (``drawn_from``); and every example that was
distilled, for the experts were trained on them all (``learnt_from``). To erase one of them is to distil again.

Sources: Guo et al. (ICLR 2024, arXiv 2310.05773); Shen et al. (arXiv 2310.10541).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError
from contracts.methods import MakerSpec, Picture, maker
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.stores import CheckpointStore
from curation.distilled.begin import begin
from curation.distilled.evaluation import CORESETS, StudentConfig
from curation.distilled.experts import ExpertConfig
from curation.distilled.flat import FlatNetwork, one_hot
from curation.distilled.judging import accuracy_of, judged
from curation.distilled.smoothness import accuracies
from curation.distilled.tables import (
    DISTILLED,
    EVAL,
    LOG_TABLE,
    SMOOTHNESS,
    WORTH,
    log_frame,
    smoothness_frame,
    worth_frame,
)
from curation.distilled.trajectory import Distilled, MatchConfig, TrajectoryMatcher
from curation.distilled.whitening import Scale
from recipes.models import builder
from sources.example_set import ExampleSet
from sources.made import Made, made_examples
from tasks.base import require

FIRST_ID = 2**52  # ids of distilled examples: none of an original, and exact as a float


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilledConfig(Config):
    per_class: int = param(10, ge=1, le=100_000, unit="examples", doc="distilled examples of every class (IPC)")
    width: int = param(128, ge=1, le=4096, doc="channels of the ConvNet that experts and students are")
    depth: int = param(3, ge=1, le=8, doc="its blocks; each halves the image")
    experts: ExpertConfig = param(ExpertConfig(), doc="how experts are trained")
    match: MatchConfig = param(MatchConfig(), doc="how their trajectories are matched")
    students: StudentConfig = param(StudentConfig(), doc="how the networks that judge are trained")
    seeds: int = param(3, ge=1, le=1000, doc="networks that judge each set, of each architecture")
    architectures: tuple[str, ...] = param(
        ("mlp",), doc="others that judge beside the ConvNet, by name, with their defaults"
    )
    coresets: tuple[str, ...] = param(CORESETS, choices=CORESETS, doc="selections of real examples to compare with")
    held_out: float = param(0.1, gt=0, lt=1, doc="share of every class that is not distilled and judges")
    choose_every: int | None = param(
        None, ge=1, doc="half of the held-out examples choose the best of every so many iterations; none: the last"
    )
    zca: bool = param(False, doc="images are whitened (ZCA) for the networks; stored ones are not")
    zca_eps: float = param(0.1, gt=0, le=100, doc="added to the variances that ZCA divides by")
    keep_every: int = param(100, ge=1, le=1_000_000, unit="iterations", doc="how often a run is kept to go on from")

    def check(self) -> None:
        last = self.match.t_max - 1 + self.match.expert_epochs
        if last > self.experts.epochs:
            raise ConfigError(
                f"DistilledConfig: match.t_max - 1 + match.expert_epochs = {last} must be <= experts.epochs = "
                f"{self.experts.epochs}"
            )


class Parts(NamedTuple):
    """Positions in the training examples, ascending: those that are distilled, that choose, that judge."""

    distil: NDArray[np.int64]
    choose: NDArray[np.int64]
    judge: NDArray[np.int64]


@maker(
    MakerSpec(
        name="distilled",
        doc="A few synthetic images a class on which a network learns nearly what it would learn on all.",
        source="Guo et al., ICLR 2024 (arXiv 2310.05773); Shen et al., arXiv 2310.10541",
        config=DistilledConfig,
        needs=("checkpoints", "device"),
        wants=("classes", "images"),
        tables=(WORTH, DISTILLED, LOG_TABLE, EVAL, SMOOTHNESS),
        pictures=(
            Picture(
                table=WORTH.name,
                title="Accuracy of ConvNets trained on each set",
                x="label_mode",
                series="set_name",
                y="acc",
                low="acc_lo",
                high="acc_hi",
                kind="dots",
                where=(("arch", "convnet"),),
            ),
            Picture(
                table=LOG_TABLE.name,
                title="Distance to the experts, relative to how far they moved",
                x="iteration",
                y="match_loss",
            ),
        ),
    )
)
def distilled(
    data: ExampleSet,
    *,
    config: DistilledConfig,
    seed: int,
    progress: Progress,
    checkpoints: CheckpointStore,
    device: str = "cpu",
) -> Made:
    """The distilled set, with what it is worth.

    Args:
        checkpoints: where experts and the state of the distillation are kept as they come about.
        device: "cpu" or "cuda", where networks are trained.

    Raises:
        NotApplicable: no images, images too small for the network, a network with buffers or random layers.
        DataError: a class with too few examples, to start from or to hold out; experts that stand still.
        Diverged: an expert, a student, or the images.
    """
    require(data, "distilled", "classes", "images")
    data.check_targets()
    data = data.by_id()
    parts = parted(data, config, seed)
    every, y = torch.from_numpy(data.inputs(slice(None))).to(device), torch.from_numpy(data.y).to(device)
    scale = Scale.fit(every[parts.distil], zca=config.zca, eps=config.zca_eps)
    x = scale.to(every)
    networks = _networks(config, data, device)
    network = networks["convnet"]
    begun = begin(
        network,
        x[parts.distil],
        y[parts.distil],
        num_classes=data.num_classes,
        per_class=config.per_class,
        experts=config.experts,
        match=config.match,
        seed=seed,
        store=checkpoints,
        progress=progress,
    )
    start, labels, rows, experts = begun.state, begun.classes, begun.rows.cpu().numpy(), begun.experts
    hard = config.match.labels == "hard"
    last, best = _distil(
        begun.matcher, start, labels, x[parts.choose], y[parts.choose], config, seed, checkpoints, progress
    )
    table = judged(
        networks,
        {"distilled": (best.images, best.labels, best.rate), "initial": (start.images, start.labels, start.rate)},
        labels,
        experts.final(0, network),
        (x[parts.distil], y[parts.distil]),
        (x[parts.judge], y[parts.judge]),
        num_classes=data.num_classes,
        config=config,
        seed=derive_seed("judges", seed),
        progress=progress,
    )
    ids = FIRST_ID + np.arange(len(labels))
    if len(taken := np.intersect1d(ids, data.example_id)):
        raise DataError("originals have the ids that distilled examples get", example_ids=taken)
    of_class = labels.cpu().numpy()
    source = data.example_id[parts.distil][rows]
    raw, center, factor = _raw(data, scale, best.images)
    acc = accuracies(network, experts, x[parts.judge], y[parts.judge])
    examples = made_examples(
        data,
        name=f"{data.name}, distilled",
        x=raw,
        y=of_class,
        example_id=ids,
        provenance={
            "made_by": "distilled",
            "of": data.name,
            "iteration": best.iteration,
            "lr": best.rate,
            "zca": config.zca,
        },
    )
    return Made(
        examples=dataclasses.replace(examples, center=center, scale=factor),
        drawn_from=pl.DataFrame({"made_id": ids, "example_id": source}).sort("made_id", "example_id"),
        learnt_from=data.example_id[np.union1d(parts.distil, parts.choose)],
        judged_on=data.example_id[parts.judge],
        tables={
            DISTILLED.name: pl.DataFrame(
                {
                    "made_id": ids,
                    "label": of_class,
                    "init_example_id": source,
                    "logits": pl.Series(
                        [None] * len(ids) if hard else best.labels.double().cpu().tolist(), dtype=pl.List(pl.Float64)
                    ),
                    "lr": np.full(len(ids), best.rate),
                }
            ),
            LOG_TABLE.name: log_frame(last),
            EVAL.name: table,
            WORTH.name: worth_frame(table),
            SMOOTHNESS.name: smoothness_frame(experts, acc),
        },
    ).validate(data)


def parted(data: ExampleSet, config: DistilledConfig, seed: int) -> Parts:
    """Which examples are distilled, which choose, and which judge: shares of every class.

    Raises:
        DataError: a class with too few to do all that.
    """
    distil, choose, judge = [], [], []
    for label in range(data.num_classes):
        own = np.flatnonzero(data.y == label)
        own = np.random.default_rng(derive_seed("held out", seed, label)).permutation(own)
        least = 1 if config.choose_every is None else 2
        out = max(least, round(config.held_out * len(own)))
        if len(own) - out < config.per_class:
            raise DataError(
                f"class {data.class_names[label]} has {len(own)} training examples; {config.per_class} are to be made "
                f"of them, and {out} are held out"
            )
        half = 0 if config.choose_every is None else out // 2
        choose.append(own[:half])
        judge.append(own[half:out])
        distil.append(own[out:])
    return Parts(*(np.sort(np.concatenate(part)) for part in (distil, choose, judge)))


def _networks(config: DistilledConfig, data: ExampleSet, device: str) -> dict[str, FlatNetwork]:
    chosen: dict[str, dict[str, Any]] = {"convnet": {"width": config.width, "depth": config.depth}}
    chosen |= {name: {} for name in config.architectures if name != "convnet"}
    return {
        name: FlatNetwork(
            builder(name, fields, input_shape=data.input_shape, num_outputs=data.num_classes), device=device
        )
        for name, fields in chosen.items()
    }


def _distil(
    matcher: TrajectoryMatcher,
    start: Distilled,
    labels: Tensor,
    x: Tensor,
    y: Tensor,
    config: DistilledConfig,
    seed: int,
    checkpoints: CheckpointStore,
    progress: Progress,
) -> tuple[Distilled, Distilled]:
    """The last state, and the one that ``x``, ``y`` choose: the last, where nothing is to be chosen."""
    state, best, value = start, start, -1.0
    if (kept := checkpoints.load("distillation")) is not None:
        arrays, meta = kept
        state = Distilled.of_arrays(arrays, device=start.images.device)
        best = Distilled.of_arrays(
            {n.removeprefix("best/"): a for n, a in arrays.items() if n.startswith("best/")}, device=start.images.device
        )
        value = meta["value"]

    def after(now: Distilled) -> None:
        nonlocal best, value
        done = now.iteration
        if config.choose_every is None:
            best = now
        elif done % config.choose_every == 0 or done == config.match.iterations:
            targets = _targets(now.labels, labels, soft=config.match.labels == "soft")
            # the same networks for every candidate: one is not better by its students' luck
            found = accuracy_of(
                matcher.network, now.images, targets, now.rate, (x, y), config=config, seed=derive_seed("choice", seed)
            )
            if (mean := float(np.mean(found))) > value:
                best, value = now, mean
        if done % config.keep_every == 0 or done == config.match.iterations:
            of_best = {f"best/{name}": array for name, array in best.arrays().items()}
            checkpoints.save("distillation", now.arrays() | of_best, {"value": value, "iteration": done})

    last = matcher.run(state, seed=derive_seed("matching", seed), after=after, progress=progress)
    return last, best


def _targets(labels: Tensor, classes: Tensor, *, soft: bool) -> Tensor:
    """Learned labels, or classes, as probabilities: the one softmax of students that judge."""
    return labels.softmax(1) if soft else one_hot(classes, labels.shape[1], labels.dtype)


def _raw(data: ExampleSet, scale: Scale, images: Tensor) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any]]:
    """Images as values of the originals' kind, and the centre and scale by which a model sees them as students did, but
    for the whitening."""
    shift, spread = scale.shift.cpu().numpy(), scale.spread.cpu().numpy()
    seen = scale.standardised(images).cpu().numpy()
    raw = (seen * spread + shift) / data.scale + data.center
    center, factor = data.center + shift / data.scale, data.scale / spread
    return raw.astype(np.float32), center.astype(np.float32), factor.astype(np.float32)
