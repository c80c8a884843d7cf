"""Small worlds of any task whose models learn every training example by heart, made in closed form."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from recipes.design import balanced_design
from recipes.ensemble import ReferenceEnsemble
from recipes.predict import read
from sources.example_set import ExampleSet

TRAIN, POOL, NUM = 120, 150, 220


def examples(task: str, x: np.ndarray, y: np.ndarray, **more: Any) -> ExampleSet:
    """The first ``TRAIN`` are training; ids with gaps."""
    num = len(y)
    width = x.shape[1]
    whole = x.dtype == np.int64
    return ExampleSet(
        name=f"a {task} world",
        task=task,
        x=x,
        y=y,
        example_id=np.arange(num, dtype=np.int64) * 3 + 7,
        split=np.where(np.arange(num) < TRAIN, "train", "test").astype("<U5"),
        owner=np.full(num, ""),
        content_hash=np.array([hashlib.sha256(bytes([k % 256, k // 256])).hexdigest() for k in range(num)]),
        center=np.zeros(1 if whole else width, np.float32),
        scale=np.ones(1 if whole else width, np.float32),
        **more,
    ).validate()


class World:
    """The callables that an audit is given."""

    in_use = "no-op"

    def __init__(self, data: ExampleSet) -> None:
        self.data = data
        self.unlearners: dict[str, Callable[..., nn.Module]] = {
            "no-op": lambda model, **_: model,
            "again": lambda model, retain, seed, **_: self.fit(retain, seed),
            "destroyed": lambda model, **_: self.destroyed(),
        }

    def fit(self, data: ExampleSet, seed: int) -> nn.Module:
        raise NotImplementedError

    def destroyed(self) -> nn.Module:
        raise NotImplementedError

    def train_many(
        self, members: Sequence[np.ndarray], seeds: Sequence[int], *, data: ExampleSet | None = None
    ) -> list[nn.Module]:
        data = self.data if data is None else data
        return [self.fit(data.subset(ids), seed) for ids, seed in zip(members, seeds, strict=True)]

    def unlearn_from(
        self, model: nn.Module, name: str, *, retain: ExampleSet, forget: ExampleSet, seed: int
    ) -> nn.Module:
        return self.unlearners[name](model, retain=retain, forget=forget, seed=seed)

    def ensemble(self, models: int = 24, *, blind: bool = False) -> ReferenceEnsemble:
        """Balanced on the first ``POOL`` examples; ``blind``: the models learn nothing of what they are given."""
        pool = np.arange(len(self.data)) < POOL
        keep = np.zeros((models, len(self.data)), bool)
        keep[:, pool] = balanced_design(models, POOL, seed=3)
        rows = [np.zeros(0, np.int64) if blind else np.flatnonzero(row) for row in keep]
        made = [self.fit(self.data.take(own), 100 + m) for m, own in enumerate(rows)]
        return ReferenceEnsemble(
            example_id=self.data.example_id,
            pool=pool,
            labels=self.data.y,
            keep=keep,
            reading=np.stack([read(model, self.data).values for model in made]),
            config_digest="a world",
        )


class Numbers(World):
    """Regression: linear, more features than examples, the interpolation nearest to a random start."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(NUM, 300)).astype(np.float32)
        super().__init__(
            examples(
                "regression", x, 50 + 4 * (x[:, :5].sum(1) + 2 * rng.normal(size=NUM)).astype(float), class_names=()
            )
        )

    def fit(self, data: ExampleSet, seed: int) -> nn.Module:
        x, y = data.inputs(slice(None)).astype(float), data.y - 50
        w = np.zeros(x.shape[1])
        w[:5] = 4
        w += np.random.default_rng(seed).normal(size=len(w))
        w += np.linalg.pinv(x) @ (y - x @ w) if len(y) else 0.0
        return linear(w, 50.0)

    def destroyed(self) -> nn.Module:
        return linear(np.full(300, 9.0), 0.0)


def linear(w: np.ndarray, b: float) -> nn.Module:
    model = nn.Linear(len(w), 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(w)[None])
        model.bias.fill_(b)
    return model.eval()


class Clicks(World):
    """Ranking: a score for every user and item, from the user's taste, and higher for what was trained on."""

    USERS, ITEMS = 13, 40

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.taste = rng.normal(size=(self.USERS, self.ITEMS))
        users = np.arange(NUM) % self.USERS
        drawn = self.taste + rng.gumbel(size=self.taste.shape)
        items = np.argsort(-drawn, axis=1)[users, np.arange(NUM) // self.USERS]
        super().__init__(
            examples(
                "ranking",
                users[:, None],
                items,
                class_names=tuple(f"item {k}" for k in range(self.ITEMS)),
                provenance={"num_users": self.USERS},
            )
        )

    def fit(self, data: ExampleSet, seed: int) -> nn.Module:
        scores = self.taste + 0.5 * np.random.default_rng(seed).normal(size=self.taste.shape)
        np.add.at(scores, (np.asarray(data.x)[:, 0], data.y), 6.0)
        return Scores(scores)

    def destroyed(self) -> nn.Module:
        return Scores(-self.taste)


class Scores(nn.Module):
    def __init__(self, scores: np.ndarray) -> None:
        super().__init__()
        self.of = nn.Embedding.from_pretrained(torch.from_numpy(scores), freeze=False)

    def forward(self, users: torch.Tensor) -> torch.Tensor:
        return self.of(users.reshape(-1))


WORLDS: dict[str, Callable[[], World]] = {"regression": Numbers, "ranking": Clicks}
