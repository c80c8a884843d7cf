"""The recipe ``lora``: low-rank adapters on a given language model (Hu et al., ICLR 2022, arXiv 2106.09685).

    W' = W + (alpha / r) B A           A (r, d_in) drawn from the seed,  B (d_out, r) = 0 at the start;  W frozen

Only A and B are trained, on every row of the data; then they are added into W, so that the result has the structure of
the base model and whatever is done to any model (reading, unlearning, saving) is done to it. With weights in bfloat16
the sum is rounded and small updates are lost: ``merge = false`` keeps the adapters apart. Then they are what is saved
and what unlearners move, the base is frozen, and blocks below the lowest of ``layers`` are run once a text
(``adapted``).

The base is what ``build`` gives, the same for every seed (model ``pretrained_lm``), or a fresh one.
peft is imported when the recipe runs, and not before.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError
from contracts.methods import RecipeSpec, recipe
from contracts.params import param
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.fitting import make_optimizer, trainable
from recipes.keeping import Keeping, load_optimizer, optimizer_arrays, run_fingerprint
from recipes.language.adapted import Adapted
from recipes.language.fitting import TokenTrainingConfig, fit_tokens
from recipes.models import Build
from recipes.rng import generator, local_rng
from recipes.schedule import epochs_to_train, num_epochs
from sources.example_set import ExampleSet
from sources.stored_models import need_extra


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig(TokenTrainingConfig):
    """Adapters, beside optimiser and schedule."""

    rank: int = param(8, ge=1, le=4096, doc="r")
    alpha: float = param(16.0, gt=0, le=1e6, doc="scale: alpha / r multiplies the adapters")
    dropout: float = param(0.0, ge=0, lt=1, doc="on what the adapters see while they train")
    targets: tuple[str, ...] = param((), doc="names of the linear layers to adapt; empty: every one but the head")
    layers: tuple[int, ...] = param((), ge=0, le=100_000, doc="transformer blocks to adapt; empty: all; needs targets")
    merge: bool = param(True, doc="add the adapters into the weights at the end")
    epochs: int = param(3, ge=1, le=100_000, doc="of the full schedule")
    batch: int = param(8, ge=1, le=1_000_000, unit="sequences", doc="the last, shorter batch of an epoch is kept")
    lr: float = param(1e-3, gt=0, le=100, doc="peak learning rate")
    weight_decay: float = param(0.0, ge=0, le=1, doc="decoupled, of AdamW")

    def check(self) -> None:
        TokenTrainingConfig.check(self)
        if self.layers and not self.targets:
            raise ConfigError("LoraConfig.layers need targets, the names of the linear layers in each block")


def attach(base: nn.Module, config: LoraConfig, *, seed: int) -> Adapted:
    """``base`` with fresh adapters, which are all that requires a gradient; ``base`` itself is taken over.

    Args:
        base: a model of transformers.
        config: rank, scale and place of the adapters.
        seed: of A.

    Raises:
        ConfigError: peft finds no layer of these names, or cannot adapt the model; or it has adapters already.
        NotReady: the extra ``hf`` is not installed.
    """
    with need_extra("hf", "adapters"):
        import peft

    if isinstance(base, Adapted):
        raise ConfigError("the model has adapters already: they can be trained, and no others laid over them (rank 0)")
    wanted = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
        layers_to_transform=list(config.layers) or None,
        task_type="CAUSAL_LM",
    )
    try:
        # peft asks transformers for an attribute that the latter has renamed; what it draws is drawn again below.
        with local_rng(0), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            adapted: nn.Module = peft.get_peft_model(base, wanted)
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"adapters on {type(base).__name__}: {' '.join(str(error).split())[:300]}") from error
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    model = Adapted(adapted, first=min(config.layers, default=0))
    restart(model, seed=seed)
    return model


@torch.no_grad()
def restart(model: nn.Module, *, seed: int) -> None:
    """Put fresh adapters in place of those of ``model``: A uniform in +-1/sqrt(d_in), as peft draws it, and B = 0."""
    for name, parameter in sorted(model.named_parameters()):
        if "lora_A" in name:
            bound = parameter.shape[1] ** -0.5
            drawn = torch.rand(parameter.shape, generator=generator(derive_seed("adapter", name, seed)))
            parameter.copy_((2 * drawn - 1) * bound)
        elif "lora_B" in name:
            parameter.zero_()


def adapter_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Copies of A and B of every adapted layer by name, float32."""
    own = model.state_dict()
    return {name: own[name].detach().cpu().numpy().copy() for name in sorted(own) if "lora_" in name}


def load_adapter(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Put these arrays in place of the adapters of ``model``.

    Raises:
        ConfigError: other names or shapes than the model's adapters have.
    """
    own = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    if {n: tuple(v.shape) for n, v in own.items()} != {n: a.shape for n, a in arrays.items()}:
        raise ConfigError("these adapters are of another model or another configuration: names or shapes differ")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(torch.from_numpy(np.array(arrays[name])))


def merged(model: nn.Module) -> nn.Module:
    """The base model with the adapters added into its weights; ``model`` is used up. All of it can be trained again."""
    adapted: Any = model
    whole: nn.Module = adapted.model.merge_and_unload()
    return whole.requires_grad_(True).eval()


def _structure(build: Build, config: LoraConfig) -> Build:
    return build if config.merge else lambda seed: attach(build(seed), config, seed=seed)


@recipe(
    RecipeSpec(
        name="lora",
        doc="Trains low-rank adapters on a given language model and adds them into its weights.",
        source="Hu et al., LoRA, ICLR 2022, arXiv 2106.09685",
        config=LoraConfig,
        wants=("losses", "tokens"),
        early=True,
        counts_steps=True,
        structure=_structure,
    )
)
def lora(
    build: Build,
    data: ExampleSet,
    *,
    config: LoraConfig,
    seed: int,
    device: str = "cpu",
    stop_after: int | None = None,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "lora",
    checkpoint_every: int = 1,
    progress: Progress = silent,
) -> nn.Module:
    """Adapt what ``build`` gives to every row of ``data``.

    Args:
        build: seed -> base model of transformers; one that ignores the seed for a pretrained base.
        data: token sequences, in the order they have here.
        config: adapters, optimiser, schedule.
        seed: of the adapters, batch order and dropout; in [0, 2**63).
        device: "cpu" or "cuda".
        stop_after: epochs after which the full schedule is left; 0 gives the base.
        checkpoints: where adapters and optimiser are kept, every ``checkpoint_every`` epochs and at the end; the base
            is not. A checkpoint of another configuration, base or data is not used.
        checkpoint_name: its name there.
        progress: told (epochs done, epochs, "training").

    Returns:
        The model in eval mode on ``device``.

    Raises:
        NotApplicable: the examples are no token sequences.
        ConfigError: layers that cannot be adapted; ``stop_after`` beyond the schedule.
        DataError: no examples, or a sequence without a counted token.
        Diverged: the loss is no longer finite (names the epoch).
        IntegrityError: the stored checkpoint is damaged.
    """
    keeping = Keeping(store=checkpoints, name=checkpoint_name, every=checkpoint_every)
    model = attach(build(seed), config, seed=seed).to(device)
    last = epochs_to_train(num_epochs(max(len(data), 1), config), stop_after)
    run = ""
    if keeping.active:  # a base may be large: its digest is taken only where it is asked for
        run = run_fingerprint(model, data, config=config, seed=seed, initial=state_digest(model))
    optimizer = make_optimizer(trainable(model), config)
    stored, start = keeping.load(), 0
    if stored is not None and stored[1].get("run") == run and stored[1]["epoch"] <= last:
        arrays, start = dict(stored[0]), int(stored[1]["epoch"])
        load_adapter(model, {n: np.asarray(a) for n, a in arrays.items() if not n.startswith("optimizer/")})
        load_optimizer(optimizer, arrays)

    def after_epoch(done: int) -> None:
        keeping.after(done, last=last, arrays=lambda: adapter_arrays(model) | optimizer_arrays(optimizer), run=run)
        progress(done, last, "training")

    fit_tokens(
        model,
        data,
        np.arange(len(data)),
        config=config,
        seed=seed,
        stop_after=last,
        optimizer=optimizer,
        start=start,
        after_epoch=after_epoch,
    )
    return merged(model) if config.merge else model


def state_digest(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers, of any dtype, in the order of their
    names; of one with adapters the base is among them."""
    state = hashlib.sha256()
    named = model.whole_state() if isinstance(model, Adapted) else model.state_dict()
    for name, value in sorted(named.items()):
        state.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()
