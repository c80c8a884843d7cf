"""Inverting Gradients: the input whose gradient points the way the shared one does, dropout switched off.

    argmin_x  1 - <g(x), g*> / (||g(x)|| ||g*||) + l_TV TV(x),      x in the box of valid inputs, signed Adam

Source: Geiping, Bauermeister, Droege, Moeller, "Inverting Gradients" (NeurIPS 2020, arXiv 2003.14053), equation 4; for
    an
update of E local steps (section 6) the change of the weights takes the gradient's place. Run on a gradient made under
dropout it is the baseline that dropout defeats. The authors' settings: ``IG_CONFIG``; by default those of DIA, so that
the two differ in the masks alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.gradient_inversion.engine import Box, InversionConfig, Inverted, minimise
from attacks.gradient_inversion.instrument import Instrumented
from attacks.gradient_inversion.objective import Objective, Update
from contracts.digests import derive_seed
from contracts.errors import InvalidInput
from contracts.progress import Progress, silent
from recipes.rng import generator

IG_CONFIG = InversionConfig(steps=4800, schedule="milestones", tv=0.1, tolerance=0.0, stop_patience=1_000_000)


def inverting_gradients(
    net: Instrumented,
    update: Update,
    *,
    labels: Tensor,
    box: Box,
    config: InversionConfig,
    seeds: Sequence[int],
    progress: Progress = silent,
) -> Inverted:
    """Reconstruct the batches of R clients from what they shared.

    Args:
        net: the model they downloaded.
        update: what they shared.
        labels: int64 (R, B), known or recovered.
        box: (low, high) of valid inputs, broadcast against (B, *shape).
        seeds: R seeds of the starts: the same client and seed give the same start whoever else is attacked.

    Raises:
        InvalidInput: an update of another model, or counts that differ.
        DataError: an update that is not finite.
    """
    plan = Plan(net, update, labels, config=config, seeds=seeds, mask_weight=0.0)
    found = minimise(
        plan.objective, plan.start(), plan.labels, config=config, box=box, progress=progress, what="inverting gradients"
    )
    return plan.best(found)


class Plan:
    """What the attacks on R clients with S restarts each share: R * S problems side by side, and the best of each S."""

    def __init__(
        self,
        net: Instrumented,
        update: Update,
        labels: Tensor,
        *,
        config: InversionConfig,
        seeds: Sequence[int],
        rates: Tensor | None = None,
        mask_weight: float = 0.0,
    ) -> None:
        if labels.shape != (len(update), net.batch) or len(seeds) != len(update):
            raise InvalidInput(
                f"labels {tuple(labels.shape)} and {len(seeds)} seeds for {len(update)} clients of {net.batch} examples"
            )
        num = config.restarts
        self.net, self.restarts = net, num
        self.seeds = [derive_seed("restart", seed, n) if n else seed for seed in seeds for n in range(num)]
        self.rows = torch.arange(len(update), device=net.device).repeat_interleave(num)
        self.labels = labels.to(net.device)[self.rows]
        self.rates = None if rates is None else rates[self.rows]
        objective = Objective(net, update, rates=rates, tv=config.tv, mask_weight=mask_weight)
        self.objective = objective if num == 1 else objective.rows(self.rows)

    def start(self) -> Tensor:
        """x ~ N(0, 1) a seed: (R * S, B, *shape)."""
        return starts(self.net, self.seeds)

    def best(self, found: Inverted) -> Inverted:
        """The restart with the lowest loss of each client; the first of equal ones."""
        if self.restarts == 1:
            return found
        loss = found.loss.nan_to_num(nan=math.inf).reshape(-1, self.restarts)
        chosen = loss.argmin(dim=1) + self.restarts * torch.arange(len(loss), device=loss.device)
        return Inverted(
            found.x[chosen],
            tuple(m[chosen] for m in found.masks),
            found.targets[chosen],
            found.loss[chosen],
            found.distance[chosen],
            found.iterations[chosen],
        )


def starts(net: Instrumented, seeds: Sequence[int]) -> Tensor:
    """x ~ N(0, 1), one batch a seed, whoever else is attacked: (R, B, *shape)."""
    shape = (net.batch, *net.input_shape)
    draws = [torch.randn(shape, generator=generator(derive_seed("x", seed)), dtype=torch.float64) for seed in seeds]
    return torch.stack(draws).to(device=net.device, dtype=net.dtype)
