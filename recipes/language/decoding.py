"""Greedy decoding in batches.

    y_t = argmax_v p(v | x, y_<t), the first of equals, until the end of sequence or ``max_new_tokens``

Prompts of one length are decoded together, so no padding enters and an answer does not depend on the other prompts;
keys and values of past tokens are kept where the model can (transformers), else every step runs the whole sequence.

Shapes: N prompts. Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from contracts.errors import InvalidInput
from recipes.predict import eval_mode
from tasks.language import logits_of


def greedy(
    model: nn.Module, prompts: Sequence[Sequence[int]], *, end: int, max_new_tokens: int = 200, batch: int = 64
) -> list[list[int]]:
    """The greedy answer to every prompt.

    Args:
        model: causal language model; its mode and weights are as before afterwards.
        prompts: N lists of token ids, none empty.
        end: id of the end of sequence, at which an answer stops; it is not part of what is returned.
        max_new_tokens: >= 1.
        batch: prompts decoded together.

    Returns:
        N lists of at most ``max_new_tokens`` token ids, in the order of the prompts.

    Raises:
        InvalidInput: an empty prompt, or ``max_new_tokens`` < 1.
    """
    if max_new_tokens < 1 or not all(len(prompt) for prompt in prompts):
        raise InvalidInput(f"greedy decoding needs prompts with tokens and max_new_tokens = {max_new_tokens} >= 1")
    out: list[list[int]] = [[] for _ in prompts]
    lengths = np.array([len(prompt) for prompt in prompts])
    with eval_mode(model), torch.no_grad():
        for length in np.unique(lengths):
            same = np.flatnonzero(lengths == length)
            for rows in np.array_split(same, -(-len(same) // batch)):
                for row, answer in zip(
                    rows, _decode(model, [prompts[r] for r in rows], end, max_new_tokens), strict=True
                ):
                    out[row] = answer
    return out


def _decode(model: nn.Module, prompts: Sequence[Sequence[int]], end: int, most: int) -> list[list[int]]:
    """Greedy answers to prompts of one length."""
    device = next(model.parameters()).device
    ids = torch.tensor([list(prompt) for prompt in prompts], device=device)
    keeps = hasattr(model, "generate")  # a model of transformers, or an adapter around one
    fed, past = ids, None
    done = torch.zeros(len(ids), dtype=torch.bool, device=device)
    words: list[Tensor] = []
    for _ in range(most):
        more = {"cache": past, "use_cache": True} if keeps else {}
        outputs = model(input_ids=fed, attention_mask=torch.ones_like(ids), **more)
        last = logits_of(outputs)[:, -1].argmax(-1)
        words.append(torch.where(done, end, last))
        done |= last == end
        if done.all():
            break
        ids = torch.cat([ids, last[:, None]], dim=1)
        fed, past = (last[:, None], outputs.cache) if keeps else (ids, None)
    rows = torch.stack(words, dim=1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
