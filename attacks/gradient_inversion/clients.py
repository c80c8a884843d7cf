"""Clients of a simulated round: what they compute and share, and what stays in their memory.

    observed  Update         the gradients, or the weights' change after E local steps: all that the server sees
    memory    ClientMemory   inputs, labels, masks: the truth that a reconstruction is measured against

Masks are drawn by every client on its own, anew for every forward pass. An attack takes the Update; only the control
``well_informed`` is given the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.gradient_inversion.instrument import Instrumented
from attacks.gradient_inversion.maskable import MaskableDropout
from attacks.gradient_inversion.objective import LocalTraining, Update, shared_update
from contracts.digests import derive_seed
from contracts.errors import DataError, InvalidInput


@dataclass(frozen=True, eq=False)
class ClientMemory:
    """What R clients know and do not share.

    Attributes:
        x: (R, B, *shape).
        labels: int64 (R, B).
        masks: {0, 1}, one (R, *site shape) a dropout call of every local step; () without dropout.
        reached: bool, like ``masks``: the unit was not 0 before its dropout, so that its mask matters.
        rates: (R, S) of the S dropout calls of a pass.
    """

    x: Tensor
    labels: Tensor
    masks: tuple[Tensor, ...]
    reached: tuple[Tensor, ...]
    rates: Tensor

    def rows(self, rows: Tensor | slice) -> ClientMemory:
        return ClientMemory(
            self.x[rows],
            self.labels[rows],
            tuple(m[rows] for m in self.masks),
            tuple(m[rows] for m in self.reached),
            self.rates[rows],
        )


def share(
    net: Instrumented,
    x: Tensor,
    labels: Tensor,
    *,
    seeds: Sequence[int],
    rates: Tensor | None = None,
    ids: Sequence[Sequence[int]] | None = None,
    local: LocalTraining = LocalTraining(),  # noqa: B008
) -> tuple[Update, ClientMemory]:
    """One local training of R clients.

    Args:
        net: the model all of them downloaded.
        x: (R, B, *shape), in the scale of the model's inputs.
        labels: int64 (R, B).
        seeds: R seeds of the clients' masks.
        rates: (R, S), p of each of the S dropout calls in [0, 1), 0 for a client whose dropout is off; the net's own
            when None.
        ids: (R, B) example ids, for messages.

    Raises:
        InvalidInput: shapes or counts that do not fit.
        DataError: inputs, or what they lead to, that are not finite; names the clients' examples when ``ids`` are
            given.
    """
    num = len(x)
    if x.shape[1:] != (net.batch, *net.input_shape) or labels.shape != x.shape[:2] or len(seeds) != num:
        raise InvalidInput(
            f"x {tuple(x.shape)}, labels {tuple(labels.shape)} and {len(seeds)} seeds for clients of "
            f"{net.batch} examples of shape {net.input_shape}"
        )
    x = x.to(device=net.device, dtype=net.dtype)
    rates = net.all_rates(num) if rates is None else rates.to(device=net.device, dtype=net.dtype)
    if rates.shape != (num, len(net.sites)):
        raise InvalidInput(f"rates {tuple(rates.shape)} for {num} clients and {len(net.sites)} dropout calls")
    passes = [
        [net.track(x[r], seed=derive_seed("pass", seeds[r], e), rates=rates[r].tolist()) for r in range(num)]
        for e in range(local.passes)
    ]
    sites = range(len(net.sites))
    masks = tuple(torch.stack([mode.masks[s] for mode in one]) for one in passes for s in sites)
    reached = tuple(torch.stack([_nonzero(mode, s) for mode in one]) for one in passes for s in sites)
    update = shared_update(net, x, labels, masks=masks, rates=rates, local=local).detach()
    finite = torch.stack([t.flatten(1).isfinite().all(1) for t in update.tensors.values()]).all(0)
    if not bool(finite.all()):
        broken = (~finite).nonzero()[:, 0].tolist()
        named = [] if ids is None else [i for r in broken for i in ids[r]]
        raise DataError(f"what {len(broken)} of {num} clients would share is not finite", example_ids=named)
    return update, ClientMemory(x, labels, masks, reached, rates)


def _nonzero(mode: MaskableDropout, site: int) -> Tensor:
    """Whether what a mask entry scales was anything but zero, in the mask's shape."""
    mask, seen = mode.masks[site], mode.inputs[site] != 0
    return seen if seen.shape == mask.shape else seen.flatten(2).any(-1).reshape(mask.shape)
