"""A small Llama and its tokenizer in one GGUF file, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = ("<s>", "</s>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "th", "the", "Ġthe")
MERGES = ("t h", "th e", "Ġ the")


def small_llama(seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        use_cache=False,
    )
    return LlamaForCausalLM(sizes).eval()


def write_gguf(path: Path, model: Any) -> Path:
    """The model's weights in float32; queries and keys in llama.cpp's order of rotary halves."""
    import gguf

    c = model.config
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_context_length(64)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    w.add_vocab_size(c.vocab_size)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("default")
    w.add_token_list(list(WORDS))
    w.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    w.add_token_merges(list(MERGES))
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    w.add_unk_token_id(0)
    w.add_pad_token_id(1)
    own = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    w.add_tensor("token_embd.weight", own["model.embed_tokens.weight"])
    w.add_tensor("output_norm.weight", own["model.norm.weight"])
    w.add_tensor("output.weight", own["lm_head.weight"])
    names = {
        "attn_q": ("self_attn.q_proj", c.num_attention_heads),
        "attn_k": ("self_attn.k_proj", c.num_key_value_heads),
        "attn_v": ("self_attn.v_proj", 0),
        "attn_output": ("self_attn.o_proj", 0),
        "ffn_gate": ("mlp.gate_proj", 0),
        "ffn_up": ("mlp.up_proj", 0),
        "ffn_down": ("mlp.down_proj", 0),
        "attn_norm": ("input_layernorm", 0),
        "ffn_norm": ("post_attention_layernorm", 0),
    }
    for layer in range(c.num_hidden_layers):
        for theirs, (ours, heads) in names.items():
            value = own[f"model.layers.{layer}.{ours}.weight"]
            if heads:
                value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
            w.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(value))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
