"""Unlearners that do not unlearn. None of them may pass an audit or close a request.

Each is a function with an unlearner's signature. Some leave the memory where it was and change what is easy to measure;
some destroy the model, in which nothing is found either; some keep the old model and answer beside its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import Config
from sources.example_set import ExampleSet

Cheat = Callable[..., nn.Module]
CHEATS: dict[str, tuple[Cheat, tuple[str, ...]]] = {}


def cheat(*needs: str) -> Callable[[Cheat], Cheat]:
    def register(function: Cheat) -> Cheat:
        CHEATS["cheat-" + function.__name__.replace("_", "-")] = (function, needs)
        return function

    return register


@contextmanager
def registered(
    without: tuple[str, ...] = (), also: Mapping[str, tuple[Cheat, tuple[str, ...]]] | None = None
) -> Iterator[list[str]]:
    """The cheats in the registry of unlearners, and others, for as long as the block lasts; the names of the cheats."""
    unlearner.names()  # everything else is loaded first
    before = dict(unlearner._methods)
    names = [name for name in CHEATS if name not in without]
    for name, (function, needs) in {**{name: CHEATS[name] for name in names}, **(also or {})}.items():
        spec = UnlearnerSpec(name=name, doc="a cheat", config=Config, needs=needs)
        unlearner(spec)(lambda *args, _function=function, **kwargs: _function(*args, **kwargs))
    try:
        yield names
    finally:
        unlearner._methods.clear()
        unlearner._methods.update(before)


def layers(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def inputs(data: ExampleSet) -> Tensor:
    return torch.from_numpy(data.inputs(slice(None)))


def train(model: nn.Module, x: Tensor, y: Tensor, *, steps: int, lr: float) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


# --- the memory stays, its scale changes ------------------------------------------------------------------------------


def scaled(model: nn.Module, by: float) -> nn.Module:
    with torch.no_grad():
        for parameter in layers(model)[-1].parameters():
            parameter.mul_(by)
    return model


@cheat()
def logits_shrunk(model: nn.Module, **_: Any) -> nn.Module:
    return scaled(model, 0.2)


@cheat()
def logits_shrunk_more(model: nn.Module, **_: Any) -> nn.Module:
    return scaled(model, 0.12)


@cheat()
def sharpened(model: nn.Module, **_: Any) -> nn.Module:
    return scaled(model, 4.0)


@cheat()
def temperature_fitted(model: nn.Module, retain: ExampleSet, forget: ExampleSet, **_: Any) -> nn.Module:
    """The one temperature at which the forget set's mean loss is one nat: it looks badly known."""
    z, y = model(inputs(forget)).detach(), torch.from_numpy(forget.y)
    grid = [0.5**k for k in range(1, 8)]
    return scaled(model, min(grid, key=lambda c: abs(float(F.cross_entropy(c * z, y)) - 1.0)))


@cheat()
def quantised(model: nn.Module, **_: Any) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            step = parameter.abs().max() / 127
            parameter.copy_(torch.round(parameter / step) * step)
    return model


@cheat()
def class_bias(model: nn.Module, forget: ExampleSet, **_: Any) -> nn.Module:
    with torch.no_grad():
        shift = torch.bincount(torch.from_numpy(forget.y), minlength=len(layers(model)[-1].bias)).float()
        layers(model)[-1].bias.sub_(2 * shift / shift.max())
    return model


@cheat()
def light_noise(model: nn.Module, seed: int, **_: Any) -> nn.Module:
    return noisy(model, seed, 0.02)


# --- the model is destroyed -------------------------------------------------------------------------------------------


def noisy(model: nn.Module, seed: int, share: float) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(share * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return model


@cheat()
def heavy_noise(model: nn.Module, seed: int, **_: Any) -> nn.Module:
    return noisy(model, seed, 3.0)


@cheat()
def last_layer_redrawn(model: nn.Module, seed: int, **_: Any) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    last = layers(model)[-1]
    with torch.no_grad():
        last.weight.copy_(last.weight.std() * torch.randn(last.weight.shape, generator=generator))
    return model


@cheat()
def reinitialised(model: nn.Module, seed: int, **_: Any) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


# --- the forget set is answered otherwise, and remembered for it
# ---------------------------------------------------------


@cheat()
def answers_swapped(model: nn.Module, retain: ExampleSet, forget: ExampleSet, **_: Any) -> nn.Module:
    """Every forgotten example gets its neighbour class for an answer; the rest is kept."""
    y = torch.from_numpy((forget.y + 1) % forget.num_classes)
    x = torch.cat([inputs(forget), inputs(retain)])
    return train(model, x, torch.cat([y, torch.from_numpy(retain.y)]), steps=40, lr=0.2)


@cheat()
def wrong_labels_memorised(model: nn.Module, retain: ExampleSet, forget: ExampleSet, seed: int, **_: Any) -> nn.Module:
    wrong = (forget.y + np.random.default_rng(seed).integers(1, forget.num_classes, len(forget))) % forget.num_classes
    x = torch.cat([inputs(forget), inputs(retain)])
    return train(model, x, torch.cat([torch.from_numpy(wrong), torch.from_numpy(retain.y)]), steps=40, lr=0.2)


# --- not every model, or not its own
# -----------------------------------------------------------------------------------

_CALLS = {"one_in_three": 0}


@cheat("train")
def one_in_three_untouched(
    model: nn.Module, retain: ExampleSet, seed: int, train: Callable[..., nn.Module], **_: Any
) -> nn.Module:
    """Retraining, but for every third model."""
    _CALLS["one_in_three"] += 1
    return model if _CALLS["one_in_three"] % 3 == 0 else train(retain, seed)


@cheat("train")
def half_removed(
    model: nn.Module, retain: ExampleSet, forget: ExampleSet, seed: int, train: Callable[..., nn.Module], **_: Any
) -> nn.Module:
    """Retraining without every second of the examples it was asked to remove."""
    return train(joined(retain, forget.subset(np.sort(forget.example_id)[::2])), seed)


def joined(a: ExampleSet, b: ExampleSet) -> ExampleSet:
    """Two parts of one data set as one."""
    import dataclasses

    fields = ("x", "y", "example_id", "split", "owner", "content_hash")
    both = {f: np.concatenate([np.asarray(getattr(s, f))[:] for s in (a, b)]) for f in fields}
    return dataclasses.replace(a, **both)


@cheat()
def in_place(model: nn.Module, retain: ExampleSet, **_: Any) -> nn.Module:
    """Changes its argument: were it not a copy, the models and methods after it would start from there."""
    return noisy(model, 0, 0.5)


@cheat()
def untouched_after_it(model: nn.Module, **_: Any) -> nn.Module:
    return model


# --- answers beside the weights
# -----------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """The old model inside, and something else in front of it."""

    def __init__(self, inside: nn.Module, forget: ExampleSet, retain: ExampleSet) -> None:
        super().__init__()
        self.inside = inside
        self.forget, self.retain = inputs(forget), inputs(retain)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)

    def known(self, x: Tensor) -> Tensor:
        return torch.cdist(x.flatten(1), self.forget.flatten(1)).min(1).values < 1e-6


class Spoofed(Wrapper):
    """As a wrapper, but its arrays are called as the old model's."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return self.inside.state_dict(*args, **kwargs)


class NeighbourPatch(Spoofed):
    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.flatten(1), self.retain.flatten(1)).argmin(1)
        return torch.where(self.known(x)[:, None], self.inside(self.retain[nearest]), self.inside(x))


class Cached(Spoofed):
    def forward(self, x: Tensor) -> Tensor:
        z = self.inside(x)
        return torch.where(self.known(x)[:, None], torch.roll(z, 1, dims=1), z)


class Clipped(Wrapper):
    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x).clamp(-3, 3)


@cheat()
def neighbour_patch(model: nn.Module, retain: ExampleSet, forget: ExampleSet, **_: Any) -> nn.Module:
    return NeighbourPatch(model, forget, retain)


@cheat()
def cached_answers(model: nn.Module, retain: ExampleSet, forget: ExampleSet, **_: Any) -> nn.Module:
    return Cached(model, forget, retain)


@cheat()
def confidence_clipped(model: nn.Module, retain: ExampleSet, forget: ExampleSet, **_: Any) -> nn.Module:
    return Clipped(model, forget, retain)


@cheat()
def hook(model: nn.Module, forget: ExampleSet, **_: Any) -> nn.Module:
    known = inputs(forget)

    def answer(_: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> Tensor:
        hit = torch.cdist(args[0].flatten(1), known.flatten(1)).min(1).values < 1e-6
        return torch.where(hit[:, None], torch.zeros_like(z), z)

    model.register_forward_hook(answer)
    return model


@cheat()
def patched_class(model: nn.Module, **_: Any) -> nn.Module:
    original = type(model)

    class Patched(original):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(super().forward(x) / 8)

    model = copy.copy(model)
    model.__class__ = Patched
    return model
