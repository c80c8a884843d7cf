"""Concepts of a frozen backbone: directions of its embedding space, a sparse linear head on them, class attributions.

    z_k    = (v_k . phi(x) + b_k) / |v_k|            signed distance to the boundary of concept k's linear SVM
    F(z)   = W (z - mean) / sd + c                   multinomial elastic net, fitted on the labels
    IG_k   = (W'_ck - mean_{j != c} W'_jk) (z_k - z'_k)        W' = W / sd, z' = mean projection of the training set

phi (N, d) embeddings, the input of the model's last linear layer; z (N, K); F (N, C). IG_k is the integrated gradient
of the centred logit F_c - mean_{j != c} F_j from z' to z, in closed form because F is linear; logit units.
K_c, the concept set of class c: the concepts *present* in it (class mean of z_k above z'_k) with the largest class mean
of IG_k > 0, until they hold 80% of the positive mass, at most 3. Without the presence filter an absence ("not
footwear") explains a coat.

Source: Yuksekgonul, Wang, Zou, "Post-hoc Concept Bottleneck Models" (ICLR 2023) and the authors' code: 50 examples with
and 50 without the concept, C of the SVM chosen on as many others, which then go to waste; here C is chosen by five-fold
cross-validation on all of them, and the SVM fitted on all. Their head is one-vs-rest SGD on raw projections; here the
projections are standardised and the head is multinomial, which finds the true concepts where theirs does not. Their
other bank, concepts given as texts, needs an encoder that embeds texts and images in one space; no recipe here is one,
so a concept is always a set of examples.
Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks" (ICML 2017) for integrated gradients.

A bank belongs to the backbone it was fitted on: after unlearning, fit another. The concepts are read off the data with
the labels given; nothing here shows that the model uses them, which is what an intervention or a head swap is for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, InvalidInput, NotApplicable
from contracts.params import Config, param
from contracts.progress import Progress, silent
from explain.embeddings import embeddings
from sources.example_set import ExampleSet
from tasks.base import require

SVM_C = (0.001, 0.01, 0.1, 1.0, 10.0)
CORRELATED = 0.8  # |cos| of two concepts above which the elastic net's choice between them is arbitrary
SET_MASS, SET_MOST = 0.8, 3
_FEWEST = 4  # members and others below which a concept cannot be both learned and checked
_FOLDS = 5
_MEMBERS = 8  # examples a cluster should have on average
_NO_SPREAD = 1e-6  # standard deviation over magnitude, of float32 embeddings that do not differ
_BLOCK = 16_384
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptConfig(Config):
    """Which concepts, and how their directions and the head are fitted."""

    concepts: dict[str, Any] = param({}, doc="concepts as groups of classes, by name or index: {footwear: [5, 7, 9]}")
    concept_examples: dict[str, Any] = param(
        {},
        doc="concepts as example ids: {striped: {with: [...], without: [...]}}; a bare list, {striped: [3, 17, ...]}, "
        "takes every other example to be without it, which costs accuracy when some are not",
    )
    num_concepts: int = param(10, ge=2, le=1000, doc="clusters c_0, c_1, ... taken as concepts when none is named")
    per_side: int = param(
        100, ge=4, le=100_000, unit="examples", doc="most with a concept, and most without it, that it is fitted on"
    )
    sample: int = param(20_000, ge=20, le=10_000_000, unit="examples", doc="most training examples that are fitted on")
    penalty: float = param(
        0.002, gt=0, le=1000, doc="elastic net beside the mean loss; 0.002 is C = 0.05 at 10,000 examples"
    )
    l1_ratio: float = param(0.99, ge=0, le=1, doc="share of the L1 norm in the elastic net")
    batch: int = param(1024, ge=1, le=1_000_000, unit="examples", doc="a forward pass; bounds memory")

    def check(self) -> None:
        for field in ("concepts", "concept_examples"):
            for name, members in getattr(self, field).items():
                if not isinstance(name, str) or not 0 < len(name) <= 64:
                    raise ConfigError(f"{type(self).__name__}.{field}: {name!r} is not a name of 1 to 64 characters")
                _members_of(members, f"{type(self).__name__}.{field}[{name!r}]", sides=field == "concept_examples")
        both = sorted(set(self.concepts) & set(self.concept_examples))
        if both:
            raise ConfigError(f"{type(self).__name__}: {', '.join(both)} is in both concepts and concept_examples")


def _members_of(members: Any, where: str, *, sides: bool) -> dict[str, list[Any]]:
    if sides and isinstance(members, Mapping):
        if set(members) != {"with", "without"}:
            raise ConfigError(f"{where} has {', '.join(map(str, members))}; it takes 'with' and 'without'")
        return {side: _members_of(members[side], f"{where}[{side!r}]", sides=False)["with"] for side in members}
    allowed = (int,) if sides else (int, str)
    if not isinstance(members, (list, tuple)) or not members:
        raise ConfigError(f"{where} = {members!r} is not a list with at least one element")
    if any(isinstance(m, bool) or not isinstance(m, allowed) for m in members):
        raise ConfigError(f"{where} = {members!r} holds something other than {'ids' if sides else 'names or numbers'}")
    return {"with": list(members)}


# ---- the bank ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ConceptBank:
    """K directions of an embedding space of d dimensions, in the order they were given.

    Attributes:
        names: K.
        vectors: float64 (K, d), normals of the SVMs' boundaries, none of them zero.
        intercepts: float64 (K,).
        svm_c: float64 (K,), the chosen inverse strength of the SVM's penalty, for embeddings of unit spread.
        train_acc, val_acc: float64 (K,) in [0, 1], balanced: mean over the two sides. The latter is of the held-out
            folds, by which C was chosen.
        n_pos, n_neg: int64 (K,), examples fitted on, on each side.
    """

    names: tuple[str, ...]
    vectors: Floats
    intercepts: Floats
    svm_c: Floats
    train_acc: Floats
    val_acc: Floats
    n_pos: NDArray[np.int64]
    n_neg: NDArray[np.int64]

    @classmethod
    def from_examples(
        cls,
        features: NDArray[Any],
        members: Mapping[str, tuple[Mask, Mask]],
        *,
        per_side: int = 100,
        seed: int,
        drop_unlearnable: bool = False,
    ) -> ConceptBank:
        """A linear SVM for every concept.

        Args:
            features: (N, d) embeddings.
            members: concept -> (with, without), each bool (N,), disjoint.
            per_side: most examples drawn on each side. The sides weigh the same, however many they have.
            seed: of the draw; each concept's is its own, whatever the others are.
            drop_unlearnable: leave out what would be refused.

        Raises:
            DataError: fewer than 4 examples on a side, or embeddings that do not tell the sides apart at all.
            InvalidInput: shapes differ.

        >>> phi = np.random.default_rng(0).normal(size=(400, 3))
        >>> bank = ConceptBank.from_examples(phi, {"right": (phi[:, 0] > 0, phi[:, 0] <= 0)}, seed=0)
        >>> bool(bank.val_acc[0] > 0.9)
        True
        """
        phi = np.asarray(features, np.float64)
        center = phi.mean(axis=0) if len(phi) else np.zeros(phi.shape[1])
        spread = _spread(phi)
        found: dict[str, tuple[Any, ...]] = {}
        for name, (inside, outside) in members.items():
            if inside.shape != (len(phi),) or outside.shape != (len(phi),):
                raise InvalidInput(f"concept {name!r}: masks {inside.shape} and {outside.shape} for {len(phi)} rows")
            refusal = ""
            if min(inside.sum(), outside.sum()) < _FEWEST:
                refusal = f"{inside.sum()} examples with it and {outside.sum()} without; at least {_FEWEST} are needed"
            elif (
                fitted := _svm(
                    phi,
                    inside,
                    outside,
                    per_side=per_side,
                    seed=derive_seed("concept", name, seed),
                    center=center,
                    spread=spread,
                )
            ) is None:
                refusal = "the model's embeddings are the same with it and without it"
            else:
                found[name] = fitted
            if refusal and not drop_unlearnable:
                raise DataError(f"concept {name!r} cannot be learned: {refusal}")
        columns = list(zip(*found.values(), strict=True)) if found else [[] for _ in range(7)]
        vectors, intercepts, svm_c, train_acc, val_acc, num_with, num_without = columns
        return cls(
            names=tuple(found),
            vectors=np.array(vectors, np.float64).reshape(len(found), phi.shape[1]),
            intercepts=np.array(intercepts, np.float64),
            svm_c=np.array(svm_c, np.float64),
            train_acc=np.array(train_acc, np.float64),
            val_acc=np.array(val_acc, np.float64),
            n_pos=np.array(num_with, np.int64),
            n_neg=np.array(num_without, np.int64),
        )

    def __len__(self) -> int:
        return len(self.names)

    def project(self, features: NDArray[Any]) -> Floats:
        """Signed distances z (N, K) of embeddings (N, d); the same whatever the scale of (v_k, b_k)."""
        norms = np.linalg.norm(self.vectors, axis=1)
        return (np.asarray(features, np.float64) @ self.vectors.T + self.intercepts) / norms

    def correlated(self, threshold: float = CORRELATED) -> list[tuple[str, str, float]]:
        """Pairs of concepts whose directions have ``|cos| > threshold``, strongest first."""
        unit = self.vectors / np.linalg.norm(self.vectors, axis=1, keepdims=True)
        first, second = np.triu_indices(len(self), k=1)
        cosine = np.clip((unit[first] * unit[second]).sum(axis=1), -1.0, 1.0)
        order = np.argsort(-np.abs(cosine), kind="stable")
        return [
            (self.names[first[i]], self.names[second[i]], float(cosine[i]))
            for i in order[np.abs(cosine[order]) > threshold]
        ]


def _spread(phi: Floats) -> float:
    """Root mean square distance from the mean, by coordinate; 0 where it is no more than rounding."""
    if not phi.size:
        return 0.0
    spread = float(np.sqrt(np.square(phi - phi.mean(axis=0)).mean()))
    return spread if spread > _NO_SPREAD * float(np.abs(phi).max()) else 0.0


def _svm(
    phi: Floats, inside: Mask, outside: Mask, *, per_side: int, seed: int, center: Floats, spread: float
) -> tuple[Floats, float, float, float, float, int, int] | None:
    """(v, b, C, accuracy, held-out accuracy, examples with, without), or None when no direction tells the sides apart.

    The embeddings are divided by their spread first, so that the grid of C means the same for every backbone.
    """
    if spread == 0:
        return None
    rng = np.random.default_rng(seed)
    without, holding = (rng.permutation(np.flatnonzero(side))[:per_side] for side in (outside, inside))
    points = (phi[np.concatenate([without, holding])] - center) / spread
    target = np.repeat([0, 1], [len(without), len(holding)])
    folds = min(_FOLDS, len(without), len(holding))
    fold = np.concatenate([np.arange(len(side)) % folds for side in (without, holding)])
    accuracy, c = -1.0, 0.0
    for candidate in SVM_C:
        said = cross_val_predict(_machine(candidate), points, target, cv=PredefinedSplit(fold))
        if (right := balanced_accuracy_score(target, said)) > accuracy:
            accuracy, c = right, candidate
    svm = _machine(c).fit(points, target)
    if not np.any(svm.coef_):
        return None
    vector = svm.coef_[0] / spread
    fitted = balanced_accuracy_score(target, svm.predict(points))
    return vector, float(svm.intercept_[0] - vector @ center), c, fitted, accuracy, len(holding), len(without)


def _machine(c: float) -> SVC:
    return SVC(C=c, kernel="linear", class_weight="balanced", random_state=0)


def discover(features: NDArray[Any], *, num_concepts: int, seed: int) -> dict[str, tuple[Mask, Mask]]:
    """Clusters of embeddings as concepts ``c_0``, ``c_1``, ..., the largest first: concept -> (members, others).

    k-means; fewer clusters than asked when there are fewer than 8 examples, or distinct embeddings, for each; none when
    the embeddings do not differ.
    """
    phi = np.asarray(features, np.float64)
    spread = _spread(phi)
    if spread == 0:
        return {}
    phi = (phi - phi.mean(axis=0)) / spread
    clusters = min(num_concepts, max(len(phi) // _MEMBERS, 2), len(np.unique(phi, axis=0)))
    with threadpool_limits(1):  # its threads add up in no fixed order
        labels = KMeans(clusters, n_init=4, random_state=derive_seed("clusters", seed) % 2**32).fit(phi).labels_
    order = np.argsort(-np.bincount(labels, minlength=clusters), kind="stable")
    return {f"c_{rank}": (labels == cluster, labels != cluster) for rank, cluster in enumerate(order)}


def named_members(
    labels: NDArray[Any], ids: NDArray[Any], *, class_names: Sequence[str], config: ConceptConfig
) -> dict[str, tuple[Mask, Mask]]:
    """The concepts a configuration names: concept -> (with, without) over the rows of ``labels`` and ``ids``.

    Raises:
        ConfigError: an unknown class, or a group of all classes.
        DataError: an example both with and without the concept.
    """
    members: dict[str, tuple[Mask, Mask]] = {}
    for name, group in config.concepts.items():
        classes = {_class_index(c, class_names, name) for c in group}
        if len(classes) == len(class_names):
            raise ConfigError(f"concept {name!r} holds all {len(class_names)} classes: nothing is without it")
        inside = np.isin(labels, sorted(classes))
        members[name] = inside, ~inside
    for name, group in config.concept_examples.items():
        sides = _members_of(group, name, sides=True)
        listed = np.array([i for side in sides.values() for i in side])
        unknown = listed[~np.isin(listed, ids)]
        if len(unknown):
            raise DataError(f"concept {name!r} lists ids that are not training examples", example_ids=unknown)
        inside = np.isin(ids, sides["with"])
        outside = np.isin(ids, sides["without"]) if "without" in sides else ~inside
        if (inside & outside).any():
            raise DataError(f"concept {name!r} is both with and without", example_ids=ids[inside & outside])
        members[name] = inside, outside
    return members


def _class_index(given: int | str, class_names: Sequence[str], concept: str) -> int:
    if isinstance(given, str) and given in class_names:
        return class_names.index(given)
    if isinstance(given, int) and 0 <= given < len(class_names):
        return given
    raise ConfigError(
        f"concept {concept!r}: no class {given!r}; known: {', '.join(class_names)}, or 0 to {len(class_names) - 1}"
    )


# ---- the head ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PosthocCBM:
    """Logits of C classes that are linear in K concept projections.

    Attributes:
        weight: float64 (C, K), per unit of projection (not of standardised projection).
        bias: float64 (C,).
    """

    weight: Floats
    bias: Floats

    @classmethod
    def fit(
        cls,
        projections: NDArray[Any],
        labels: NDArray[Any],
        *,
        num_classes: int,
        penalty: float = 0.002,
        l1_ratio: float = 0.99,
        seed: int,
    ) -> PosthocCBM:
        """Multinomial elastic net on standardised projections (saga), without penalty on the biases.

        Args:
            projections: (N, K), N >= 1.
            labels: (N,) in [0, num_classes). A class without examples gets no weights and is never predicted.
            penalty: of the elastic net beside the mean cross-entropy, so the same at every N.
            seed: of saga's order of examples; the optimum does not depend on it.

        Raises:
            Diverged: no optimum found in 5,000 passes.
        """
        z = np.asarray(projections, np.float64)
        center, scale = z.mean(axis=0), z.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        classes, counts = np.unique(labels, return_counts=True)
        weight = np.zeros((num_classes, z.shape[1]))
        bias = np.zeros(num_classes)
        if z.shape[1] == 0 or len(classes) == 1:
            bias[classes] = np.log(counts / counts.sum())
        else:
            head = LogisticRegression(
                solver="saga",
                l1_ratio=l1_ratio,
                C=1.0 / (penalty * len(z)),
                tol=1e-4,
                max_iter=5000,
                random_state=seed % 2**32,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("error", ConvergenceWarning)
                try:
                    head.fit((z - center) / scale, labels)
                except ConvergenceWarning as warning:
                    raise Diverged(f"the concept bottleneck did not converge: {warning}; raise penalty") from None
            two = len(classes) == 2  # one logit w . z is (-w/2, w/2) . z
            weight[classes] = np.concatenate([-head.coef_, head.coef_]) / 2 if two else head.coef_
            bias[classes] = np.concatenate([-head.intercept_, head.intercept_]) / 2 if two else head.intercept_
        absent = np.setdiff1d(np.arange(num_classes), classes)
        weight /= scale
        bias = bias - weight @ center
        if len(absent):
            bias[absent] = (z @ weight[classes].T + bias[classes]).min() - np.log(2.0 * len(z))
        return cls(weight, bias)

    def logits(self, projections: NDArray[Any]) -> Floats:
        """(N, C) of projections (N, K)."""
        return np.asarray(projections, np.float64) @ self.weight.T + self.bias

    def attributions(self, projections: NDArray[Any], *, baseline: Floats, target: NDArray[Any]) -> Floats:
        """Integrated gradients (N, K) of each row's centred logit of class ``target`` (N,), from ``baseline`` (K,)."""
        return centred(self.weight)[target] * (np.asarray(projections, np.float64) - baseline)


def centred(rows: Floats) -> Floats:
    """Each of C rows minus the mean of the others.

    >>> centred(np.array([[3.0], [1.0], [2.0]])).ravel().tolist()
    [1.5, -1.5, 0.0]
    """
    others = len(rows) - 1
    if others < 1:
        raise NotApplicable("a logit is compared with those of the other classes; there is one class")
    return (len(rows) * rows - rows.sum(axis=0)) / others


# ---- classes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ClassConcepts:
    """What carries each of C classes.

    Attributes:
        attribution: float64 (C, K), class mean of IG_k for the class itself; NaN for a class without examples.
        projection: float64 (C, K), class mean of z_k; NaN likewise.
        present: bool (C, K), class mean of z_k above the baseline.
        in_set: bool (C, K), the concept set K_c.
        rank: int64 (C, K), from 1: present concepts by descending attribution, then the absent ones likewise.
    """

    attribution: Floats
    projection: Floats
    present: Mask
    in_set: Mask
    rank: NDArray[np.int64]

    @classmethod
    def of(
        cls, attributions: Floats, projections: Floats, labels: NDArray[Any], *, baseline: Floats, num_classes: int
    ) -> ClassConcepts:
        """Profiles of the classes from attributions and projections (N, K) of examples of ``labels`` (N,)."""
        counts = np.bincount(labels, minlength=num_classes)[:, None]
        member = (labels[None, :] == np.arange(num_classes)[:, None]).astype(np.float64)
        attribution, projection = (
            np.divide(member @ v, counts, out=np.full((num_classes, v.shape[1]), np.nan), where=counts > 0)
            for v in (attributions, projections)
        )
        present = projection > baseline
        order = np.lexsort((-np.nan_to_num(attribution), ~present), axis=1)
        rank = np.empty(order.shape, np.int64)
        np.put_along_axis(rank, order, np.broadcast_to(np.arange(1, order.shape[1] + 1), order.shape), axis=1)
        positive = np.where(present, attribution, 0.0).clip(min=0.0)
        sorted_mass = np.take_along_axis(positive, order, axis=1)
        before = np.cumsum(sorted_mass, axis=1) - sorted_mass
        total = sorted_mass.sum(axis=1, keepdims=True)
        chosen = (sorted_mass > 0) & (before < SET_MASS * total) & (np.arange(order.shape[1]) < SET_MOST)
        in_set = np.zeros(order.shape, bool)
        np.put_along_axis(in_set, order, chosen, axis=1)
        return cls(attribution, projection, present, in_set, rank)

    def entropy(self) -> Floats:
        """(C,) entropy in nats of the positive attribution mass over present concepts; NaN where there is none."""
        return entropy_of(np.where(self.present, self.attribution, 0.0))

    def overlap(self) -> Floats:
        """(C, C) |K_c & K_j| / |K_c | K_j|; 0 where both are empty."""
        sets = self.in_set.astype(np.int64)
        both = sets @ sets.T
        either = sets.sum(1)[:, None] + sets.sum(1)[None, :] - both
        return both / np.maximum(either, 1)


def entropy_of(attributions: Floats) -> Floats:
    """Entropy in nats of each row's positive mass: (N,), NaN where there is none.

    >>> np.exp(entropy_of(np.array([[2.0, 2.0, -1.0]]))).round(6).tolist()
    [2.0]
    """
    positive = attributions.clip(min=0.0)
    total = positive.sum(axis=1, keepdims=True)
    share = np.divide(positive, total, out=np.zeros_like(positive), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.where(total[:, 0] > 0, np.abs((share * logs).sum(axis=1)), np.nan)


# ---- all of it on a model ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Concepts:
    """Bank, head and classes of one model, and the n training examples they were fitted on, in the order of their ids.

    Attributes:
        baseline: float64 (K,), z', the mean projection of these examples.
        example_id, labels: (n,).
        features: float32 (n, d).
        projections: float64 (n, K).
    """

    bank: ConceptBank
    head: PosthocCBM
    classes: ClassConcepts
    baseline: Floats
    example_id: NDArray[np.int64]
    labels: NDArray[np.int64]
    features: NDArray[np.float32]
    projections: Floats

    @classmethod
    def from_features(
        cls,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        ids: NDArray[np.int64],
        *,
        class_names: Sequence[str],
        config: ConceptConfig,
        seed: int,
    ) -> Concepts:
        """Fit everything on embeddings (n, d) with their labels and ids.

        Raises:
            ConfigError, DataError: see :func:`named_members` and :meth:`ConceptBank.from_examples`.
            Diverged: the head has no optimum.
        """
        order = np.argsort(ids, kind="stable")
        features, labels, ids = features[order], labels[order], ids[order]
        members = named_members(labels, ids, class_names=class_names, config=config)
        named = bool(members)
        if not named:
            members = discover(features, num_concepts=config.num_concepts, seed=seed)
        bank = ConceptBank.from_examples(
            features, members, per_side=config.per_side, seed=seed, drop_unlearnable=not named
        )
        z = bank.project(features)
        baseline = z.mean(axis=0)
        head = PosthocCBM.fit(
            z,
            labels,
            num_classes=len(class_names),
            penalty=config.penalty,
            l1_ratio=config.l1_ratio,
            seed=derive_seed("head", seed),
        )
        own = head.attributions(z, baseline=baseline, target=labels)
        classes = ClassConcepts.of(own, z, labels, baseline=baseline, num_classes=len(class_names))
        return cls(bank, head, classes, baseline, ids, labels, features, z)


def fit_concepts(
    model: nn.Module, data: ExampleSet, *, config: ConceptConfig, seed: int, progress: Progress = silent
) -> Concepts:
    """The concepts of ``model`` on (at most ``config.sample`` of) the training examples ``data``.

    The sample is a function of the ids and the seed, not of the order; ids that the configuration names are in it.

    Raises:
        NotApplicable: not classification, or a model without a linear output layer.
        DataError: no examples, labels out of range, an unknown or repeated id, embeddings that are not finite.
        ConfigError, Diverged: see :meth:`Concepts.from_features`.
    """
    sample = fitting_sample(data, config=config, seed=seed)
    progress(0, 2, "embeddings")
    features = embeddings(model, sample, batch=config.batch)
    progress(1, 2, "concept bank")
    found = Concepts.from_features(
        features, sample.y, sample.example_id, class_names=data.class_names, config=config, seed=seed
    )
    progress(2, 2, "concept bank")
    return found


def fitting_sample(data: ExampleSet, *, config: ConceptConfig, seed: int) -> ExampleSet:
    """The examples that concepts are fitted on, in the order of their ids; see :func:`fit_concepts`."""
    require(data, "concepts", "classes")
    if not len(data):
        raise DataError(f"{data.name}: there is no example to learn concepts from")
    data.check_targets()
    ordered = data.by_id()
    if len(data) <= config.sample:
        return ordered
    rng = np.random.default_rng(derive_seed("concept sample", seed))
    groups = [_members_of(group, name, sides=True) for name, group in config.concept_examples.items()]
    listed = np.array([i for sides in groups for side in sides.values() for i in side], np.int64)
    chosen = np.sort(rng.choice(len(ordered), config.sample, replace=False))
    if len(listed):
        chosen = np.union1d(chosen, np.flatnonzero(np.isin(ordered.example_id, listed)))
    return ordered.take(chosen)


def projections_of(
    model: nn.Module, data: ExampleSet, bank: ConceptBank, *, batch: int
) -> Iterator[tuple[ExampleSet, Floats]]:
    """(examples, projections (B, K)) of all of ``data`` in the order of the ids, a bounded block at a time."""
    ordered = data.by_id()
    for start in range(0, len(ordered), _BLOCK):
        block = ordered.take(np.arange(start, min(start + _BLOCK, len(ordered))))
        yield block, bank.project(embeddings(model, block, batch=batch))
