"""The beginning of a distillation, from real examples to the first synthetic ones: experts, images, labels, matcher."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from contracts.digests import derive_seed
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from curation.distilled.experts import ExpertBuffer, ExpertConfig, train_experts
from curation.distilled.flat import FlatNetwork, one_hot
from curation.distilled.initial import choose_start, final_logits, mean_logits
from curation.distilled.trajectory import Distilled, MatchConfig, TrajectoryMatcher


class Begun(NamedTuple):
    """What a distillation goes on with.

    Attributes:
        matcher: with the experts. state: nothing has moved yet.
        rows: positions of the real images that it starts from, class by class; classes: theirs.
    """

    matcher: TrajectoryMatcher
    state: Distilled
    rows: Tensor
    classes: Tensor

    @property
    def experts(self) -> ExpertBuffer:
        return self.matcher.experts


def begin(
    network: FlatNetwork,
    x: Tensor,
    y: Tensor,
    *,
    num_classes: int,
    per_class: int,
    experts: ExpertConfig,
    match: MatchConfig,
    seed: int,
    store: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    progress: Progress = silent,
) -> Begun:
    """Train experts on ``x`` (N, *shape), ``y`` (N,), and choose what to start from.

    Raises:
        DataError: a class with too few images; experts that stand still.
        ConfigError: start epochs beyond the experts' end.
        Diverged: an expert's parameter is not finite.
    """
    trained = train_experts(
        network,
        x,
        y,
        num_classes=num_classes,
        config=experts,
        seed=derive_seed("experts", seed),
        store=store,
        progress=progress,
    )
    logits = final_logits(network, trained, x)
    rows = choose_start(
        match.start,  # type: ignore[arg-type]
        logits,
        y,
        per_class=per_class,
        num_classes=num_classes,
        seed=derive_seed("start", seed),
    )
    classes = y[rows]
    hard = match.labels == "hard"
    labels = one_hot(classes, num_classes, x.dtype) if hard else mean_logits(logits[:, rows], classes)
    matcher = TrajectoryMatcher(network=network, experts=trained, config=match)
    return Begun(matcher, Distilled.start(x[rows], labels, match.lr_start), rows, classes)
