"""Inversion of a stale federated update: a small synthetic set whose local training from the OLD weights gives the
update.

    dw(X, V) = w_E - w_old,   w_{e+1} = w_e - lr grad CE(f_{w_e}(X), softmax(V))         E unrolled full-batch steps
    argmin_{X, V}  || mask * (dw(X, V) - dw*) ||_1 / || mask * dw* ||_1                  or 1 - cosine
    mask = the ``keep`` share of coordinates with the largest |dw*|;  Adam, lr x 0.1 at 3/8, 5/8, 7/8

(X, V) stands for the client's distribution, not for its samples: it is smaller than the client's set. Trained on from
the CURRENT weights (``unstale``), it estimates the update that the client would send now. A later inversion of the same
client starts from the last one (``warm``). Memory is E times the graph of one step.

Source: "Tackling the Unlimited Staleness in Federated Learning" (AAAI 2025, arXiv 2309.13536); Geiping et al. (NeurIPS
2020), section 6. The client's loss and steps must be its real ones: an update made under dropout, or from mini-batches,
leaves a floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.gradient_inversion.engine import Box, InversionConfig, Inverted, minimise
from attacks.gradient_inversion.instrument import Instrumented
from attacks.gradient_inversion.inverting_gradients import starts
from attacks.gradient_inversion.objective import LocalTraining, Objective, Update, shared_update
from contracts.digests import derive_seed
from contracts.errors import InvalidInput
from contracts.params import Config, param
from contracts.progress import Progress, silent
from recipes.rng import generator


@dataclass(frozen=True, kw_only=True, slots=True)
class StaleConfig(Config):
    """How an update is inverted."""

    steps: int = param(400, ge=1, le=1_000_000, doc="Adam steps")
    lr: float = param(0.05, gt=0, le=10, doc="of X and V")
    signed: bool = param(False, doc="step along the sign of X's gradient")
    distance: str = param("l1", choices=("l1", "cosine", "squared"), doc="between the updates")
    keep: float = param(1.0, gt=0, le=1, doc="share of coordinates, largest in magnitude, that are matched")
    tv: float = param(0.0, ge=0, le=10, doc="weight of the total variation; images only")


def invert_update(
    net: Instrumented,
    delta: Mapping[str, Tensor],
    *,
    local: LocalTraining,
    box: Box,
    config: StaleConfig,
    seeds: Sequence[int],
    warm: Inverted | None = None,
    progress: Progress = silent,
) -> Inverted:
    """Synthetic sets of R clients from their stale updates.

    Args:
        net: the OLD model that they downloaded, instrumented with ``batch`` = examples of a synthetic set.
        delta: w_new - w_old by parameter, (R, *parameter shape).
        local: the clients' steps and learning rate, E >= 1.
        box: bounds of X.
        seeds: R seeds of the starts.
        warm: an earlier result for the same clients, the start in place of noise.

    Returns:
        ``x`` (R, B, *shape), ``targets`` probabilities (R, B, K), ``distance`` of the best iterate.

    Raises:
        InvalidInput: shapes that do not fit, no local step.
        DataError: an update that is not finite.
    """
    if local.steps < 1:
        raise InvalidInput("an update needs local.steps >= 1; a bare gradient is inverted by inverting_gradients")
    update = Update(dict(delta), local)
    if len(seeds) != len(update):
        raise InvalidInput(f"{len(seeds)} seeds for {len(update)} clients")
    objective = Objective(net, update, distance=config.distance, tv=config.tv, keep=config.keep)  # type: ignore[arg-type]
    if warm is None:
        x = starts(net, seeds)
        draws = [generator(derive_seed("label", s)) for s in seeds]
        v = torch.stack(
            [torch.randn((net.batch, net.num_outputs), generator=g, dtype=torch.float64) for g in draws]
        ).to(x)
    else:
        x, v = warm.x, warm.targets.clamp_min(torch.finfo(warm.targets.dtype).tiny).log()
        if x.shape != (len(update), net.batch, *net.input_shape) or v.shape != (
            len(update),
            net.batch,
            net.num_outputs,
        ):
            raise InvalidInput(f"a warm start of shapes {tuple(x.shape)} and {tuple(v.shape)} does not fit")
    plan = InversionConfig(
        steps=config.steps,
        lr=config.lr,
        signed=config.signed,
        schedule="milestones",
        tv=config.tv,
        tolerance=0.0,
        stop_patience=config.steps,
    )
    return minimise(
        objective, x, v, config=plan, box=box, soft=True, progress=progress, what="inversion of stale updates"
    )


def unstale(net: Instrumented, synthetic: Inverted, *, local: LocalTraining) -> dict[str, Tensor]:
    """The updates (R, *parameter shape) that local training on the synthetic sets gives from ``net``, the CURRENT
    model."""
    with torch.no_grad():
        return shared_update(net, synthetic.x, synthetic.targets, masks=None, local=local).detach().tensors
