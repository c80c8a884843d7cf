"""Dropout Inversion Attack (DIA): the client's dropout masks are unknowns too, found together with its input.

    argmin_{x, m}  1 - <g_m(x), g*> / (||g_m(x)|| ||g*||) + l_TV TV(x) + l_m sum_l | (1 - mean m_l) - p_l |
    x ~ N(0, 1) in the box of valid inputs, signed gradient;   m_l ~ Bernoulli(1 - p_l) in [0, 1], raw gradient; one
                                                               Adam

Every example of the batch and every dropout call has a mask of its own, of the call's input shape. With the rates at 0
there is no mask and every iterate is that of Inverting Gradients. The unknowns grow with batch and width: once there
are more of them than the gradient says, DIA fails, and its loss alone does not tell (it may end near 0 at a wrong
image).

Source: Scheliga, Maeder, Seeland (AAAI 2023, arXiv 2208.06163). Options of ours: the masks' start, and a last phase
    with
rounded masks. Nothing here is given the client's masks: for that control see ``well_informed``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.gradient_inversion.engine import Box, InversionConfig, Inverted, minimise
from attacks.gradient_inversion.instrument import Instrumented
from attacks.gradient_inversion.inverting_gradients import Plan
from attacks.gradient_inversion.objective import Update
from contracts.digests import derive_seed
from contracts.errors import InvalidInput
from contracts.progress import Progress, silent
from recipes.rng import generator


def dropout_inversion(
    net: Instrumented,
    update: Update,
    *,
    labels: Tensor,
    box: Box,
    config: InversionConfig,
    seeds: Sequence[int],
    rates: Tensor | None = None,
    progress: Progress = silent,
) -> Inverted:
    """Reconstruct the batches, and the dropout masks, of R clients from what they shared.

    Args:
        rates: (R, S) p of the S dropout calls (part of the model's definition, so known to the server); the net's own
            when None. A client whose rates are all 0 is attacked without masks.
        labels, box, config, seeds: as for :func:`inverting_gradients`; same seeds, same start of x.

    Returns:
        Reconstructions with the masks found, float in [0, 1] (rounded when ``config.polish_steps`` > 0).

    Raises:
        InvalidInput: an update of another model, or counts that differ.
        DataError: an update that is not finite.
    """
    rates = net.all_rates(len(update)) if rates is None else rates
    if rates.shape != (len(update), len(net.sites)):
        raise InvalidInput(f"rates {tuple(rates.shape)} for {len(update)} clients and {len(net.sites)} dropout calls")
    none = (rates == 0).all(dim=1)
    if bool(none.any()) and not bool(none.all()):
        raise InvalidInput("rates of clients with and without dropout cannot be mixed in one call")
    plan = Plan(net, update, labels, config=config, seeds=seeds, rates=rates, mask_weight=config.mask_weight)
    free = [] if bool(none.all()) else _start_masks(plan, passes=update.local.passes, how=config.mask_init)
    found = minimise(
        plan.objective,
        plan.start(),
        plan.labels,
        config=config,
        box=box,
        free=free,
        progress=progress,
        what="dropout inversion",
    )
    if config.polish_steps and free:
        found = _polish(plan, found, config=config, box=box, progress=progress)
    return plan.best(found)


def _start_masks(plan: Plan, *, passes: int, how: str) -> list[Tensor]:
    """One float (R, *site shape) a call of every pass, each client's from its own seed."""
    assert plan.rates is not None
    draws = [generator(derive_seed("masks", seed)) for seed in plan.seeds]
    masks = []
    for _ in range(passes):
        for number, site in enumerate(plan.net.sites):
            rate = plan.rates[:, number].double().cpu()
            uniform = torch.stack([torch.rand(site.shape, generator=g, dtype=torch.float64) for g in draws])
            bernoulli = (uniform >= rate.reshape(-1, *[1] * len(site.shape))).double()
            mask = {"bernoulli": bernoulli, "uniform": uniform, "ones": torch.ones_like(uniform)}[how]
            masks.append(mask.to(device=plan.net.device, dtype=plan.net.dtype))
    return masks


def _polish(plan: Plan, found: Inverted, *, config: InversionConfig, box: Box, progress: Progress) -> Inverted:
    """Go on with the masks rounded and ``x`` alone, at a tenth of the first learning rate."""
    rounded = tuple((m >= 0.5).to(m.dtype) for m in found.masks)
    last = minimise(
        plan.objective,
        found.x,
        plan.labels,
        config=dataclasses.replace(config, lr=config.lr / 10),
        box=box,
        given=rounded,
        steps=config.polish_steps,
        progress=progress,
        what="dropout inversion, masks rounded",
    )
    return dataclasses.replace(last, iterations=found.iterations + last.iterations)
