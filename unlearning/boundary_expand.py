"""BE: boundary expanding. What is to be forgotten is taught an extra class, which is then cut off (Chen et al.,
Boundary Unlearning, CVPR 2023; baseline BE of Fan et al., ICLR 2024).

    head (C, H) -> (C + 1, H): the old rows as they are, one new row
    theta <- argmin_theta  E_{x in D_f} CE(f+(x; theta), C)               f+: C + 1 logits, C the extra class
    result: the first C rows again, so a plain model of the original architecture

The retained examples are not trained on; the extra class draws the forgotten ones over, and without it they fall to
their nearest other classes. Published: 10 epochs, lr in [1e-6, 1e-4], the most careful of all. With no epoch the first
C logits are those of the model.

It is not a rejection class: nothing of it is left in the result.
Shapes: logits (B, C), in training (B, C + 1).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.errors import Diverged, NotApplicable
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from recipes.predict import eval_mode
from recipes.rng import generator
from sources.example_set import ExampleSet
from tasks.base import answers
from unlearning.descent import Descent, DescentConfig, Pass, check_sets, inputs_of
from unlearning.masked import descend_masked
from unlearning.masks import Mask, check_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundaryExpandConfig(DescentConfig):
    lr: float = param(1e-5, gt=0, le=1, search=(1e-6, 1e-4), doc="learning rate; published search range 1e-6 to 1e-4")


class _Expanded(nn.Module):
    """An output layer with one more row, which only a model in training mode shows."""

    def __init__(self, layer: nn.Linear, new_row: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([layer.weight.detach(), new_row[None]]), layer.weight.requires_grad)
        self.bias: nn.Parameter | None = None
        if layer.bias is not None:
            extended = torch.cat([layer.bias.detach(), layer.bias.new_zeros(1)])
            self.bias = nn.Parameter(extended, layer.bias.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H) -> (B, C + 1) in training mode, (B, C) in eval mode: the same layer as before, to the bit."""
        weight, bias = self.weight, self.bias
        if not self.training:
            weight, bias = weight[:-1], None if bias is None else bias[:-1]
        return F.linear(x, weight, bias)

    def cut(self, layer: nn.Linear) -> nn.Linear:
        """A copy of ``layer``, as it was, with the first rows of this one."""
        found = copy.deepcopy(layer)
        with torch.no_grad():
            found.weight.copy_(self.weight[:-1])
            if self.bias is not None:
                found.bias.copy_(self.bias[:-1])
        return found


def output_layer(model: nn.Module, data: ExampleSet) -> str:
    """The name of the linear map whose output is the model's answer.

    Raises:
        NotApplicable: there is none: the logits come from something else, or the layer is used more than once.
        Diverged: the logits are not finite.
    """
    seen: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.append((name, output)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with eval_mode(model), torch.no_grad():
            said = answers(model, inputs_of(model, data.take(np.arange(1))).slice(0, 1))
    finally:
        for hook in hooks:
            hook.remove()
    if not bool(torch.isfinite(said).all()):
        raise Diverged("boundary_expand: the model before unlearning has outputs that are not finite")
    names = [name for name, _ in seen]
    is_last = bool(seen) and seen[-1][1].shape == said.shape and torch.equal(seen[-1][1], said)
    if not is_last or not names[-1] or names.count(names[-1]) > 1:
        raise NotApplicable(
            "boundary_expand: the model's logits are not the output of one linear layer, which could be given a row"
        )
    return names[-1]


@unlearner(
    UnlearnerSpec(
        name="boundary_expand",
        wants=("outputs", "classes"),
        doc="Teaches the examples to be forgotten an extra class, which is then cut off.",
        source="Chen et al., Boundary Unlearning, CVPR 2023; Fan et al., ICLR 2024, arXiv 2310.12508, baseline BE",
        config=BoundaryExpandConfig,
        masked=True,
    )
)
def boundary_expand(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: BoundaryExpandConfig,
    seed: int,
    mask: Mask | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Train a copy of ``model`` with one more output to call ``forget`` by it, and cut it off.

    Args:
        model: trained classifier whose logits are the output of a linear layer; not changed.
        retain: (N_r) examples to keep; used only to notice a collapse.
        forget: (N_f) examples to remove; with none of them the copy is returned as it is.
        config: see :class:`BoundaryExpandConfig`.
        seed: the new row, batch order and dropout.
        mask: weights that may move, by name of parameter; None: every one. The new row always may.
        progress: called after each step.

    Returns:
        The unlearned copy, of the original architecture, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_sets``; another output layer.
        InvalidInput: a mask that does not fit the model.
        Diverged: the run left the finite numbers or collapsed.
    """
    check_sets(model, retain=retain, forget=forget, trains_on_retain=False, wants=("outputs", "classes"))
    check_mask(model, mask)
    expanded = copy.deepcopy(model)
    if not len(forget):
        return expanded.eval()
    name = output_layer(model, forget)
    head = expanded.get_submodule(name)
    assert isinstance(head, nn.Linear)
    bound = 1 / math.sqrt(head.in_features)  # as PyTorch initialises a row of a linear layer
    draws = generator(derive_seed("boundary_expand", "row", seed))
    row = (2 * torch.rand(head.in_features, generator=draws) - 1) * bound
    wide = _Expanded(head, row.to(head.weight.device, head.weight.dtype))
    _put(expanded, name, wide)
    gone = inputs_of(model, forget, beside=retain)
    targets = np.full(len(gone), head.out_features, np.int64)
    plan = Descent(
        model=expanded,
        passes=lambda _: [Pass.over(gone, targets=targets)],
        retain=retain,
        config=config,
        seed=seed,
        name="boundary_expand",
    )
    wider = {n: _extended(m) if n.startswith(f"{name}.") else m for n, m in (mask or {}).items()}
    student = descend_masked(plan, expanded, wider, progress=progress)
    trained = student.get_submodule(name)
    assert isinstance(trained, _Expanded)
    _put(student, name, trained.cut(head))
    return student.eval()


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, layer)


def _extended(mask: Tensor) -> Tensor:
    """The mask of the wider layer: the new row may move."""
    return torch.cat([mask, torch.ones_like(mask[:1])])
