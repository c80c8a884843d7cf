"""l1-sparse: fine-tune on what is kept with an l1 penalty that fades out (Jia et al., NeurIPS 2023).

    theta <- SGD step on  (1/B) sum_{i in batch of D_r} l(theta; x_i, y_i) + gamma_e ||theta||_1      all parameters
    W = E - E_0 epochs have a penalty, the last E_0 have none; e = 0 .. W-1
        decreasing   gamma_e = gamma (1 - e / W)        the published one, and the best of the three
        constant     gamma_e = gamma
        increasing   gamma_e = gamma (e + 1) / W        the same rates the other way round
    bi-level (``prune_to`` > 0)   before epoch e with (E - e) divisible by ``prune_every``, the smallest |theta| are set
        to zero and stay so: of the weights left a share 1 - (1 - s)^(1 / P), in P = floor(E / prune_every) prunings

The penalty is descended by its subgradient gamma sign(theta), sign(0) = 0: weights get small, not zero (see
``measures.near_zero``); a proximal step would be another method. gamma around 5e-4 suits a ResNet-18; the default 0.2
of the published code is a leftover that destroys the model. With gamma = 0 and no pruning it is ``finetune``, to the
bit.

It does not prune unless asked, and the forget set is not looked at.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracts.errors import ConfigError
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import param
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from unlearning.descent import Descent, DescentConfig, Parameters, Pass, check_sets, descend, inputs_of
from unlearning.masks import Mask, check_mask, top
from unlearning.sparsity.pruning import LAYERS, kept, prunable


@dataclass(frozen=True, kw_only=True, slots=True)
class L1SparseConfig(DescentConfig):
    lr: float = param(0.01, gt=0, le=1, doc="learning rate; published 0.01")
    gamma: float = param(5e-4, ge=0, le=1, doc="weight of the l1 norm; 0: finetune")
    schedule: str = param(
        "decreasing", choices=("decreasing", "constant", "increasing"), doc="of gamma over the epochs"
    )
    no_l1_epochs: int = param(0, ge=0, le=1000, doc="last epochs without a penalty")
    prune_to: float = param(0.0, ge=0, lt=1, doc="sparsity of the bi-level variant; 0: no weight is pruned")
    prune_every: int = param(2, ge=1, le=1000, unit="epochs", doc="bi-level variant: between prunings")
    layers: str = param("conv_linear", choices=LAYERS, doc="bi-level variant: which weights are pruned")

    def check(self) -> None:
        if self.prune_to and self.epochs < self.prune_every:
            raise ConfigError(
                f"L1SparseConfig.prune_to = {self.prune_to:g} needs epochs >= prune_every = {self.prune_every}, not "
                f"{self.epochs}"
            )


def gamma_of(epoch: int, config: L1SparseConfig) -> float:
    """gamma_e, the weight of the penalty in ``epoch``, from 0.

    >>> [round(gamma_of(e, L1SparseConfig(gamma=1.0, epochs=5, no_l1_epochs=1)), 3) for e in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    window = config.epochs - config.no_l1_epochs
    if epoch >= window:
        return 0.0
    share = {"decreasing": 1 - epoch / window, "constant": 1.0, "increasing": (epoch + 1) / window}
    return config.gamma * share[config.schedule]


def l1_penalty(parameters: Parameters, gamma: float) -> Tensor:
    """gamma ||theta||_1 over all parameters; a leading axis of models adds theirs up."""
    return gamma * torch.stack([p.abs().sum() for p in parameters.values()]).sum()


@unlearner(
    UnlearnerSpec(
        name="l1_sparse",
        wants=("losses", "reading"),
        doc="Trains on with the retained examples and a fading l1 penalty.",
        source="Jia et al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023, arXiv 2304.04934",
        config=L1SparseConfig,
        masked=True,
    )
)
def l1_sparse(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: L1SparseConfig,
    seed: int,
    mask: Mask | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Fine-tune a copy of ``model`` on ``retain`` under an l1 penalty.

    Args:
        model: trained; not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove; used only to check that the two sets are disjoint.
        config: see :class:`L1SparseConfig`.
        seed: batch order and dropout, the same as those of ``finetune``.
        mask: weights that may move, or be pruned, by name of parameter; None: every one.
        progress: called after each step.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_sets``; nothing to prune.
        InvalidInput: a mask that does not fit the model.
        Diverged: the run left the finite numbers or collapsed.
    """
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True)
    check_mask(model, mask)
    passes = [Pass.over(inputs_of(model, retain))]
    project = None
    if config.prune_to:
        model, project = _pruning(model, config, mask=mask)
    plan = Descent(
        model=model,
        passes=lambda _: passes,
        retain=retain,
        config=config,
        seed=seed,
        name="l1_sparse",
        draws="finetune",
        penalty=(lambda parameters, epoch: l1_penalty(parameters, gamma_of(epoch, config))) if config.gamma else None,
        project=project,
        mask=mask,
    )
    return descend(plan, progress=progress)


def _pruning(
    model: nn.Module, config: L1SparseConfig, *, mask: Mask | None
) -> tuple[nn.Module, Callable[[Parameters, int, int], None]]:
    """A copy of ``model`` as the first epoch takes it, and what prunes it on the way."""
    model = copy.deepcopy(model)
    names = prunable(model, layers=config.layers)
    own = dict(model.named_parameters())
    may = {n: torch.ones_like(own[n], dtype=torch.bool) if mask is None or n not in mask else mask[n] for n in names}
    may = {n: chosen.to(own[n].device) for n, chosen in may.items()}
    total, prunings = sum(int(chosen.sum()) for chosen in may.values()), config.epochs // config.prune_every
    alive = may
    done_prunings = 0

    @torch.no_grad()
    def prune(parameters: Parameters) -> None:
        nonlocal alive, done_prunings
        done_prunings += 1
        count = kept(total, 1 - (1 - config.prune_to) ** (done_prunings / prunings))
        alive = top({name: parameters[name].detach().abs() for name in names}, count, within=alive)

    @torch.no_grad()
    def hold(parameters: Parameters) -> None:
        for name in names:
            parameters[name].masked_fill_(may[name] & ~alive[name], 0.0)

    def project(parameters: Parameters, done: int, total_steps: int) -> None:
        epoch, inside = divmod(done * config.epochs, total_steps)
        if not inside and epoch < config.epochs and (config.epochs - epoch) % config.prune_every == 0:
            prune(parameters)
        hold(parameters)

    if config.epochs % config.prune_every == 0:
        prune(own)
        hold(own)
    return model, project
