"""Models by name, or by the user's own ``module:callable``.

``build(name, config, input_shape=, num_outputs=, seed=)`` gives a fresh ``nn.Module`` in train mode on the CPU that
maps ``(B, *input_shape)`` to ``(B, num_outputs)``; ``mf`` and ``lightgcn`` take user indexes (B, 1), ``input_shape`` is
(num_users,) and ``num_outputs`` the number of items. The initialisation depends on ``seed`` alone and PyTorch's global
generator is left as it was. Built-in models name their output layer ``head``. They have no BatchNorm: it mixes the
examples of a batch (see recipes.resnet_gn). ``model_version(name)`` is part of the key of everything trained: a model whose
code has changed is another model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from contracts.errors import ConfigError, NotApplicable, UnknownName
from contracts.params import Config
from recipes.cnn import CNN, CNNConfig
from recipes.mlp import MLP, MLPConfig
from recipes.recsys_models import LightGCN, LightGCNConfig, MatrixFactorization, MFConfig, Ranker
from recipes.resnet_gn import ResNetConfig, ResNetGN
from recipes.rng import local_rng
from recipes.source_digest import source_digest
from recipes.vit import ViT, ViTConfig

Build = Callable[[int], nn.Module]

MODELS: dict[str, tuple[Any, type[Config]]] = {
    "mlp": (MLP, MLPConfig),
    "cnn": (CNN, CNNConfig),
    "resnet_gn": (ResNetGN, ResNetConfig),
    "vit": (ViT, ViTConfig),
    "mf": (MatrixFactorization, MFConfig),
    "lightgcn": (LightGCN, LightGCNConfig),
}
_IMAGES_ONLY = ("cnn", "resnet_gn", "vit")
_USERS_ONLY = ("mf", "lightgcn")


def build(
    name: str,
    config: Mapping[str, Any] | None = None,
    *,
    input_shape: tuple[int, ...],
    num_outputs: int,
    seed: int,
) -> nn.Module:
    """A freshly initialised model.

    Args:
        name: ``mlp``, ``cnn``, ``resnet_gn``, ``vit``, ``mf``, ``lightgcn``, or ``module:callable``; the callable is called as
            ``callable(input_shape, num_outputs, **config)`` and returns an ``nn.Module``.
        config: fields of the model's configuration (``MODELS[name][1]``), or keyword arguments of the callable.
        input_shape: shape of one example, ``(D,)`` or ``(C, H, W)``; (num_users,) for ranking.
        num_outputs: K logits, or 1 for regression; items for ranking.
        seed: of the initialisation, in [0, 2**63).

    Raises:
        UnknownName: no such model.
        ConfigError: a configuration field, the callable, or what it returns is wrong.
        NotApplicable: an image model on vectors, or images that the model cannot take.
    """
    shape = tuple(int(n) for n in input_shape)
    if not shape or min(shape) < 1 or num_outputs < 1:
        raise ConfigError(f"input_shape = {input_shape} and num_outputs = {num_outputs} must all be >= 1")
    if ":" in name:
        make = partial(_imported(name), shape, num_outputs, **dict(config or {}))
    elif name in MODELS:
        if name in _IMAGES_ONLY and len(shape) != 3:
            raise NotApplicable(
                f"model {name!r} needs images (channels, height, width); these examples have shape {shape}: use mlp"
            )
        if name in _USERS_ONLY and len(shape) != 1:
            raise NotApplicable(f"model {name!r} ranks items for users: input_shape is (num_users,), not {shape}")
        kind, config_type = MODELS[name]
        make = partial(kind, config_type.from_mapping(config), input_shape=shape, num_outputs=num_outputs)
    else:
        raise UnknownName("model", name, [*MODELS, "module:callable"])
    with local_rng(seed):
        model = make()
        if ":" in name:
            _check_outputs(name, model, shape, num_outputs)
    return model.train()


def model_version(name: str) -> str:
    """The version of a built-in model, or of a user's ``module:callable`` the digest of the module's source.

    Raises:
        UnknownName: no such model.
        ConfigError: the module has no source that can be found.
    """
    if ":" in name:
        return source_digest(name.partition(":")[0])
    if name not in MODELS:
        raise UnknownName("model", name, [*MODELS, "module:callable"])
    return str(MODELS[name][0].version)


def builder(
    name: str, config: Mapping[str, Any] | None = None, *, input_shape: tuple[int, ...], num_outputs: int
) -> Build:
    """``seed -> fresh model``: :func:`build` with everything but the seed given. Picklable."""
    return _Builder(name, dict(config or {}), tuple(input_shape), num_outputs)


class _Builder:
    def __init__(self, name: str, config: dict[str, Any], input_shape: tuple[int, ...], num_outputs: int) -> None:
        self.name, self.config, self.input_shape, self.num_outputs = name, config, input_shape, num_outputs

    def __call__(self, seed: int) -> nn.Module:
        return build(self.name, self.config, input_shape=self.input_shape, num_outputs=self.num_outputs, seed=seed)


def _imported(name: str) -> Callable[..., nn.Module]:
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"model {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"model {name!r} is a {type(found).__name__}, not callable")
    return found  # type: ignore[return-value]


def _check_outputs(name: str, model: object, shape: tuple[int, ...], num_outputs: int) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {name!r} returned a {type(model).__name__}, not a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"model {name!r} has no trainable parameter")
    dtype = next(model.parameters()).dtype
    model.eval()
    with torch.no_grad():
        ranks = isinstance(model, Ranker)  # takes user indexes, whatever the number of users
        outputs = model(torch.zeros(2, 1, dtype=torch.int64) if ranks else torch.zeros(2, *shape, dtype=dtype))
    if not isinstance(outputs, torch.Tensor) or tuple(outputs.shape) != (2, num_outputs):
        got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ConfigError(f"model {name!r} maps 2 examples of shape {shape} to {got}; (2, {num_outputs}) is needed")
