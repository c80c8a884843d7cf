"""Pruning: which weights of a network are set to zero, by magnitude, by synaptic flow or at random, and training on
with the others.

    magnitude   keep the (1 - s) d largest |theta|, all pruned tensors ranked together               Han et al. 2015
    IMP         n rounds of rate r: train, keep (1 - r)^k d, rewind, train again; s = 1 - (1 - r)^n   Frankle 2020
    SynFlow     before training and without data: |d sum(outputs) / d w * w| of the network with absolute weights, on
                an input of ones, in R rounds that keep (1 - s)^(k / R) d each                       Tanaka et al. 2020
    random      any (1 - s) d: the control

Pruned are the weights of convolutions and linear maps; not biases, norms, embeddings, nor, unless asked, the last layer
(Jia et al., NeurIPS 2023, prune the convolutions of a ResNet alone). d counts them. A mask is a function of a model and
lies beside it: no ``weight_orig``, no buffer, so a sparse model is saved and loaded as any other.

Weights of a mask are zero and stay zero: their gradients are, and a decay of zero is zero, whatever the optimiser.

A network that is pruned and not trained again wants new running statistics of its batch norms; here every one is
trained again. It says nothing of structured pruning: no channel goes, and a dense network runs as long as before.
Shapes: a mask is bool by name of parameter, True = kept.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import InvalidInput, NotApplicable
from contracts.progress import Progress, silent
from recipes.predict import eval_mode
from recipes.rng import generator
from unlearning.descent import start
from unlearning.masks import Mask, top

if TYPE_CHECKING:
    from recipes.training import Trainer
    from sources.example_set import ExampleSet

_LAYERS = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "conv_linear": (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
}
LAYERS = tuple(_LAYERS)


def prunable(model: nn.Module, *, layers: str = "conv_linear", last_layer: bool = False) -> tuple[str, ...]:
    """Names of the weights that are pruned, in the model's order.

    Args:
        layers: "conv" or "conv_linear".
        last_layer: prune the last of all convolutions and linear maps, too.

    Raises:
        NotApplicable: there is none.
    """
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, _LAYERS["conv_linear"])]
    found = found if last_layer else found[:-1]
    names = [f"{name}.weight".lstrip(".") for name, module in found if isinstance(module, _LAYERS[layers])]
    names = [name for name in names if name in trained]  # a weight that is tied to an embedding goes by that name
    if not names:
        raise NotApplicable(
            f"the model has no weight to prune: layers = {layers!r}, "
            f"{'the last layer too' if last_layer else 'all but the last layer'}"
        )
    return tuple(names)


def kept(total: int, sparsity: float) -> int:
    """Weights of ``total`` that are left at a sparsity in [0, 1]: the nearest whole number.

    Raises:
        InvalidInput: the sparsity is outside its range.

    >>> kept(1000, 0.95), kept(10, 0.95)
    (50, 1)
    """
    if not 0 <= sparsity <= 1:
        raise InvalidInput(f"sparsity = {sparsity} is outside its allowed range: >= 0 and <= 1")
    return int((1 - sparsity) * total + 0.5)


def magnitude_mask(model: nn.Module, names: Sequence[str], count: int, *, within: Mask | None = None) -> Mask:
    """The ``count`` weights with the largest absolute values, ranked over all of ``names`` together.

    Args:
        within: only these may be kept: what an earlier round has left.

    Raises:
        InvalidInput: more than there are.
        Diverged: a weight is NaN.
    """
    own = dict(model.named_parameters())
    return top({name: own[name].detach().abs() for name in names}, count, within=within)


def random_mask(model: nn.Module, names: Sequence[str], count: int, *, seed: int) -> Mask:
    """Any ``count`` weights, drawn from the seed.

    Raises:
        InvalidInput: more than there are.
    """
    own, draws = dict(model.named_parameters()), generator(derive_seed("random_mask", seed))
    return top({name: torch.rand(own[name].shape, generator=draws).to(own[name].device) for name in names}, count)


def synflow_scores(model: nn.Module, input_shape: Sequence[int]) -> dict[str, Tensor]:
    """|d R / d w * w| of every parameter, R the sum of the outputs on an input of ones, float64.

    The network is read with the absolute values of all parameters and buffers, in eval mode (with the statistics of a
    batch, layers do not pass on what they get) and in float64, on a copy: the model keeps its signs. In a network of
    ReLUs without biases and norms the scores of every layer have the same sum.
    """
    return _flow_through(_absolute(model), input_shape)


@torch.no_grad()
def _absolute(model: nn.Module) -> nn.Module:
    """A copy in float64 with the absolute values of all parameters and buffers."""
    flow = copy.deepcopy(model).double()
    for values in (*flow.parameters(), *flow.buffers()):
        if values.is_floating_point():
            values.abs_()
    return flow


def _flow_through(flow: nn.Module, input_shape: Sequence[int]) -> dict[str, Tensor]:
    own = {name: p.requires_grad_() for name, p in flow.named_parameters()}
    ones = torch.ones(1, *input_shape, dtype=torch.float64, device=next(iter(own.values())).device)
    with eval_mode(flow), torch.enable_grad():
        gradients = torch.autograd.grad(flow(ones).sum(), list(own.values()), allow_unused=True)
    pairs = zip(own.items(), gradients, strict=True)
    return {name: torch.zeros_like(p) if g is None else (g * p).abs().detach() for (name, p), g in pairs}


def synflow_mask(
    model: nn.Module, names: Sequence[str], sparsity: float, *, input_shape: Sequence[int], rounds: int = 100
) -> Mask:
    """The weights that SynFlow keeps.

    Args:
        model: at its initialisation; not changed.
        names: weights that are pruned.
        sparsity: in [0, 1].
        input_shape: of one example.
        rounds: R >= 1; one round may empty a layer, many do not.

    Raises:
        NotApplicable: nothing flows through the network: every score is zero.
        InvalidInput: a sparsity or a number of rounds outside its range.
    """
    if rounds < 1:
        raise InvalidInput(f"rounds = {rounds} is outside its allowed range: >= 1")
    flow = _absolute(model)
    own = dict(flow.named_parameters())
    total = sum(own[name].numel() for name in names)
    mask: Mask = {name: torch.ones_like(own[name], dtype=torch.bool) for name in names}
    kept(total, sparsity)  # its range
    for number in range(1, rounds + 1):
        scores = _flow_through(flow, input_shape)
        if not any(bool(scores[name].any()) for name in names):
            raise NotApplicable("SynFlow: nothing flows from an input of ones to the outputs of this network")
        count = kept(total, 1 - (1 - sparsity) ** (number / rounds))
        mask = top({name: scores[name] for name in names}, count, within=mask)
        apply_mask(flow, mask)
    return mask


@torch.no_grad()
def apply_mask(model: nn.Module, mask: Mask) -> nn.Module:
    """Set the weights that a mask does not keep to zero, in place; the model itself."""
    own = dict(model.named_parameters())
    for name, chosen in mask.items():
        own[name].masked_fill_(~chosen.to(own[name].device), 0.0)
    return model


def moved(model: nn.Module, mask: Mask) -> int:
    """How many of the weights that a mask has pruned are not zero."""
    own = dict(model.named_parameters())
    return sum(int((own[name].detach()[~chosen.to(own[name].device)] != 0).sum()) for name, chosen in mask.items())


def train_masked(
    trainer: Trainer,
    data: ExampleSet,
    seed: int,
    mask: Mask,
    *,
    origin: nn.Module | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """A model of the recipe in which the weights that a mask has pruned are zero from the first step to the last.

    Args:
        trainer: the recipe, with its configuration and architecture; its whole schedule is run, from its start.
        data: trained on, in its order.
        seed: of the recipe.
        mask: weights that are kept.
        origin: weights to start from; None: a fresh initialisation of the seed.
        progress: as the recipe tells it.

    Returns:
        The model, eval mode.

    Raises:
        NotApplicable: the recipe moves pruned weights: it trains copies of what it has built, or draws noise on them.
        Others: as the recipe raises.
    """
    arrays: Mapping[str, Tensor] | None = None
    if origin is not None:
        ready = copy.deepcopy(origin)
        start(ready, data)  # in the units in which the recipe trains
        arrays = ready.state_dict()

    def build(seed: int) -> nn.Module:
        model = trainer.build(seed)
        if arrays is not None:
            model.load_state_dict(arrays)
        apply_mask(model, mask)
        own = dict(model.named_parameters())
        for name, chosen in mask.items():
            own[name].register_hook(lambda g, chosen=chosen: g.masked_fill(~chosen.to(g.device), 0.0))
        return model

    found = dataclasses.replace(trainer, build=build).one(data, seed, progress=progress)
    if num := moved(found, mask):
        raise NotApplicable(f"recipe {trainer.spec.name} cannot train a pruned model: it moves {num} pruned weights")
    return copy.deepcopy(found)  # without the hooks


def iterative_magnitude_prune(
    trainer: Trainer,
    data: ExampleSet,
    seed: int,
    *,
    dense: nn.Module,
    names: Sequence[str],
    rate: float,
    rounds: int = 1,
    origin: nn.Module | None = None,
    rewind: bool = True,
    progress: Progress = silent,
) -> tuple[nn.Module, Mask]:
    """Prune by magnitude and train again, round by round; one round is OMP.

    Args:
        trainer, data, seed: of the training of every round.
        dense: trained; what the first round ranks.
        names: weights that are pruned.
        rate: share of the remaining weights that goes in each round, in [0, 1].
        rounds: >= 1.
        origin: weights that every round starts from, an early or initial model; None: a fresh initialisation.
        rewind: False keeps the trained weights instead and trains on from them.
        progress: as the recipe tells it.

    Returns:
        The sparse model, eval mode, and its mask.

    Raises:
        NotApplicable: as :func:`train_masked`.
        InvalidInput: a rate or a number of rounds outside its range.
    """
    if rounds < 1:
        raise InvalidInput(f"rounds = {rounds} is outside its allowed range: >= 1")
    own = dict(dense.named_parameters())
    total = sum(own[name].numel() for name in names)
    model, mask = dense, None
    for number in range(1, rounds + 1):
        count = kept(total, 1 - (1 - rate) ** number)
        mask = magnitude_mask(model, names, count, within=mask)
        begin = origin if rewind else model
        model = train_masked(trainer, data, seed, mask, origin=begin, progress=progress)
    assert mask is not None
    return model, mask
