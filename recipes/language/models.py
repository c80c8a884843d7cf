"""Causal language models: a small Llama by its sizes, and a given one from a folder of safetensors.

    tiny_llama     LlamaForCausalLM, from scratch; defaults 0.85 M parameters with the 492 words of TinyTOFU
    pretrained_lm  AutoModelForCausalLM from a local folder or GGUF file, read without a network; every seed gives the
                   same weights

Both answer ``model(input_ids=, attention_mask=)`` with an object that has ``logits`` (B, T, V). transformers is
imported when one of them is built, and not before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from contracts.errors import ConfigError, IntegrityError
from contracts.params import Config, param
from recipes.language.stored import model_folder, no_progress_bars
from recipes.language.stored import weights_digest as weights_digest
from sources.stored_models import need_extra
from tasks.language import logits_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyLlamaConfig(Config):
    """Sizes of a Llama; the vocabulary is that of the data."""

    hidden: int = param(128, ge=2, le=65_536, doc="width of the residual stream; a multiple of heads")
    intermediate: int = param(344, ge=1, le=262_144, doc="width of the feed-forward layers")
    layers: int = param(4, ge=1, le=200, doc="transformer blocks")
    heads: int = param(4, ge=1, le=256, doc="attention heads")
    tie_embeddings: bool = param(True, doc="one matrix for the words at both ends")

    def check(self) -> None:
        if self.hidden % (2 * self.heads):
            raise ConfigError(
                f"TinyLlamaConfig.hidden = {self.hidden} must be a multiple of 2 x heads = {2 * self.heads}: "
                "rotary positions turn pairs"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedConfig(Config):
    """A model of transformers that lies on this machine."""

    path: str = param(
        doc="folder with config.json and safetensors, or a GGUF file or its folder; a relative one lies below a folder "
        "of $PALIMPSEST_DATA"
    )
    dtype: str = param("float32", choices=tuple(DTYPES), doc="of the weights in memory; merging adapters wants float32")
    sha256: str = param(
        "", doc="SHA-256 over names and bytes of its safetensors, in the order of the names; checked when given"
    )


def tiny_llama(config: TinyLlamaConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """A fresh Llama for ``num_outputs`` words; its initialisation draws from PyTorch's global generator."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=num_outputs,
            hidden_size=config.hidden,
            intermediate_size=config.intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            tie_word_embeddings=config.tie_embeddings,
            use_cache=False,  # keys and values are only kept where decoding asks for them
        )
    )


def pretrained_lm(config: PretrainedConfig, *, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """The model in ``config.path``.

    Raises:
        ConfigError: no such folder, no safetensors or GGUF file in it, no model of transformers, one that is not
            causal, or fewer words than the data has.
        NotReady: the extra ``hf`` is not installed.
        IntegrityError: its files are not those whose digest was given.
    """
    folder = model_folder(config.path, field="PretrainedConfig.path")
    with need_extra("hf", "a stored language model"):
        from transformers import AutoModelForCausalLM
    if config.sha256 and (found := weights_digest(folder)) != config.sha256:
        raise IntegrityError(f"{folder}: its safetensors have SHA-256 {found}, not {config.sha256}")
    try:
        with no_progress_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=DTYPES[config.dtype]
            )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"PretrainedConfig.path = {config.path!r}: {' '.join(str(error).split())[:300]}") from error
    words = model.get_input_embeddings().num_embeddings
    if words < num_outputs:
        raise ConfigError(f"the model in {folder} knows {words} words, the data has {num_outputs}")
    model.config.use_cache = False
    _refuse_not_causal(model, config.path)
    return model.train()


def _refuse_not_causal(model: nn.Module, path: str) -> None:
    """Raise :class:`ConfigError` where what a model says before a token depends on it."""
    one = torch.tensor([[1, 1, 0, 1]])
    both = torch.cat([one, torch.tensor([[1, 1, 0, 0]])])
    model.eval()
    with torch.no_grad():
        said = logits_of(model(input_ids=both, attention_mask=torch.ones_like(both)))[:, :3].float()
    if (said[0] - said[1]).abs().max() > 1e-4 * said.std():
        raise ConfigError(
            f"PretrainedConfig.path = {path!r} is no causal language model ({type(model).__name__}): what it says "
            "before a token depends on that token"
        )


tiny_llama.version = 1  # type: ignore[attr-defined]
pretrained_lm.version = 2  # type: ignore[attr-defined]
