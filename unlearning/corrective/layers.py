"""Which layers of any network are its last k, for methods that change only these (Goel et al., 2022).

    layer    a module with parameters of its own (not those of its children)
    order    by first use in one forward pass; a module that nobody calls (its parent reads its weights, as attention
             does) stands with its nearest called ancestor, in order of registration
    last k   the k layers that are used last; -1: all of them
    frozen   every other layer, and every module without parameters (dropout, pooling) that is used before the first
             of the last k, but for the containers of these

A layer that is used several times stands at its first use. It is not the counting of the published code, which cuts
three architectures at places written out by hand (a residual block counts as two there, and norms as none).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from contracts.errors import ConfigError
from sources.example_set import ExampleSet
from tasks.base import answers
from unlearning.descent import inputs_of


@dataclass(frozen=True)
class LayerCut:
    """A network cut before its last k layers.

    Attributes:
        layers: names of the last k layers, in order of use ("" is the network itself).
        frozen: names of the modules before them, in order of registration.
    """

    layers: tuple[str, ...]
    frozen: tuple[str, ...]


def order_of_use(model: nn.Module, data: ExampleSet) -> tuple[str, ...]:
    """Names of all modules by first use on one example of ``data``: eval mode, no gradient, on a copy.

    Raises:
        ConfigError: ``data`` has no example.
    """
    if not len(data):
        raise ConfigError("the order in which layers are used is seen on an example, and there is none")
    probe = copy.deepcopy(model).eval()
    names = {module: name for name, module in probe.named_modules()}
    first: dict[str, int] = {}

    def seen(module: nn.Module, _: object) -> None:
        first.setdefault(names[module], len(first))

    handles: list[RemovableHandle] = [module.register_forward_pre_hook(seen) for module in names]
    with torch.no_grad():
        answers(probe, inputs_of(probe, data.subset([data.example_id.min()])).slice(0, 1))
    for handle in handles:
        handle.remove()
    registered = list(names.values())
    return tuple(sorted(registered, key=lambda name: (_called(name, first), registered.index(name))))


def cut_before_last(model: nn.Module, data: ExampleSet, *, k: int) -> LayerCut:
    """The last ``k`` layers of ``model``, by order of use on an example of ``data``.

    Args:
        k: 1 to the number of layers, or -1 for all of them.

    Raises:
        ConfigError: the model has fewer than ``k`` layers; names them.
    """
    modules, used = dict(model.named_modules()), order_of_use(model, data)
    layers = [name for name in used if any(True for _ in modules[name].parameters(recurse=False))]
    if k > len(layers):
        raise ConfigError(f"k = {k} is outside 1..{len(layers)} or -1: the model's layers are {', '.join(layers)}")
    last = layers if k == -1 else layers[-k:]
    holding = {name for name in modules if any(_within(layer, name) for layer in last)}
    before = set(used[: used.index(last[0])]) - holding
    still = before | (set(layers) - set(last))
    return LayerCut(tuple(last), tuple(name for name in modules if name in still))


def reinitialise(model: nn.Module, fresh: nn.Module, layers: Sequence[str]) -> None:
    """Give the named layers of ``model`` the parameters and running statistics of the same layers of ``fresh``, in
    place.

    Raises:
        ConfigError: ``fresh`` is of another architecture; names the layer.
    """
    sources = dict(fresh.named_modules())
    for name in layers:
        own, other = model.get_submodule(name), sources.get(name)
        tensors = _tensors(own)
        new = {} if other is None else _tensors(other)
        if {key: t.shape for key, t in tensors.items()} != {key: t.shape for key, t in new.items()}:
            raise ConfigError(f"a fresh model of the subject has no layer {name!r} of the same shapes to start from")
        with torch.no_grad():
            for key, tensor in tensors.items():
                tensor.copy_(new[key])


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])


def _called(name: str, first: dict[str, int]) -> int:
    """When the module, or its nearest ancestor that was called, was first used."""
    while name not in first:
        name = name.rpartition(".")[0]
    return first[name]


def _within(name: str, holder: str) -> bool:
    return holder == "" or name == holder or name.startswith(holder + ".")
