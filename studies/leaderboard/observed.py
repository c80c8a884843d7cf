"""What is kept of a model before it is dropped: answers of a sample, quality by class, and of the first run how alike
its layers are to those of retraining and where its embedding puts the sample.

    sample   at most so many forgotten, retained and test examples each, the same for every method and run of a set
    rotated  E_m Q, Q orthogonal with least || E_m Q - E_0 ||_F (Procrustes), on the first two principal axes of E_0,
             the embedding of the untouched model; both centred. A rotation of the last hidden layer changes no answer
             that a linear output layer can give, so what is left is a change of shape

Shapes: R runs, A examples asked, n of them in the sample, K classes, d width of the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import NotApplicable
from contracts.leaderboard import PARTS
from explain.embeddings import embeddings
from explain.similarity import layer_outputs, linear_cka
from recipes.predict import read_with_outputs
from sources.example_set import ExampleSet
from tasks.base import gives

Float = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Asked:
    """The examples that every model of a forget set is asked about.

    Attributes:
        data: all forgotten and test examples, and a sample of the retained ones.
        part: (A,) the word of ``PARTS`` of each.
        sample: (n,) rows of ``data``: of each part at most the sample's size.
        num_retain: retained examples, all of them.
    """

    data: ExampleSet
    part: NDArray[np.str_]
    sample: Ids
    num_retain: int

    @classmethod
    def of(cls, data: ExampleSet, *, retain: Ids, forget: Ids, test: Ids, most: int, seed: int) -> Asked:
        """Drawn by ids, whatever the order of the rows.

        Args:
            data: the data set that the ids, (N,) each, are of.
            most: of each part in the sample.
        """
        rng = np.random.default_rng(derive_seed("asked", seed))
        whole = dict(zip(PARTS, (np.sort(ids) for ids in (forget, retain, test)), strict=True))
        drawn = {name: np.sort(rng.permutation(ids)[:most]) for name, ids in whole.items()}
        whole["retain"] = drawn["retain"]
        part = np.concatenate([np.full(len(whole[name]), name) for name in PARTS])
        chosen = np.concatenate([np.isin(whole[name], drawn[name]) for name in PARTS])
        everyone = data.subset(np.concatenate([whole[name] for name in PARTS]))
        return cls(everyone, part, np.flatnonzero(chosen), len(retain))

    @property
    def sampled(self) -> ExampleSet:
        """The examples of the sample."""
        return self.data.take(self.sample)

    @property
    def parts(self) -> NDArray[np.str_]:
        """(n,) of the sample."""
        return self.part[self.sample]


@dataclass(eq=False)
class Seen:
    """What the models of one method said, a row a run that finished.

    Attributes:
        signal, quality: (n,) of the sample, each.
        answer: (n,) classes, empty where the task has none.
        by_class: {part: (K,) mean quality of each class}, NaN where it has no example.
        cka: name of a layer -> linear CKA with the retrained model of the first run, of the model that was compared;
            empty where the inputs are no rows of numbers.
        place: (n, 2) of the first run's embedding, see :func:`rotated`; None without one.
    """

    signal: list[Float] = field(default_factory=list)
    quality: list[Float] = field(default_factory=list)
    answer: list[Ids] = field(default_factory=list)
    by_class: list[dict[str, Float]] = field(default_factory=list)
    cka: dict[str, float] = field(default_factory=dict)
    place: Float | None = None

    def add(self, model: nn.Module, asked: Asked) -> None:
        """Read a model.

        Raises:
            DataError: what it says is not finite.
        """
        data, sample = asked.data, asked.sample
        classes = gives(data, "outputs") and gives(data, "classes")
        reading, outputs = read_with_outputs(model, data, outputs=classes)
        self.signal.append(reading.signal[sample])
        self.quality.append(reading.quality[sample])
        if outputs is not None:
            self.answer.append(outputs[sample].argmax(1).astype(np.int64))
        if gives(data, "classes"):
            own = {}
            for name in ("forget", "test"):
                rows = asked.part == name
                num = np.bincount(data.y[rows], minlength=data.num_classes)
                total = np.bincount(data.y[rows], weights=reading.quality[rows], minlength=data.num_classes)
                own[name] = np.divide(total, num, out=np.full(len(num), np.nan), where=num > 0)
            self.by_class.append(own)


@dataclass(frozen=True, eq=False)
class Shapes:
    """What layers and embeddings of a forget set are compared with.

    Attributes:
        asked: the examples.
        layers: name -> (test examples of the sample, width) of the retrained model of the first run.
        base: (n, d) embedding of the untouched model of the first run; None without one.
    """

    asked: Asked
    layers: dict[str, NDArray[np.float32]]
    base: Float | None

    @classmethod
    def of(cls, retrained: nn.Module, untouched: nn.Module, asked: Asked) -> Shapes:
        """Nothing to compare where the inputs are no rows of numbers."""
        if not gives(asked.data, "features"):
            return cls(asked, {}, None)
        return cls(asked, _layers(retrained, asked), _embedding(untouched, asked))

    def cka(self, model: nn.Module) -> dict[str, float]:
        """Linear CKA of every layer with the retrained model's, NaN where a layer says the same of all."""
        if min((len(v) for v in self.layers.values()), default=0) < 2:
            return {}
        own = _layers(model, self.asked)
        return {name: linear_cka(own[name], yard) for name, yard in self.layers.items() if name in own}

    def place(self, model: nn.Module) -> Float | None:
        """(n, 2), see :func:`rotated`; None without embeddings."""
        if self.base is None:
            return None
        own = _embedding(model, self.asked)
        return None if own is None or own.shape != self.base.shape else rotated(own, self.base)


def _layers(model: nn.Module, asked: Asked) -> dict[str, NDArray[np.float32]]:
    return layer_outputs(model, asked.data.take(asked.sample[asked.parts == "test"]))


def _embedding(model: nn.Module, asked: Asked) -> Float | None:
    try:
        return embeddings(model, asked.sampled).astype(np.float64)
    except NotApplicable:  # no linear output layer: there is no embedding to draw
        return None


def rotated(own: Float, untouched: Float) -> Float:
    """(n, 2) coordinates of the embedding ``own`` (n, d), rotated onto ``untouched`` (n, d), on the principal axes of
    the latter; the second is 0 where d = 1.

    >>> x = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> turned = x @ np.array([[0.0, 1.0], [-1.0, 0.0]]) + 5.0
    >>> bool(np.allclose(rotated(turned, x), rotated(x, x)))
    True
    """
    a, b = own - own.mean(0), untouched - untouched.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b, full_matrices=False)
    _, _, axes = np.linalg.svd(b, full_matrices=False)
    first = axes[:2] * np.where(axes[:2].sum(1) < 0, -1.0, 1.0)[:, None]
    found = a @ (u @ vt) @ first.T
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
