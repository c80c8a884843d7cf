"""What a distilled set is worth beside other sets of its size, as a table; ``evaluation`` says how each is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts.digests import derive_seed
from contracts.progress import Progress
from curation.distilled.evaluation import StudentConfig, coreset, train_students
from curation.distilled.experts import ExpertConfig
from curation.distilled.flat import FlatNetwork, one_hot
from curation.distilled.trajectory import MatchConfig

Pair = tuple[Tensor, Tensor]
Set = tuple[Tensor, Tensor, float]


class Judging(Protocol):
    """The fields of a configuration that judging reads."""

    @property
    def per_class(self) -> int: ...
    @property
    def seeds(self) -> int: ...
    @property
    def students(self) -> StudentConfig: ...
    @property
    def experts(self) -> ExpertConfig: ...
    @property
    def match(self) -> MatchConfig: ...
    @property
    def coresets(self) -> tuple[str, ...]: ...


def accuracy_of(
    network: FlatNetwork, x: Tensor, targets: Tensor, rate: float, judge: Pair, *, config: Judging, seed: int
) -> NDArray[np.float64]:
    """Accuracy on ``judge`` (images, classes) of each of ``config.seeds`` networks trained on ``x`` with ``targets``
    (probabilities)."""
    seeds = [derive_seed("judge", seed, number) for number in range(config.seeds)]
    trained = train_students(network, x, targets, rate=rate, config=config.students, seeds=seeds)
    return np.array([network.accuracy(theta, *judge) for theta in trained])


def judged(
    networks: Mapping[str, FlatNetwork],
    sets: Mapping[str, Set],
    classes: Tensor,
    expert: Tensor,
    real: Pair,
    judge: Pair,
    *,
    num_classes: int,
    config: Judging,
    seed: int,
    progress: Progress,
) -> pl.DataFrame:
    """Table ``distillation_eval``.

    Args:
        networks: architectures by name; "convnet" is the experts' own.
        sets: name -> images, learned labels (or probabilities of hard ones), step size; of the classes ``classes``.
        expert: (D,), a trained expert, in whose eyes coresets are chosen.
        real: what was distilled, as the networks see it, and its classes.
        judge: held-out images and their classes.
    """
    ipc, soft = config.per_class, config.match.labels == "soft"
    hard = one_hot(classes, num_classes, real[0].dtype)
    trained: dict[tuple[str, str], Set] = {}
    for name, (images, labels, rate) in sets.items():
        trained |= {(name, "soft"): (images, labels.softmax(1), rate)} if soft else {}
        trained[name, "hard"] = (images, hard, rate)
    for name in config.coresets:
        chosen = coreset(name, networks["convnet"], expert, *real, per_class=ipc, num_classes=num_classes)
        of_class = one_hot(real[1][chosen], num_classes, hard.dtype)
        trained[name, "hard"] = (real[0][chosen], of_class, config.match.lr_start)
    rows: list[dict[str, Any]] = []
    done, total = 0, len(networks) * (len(trained) + 2)
    for arch, network in networks.items():

        def told() -> None:
            nonlocal done
            done += 1
            progress(done, total, "sets judged")

        random_acc = np.array(
            [_random(network, real, judge, num_classes, number, config, seed) for number in range(config.seeds)]
        )
        told()
        full = _full(network, real, judge, num_classes, config, seed)
        told()
        for (name, mode), (images, targets, rate) in trained.items():
            found = accuracy_of(network, images, targets, rate, judge, config=config, seed=seed)
            for number, acc in enumerate(found.tolist()):
                rows.append(
                    {
                        "set_name": name,
                        "arch": arch,
                        "label_mode": mode,
                        "seed": number,
                        "ipc": ipc,
                        "acc": acc,
                        "random_acc": random_acc[number],
                        "full_acc": full[number],
                        "num_judged": len(judge[1]),
                    }
                )
            told()
    return pl.DataFrame(rows)


def _random(
    network: FlatNetwork, real: Pair, judge: Pair, num_classes: int, number: int, config: Any, seed: int
) -> float:
    """Of one network on as many random real examples."""
    rng = np.random.default_rng(derive_seed("random examples", seed, number))
    y = real[1].cpu().numpy()
    chosen = [rng.permutation(np.flatnonzero(y == label))[: config.per_class] for label in range(num_classes)]
    rows = torch.from_numpy(np.concatenate(chosen)).to(real[1].device)
    targets = one_hot(real[1][rows], num_classes, real[0].dtype)
    own = [derive_seed("judge", seed, number)]
    (theta,) = train_students(
        network, real[0][rows], targets, rate=config.match.lr_start, config=config.students, seeds=own
    )
    return network.accuracy(theta, *judge)


def _full(network: FlatNetwork, real: Pair, judge: Pair, num_classes: int, config: Judging, seed: int) -> list[float]:
    """Of each network on everything, trained as experts are."""
    seeds = [derive_seed("judge", seed, number) for number in range(config.seeds)]
    thetas = torch.stack([network.initial(derive_seed("student", own)) for own in seeds])
    targets = one_hot(real[1], num_classes, real[0].dtype)
    trained = config.experts.descent().run(network, thetas, real[0], targets, seeds=seeds)
    return [network.accuracy(theta, *judge) for theta in trained]
