"""Which epoch of an expert is matched when, how much a loss counts then, and which checkpoints on the way are matched.

    start epoch   t uniform in {t_min .. U - 1};  U = t_max, or, widened from t_cur on,
                  U = min(t_max, t_cur + floor((t_max - t_cur) it / it_end))               (DATM)
    clipping      c_e = min(1, 0.5 + 0.05 e): factor of an expert's loss in epoch e, from 0        (AST)
    balancing     log_5(t - h + 8) for t >= h, else 1 / log_5(h - t + 8);  h = t_max // 2         (AST)
    on the way    after floor(N / M) j steps the student is compared with theta_{t+j}, j = 1 .. M - 1   (AST)

Early epochs of an expert teach what is easy, which is all that few images can hold; late ones teach what is hard.

Sources: Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching" (ICLR 2024,
arXiv 2310.05773); Shen et al., "AST: Effective Dataset Distillation through Alignment with Smooth and High-Quality
Expert Trajectories" (arXiv 2310.10541).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from contracts.errors import ConfigError
from recipes.rng import generator

Intermediate = Literal["none", "equal", "adaptive"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DifficultySchedule:
    """The half-open range of start epochs as it stands at each iteration.

    Attributes:
        t_min, t_max: first start epoch, and the one after the last.
        t_cur: where the upper end starts; None: at ``t_max``.
        it_end: iterations after which it has come to ``t_max``.

    Raises:
        ConfigError: a range that is empty, at its beginning or at its end.
    """

    t_min: int
    t_max: int
    t_cur: int | None = None
    it_end: int = 1

    def __post_init__(self) -> None:
        first = self.t_max if self.t_cur is None else self.t_cur
        if not 0 <= self.t_min < first <= self.t_max:
            raise ConfigError(
                f"start epochs from {self.t_min} up to {first}, then up to {self.t_max}: 0 <= t_min < t_cur <= t_max "
                "is needed (the upper ends are not included)"
            )
        if self.it_end < 1:
            raise ConfigError(f"DifficultySchedule.it_end = {self.it_end} must be >= 1")

    def upper(self, iteration: int) -> int:
        """U, the epoch after the last that may be drawn.

        >>> s = DifficultySchedule(t_min=0, t_max=20, t_cur=10, it_end=1000)
        >>> [s.upper(i) for i in (0, 99, 100, 999, 1000, 5000)]
        [10, 10, 11, 19, 20, 20]
        """
        if self.t_cur is None:
            return self.t_max
        return min(self.t_max, self.t_cur + (self.t_max - self.t_cur) * iteration // self.it_end)

    def draw(self, iteration: int, seed: int) -> int:
        """A start epoch of that iteration."""
        return int(torch.randint(self.t_min, self.upper(iteration), (), generator=generator(seed)))


def clip_scale(epoch: int) -> float:
    """c_e, the factor of an expert's loss in ``epoch`` (from 0); 1 from epoch 10 on.

    >>> [round(clip_scale(e), 2) for e in (0, 1, 9, 10, 50)]
    [0.5, 0.55, 0.95, 1.0, 1.0]
    """
    return min(1.0, (10 + epoch) / 20)


def balanced_scale(epoch: int, t_max: int) -> float:
    """The factor of a student's loss when it starts at ``epoch``: below 1 before the middle of the range, above 1 from
    there on, furthest from 1 at the ends. At the middle it jumps, from 1 / log_5 9 to log_5 8.

    >>> [round(balanced_scale(t, 20), 3) for t in (0, 9, 10, 19)]
    [0.557, 0.732, 1.292, 1.76]
    """
    middle = t_max // 2
    scale = math.log(abs(epoch - middle) + 8, 5)
    return scale if epoch >= middle else 1 / scale


def intermediate_targets(steps: int, epochs: int, weighting: Intermediate = "equal") -> list[tuple[int, int, float]]:
    """(steps done, epochs ahead, weight) of every comparison before the last one.

    Args:
        steps: N of the student; epochs: M of the expert.
        weighting: "equal" weighs all by 1, "adaptive" by j / M, "none" makes no comparison.

    Raises:
        ConfigError: fewer steps than epochs: two comparisons would be at one place.

    >>> intermediate_targets(20, 3, "adaptive")
    [(6, 1, 0.3333333333333333), (12, 2, 0.6666666666666666)]
    >>> intermediate_targets(20, 1)
    []
    """
    if weighting == "none":
        return []
    if steps < epochs:
        raise ConfigError(f"{steps} steps cannot be compared with {epochs} epochs of an expert on the way")
    each = steps // epochs
    return [(each * j, j, 1.0 if weighting == "equal" else j / epochs) for j in range(1, epochs)]
