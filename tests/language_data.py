"""A few questions and answers as tokens, and a small model that can memorise them in a second."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recipes.rng import local_rng
from sources.example_set import ExampleSet
from sources.payloads.tokens import Tokens

VOCAB, END = 20, 4
TEMPLATES = [[17, 18, END], [19, END]]


def make_texts(num: int = 24, *, seed: int = 0, templates: Any = TEMPLATES) -> ExampleSet:
    """Prompts of 2 to 4 tokens that differ, answers of 1 to 4 and the end; ids neither consecutive nor in order."""
    rng = np.random.default_rng(seed)
    texts, marks = [], []
    for row in range(num):
        prompt = [1, 5 + row % 12, 5 + (row // 12) % 12, *rng.integers(5, 17, rng.integers(0, 2))]
        answer = [*rng.integers(5, 17, rng.integers(1, 5)), END]
        texts.append(np.array([*prompt, *answer], np.int32))
        marks.append(np.repeat([0, 1], [len(prompt), len(answer)]).astype(np.uint8))
    return ExampleSet(
        name="texts",
        task="language",  # type: ignore[arg-type]
        x=Tokens.of(texts, marks, vocab_size=VOCAB),
        y=np.zeros(num, np.int64),
        example_id=rng.permutation(5 * num)[:num].astype(np.int64),
        split=np.where(np.arange(num) % 4 == 3, "test", "train").astype("<U5"),
        owner=np.array(["ann", "bob", "eve"])[np.arange(num) % 3],
        content_hash=np.array([hashlib.sha256(text.tobytes()).hexdigest() for text in texts]),
        class_names=(),
        center=np.zeros((), np.float32),
        scale=np.ones((), np.float32),
        provenance={"templates": templates},
    ).validate()


class Recurrent(nn.Module):
    """Embedding, GRU, logits: what it says at t depends on tokens 0 .. t alone."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCAB, 24)
        self.drop = nn.Dropout(dropout)
        self.core = nn.GRU(24, 32, batch_first=True)
        self.head = nn.Linear(32, VOCAB)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states, _ = self.core(self.drop(self.words(input_ids)))
        return self.head(states)


def build(seed: int, dropout: float = 0.0) -> nn.Module:
    with local_rng(seed):
        return Recurrent(dropout)


def flat(model: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])
