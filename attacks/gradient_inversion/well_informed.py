"""The well-informed control: Inverting Gradients by somebody who holds the client's own dropout masks.

    argmin_x  1 - <g_{m*}(x), g*> / (||g_{m*}(x)|| ||g*||) + l_TV TV(x)

No attack: a server does not have m*. It is the upper end of what any attack on dropout could reach with this optimiser,
to be read beside DIA.

Source: WIIG in Scheliga, Maeder, Seeland (AAAI 2023, arXiv 2208.06163).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from attacks.gradient_inversion.clients import ClientMemory
from attacks.gradient_inversion.engine import Box, InversionConfig, Inverted, minimise
from attacks.gradient_inversion.instrument import Instrumented
from attacks.gradient_inversion.inverting_gradients import Plan
from attacks.gradient_inversion.objective import Update
from contracts.progress import Progress, silent


def well_informed(
    net: Instrumented,
    update: Update,
    memory: ClientMemory,
    *,
    labels: Tensor,
    box: Box,
    config: InversionConfig,
    seeds: Sequence[int],
    progress: Progress = silent,
) -> Inverted:
    """As :func:`inverting_gradients`, with the masks (and only the masks) of the clients' memory."""
    plan = Plan(net, update, labels, config=config, seeds=seeds, rates=memory.rates)
    given = [m[plan.rows] for m in memory.masks] or None
    found = minimise(
        plan.objective,
        plan.start(),
        plan.labels,
        config=config,
        box=box,
        given=given,
        progress=progress,
        what="well-informed control",
    )
    return plan.best(found)
