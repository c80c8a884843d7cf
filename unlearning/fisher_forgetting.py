"""FF: Fisher forgetting. Noise where the retained examples do not feel it (Golatkar et al., CVPR 2020; baseline FF of
Jia et al., NeurIPS 2023).

    F   = (1/n) sum_i sum_y p_y(x_i) (grad_theta -log p_y(x_i))^2        diagonal Fisher, over n retained examples
    var = alpha min(1 / (F + 1e-8), 1e3)          1e2 for the output layer; mean over the input dimension of a weight;
                                                  10 times as much for the output layer and for vectors (biases, norms)
    theta <- theta0 + sqrt(var) N(0, 1)
    class forgetting: of a class of which nothing is retained the output layer's row is N(0, 1e-4)

Of a linear map that sees one vector an example, the gradient is an outer product, so that its part of F is one matrix
product a class and holds no example's gradient:
    F_W = (1/n) sum_y (p_y delta_y^2)^T a^2        delta_y = d -log p_y / d output (n, out), a = input (n, in)

``batch`` > 1 squares the mean gradient of so many examples, weighted by their mean p_y, as the published code does with
32: no Fisher information, and many times larger, since a label that is unlikely for one example is not for another.
alpha is fragile: 1e-9 to 1e-6 by the published code, the result is worthless above and unchanged below; a ruin raises
``Diverged``.

It is not a descent: nothing is trained, and nothing brings back what the noise takes from the retained examples.
Shapes: F and var as the parameters.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from contracts.digests import derive_seed
from contracts.errors import Diverged
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import Config, param
from contracts.progress import Progress, silent
from recipes.inputs import Inputs
from recipes.predict import eval_mode
from recipes.rng import generator
from sources.example_set import ExampleSet
from unlearning.descent import check_sets, inputs_of, trainable
from unlearning.edits import finished
from unlearning.masks import Mask, check_mask

_NUMBERS = 1 << 22  # of gradients at a time
_EXAMPLES = 512  # whose activations are held at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class FisherForgettingConfig(Config):
    alpha: float = param(
        1e-7, ge=0, le=1, search=(1e-9, 1e-6), doc="scale of the variance; published 1e-9 to 1e-6; choose it by avg_gap"
    )
    examples: int = param(1000, ge=1, le=1_000_000, doc="retained examples of the Fisher information")
    batch: int = param(1, ge=1, le=65_536, doc="examples whose mean gradient is squared; 1: the Fisher information")
    class_rule: bool = param(True, doc="draw the output row of a class of which nothing is retained anew")


def fisher_of_outputs(model: nn.Module, inputs: Inputs, rows: Tensor, *, batch: int = 1) -> dict[str, Tensor]:
    """F of every parameter that trains, float64 >= 0, by name.

    Args:
        model: a classifier, read in eval mode.
        rows: (n,) int64, n >= 1, positions in ``inputs``, taken ``batch`` at a time; a rest is one group of its own.
        batch: examples whose mean gradient is squared.

    Raises:
        Diverged: a value that is not finite.
    """
    own = {name: p.detach() for name, p in trainable(model).items()}
    with eval_mode(model):
        total = _of_linear_maps(model, own, inputs, rows) if batch == 1 else {}
        left = {name: p for name, p in own.items() if name not in total}
        total |= _of_gradients(model, left, inputs, rows, batch) if left else {}
    for name in own:
        if not bool(torch.isfinite(total[name]).all()):
            raise Diverged(f"the Fisher information of {name} at the model before unlearning is not finite")
    return {name: total[name] for name in own}


def _of_gradients(
    model: nn.Module, own: dict[str, Tensor], inputs: Inputs, rows: Tensor, batch: int
) -> dict[str, Tensor]:
    """F of these parameters, from the gradients of every group."""
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in own.items()}
    size = sum(p.numel() for p in own.values())
    whole = len(rows) // batch * batch
    groups = [rows[:whole].reshape(-1, batch), *([rows[None, whole:]] if whole < len(rows) else [])]
    num = sum(len(group) for group in groups)
    for group in groups:
        for some in group.split(max(1, _NUMBERS // (size * max(inputs.data.num_classes, 1)))):
            x = inputs.gather(some.flatten())
            with torch.no_grad():
                p_y = model(x).softmax(dim=1).reshape(*some.shape, -1).mean(dim=1).double()
            x = x.reshape(*some.shape, *x.shape[1:])
            for classes in torch.arange(p_y.shape[1], device=x.device).split(max(1, _NUMBERS // size)):
                for name, g in _jacobian(model, own, x, classes).items():
                    weights = p_y[:, classes].reshape(len(x), len(classes), *[1] * (g.dim() - 2))
                    total[name] += (weights * g.double().square()).sum(dim=(0, 1)) / num
    return total


def _of_linear_maps(model: nn.Module, own: dict[str, Tensor], inputs: Inputs, rows: Tensor) -> dict[str, Tensor]:
    """F of the linear maps for which the closed form holds: called once, on one vector an example, their weights used
    nowhere else. What they give for the first examples is compared with gradients."""
    maps = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
        and all((f"{name}.{leaf}" if name else leaf) in own for leaf, _ in m.named_parameters(recurse=False))
    }

    def squares(rows: Tensor) -> dict[str, Tensor]:
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in maps}
        hooks = [
            m.register_forward_hook(lambda _, args, out, name=name: seen[name].append((args[0].detach(), out)))
            for name, m in maps.items()
        ]
        try:
            log_p = model(inputs.gather(rows)).log_softmax(dim=1)
        finally:
            for hook in hooks:
                hook.remove()
        once = {
            name: calls[0] for name, calls in seen.items() if len(calls) == 1 and calls[0][1].shape[:-1] == (len(rows),)
        }
        total: dict[str, Tensor] = {}
        p_y = log_p.detach().double().exp()
        for y in range(log_p.shape[1] if once else 0):
            at = [out for _, out in once.values()]
            found = torch.autograd.grad(log_p[:, y].sum(), at, retain_graph=True, allow_unused=True)
            for (name, (given, out)), delta in zip(once.items(), found, strict=True):
                weighed = p_y[:, y : y + 1] * (torch.zeros_like(out) if delta is None else delta).double().square()
                parts = {"weight": weighed.T @ given.double().square(), "bias": weighed.sum(dim=0)}
                for leaf, _ in maps[name].named_parameters(recurse=False):
                    key = f"{name}.{leaf}" if name else leaf
                    total[key] = total.get(key, 0.0) + parts[leaf]  # type: ignore[assignment]
        return total  # sums over these examples

    with torch.enable_grad():
        first = squares(rows[:4])
        if not first:
            return {}
        held = _of_gradients(model, {name: own[name] for name in first}, inputs, rows[:4], 1)
        close = {
            n for n in first if torch.allclose(first[n] / len(rows[:4]), held[n], rtol=1e-3, atol=1e-12, equal_nan=True)
        }
        total = {name: torch.zeros_like(own[name], dtype=torch.float64) for name in close}
        for some in rows.split(_EXAMPLES) if close else ():
            for name, value in squares(some).items():
                if name in close:
                    total[name] += value / len(rows)
    return total


def _jacobian(model: nn.Module, own: dict[str, Tensor], x: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """name -> (groups, len(classes), *shape): gradients of the mean log-probabilities of groups (groups, b, *shape)."""
    rest = {name: p.detach() for name, p in model.named_parameters() if name not in own}
    fixed = rest | {name: b.detach() for name, b in model.named_buffers()}

    def log_p(parameters: dict[str, Tensor], group: Tensor) -> Tensor:
        outputs = functional_call(model, {**fixed, **parameters}, (group,))
        return outputs.log_softmax(dim=1).mean(dim=0)[classes]

    try:
        found: dict[str, Tensor] = vmap(jacrev(log_p), in_dims=(None, 0))(own, x)
        return found
    except (RuntimeError, ValueError, NotImplementedError):  # an operation that vmap does not know
        each = [jacrev(log_p)(own, one) for one in x]
        return {name: torch.stack([one[name] for one in each]) for name in own}


def noise_variance(fisher: Tensor, *, alpha: float, head: bool) -> Tensor:
    """Variance of the noise on one parameter, of its shape.

    Args:
        fisher: F of the parameter.
        head: it is of the output layer.

    >>> found = noise_variance(torch.tensor([[0.0, 1.0], [4.0, 4.0]]), alpha=1.0, head=False)
    >>> [round(value, 3) for value in found[:, 0].tolist()]
    [500.5, 0.25]
    """
    variance = alpha * (1 / (fisher.double() + 1e-8)).clamp(max=1e2 if head else 1e3)
    if fisher.dim() > 1:
        variance = variance.mean(dim=1, keepdim=True).expand_as(fisher)
    return variance * (10 if head or fisher.dim() == 1 else 1)


def head_of(model: nn.Module, num_classes: int) -> frozenset[str]:
    """Names of the parameters of the output layer: the last linear map with a row for every class; empty without."""
    found = [
        name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features >= max(num_classes, 1)
    ]
    prefix = f"{found[-1]}." if found and found[-1] else ""
    return frozenset(prefix + leaf for leaf in ("weight", "bias")) if found else frozenset()


@unlearner(
    UnlearnerSpec(
        name="fisher_forgetting",
        wants=("outputs", "classes", "features"),
        doc="Adds noise to the weights where the Fisher information of the retained examples is small.",
        source="Golatkar et al., CVPR 2020, arXiv 1911.04933; Jia et al., NeurIPS 2023, arXiv 2304.04934, baseline FF",
        config=FisherForgettingConfig,
        masked=True,
    )
)
def fisher_forgetting(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: FisherForgettingConfig,
    seed: int,
    mask: Mask | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Add noise to a copy of ``model`` where ``retain`` does not feel it.

    Args:
        model: trained classifier; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove; looked at only for classes of which nothing is retained.
        config: see :class:`FisherForgettingConfig`.
        seed: the noise, and which retained examples are looked at.
        mask: weights that may move, by name of parameter; None: every one.
        progress: called once at the end.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_sets``.
        InvalidInput: a mask that does not fit the model.
        Diverged: a gradient is not finite, or the noise has ruined the model.
    """
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True, wants=("outputs", "classes", "features"))
    check_mask(model, mask)
    student = copy.deepcopy(model).eval()
    kept = inputs_of(student, retain)
    rng = np.random.default_rng(derive_seed("fisher_forgetting", "examples", seed))
    chosen = np.sort(rng.permutation(len(kept))[: config.examples])
    fisher = fisher_of_outputs(student, kept, torch.from_numpy(chosen).to(kept.device), batch=config.batch)
    head = head_of(student, retain.num_classes)
    gone = np.setdiff1d(forget.y, retain.y) if config.class_rule else np.empty(0, np.int64)
    draws = generator(derive_seed("fisher_forgetting", "noise", seed))
    with torch.no_grad():
        for name, p in trainable(student).items():
            mean, variance = p.double(), noise_variance(fisher[name], alpha=config.alpha, head=name in head)
            if name in head and len(gone):
                mean, variance = mean.clone(), variance.clone()
                mean[gone], variance[gone] = 0.0, 1e-4
            noise = torch.randn(p.shape, generator=draws, dtype=torch.float64).to(p.device)
            p.copy_(mean + variance.sqrt() * noise)
    progress(1, 1, "fisher_forgetting")
    run = f"fisher_forgetting at alpha {config.alpha:g}"
    return finished(student, model, retain=retain, seed=seed, run=run, mask=mask)
