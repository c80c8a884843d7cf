"""Models by name, or by the user's own ``module:callable``.

``build(name, config, input_shape=, num_outputs=, seed=)`` gives a fresh ``nn.Module`` in train mode on the CPU that
maps ``(B, *input_shape)`` to ``(B, num_outputs)``; ``unet`` gives (B, num_outputs, H, W), a class a pixel; ``mf`` and
``lightgcn`` take user indexes (B, 1), ``input_shape`` is (num_users,) and ``num_outputs`` the number of items; ``gat``
and ``gcn`` take a graph and the nodes that are asked for. The initialisation depends on ``seed`` alone and PyTorch's
global generator is left as it was. Built-in models name their output layer ``head``. They have no BatchNorm: it mixes
the examples of a batch (see recipes.resnet_gn). ``model_version(name)`` is part of the key of everything trained: a
model whose code has changed is another model.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import ConfigError, NotApplicable, PalimpsestError, UnknownName
from contracts.params import Config
from recipes.cnn import CNN, CNNConfig
from recipes.convnet import ConvNet, ConvNetConfig
from recipes.graph.networks import GAT, GCN, GATConfig, GCNConfig
from recipes.language.models import PretrainedConfig, TinyLlamaConfig, pretrained_lm, tiny_llama
from recipes.mlp import MLP, MLPConfig
from recipes.recsys_models import LightGCN, LightGCNConfig, MatrixFactorization, MFConfig, is_ranker
from recipes.resnet_gn import ResNetConfig, ResNetGN
from recipes.rng import local_rng
from recipes.source_digest import source_digest
from recipes.unet import UNet, UNetConfig
from recipes.vit import ViT, ViTConfig

Build = Callable[[int], nn.Module]

MODELS: dict[str, tuple[Any, type[Config]]] = {
    "mlp": (MLP, MLPConfig),
    "cnn": (CNN, CNNConfig),
    "convnet": (ConvNet, ConvNetConfig),
    "resnet_gn": (ResNetGN, ResNetConfig),
    "vit": (ViT, ViTConfig),
    "unet": (UNet, UNetConfig),
    "mf": (MatrixFactorization, MFConfig),
    "lightgcn": (LightGCN, LightGCNConfig),
    "gat": (GAT, GATConfig),
    "gcn": (GCN, GCNConfig),
    "tiny_llama": (tiny_llama, TinyLlamaConfig),
    "pretrained_lm": (pretrained_lm, PretrainedConfig),
}
_IMAGES_ONLY = ("cnn", "convnet", "resnet_gn", "vit", "unet")
_USERS_ONLY = ("mf", "lightgcn")
_NODES_ONLY = ("gat", "gcn")
_NAMED = {"edge_index", "input_ids"}  # what takes these is tried on examples (``recipes.plan.tried_model``)


def build(
    name: str,
    config: Mapping[str, Any] | None = None,
    *,
    input_shape: tuple[int, ...],
    num_outputs: int,
    seed: int,
    folder: str = "",
) -> nn.Module:
    """A freshly initialised model.

    Args:
        name: one of ``MODELS``, or ``module:callable``; the callable is called as ``callable(input_shape, num_outputs,
            **config)`` and returns an ``nn.Module``.
        config: fields of the model's configuration (``MODELS[name][1]``), or keyword arguments of the callable.
        input_shape: shape of one example, ``(D,)`` or ``(C, H, W)``; (num_users,) for ranking.
        num_outputs: K logits, or 1 for regression; items for ranking.
        seed: of the initialisation, in [0, 2**63).
        folder: where the module of ``module:callable`` lies, if it is not installed.

    Raises:
        UnknownName: no such model.
        ConfigError: a configuration field, the callable, or what it returns is wrong; whatever it raises.
        NotApplicable: an image model on vectors, or images that the model cannot take.
    """
    shape = tuple(int(n) for n in input_shape)
    if not shape or min(shape) < 1 or num_outputs < 1:
        raise ConfigError(f"input_shape = {input_shape} and num_outputs = {num_outputs} must all be >= 1")
    if ":" in name:
        make = partial(_imported(name, folder), shape, num_outputs, **dict(config or {}))
    elif name in MODELS:
        if name in _IMAGES_ONLY and len(shape) != 3:
            raise NotApplicable(
                f"model {name!r} needs images (channels, height, width); these examples have shape {shape}: use mlp"
            )
        if name in _USERS_ONLY and len(shape) != 1:
            raise NotApplicable(f"model {name!r} ranks items for users: input_shape is (num_users,), not {shape}")
        if name in _NODES_ONLY and len(shape) != 1:
            raise NotApplicable(f"model {name!r} needs nodes with vectors; these examples have shape {shape}")
        kind, config_type = MODELS[name]
        make = partial(kind, config_type.from_mapping(config), input_shape=shape, num_outputs=num_outputs)
    else:
        raise UnknownName("model", name, [*MODELS, "module:callable"])
    with local_rng(seed):
        if ":" not in name:
            return make().train()
        with of_user(name, "to be built"):
            model = make()
        _check_module(name, model)
        if not _NAMED & set(inspect.signature(model.forward).parameters):
            per_pixel = ((num_outputs, *shape[1:]),) if len(shape) == 3 else ()
            check_answers(name, model, _zeros(model, shape), shapes=((num_outputs,), *per_pixel), training=False)
    return model.train()


@contextmanager
def of_user(name: str, what: str) -> Iterator[None]:
    """Whatever the user's code raises inside becomes one sentence.

    Raises:
        ConfigError: naming the model, what it was asked (``what``), and the error.
    """
    try:
        yield
    except PalimpsestError:
        raise
    except (Exception, SystemExit) as error:  # it is the user's code: it may raise anything
        said = " ".join(str(error).split())[:300]
        help_ = ""
        if not torch.cuda.is_available() and any(word in said for word in ("CUDA", "cuda", "NVIDIA")):
            help_ = (
                "; there is no CUDA here: leave .cuda() and device='cuda' out, the audit moves the model to its device"
            )
        raise ConfigError(f"model {name!r} fails {what}: {type(error).__name__}: {said}{help_}") from error


def check_answers(
    name: str, model: nn.Module, x: Tensor, *, shapes: Sequence[tuple[int, ...]], training: bool
) -> Tensor:
    """What the model answers to ``x`` (B, *shape) in train or eval mode, when that is a tensor (B, *one of shapes).

    Raises:
        ConfigError: it raises, or answers something else; one sentence.
    """
    mode, given = "train" if training else "eval", f"{len(x)} examples of shape {tuple(x.shape[1:])}"
    model.train(training)
    with of_user(name, f"in {mode} mode on {given}"), torch.set_grad_enabled(training):
        outputs = model(x)
    wanted = [(len(x), *shape) for shape in shapes]
    asked = " or, a class a pixel, ".join(map(str, wanted))
    if not isinstance(outputs, Tensor):
        raise ConfigError(
            f"model {name!r} maps {given} to a {type(outputs).__name__} in {mode} mode; one tensor {asked} is needed: "
            "return the logits alone"
        )
    if tuple(outputs.shape) not in wanted:
        raise ConfigError(f"model {name!r} maps {given} to {tuple(outputs.shape)}; {asked} is needed")
    return outputs


def model_version(name: str, *, folder: str = "") -> str:
    """The version of a built-in model, or of a user's ``module:callable`` the digest of the module's source.

    Raises:
        UnknownName: no such model.
        ConfigError: the module has no source that can be found.
    """
    if ":" in name:
        return source_digest(name.partition(":")[0], folder=folder)
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


_loaded: dict[str, str] = {}  # digest that the source of a user's module had when this process imported it


def _imported(name: str, folder: str) -> Callable[..., nn.Module]:
    module, _, attribute = name.partition(":")
    if folder:
        _search_last(module, folder)
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # importing runs the user's code: it may raise anything
        kind = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise ConfigError(f"model {name!r} cannot be imported: {kind}{' '.join(str(error).split())[:300]}") from error
    if not callable(found):
        raise ConfigError(f"model {name!r} is of type {type(found).__name__}, not callable")
    return found  # type: ignore[return-value]


def _search_last(module: str, folder: str) -> None:
    """Put the user's folder at the end of Python's path, and remember what the module's source is when it is loaded."""
    if folder not in sys.path:
        sys.path.append(folder)
    if module not in sys.modules or module not in _loaded:
        _loaded[module] = source_digest(module, folder=folder)


def refuse_changed(name: str, *, folder: str) -> None:
    """Refuse a user's module that this process has loaded from other source than there is now: an older version of the
    file, or a file of the same name in another folder. What is trained would not be what its key says.

    Raises:
        ConfigError: start again.
    """
    module = name.partition(":")[0]
    if folder and module in _loaded and _loaded[module] != source_digest(module, folder=folder):
        raise ConfigError(f"module {module} is not the one that this process has loaded; start it again")


def _check_module(name: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {name!r} returned a {type(model).__name__}, not a torch.nn.Module")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"model {name!r} has no trainable parameter")


def _zeros(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Two examples; a ranker takes user indexes, whatever the number of users."""
    if is_ranker(model):
        return torch.zeros(2, 1, dtype=torch.int64)
    return torch.zeros(2, *shape, dtype=next(model.parameters()).dtype)
