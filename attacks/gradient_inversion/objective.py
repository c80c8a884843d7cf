"""What a client shares, as a differentiable function of its data, and how far a candidate's is from the observed one.

    E = 0     g = grad_w CE(f_{w, m}(x), y)                                              one gradient
    E >= 1    w_{e+1} = w_e - lr grad CE(f_{w_e, m_e}(x), y),  shared: w_E - w_0          a federated update, full batch

    cosine    1 - <g, g*> / (||g|| ||g*||)           over ALL parameters concatenated, in [0, 2]; scale-free in g and in
              g*
    squared   ||g - g*||^2 / ||g*||^2                 DLG; the division changes no minimiser
    l1        ||g - g*||_1 / ||g*||_1                 over kept coordinates, where only some are kept

    total     distance + l_TV TV(x) + l_m sum_l | (1 - mean m_l) - p_l |       TV = mean |dx| + mean |dy|, images only

R clients are differentiated side by side (torch.func.vmap): one graph, R independent problems, no value of one in the
gradient of another. A model that vmap cannot take is differentiated client by client, with the same values. Shapes: x
(R, B, *shape), masks of site l (R, *site shape), labels (R, B) or probabilities (R, B, K). A layer without gradient
adds nothing to either norm; if all have none the distance is 1 and says nothing.

Source: Zhu et al. (NeurIPS 2019, arXiv 1906.08935); Geiping et al. (NeurIPS 2020, arXiv 2003.14053), equation 4 and
    section 6;
Scheliga et al. (AAAI 2023, arXiv 2208.06163), equations of DIA. A layer-wise mean of cosines is another objective.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import grad, vmap

from attacks.gradient_inversion.instrument import Instrumented
from contracts.errors import DataError, InvalidInput
from contracts.params import Config, param

Distance = Literal["cosine", "squared", "l1"]
_PIECE = 2**16  # numbers of a piece, all clients together
_TINY = 1e-30  # under a square root: keeps the derivative finite at a gradient of zero


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalTraining(Config):
    """What the client does before it shares."""

    steps: int = param(0, ge=0, le=1000, doc="local full-batch SGD steps E; 0 shares the gradient itself")
    lr: float = param(0.1, gt=0, le=100, doc="of the local steps")

    @property
    def passes(self) -> int:
        """Forward passes, each with masks of its own."""
        return max(self.steps, 1)


@dataclass(frozen=True, eq=False)
class Update:
    """What R clients shared: one tensor (R, *parameter shape) a trainable parameter, in the model's order."""

    tensors: dict[str, Tensor]
    local: LocalTraining = LocalTraining()

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def norm(self) -> Tensor:
        """float64 (R,)."""
        return _squared_norm([t.double() for t in self.tensors.values()]).sqrt()

    def detach(self) -> Update:
        """Without the graph that made it."""
        return Update({name: t.detach() for name, t in self.tensors.items()}, self.local)

    def rows(self, rows: Tensor | slice) -> Update:
        return Update({name: t[rows] for name, t in self.tensors.items()}, self.local)


def shared_update(
    net: Instrumented,
    x: Tensor,
    targets: Tensor,
    *,
    masks: Sequence[Tensor] | None,
    rates: Tensor | None = None,
    local: LocalTraining = LocalTraining(),
) -> Update:
    """What R clients share, differentiable in ``x``, ``targets`` (when probabilities) and ``masks``.

    Args:
        net: the model they all start from.
        x: (R, B, *shape).
        targets: int64 (R, B), or probabilities (R, B, K).
        masks: (R, *site shape) a dropout call, the calls of later local steps after those of earlier ones; None: no
            dropout.
        rates: (R, S) rates of the S calls; the net's own when None.

    Raises:
        InvalidInput: the number of masks does not fit the net and the steps.
    """
    given = None if masks is None else list(masks)
    sites = len(net.sites)
    if given is not None and len(given) != sites * local.passes:
        raise InvalidInput(f"{len(given)} masks for {sites} dropout calls in {local.passes} forward passes")

    def of_one(x1: Tensor, y1: Tensor, masks1: list[Tensor] | None, rates1: Tensor | None) -> dict[str, Tensor]:
        def gradient(params: dict[str, Tensor], step: int) -> dict[str, Tensor]:
            used = None if masks1 is None else masks1[step * sites : (step + 1) * sites]

            def loss(w: dict[str, Tensor]) -> Tensor:
                return F.cross_entropy(net.logits(w, x1, masks=used, rates=rates1), y1)

            if net.side_by_side:
                slope: dict[str, Tensor] = grad(loss)(params)
                return slope
            own = {name: p if p.requires_grad else p.clone().requires_grad_() for name, p in params.items()}
            with torch.enable_grad():
                slopes = torch.autograd.grad(loss(own), list(own.values()), create_graph=True)
            return dict(zip(own, slopes, strict=True))

        if not local.steps:
            return gradient(net.params, 0)
        params = net.params
        for step in range(local.steps):
            slope = gradient(params, step)
            params = {name: w - local.lr * slope[name] for name, w in params.items()}
        return {name: w - net.params[name] for name, w in params.items()}

    if not net.side_by_side:
        each = [
            of_one(
                x[r], targets[r], None if given is None else [m[r] for m in given], None if rates is None else rates[r]
            )
            for r in range(len(x))
        ]
        return Update({name: torch.stack([one[name] for one in each]) for name in net.params}, local)
    axes = (0, 0, None if given is None else 0, None if rates is None else 0)
    return Update(vmap(of_one, in_dims=axes)(x, targets, given, rates), local)


def check_update(update: Update, net: Instrumented) -> None:
    """Refuse what was not shared by clients of this net.

    Raises:
        InvalidInput: names or shapes differ from the net's parameters.
        DataError: values that are not finite.
    """
    wanted = {name: tuple(p.shape) for name, p in net.params.items()}
    got = {name: tuple(t.shape[1:]) for name, t in update.tensors.items()}
    if wanted != got:
        odd = sorted(set(wanted.items()) ^ set(got.items()))[:4]
        raise InvalidInput(f"the update does not fit the model's parameters: {', '.join(f'{n} {s}' for n, s in odd)}")
    for name, tensor in update.tensors.items():
        if not bool(tensor.isfinite().all()):
            raise DataError(f"the shared {name} is not finite")


class Objective:
    """``objective(x, masks, targets) -> (total (R,), distance (R,))`` against a fixed update.

    Args:
        net, update: the model and what was observed of R clients.
        rates: (R, S), p of each dropout call; None for the net's own.
        distance: "cosine", "squared" or "l1".
        tv, mask_weight: l_TV and l_m.
        keep: None, or the share of coordinates, largest in magnitude, that the distance looks at.
    """

    def __init__(
        self,
        net: Instrumented,
        update: Update,
        *,
        rates: Tensor | None = None,
        distance: Distance = "cosine",
        tv: float = 0.0,
        mask_weight: float = 0.0,
        keep: float | None = None,
    ) -> None:
        check_update(update, net)
        self.net, self.local, self.rates = net, update.local, rates
        self.distance, self.tv, self.mask_weight = distance, tv, mask_weight
        # Relative to its own norm: no constant in a denominator then decides how a small gradient is weighed.
        scale = update.norm().clamp_min(torch.finfo(net.dtype).tiny)
        self._scale = scale
        self._observed = [(t.double() / _like(scale, t)).to(t.dtype) for t in update.tensors.values()]
        self._kept = None if keep is None or keep >= 1 else _largest(self._observed, keep)
        if self._kept is not None:
            self._observed = [o * k for o, k in zip(self._observed, self._kept, strict=True)]
        self._observed_norm = (_squared_norm(self._observed) + _TINY).sqrt()

    def rows(self, rows: Tensor) -> Objective:
        """The same for some of the clients."""
        part = copy.copy(self)
        part._observed = [t[rows] for t in self._observed]
        part._observed_norm = self._observed_norm[rows]
        part._scale = self._scale[rows]
        part.rates = None if self.rates is None else self.rates[rows]
        part._kept = None if self._kept is None else [k[rows] for k in self._kept]
        return part

    def __call__(self, x: Tensor, masks: Sequence[Tensor] | None, targets: Tensor) -> tuple[Tensor, Tensor]:
        found = shared_update(self.net, x, targets, masks=masks, rates=self.rates, local=self.local)
        distance = self._compare(list(found.tensors.values()))
        total = distance
        if self.tv:
            total = total + self.tv * total_variation(x)
        if self.mask_weight and masks:
            total = total + self.mask_weight * self._mask_penalty(masks)
        return total, distance

    def _compare(self, found: list[Tensor]) -> Tensor:
        observed = self._observed
        if self._kept is not None:
            found = [f * k for f, k in zip(found, self._kept, strict=True)]
        if self.distance == "cosine":
            distance: Tensor = _Cosine.apply(observed, self._observed_norm, *found)
            return distance
        found = [f / _like(self._scale.to(f.dtype), f) for f in found]
        gaps = [f - o for f, o in zip(found, observed, strict=True)]
        if self.distance == "squared":
            return _squared_norm(gaps)
        total = _add([o.abs().flatten(1).sum(1) for o in observed])
        return _add([g.abs().flatten(1).sum(1) for g in gaps]) / total.clamp_min(_TINY)

    def _mask_penalty(self, masks: Sequence[Tensor]) -> Tensor:
        terms = []
        for number, mask in enumerate(masks):
            site = number % len(self.net.sites)
            rate = self.net.rates[site] if self.rates is None else self.rates[:, site]
            terms.append((1 - mask.flatten(1).mean(1) - rate).abs())
        return _add(terms)


class _Cosine(torch.autograd.Function):
    """1 - <f, o> / (||f|| ||o||) of R clients, over all parameters together; differentiable once, in f.

        d/df = -o / (||f|| ||o||) + <f, o> f / (||f||^3 ||o||)

    The same as by torch's own operations, without their ten temporaries of the size of the gradients: with 10^5
    parameters a client, more of a step goes into fresh memory than into the model.
    """

    @staticmethod
    def forward(ctx: Any, observed: list[Tensor], observed_norm: Tensor, *found: Tensor) -> Tensor:
        dot = _add([_dot(f, o) for f, o in zip(found, observed, strict=True)])
        norm = (_add([_dot(f, f) for f in found]) + _TINY).sqrt()
        ctx.save_for_backward(dot, norm, observed_norm, *found)
        ctx.observed = observed
        return 1 - dot / (norm * observed_norm)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        dot, norm, observed_norm, *found = ctx.saved_tensors
        along_observed = -slope / (norm * observed_norm)
        along_found = slope * (dot / norm / norm) / (norm * observed_norm)
        slopes = [
            (o * _like(along_observed, o)).addcmul_(f, _like(along_found, f))
            for f, o in zip(found, ctx.observed, strict=True)
        ]
        return (None, None, *slopes)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(R,) sums of products, on a CPU in pieces that stay in its cache."""
    a, b = a.flatten(1), b.flatten(1)
    width = max(1, _PIECE // len(a)) if a.device.type == "cpu" else a.shape[1]
    return _add([(u * v).sum(1) for u, v in zip(a.split(width, dim=1), b.split(width, dim=1), strict=True)])


def total_variation(x: Tensor) -> Tensor:
    """(R, B, C, H, W) -> (R,): mean absolute step along x plus that along y; 0 for what is no image.

    >>> total_variation(torch.tensor([[[[[0.0, 1.0], [0.0, 1.0]]]]])).tolist()
    [1.0]
    """
    if x.dim() != 5:
        return torch.zeros(len(x), dtype=x.dtype, device=x.device)
    steps = [(x[..., 1:] - x[..., :-1]), (x[..., 1:, :] - x[..., :-1, :])]
    return _add([s.abs().flatten(1).mean(1) for s in steps if s.numel()] or [x.flatten(1).sum(1) * 0])


def _largest(values: list[Tensor], share: float) -> list[Tensor]:
    """Masks (as numbers) of the ``share`` of coordinates of each client with the largest magnitude."""
    flat = torch.cat([v.abs().flatten(1) for v in values], dim=1)
    count = max(1, round(share * flat.shape[1]))
    chosen = torch.zeros_like(flat).scatter_(1, flat.topk(count, dim=1).indices, 1.0)
    parts = chosen.split([v[0].numel() for v in values], dim=1)
    return [p.reshape(v.shape) for p, v in zip(parts, values, strict=True)]


def _squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    return _add([t.flatten(1).square().sum(1) for t in tensors])


def _add(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _like(scale: Tensor, tensor: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (tensor.dim() - 1))
