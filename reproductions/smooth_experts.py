"""Alignment with smooth and high-quality expert trajectories (AST; Shen et al., arXiv 2310.10541) on digits of 8 x 8
pixels: 1,200 to distil, 597 to test.

    experts    3 ConvNets of width 32 with two poolings, 20 epochs, momentum 0.9, weight decay 1e-3, rate 0.05, batches
               of 64: as they are, with a clipped loss, and one with the gradient penalty (the authors' norm, weight 2)
    starts     1 and 5 images a class: nearest to cluster centres, under each expert, against eight random draws; not
               distilled
    distilled  1 image a class, 100 iterations: the whole of AST from clipped experts, against matching the unclipped
               ones without perturbation, balancing and checkpoints on the way; means over three runs each
    judged     the mean of three fresh networks on each set, 300 epochs, hard labels, the test images at the end only

What the penalty does to the longest step is not asserted: at this scale it makes it longer (4.2 against 3.1). It does
what its name says: the penalised quantity falls.

Nine fresh seeds (501 to 509; mean and standard deviation): longest step, clipped / not 0.677 and 0.012; accuracy lost
by clipping -0.001 and 0.002; penalty with / without 0.071 and 0.024; AST above matching unclipped experts 0.083 and
0.030, above its initial images 0.093 and 0.037, of which 0.02 is asked for.

Representatives above random images, means of three sets and eight draws, on eleven seeds (0, 501, 701, 711 to 714, 721
to 724): 0.089 and 0.026 for 1 a class (0.045 to 0.138), 0.035 and 0.017 for 5 (0.003 to 0.058). The 0.05 and 0.01 of a
single measurement are therefore no thresholds for any seed; 0.03 and 0 are two standard deviations below the means.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from contracts.digests import derive_seed
from contracts.progress import Progress
from curation.distilled.descent import gradient_penalty
from curation.distilled.evaluation import StudentConfig
from curation.distilled.experts import ExpertBuffer, ExpertConfig
from curation.distilled.initial import final_logits
from curation.distilled.matching import match
from curation.distilled.schedules import balanced_scale, clip_scale, intermediate_targets
from curation.distilled.smoothness import smoothness
from curation.distilled.trajectory import Distilled, MatchConfig, TrajectoryMatcher, perturbed
from reproductions.datm import Digits
from reproductions.framework import Claim, at_least, at_most, reproduction

EXPERTS = ExpertConfig(num=3, epochs=20, lr=0.05, batch=64, momentum=0.9, weight_decay=1e-3, augment=())
PLAIN = MatchConfig(
    iterations=100,
    steps=20,
    expert_epochs=2,
    t_min=0,
    t_max=6,
    lr_img=10,
    lr_start=0.02,
    labels="hard",
    start="representative",
    momentum=0.9,
    threshold=None,
    augment=(),
)
AST = dataclasses.replace(PLAIN, perturb=1.0, balance=True, intermediate="equal")
TRAIN = StudentConfig(epochs=300, weight_decay=1e-3, decay=0.5, late_momentum=0.8, augment=())
RUNS, DRAWS, REAL_RATE, PENALISED = 3, 8, 0.05, 200


@reproduction(card=13, name="smooth_experts", paper="Shen et al. 2023")
def smooth_experts(seed: int, progress: Progress) -> list[Claim]:
    """All claims; three to four minutes on one core."""
    digits = Digits.of(seed)
    momentum, clipped = (
        digits.experts(dataclasses.replace(EXPERTS, clip_loss=clip), progress) for clip in (False, True)
    )
    penalised = digits.experts(dataclasses.replace(EXPERTS, num=1, penalty=2.0), progress)
    return [
        *_experts(digits, momentum, clipped, penalised),
        *_starts(digits, clipped),
        *_distilled(digits, momentum, clipped, seed, progress),
        *_invariants(digits, clipped),
    ]


def _experts(digits: Digits, momentum: ExpertBuffer, clipped: ExpertBuffer, penalised: ExpertBuffer) -> list[Claim]:
    network = digits.network
    longest, final = {}, {}
    for name, experts in (("momentum", momentum), ("clipped", clipped)):
        longest[name] = np.mean([smoothness(t).max_step for t in experts.trajectories])
        final[name] = np.mean(
            [network.accuracy(experts.final(e, network), digits.test_x, digits.test_y) for e in range(len(experts))]
        )
    gap = {
        name: float(gradient_penalty(network, experts.final(0, network), digits.x[:PENALISED]))
        for name, experts in (("without", momentum), ("with", penalised))
    }
    return [
        at_most("longest step of an expert, clipped loss / not", longest["clipped"] / longest["momentum"], 0.8),
        at_most("final accuracy lost by clipping", final["momentum"] - final["clipped"], 0.01),
        at_most("gradient penalty after training, with it / without", gap["with"] / gap["without"], 0.7),
    ]


def _starts(digits: Digits, experts: ExpertBuffer) -> list[Claim]:
    """Representatives under each expert, against random draws: means, for one set says little of how it was chosen."""
    logits, found = final_logits(digits.network, experts, digits.x), {}
    for per_class in (1, 5):
        chosen = [
            digits.start("representative", logits[e : e + 1], per_class, derive_seed("clusters", digits.seed, e))
            for e in range(len(experts))
        ]
        drawn = [digits.start("real", logits, per_class, derive_seed("draw", digits.seed, d)) for d in range(DRAWS)]
        mean = [
            np.mean([digits.accuracy(digits.x[r], digits.hard(r), REAL_RATE, config=TRAIN) for r in sets])
            for sets in (chosen, drawn)
        ]
        found[per_class] = float(mean[0] - mean[1])
    return [
        at_least("1 a class, not distilled: representatives above random images", found[1], 0.03),
        at_least("5 a class, not distilled: representatives above random images", found[5], 0.0),
    ]


def _distilled(
    digits: Digits, momentum: ExpertBuffer, clipped: ExpertBuffer, seed: int, progress: Progress
) -> list[Claim]:
    def run(config: MatchConfig, experts: ExpertBuffer, number: int) -> tuple[float, float]:
        """Accuracy of the set, and of what it started from at the same step size."""
        logits = final_logits(digits.network, experts, digits.x)
        rows = digits.start("representative", logits, 1, derive_seed("start", seed, number))
        matcher = TrajectoryMatcher(network=digits.network, experts=experts, config=config)
        state = Distilled.start(digits.x[rows], digits.hard(rows), config.lr_start)
        made = matcher.run(state, seed=derive_seed("run", seed, number), progress=progress)
        accuracy = digits.accuracy(made.images, digits.hard(rows), made.rate, config=TRAIN)
        return accuracy, digits.accuracy(digits.x[rows], digits.hard(rows), made.rate, config=TRAIN)

    ast = np.array([run(AST, clipped, number) for number in range(RUNS)])
    plain = np.array([run(PLAIN, momentum, number) for number in range(RUNS)])
    return [
        at_least("1 a class: AST above matching unclipped experts", ast[:, 0].mean() - plain[:, 0].mean(), 0.0),
        at_least("1 a class: AST above the images it started from", (ast[:, 0] - ast[:, 1]).mean(), 0.02),
    ]


def _with(**changed: Any) -> MatchConfig:
    return dataclasses.replace(AST, **changed)


def _invariants(digits: Digits, experts: ExpertBuffer) -> list[Claim]:
    network, middle = digits.network, 10
    base = math.log(5)
    theta = experts.final(0, network)
    (name,) = [n for n, shape in network.shapes.items() if tuple(shape) == (32, 32, 3, 3)]
    weight = network.named(theta)[name]
    zeroed = theta.clone()
    network.named(zeroed)[name][:4] = 0
    draws = [network.named(perturbed(network, zeroed, scale=1.0, seed=s))[name] for s in range(50)]
    kept = max(float(d[:4].abs().max()) for d in draws)
    moved = [network.named(perturbed(network, theta, scale=1.0, seed=s))[name] - weight for s in range(50)]
    relative = float(torch.stack([(m / weight).square().mean().sqrt() for m in moved]).mean()) * math.sqrt(
        weight.numel()
    )
    logits = final_logits(network, experts, digits.x)
    rows = digits.start("representative", logits, 1, digits.seed)
    x, y = digits.x[rows], digits.hard(rows)
    at = Distilled.start(x, y, 0.01)

    def loss(rate: float, **changed: Any) -> Any:
        matcher = TrajectoryMatcher(network=network, experts=experts, config=_with(steps=10, **changed))
        return match(matcher.inner(at, 0, seed=digits.seed)[0], x, y, rate, mode="adjoint")

    def without_ball(rate: float) -> float:
        """Plain descent, written out: theta -= rate * gradient."""
        matcher = TrajectoryMatcher(
            network=network, experts=experts, config=_with(steps=10, momentum=0.0, intermediate="none")
        )
        inner, _ = matcher.inner(at, 0, seed=digits.seed)
        now = inner.start
        for step, batch in enumerate(inner.batches):
            now = now.detach().requires_grad_()
            now = now - rate * torch.autograd.grad(inner.loss(now, x[batch], y[batch], step), now)[0]
        return float((now.detach() - inner.targets[-1].theta).square().sum()) * inner.targets[-1].scale

    steps = [abs(balanced_scale(t + 1, 20) - balanced_scale(t, 20)) for t in range(19) if t != middle - 1]
    heavy = loss(0.01, momentum=0.0, intermediate="none").loss
    return [
        at_most(
            "clipping: largest |c_e - 1| from epoch 10 on", max(abs(clip_scale(e) - 1) for e in range(10, 40)), 0.0
        ),
        at_most("balancing: at the middle, from log_5 8", abs(balanced_scale(middle, 20) - math.log(8) / base), 1e-12),
        at_most(
            "balancing: before it, from 1 / log_5 9", abs(balanced_scale(middle - 1, 20) - base / math.log(9)), 1e-12
        ),
        at_most("balancing: largest step of an epoch elsewhere", max(steps), 0.1),
        at_most("checkpoints on the way for one epoch", len(intermediate_targets(20, 1)), 0),
        at_most("perturbation: largest weight that was zero", kept, 0.0),
        at_most("perturbation: relative size times sqrt(weights), from 1", abs(relative - 1), 0.02),
        at_most("momentum 0 against plain descent, matching loss", abs(heavy - without_ball(0.01)) / heavy, 1e-5),
        at_most("step size 0: matching loss, from 1", abs(loss(0.0, intermediate="none").loss - 1), 1e-5),
        at_least(
            "fewest distinct checkpoints",
            min(len({r.tobytes() for r in t}) for t in experts.trajectories),
            experts.epochs + 1,
        ),
    ]
