"""Difficulty-aligned trajectory matching (Guo et al., ICLR 2024) on digits of 8 x 8 pixels: 1,200 to distil, 597 to
test.

    experts   6 ConvNets of width 32 with two poolings, 30 epochs of SGD, rate 0.05, batches of 64, pixels from -1 to 1
    students  N = 20 steps for M = 2 epochs, lr_img 10, lr_y 2, the step size 0.05 to start with, no augmentation
    sets      1 image a class, 200 iterations, and 5 a class, 120; from early epochs [0, 4) and late ones [15, 28)
    judged    the mean of three fresh networks on each set, 300 epochs, soft labels, the test images at the end only

No loss is skipped: late ones begin above 1, and a threshold of 1 would skip every step of some starts for ever. Early
epochs suit few images: a matcher that did not control the start epoch could not show what they gain there.

Measured (mean and standard deviation). Ten fresh seeds (401 to 410) ran an earlier revision with a threshold of 1, one
early run and one draw of labels; on seed 0 no early iteration was above it. Experts 0.988 and 0.002; early sets above
their initial images 0.205 and 0.030; loss, last ten / first ten, 0.57 and 0.08 (8 of 10 below 0.6; 0.7 is asked of the
mean of two runs); soft labels above hard ones 0.033 and 0.010 (6 of 10 above 0.03; 0.02 is asked of the mean of four
draws). Their late runs skipped 98% of all iterations and say nothing.

Without a threshold, on seeds 401 to 405: 5 a class, late above early epochs 0.003 and 0.013 (0.019, 0.010, 0.007,
-0.015, -0.006; 0.015 on seed 0, 0.014 on 701). That late epochs are better for 5 images a class is therefore not shown
here; they are hardly worse, which is all that is asked (-0.03). At 1 a class they are worse: by 0.13 and 0.05 on seeds
0 and 701, so that late epochs gain 0.14 and 0.07 as the set grows; more than nothing is asked. On 401 to 405 late sets
of 1 a class came to 0.72, 0.53, 0.66, 0.64 and 0.75, with a matching loss of 0.91, 0.98, 0.97, 0.91 and 0.88. This
file ran whole on seed 701, and passed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from contracts.digests import derive_seed
from contracts.errors import DataError
from contracts.progress import Progress
from curation.distilled.evaluation import StudentConfig, train_students
from curation.distilled.experts import ExpertBuffer, ExpertConfig, train_experts
from curation.distilled.flat import FlatNetwork, one_hot
from curation.distilled.initial import Start, choose_start, final_logits, mean_logits
from curation.distilled.matching import batches, match, targets
from curation.distilled.schedules import DifficultySchedule
from curation.distilled.trajectory import LOG, Distilled, MatchConfig, TrajectoryMatcher
from recipes.models import builder
from reproductions.framework import Claim, at_least, at_most, reproduction
from sources.loading import load

EARLY, LATE, STUDENTS, DRAWS, ITERATIONS = (0, 4), (15, 28), 3, 4, {1: 200, 5: 120}
EXPERTS = ExpertConfig(num=6, epochs=30, lr=0.05, batch=64, augment=())
MATCH = MatchConfig(iterations=200, steps=20, lr_img=10, lr_y=2, lr_start=0.05, threshold=None, augment=())
TRAIN = StudentConfig(epochs=300, augment=())


@dataclass(frozen=True, eq=False)
class Digits:
    """The digits of a seed, pixels from -1 to 1, and the network that experts and students are."""

    seed: int
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @classmethod
    def of(cls, seed: int) -> Digits:
        """1,200 training and 597 test images, drawn by the seed."""
        data = load("sklearn", {"dataset": "digits", "test_fraction": 597 / 1797}, seed=seed)
        train, test = data.part("train"), data.part("test")
        x, test_x = (torch.from_numpy(part.inputs(slice(None))) for part in (train, test))
        return cls(seed, 2 * x - 1, torch.from_numpy(train.y), 2 * test_x - 1, torch.from_numpy(test.y))

    @cached_property
    def network(self) -> FlatNetwork:
        return FlatNetwork(builder("convnet", {"width": 32, "depth": 2}, input_shape=(1, 8, 8), num_outputs=10))

    def experts(self, config: ExpertConfig, progress: Progress) -> ExpertBuffer:
        return train_experts(
            self.network, self.x, self.y, num_classes=10, config=config, seed=self.seed, progress=progress
        )

    def start(self, how: Start, logits: Tensor, per_class: int, seed: int) -> Tensor:
        return choose_start(how, logits, self.y, per_class=per_class, num_classes=10, seed=seed)

    def hard(self, rows: Tensor) -> Tensor:
        return one_hot(self.y[rows], 10, self.x.dtype)

    def accuracy(self, x: Tensor, targets: Tensor, rate: float, *, config: StudentConfig = TRAIN) -> float:
        """Mean test accuracy of fresh networks trained on a set; the same networks for every set."""
        seeds = [derive_seed("judge", self.seed, number) for number in range(STUDENTS)]
        trained = train_students(self.network, x, targets, rate=rate, config=config, seeds=seeds)
        return float(np.mean([self.network.accuracy(theta, self.test_x, self.test_y) for theta in trained]))


class Run(NamedTuple):
    """One distilled set: its accuracy, that of what it started from, and what was logged, by name."""

    accuracy: float
    of_start: float
    log: dict[str, np.ndarray]


@reproduction(card=47, name="datm", paper="Guo et al. 2024")
def datm(seed: int, progress: Progress) -> list[Claim]:
    """All claims; four to five minutes on one core."""
    digits = Digits.of(seed)
    experts = digits.experts(EXPERTS, progress)
    logits = final_logits(digits.network, experts, digits.x)
    finals = [digits.network.accuracy(experts.final(e, digits.network), digits.test_x, digits.test_y) for e in range(6)]

    def distil(per_class: int, epochs: tuple[int, int], number: int = 0) -> Run:
        rows = digits.start("correct", logits, per_class, derive_seed("start", seed, number))
        soft, rate = mean_logits(logits[:, rows], digits.y[rows]), MATCH.lr_start
        config = _with(t_min=epochs[0], t_max=epochs[1], iterations=ITERATIONS[per_class])
        matcher = TrajectoryMatcher(network=digits.network, experts=experts, config=config)
        made = matcher.run(Distilled.start(digits.x[rows], soft, rate), seed=seed + number, progress=progress)
        log = dict(zip(LOG, np.array(made.log).T, strict=True))
        accuracy = digits.accuracy(made.images, made.labels.softmax(1), made.rate)
        return Run(accuracy, digits.accuracy(digits.x[rows], soft.softmax(1), rate), log)

    ones = [distil(1, EARLY, number) for number in range(2)]
    one_late, five, five_late = distil(1, LATE), distil(5, EARLY), distil(5, LATE)
    fell = [run.log["match_loss"][-10:].mean() / run.log["match_loss"][:10].mean() for run in ones]
    late = one_late.log["match_loss"]
    of_late = {1: one_late.accuracy - ones[0].accuracy, 5: five_late.accuracy - five.accuracy}
    return [
        at_least("mean test accuracy of the experts", np.mean(finals), 0.97),
        at_least(
            "1 a class, early: accuracy above the images it started from",
            np.mean([run.accuracy - run.of_start for run in ones]),
            0.06,
        ),
        at_most("1 a class, early: matching loss, last ten / first ten", np.mean(fell), 0.7),
        at_least("1 a class: accuracy from early epochs above late ones", -of_late[1], 0.0),
        at_least("1 a class, late: mean matching loss of the last ten", late[-10:].mean(), 0.7),
        at_least("1 a class, late: share of iterations that a threshold of 1 would skip", (late > 1).mean(), 0.01),
        at_least("5 a class: accuracy from late epochs above early ones", of_late[5], -0.03),
        at_least("what late epochs gain on early ones from 1 to 5 a class", of_late[5] - of_late[1], 0.0),
        at_least("5 a class, not distilled: accuracy with soft labels above hard ones", _soft(digits, logits), 0.02),
        *_invariants(digits, experts, [*ones, one_late, five, five_late]),
    ]


def _soft(digits: Digits, logits: Tensor) -> float:
    """Accuracy that averaged logits gain over classes as labels of five real images a class; mean over draws."""
    gained = []
    for draw in range(DRAWS):
        rows = digits.start("correct", logits, 5, derive_seed("labels", digits.seed, draw))
        soft = mean_logits(logits[:, rows], digits.y[rows]).softmax(1)
        of_both = [digits.accuracy(digits.x[rows], labels, MATCH.lr_start) for labels in (soft, digits.hard(rows))]
        gained.append(of_both[0] - of_both[1])
    return float(np.mean(gained))


def _with(**changed: Any) -> MatchConfig:
    return dataclasses.replace(MATCH, **changed)


def _invariants(digits: Digits, experts: ExpertBuffer, runs: list[Run]) -> list[Claim]:
    """What holds exactly, on the reproduction's own network and experts."""
    logits = final_logits(digits.network, experts, digits.x)
    rows = digits.start("correct", logits, 1, digits.seed)
    x, y = digits.x[rows], mean_logits(logits[:, rows], digits.y[rows])
    of_steps = {}
    for steps in (1, 10):
        matcher = TrajectoryMatcher(network=digits.network, experts=experts, config=_with(steps=steps, t_max=4))
        inner, _ = matcher.inner(Distilled.start(x, y, 0.05), 0, seed=digits.seed)
        exact = match(inner, x, y, 0.05, mode="unroll").images
        apart = {
            mode: float((match(inner, x, y, 0.05, mode=mode).images - exact).abs().max() / exact.abs().max())
            for mode in ("adjoint", "tesla")
        }
        of_steps[steps] = apart
    distinct = [len({row.tobytes() for row in trajectory}) for trajectory in experts.trajectories]
    passes = batches(7, 3, 6, digits.seed)
    used = [sorted(torch.cat(passes[first : first + 3]).tolist()) == list(range(7)) for first in (0, 3)]
    widening = DifficultySchedule(t_min=0, t_max=20, t_cur=10, it_end=100)
    largest = max(widening.upper(iteration) for iteration in range(300))
    last = max(float(run.log["start_epoch"].max()) - float(run.log["upper_bound"].min()) for run in runs)
    ends = max(float(run.log["start_epoch"].max()) + MATCH.expert_epochs - experts.epochs for run in runs)
    still = experts.final(0, digits.network).expand(3, -1)
    return [
        at_most("adjoint against unrolling, 10 steps, float32", of_steps[10]["adjoint"], 2e-6),
        at_most("TESLA against unrolling, 1 step", of_steps[1]["tesla"], 2e-6),
        at_least("TESLA against unrolling, 10 steps: it is another gradient", of_steps[10]["tesla"], 0.01),
        at_least("an expert that stands still is refused", _refused(lambda: targets_of(still)), 1.0),
        at_least("fewest distinct checkpoints of an expert", min(distinct), experts.epochs + 1),
        at_least("passes that use each image once", float(np.mean(used)), 1.0),
        at_most("largest upper end of a widening range, above t_max", largest - widening.t_max, 0.0),
        at_most("largest start epoch, above the last of its range", last, -1.0),
        at_most("epochs matched beyond the end of the experts", ends, 0.0),
        at_least(
            "matching losses that are finite", float(all(np.isfinite(r.log["match_loss"]).all() for r in runs)), 1.0
        ),
    ]


def targets_of(trajectory: Tensor) -> object:
    return targets(trajectory[0], trajectory, epoch=0, steps=4, on_the_way=[])


def _refused(work: Callable[[], object]) -> float:
    """1 where a typed error is raised."""
    try:
        work()
    except DataError as error:
        return float("nothing to match" in str(error) and not math.isinf(len(str(error))))
    return 0.0
