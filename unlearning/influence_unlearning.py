"""IU: one Newton-like step that takes the influence of the forget set out (Koh & Liang, ICML 2017; baseline IU of Fan
et al., ICLR 2024, and Jia et al., NeurIPS 2023).

    v = (1/N) sum_{i in D_f} g_i - N_f / (N N_r) sum_{i in D_r} g_i  =  grad L(D) - grad L(D_r),      N = N_f + N_r
    theta <- theta0 + alpha H^-1 v                                   g_i: gradient of the loss of example i at theta0

    fisher    H = lambda I + (1/n) sum g_i g_i'  over n retained examples, inverted exactly: with G (n, d) their rows,
              H^-1 v = (v - G' (n lambda I + G G')^-1 G v) / lambda                                (Woodbury)
              of numbers to predict sum g_i g_i' times D / (2 s^2), D numbers an example, s^2 their mean loss: the
              Fisher information is that of a likelihood, here Gaussian, of which the squared error is 2 s^2 / D
    hessian   H = lambda I + Hessian of the mean retained loss, dense: for models of at most 4,096 weights

lambda is a share of the mean diagonal of the curvature. Where the full loss is stationary, alpha = 1 is Newton's step
on the retained loss. The published recursion ("WoodFisher") never refreshes one of its vectors and is not an inverse;
the system is solved instead, in float64. Under a mask the step is that of the weights that may move, the others fixed:
curvature and v are cut to these before H is inverted.

It is not exact: the loss is not quadratic and the curvature that of at most 1,000 examples; what of v lies outside the
span of their gradients is divided by lambda alone, so that few examples want more damping. alpha decides; published
default 0.2, searched from 1 to 20.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import Diverged, NotApplicable
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import Config, param
from contracts.progress import Progress, silent
from recipes.fitting import Units
from recipes.inputs import Inputs
from recipes.predict import eval_mode
from sources.example_set import ExampleSet
from unlearning.descent import check_sets, finish, in_units, inputs_of, start, trainable
from unlearning.edits import finished
from unlearning.gradients import gradient_rows, summed_gradient
from unlearning.masks import Mask, check_mask

_DENSE = 4096  # weights of a dense Hessian: 134 MB in float64
_NUMBERS = 1 << 28  # of the gradients that are held: 1 GiB in float32
_COLUMNS = 1 << 13  # columns of them in float64 at a time: 64 MiB of 1,000 examples


@dataclass(frozen=True, kw_only=True, slots=True)
class InfluenceUnlearningConfig(Config):
    alpha: float = param(
        0.2, ge=0, le=1000, search=(1.0, 20.0), doc="step size; 1 is Newton's step; choose it by avg_gap over a grid"
    )
    curvature: str = param("fisher", choices=("fisher", "hessian"), doc="empirical Fisher, or the dense Hessian")
    examples: int = param(
        1000, ge=1, le=1_000_000, doc="retained examples of the Fisher; fewer where their gradients pass 2^28 numbers"
    )
    damping: float = param(1e-3, gt=0, le=1000, doc="lambda, as a share of the mean diagonal of the curvature")


def inverse_fisher_product(rows: Tensor, vector: Tensor, *, damping: float) -> Tensor:
    """H^-1 v with H = damping I + (1/n) rows' rows, by the Woodbury identity; float64 (d,).

    Args:
        rows: (n, d) gradients, one an example, n >= 1.
        vector: (d,).
        damping: lambda > 0.

    >>> rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> inverse_fisher_product(rows, torch.tensor([1.0, 1.0]), damping=0.5)
    tensor([1.0000, 0.4000], dtype=torch.float64)
    """
    num, vector = len(rows), vector.double()
    gram = torch.zeros(num, num, dtype=torch.float64, device=rows.device)
    for columns in rows.split(_COLUMNS, dim=1):
        gram += columns.double() @ columns.double().mT
    product = torch.cat([block.double() @ vector for block in _row_blocks(rows)])
    gram.diagonal().add_(num * damping)
    weights = torch.linalg.solve(gram, product)
    blocks = zip(rows.split(_COLUMNS, dim=1), vector.split(_COLUMNS), strict=True)
    return torch.cat([part - columns.double().mT @ weights for columns, part in blocks]) / damping


def _row_blocks(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, (1 << 24) // rows.shape[1]))


@unlearner(
    UnlearnerSpec(
        name="influence_unlearning",
        wants=("losses", "reading"),
        doc="Takes the influence of the examples to be forgotten out of the weights in one Newton-like step.",
        source="Koh & Liang, ICML 2017; Fan et al., SalUn, ICLR 2024, arXiv 2310.12508, baseline IU",
        config=InfluenceUnlearningConfig,
        masked=True,
    )
)
def influence_unlearning(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: InfluenceUnlearningConfig,
    seed: int,
    mask: Mask | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Step a copy of ``model`` against the influence of ``forget``.

    Args:
        model: trained; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove; with none of them the copy is returned as it is.
        config: see :class:`InfluenceUnlearningConfig`.
        seed: which retained examples give the curvature.
        mask: weights that may move, by name of parameter; None: every one.
        progress: called once at the end.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_sets``; a dense Hessian of too many weights.
        InvalidInput: a mask that does not fit the model.
        Diverged: a gradient is not finite, there is no curvature at all, or the result has collapsed.
    """
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True)
    check_mask(model, mask)
    student = copy.deepcopy(model).eval()
    own = trainable(student)
    free = torch.cat([_allowed(name, p, mask) for name, p in own.items()])
    if config.curvature == "hessian" and int(free.sum()) > _DENSE:
        raise NotApplicable(
            f"influence_unlearning: a dense Hessian of {int(free.sum())} weights; at most {_DENSE} are allowed: set "
            "curvature to 'fisher'"
        )
    run = f"influence_unlearning at alpha {config.alpha:g}"
    if len(forget) and bool(free.any()):
        units = start(student, retain)
        kept, gone = inputs_of(student, retain), inputs_of(student, forget, beside=retain)
        step = config.alpha * _direction(student, kept, gone, free=free, config=config, seed=seed, units=units)
        with torch.no_grad():
            flat = torch.cat([p.flatten() for p in own.values()])
            flat[free] += step.to(flat.dtype)
            for p, piece in zip(own.values(), flat.split([p.numel() for p in own.values()]), strict=True):
                p.copy_(piece.reshape(p.shape))
        finish(student, units)
    progress(1, 1, "influence_unlearning")
    return finished(student, model, retain=retain, seed=seed, run=run, mask=mask)


def _allowed(name: str, p: Tensor, mask: Mask | None) -> Tensor:
    chosen = (mask or {}).get(name)
    return torch.ones(p.numel(), dtype=torch.bool, device=p.device) if chosen is None else chosen.flatten().to(p.device)


def _direction(
    student: nn.Module,
    kept: Inputs,
    gone: Inputs,
    *,
    free: Tensor,
    config: InfluenceUnlearningConfig,
    seed: int,
    units: Units | None,
) -> Tensor:
    """H^-1 v of the weights that may move, float64."""
    num_kept, num_gone = len(kept), len(gone)
    total = num_kept + num_gone
    parts = [summed_gradient(student, inputs, units=units) for inputs in (gone, kept)]
    forgotten, retained = (torch.cat([g.flatten() for g in part.values()])[free] for part in parts)
    v = forgotten / total - retained * (num_gone / (total * num_kept))
    if config.curvature == "hessian":
        matrix = _hessian(student, kept, units=units)[free][:, free]
        matrix.diagonal().add_(_damping(float(matrix.diagonal().mean()), config.damping))
        return torch.linalg.solve(matrix, v)
    size = sum(p.numel() for p in trainable(student).values())
    num = min(config.examples, num_kept, max(1, _NUMBERS // size))
    rng = np.random.default_rng(derive_seed("influence_unlearning", "curvature", seed))
    chosen = np.sort(rng.permutation(num_kept)[:num]).tolist()
    rows = gradient_rows(student, kept, chosen, units=units)
    rows = rows if bool(free.all()) else rows[:, free]
    if kept.data.task.affine:
        rows *= _likelihood_factor(student, kept, chosen, units=units) ** 0.5
    diagonal = sum(float(block.double().square().sum()) for block in _row_blocks(rows)) / rows.numel()
    return inverse_fisher_product(rows, v, damping=_damping(diagonal, config.damping))


def _likelihood_factor(student: nn.Module, kept: Inputs, chosen: list[int], *, units: Units | None) -> float:
    """D / (2 s^2): what the second moment of the gradients of a mean squared error is multiplied by to be its
    curvature."""
    total, numbers = 0.0, 1
    with eval_mode(student), torch.no_grad():
        for rows in torch.tensor(chosen, device=kept.device).split(512):
            batch = in_units(kept.batch(rows), units)
            total += float(kept.data.task.losses(student, batch).double().sum())
            numbers = batch.targets[0].numel()
    mean = total / len(chosen)
    return numbers / (2 * mean) if mean > 0 else 1.0


def _damping(diagonal: float, share: float) -> float:
    """lambda > 0."""
    if not diagonal > 0 or not np.isfinite(share * diagonal) or share * diagonal == 0:
        raise Diverged(f"influence_unlearning: the mean curvature of the retained loss is {diagonal:g}, not positive")
    return share * diagonal


def _hessian(student: nn.Module, kept: Inputs, *, units: Units | None) -> Tensor:
    """(d, d) float64, of the mean loss."""
    own = list(trainable(student).values())
    size = sum(p.numel() for p in own)
    total = torch.zeros(size, size, dtype=torch.float64, device=kept.device)
    with eval_mode(student), torch.enable_grad():
        for first in range(0, len(kept), 256):
            batch = in_units(kept.slice(first, min(first + 256, len(kept))), units)
            loss = kept.data.task.losses(student, batch).sum()
            gradients = torch.autograd.grad(loss, own, create_graph=True, allow_unused=True)
            flat = torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(own, gradients, strict=True)]
            )
            for at in range(size):
                row = torch.autograd.grad(flat[at], own, retain_graph=True, allow_unused=True)
                pieces = [torch.zeros_like(p) if r is None else r for p, r in zip(own, row, strict=True)]
                total[at] += torch.cat([piece.flatten() for piece in pieces])
    return total / len(kept)
