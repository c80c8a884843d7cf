"""The concepts of a model: which it has, which classes they carry, and which examples show them.

    phi(x) -> z (N, K) concept projections -> F(z) (N, C) sparse linear head         PosthocCBM, in explain.concepts
    F_h    = F(z) + R phi + r                                                        PosthocHybridCBM: what concepts
           miss
    R, r   = argmin  mean CE(F_h, y) + 1e-3 mean(R^2),  Adam, lr 0.01, 20 epochs, batch 64, everything else frozen

Source: Yuksekgonul, Wang, Zou, "Post-hoc Concept Bottleneck Models", ICLR 2023 (arXiv 2205.15480), sections 2 and 3,
    and
the authors' code; class profiles after arXiv 2405.15662 (2024). Concepts are named in the configuration (groups of
classes, or example ids), else they are clusters of the embeddings, c_0, c_1, ..., whose meaning their examples show.

The bottleneck explains the data through the model's embedding; how far it speaks for the model itself is the agreement
in ``concept_bottleneck``. The residual is fitted from zero here (the authors start from PyTorch's default), so that it
is the bottleneck itself before its first step.

What in an example shows the concept is attributed through the backbone, to the inputs, for the few best examples of
each concept (integrated gradients from the mean training input). The paper's other bank, concepts given as texts, needs
an encoder of texts and images into one space; no recipe here is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.methods import EXAMPLE_ID, AnalysisSpec, Picture, analysis
from contracts.params import param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from explain.concepts import ConceptBank, ConceptConfig, Concepts, PosthocCBM, fit_concepts, projections_of
from explain.embeddings import embeddings
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.predict import predict_logits
from recipes.rng import generator
from recipes.streaming import check_outputs
from scoring.concept_attribution import class_concept_profile, concept_input_gradients, concept_integrated_gradients
from sources.example_set import ExampleSet
from sources.frames import frame_of
from tasks.base import require

__all__ = ["ConceptBank", "ConceptsConfig", "PosthocCBM", "PosthocHybridCBM", "concepts"]

_MOST_VALUES = 4_000_000  # numbers in each list column of concept_inputs: examples times inputs
_CONCEPT = Column(name="concept", dtype="str", doc="the concept; c_<i> are clusters, the largest first")
_CLASS = Column(name="class_id", dtype="int64", low=0, doc="index of the class")
_PROJECTION = Column(
    name="projection",
    dtype="float64",
    direction="higher = more of the concept",
    doc="signed distance of the embedding to the concept's boundary",
)

CLASS_CONCEPT_PROFILE = TableSpec(
    schema="scores",
    name="class_concept_profile",
    doc="What each class owes to each concept, and the concepts that carry it.",
    columns=(
        _CLASS,
        Column(name="class_name", dtype="str", doc="name of the class"),
        _CONCEPT,
        Column(name="mean_attribution", dtype="float64", unit="logit", doc="mean integrated gradient over the class"),
        Column(name="mean_projection", dtype="float64", doc="mean signed distance over the class"),
        Column(name="baseline", dtype="float64", doc="mean signed distance over the training set"),
        Column(
            name="present", dtype="bool", doc="mean_projection is above baseline; only such concepts explain a class"
        ),
        Column(name="rank", dtype="int64", low=1, doc="present concepts by mean attribution, then the absent ones"),
        Column(name="in_set", dtype="bool", doc="among the at most 3 present concepts with 80% of the positive mass"),
    ),
    key=("class_id", "concept"),
)
CONCEPT_BANK = TableSpec(
    schema="scores",
    name="concept_bank",
    doc="How well each concept can be read off the model's embeddings.",
    columns=(
        _CONCEPT,
        Column(
            name="svm_c",
            dtype="float64",
            low=0,
            doc="inverse strength of the linear SVM's penalty, chosen by cross-validation",
        ),
        Column(name="train_acc", dtype="float64", low=0, high=1, doc="balanced accuracy on the examples fitted on"),
        Column(
            name="val_acc",
            dtype="float64",
            low=0,
            high=1,
            doc="balanced accuracy on held-out folds of these, by which svm_c was chosen",
        ),
        Column(name="n_pos", dtype="int64", low=1, unit="examples", doc="fitted on, with the concept"),
        Column(name="n_neg", dtype="int64", low=1, unit="examples", doc="fitted on, without it"),
        Column(
            name="assumed_without",
            dtype="bool",
            doc="only examples with it were listed, and all others taken to be without: some may not be; list both",
        ),
        Column(
            name="correlated_with",
            dtype="str",
            nullable=True,
            doc="the most parallel other concept when |cos| > 0.8: credit between the two is arbitrary; else null",
        ),
        Column(name="cosine", dtype="float64", low=-1, high=1, nullable=True, doc="cosine with that concept"),
    ),
    key=("concept",),
)
CONCEPT_ATTRIBUTIONS = TableSpec(
    schema="scores",
    name="concept_attributions",
    doc="Integrated gradients of training examples on the concepts of their class.",
    columns=(
        EXAMPLE_ID,
        _CONCEPT,
        Column(name="target_class", dtype="int64", low=0, doc="the example's class, whose centred logit is explained"),
        Column(name="attribution", dtype="float64", unit="logit", doc="integrated gradient from the baseline"),
        _PROJECTION,
        Column(name="baseline", dtype="float64", doc="mean projection over the training set, where the path starts"),
        Column(name="delta", dtype="float64", low=-1, high=1, unit="logit", doc="completeness error of the example"),
        Column(name="model_id", dtype="str", doc="SHA-256 of the weights; a bank belongs to its backbone"),
    ),
    key=("example_id", "concept"),
)
CLASS_CONCEPT_OVERLAP = TableSpec(
    schema="scores",
    name="class_concept_overlap",
    doc="How much two classes share of their concept sets; what erasing one would touch of the other.",
    columns=(
        _CLASS,
        Column(name="other_class", dtype="int64", low=0, doc="index of another class"),
        Column(name="overlap", dtype="float64", low=0, high=1, doc="concepts in both sets over concepts in either"),
    ),
    key=("class_id", "other_class"),
)
CLASS_CONCEPTS = TableSpec(
    schema="scores",
    name="class_concepts",
    doc="Each class's concept set and how concentrated it is.",
    columns=(
        _CLASS,
        Column(name="class_name", dtype="str", doc="name of the class"),
        Column(name="concept_set", dtype="str", doc="its concepts, the strongest first, with commas; may be empty"),
        Column(
            name="entropy",
            dtype="float64",
            low=0,
            unit="nats",
            nullable=True,
            direction="higher = spread over more concepts",
            doc="of its positive attribution; null when there is none",
        ),
        Column(
            name="most_alike",
            dtype="str",
            nullable=True,
            doc="class with the largest overlap; null when none is above 0",
        ),
        Column(name="overlap", dtype="float64", low=0, high=1, doc="that overlap"),
    ),
    key=("class_id",),
)
CONCEPT_BOTTLENECK = TableSpec(
    schema="scores",
    name="concept_bottleneck",
    doc="How much of the model survives when it may only speak through its concepts.",
    columns=(
        Column(name="head", dtype="str", choices=("model", "concepts", "concepts_and_residual"), doc="what predicts"),
        Column(name="split", dtype="str", choices=("train", "test"), doc="where it is measured"),
        Column(name="accuracy", dtype="float64", low=0, high=1, doc="share of labels predicted"),
        Column(name="agreement", dtype="float64", low=0, high=1, doc="share of the model's own predictions it repeats"),
        Column(name="n", dtype="int64", low=1, unit="examples", doc="measured on"),
    ),
    key=("head", "split"),
)
CONCEPT_EXAMPLES = TableSpec(
    schema="scores",
    name="concept_examples",
    doc="The training examples that show each concept most.",
    columns=(_CONCEPT, Column(name="rank", dtype="int64", low=1, doc="1 = most"), EXAMPLE_ID, _PROJECTION),
    key=("concept", "rank"),
)
CONCEPT_INPUTS = TableSpec(
    schema="scores",
    name="concept_inputs",
    doc="Which inputs of its best examples make a concept's projection: integrated gradients through the backbone.",
    columns=(
        _CONCEPT,
        Column(name="rank", dtype="int64", low=1, doc="as in concept_examples"),
        EXAMPLE_ID,
        _PROJECTION,
        Column(name="baseline", dtype="float64", doc="projection of the mean training input, where the path starts"),
        Column(
            name="attribution",
            dtype="floats",
            doc="one number an input, in units of the projection; their sum is projection - baseline",
        ),
        Column(
            name="shown",
            dtype="floats",
            doc="the same in the example's range of inputs: the middle is 0, its ends the largest for and against",
        ),
        Column(name="delta", dtype="float64", doc="completeness error: sum of attribution - (projection - baseline)"),
    ),
    key=("concept", "rank"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptsConfig(ConceptConfig):
    """The concepts, and how much of the attributions is kept."""

    attributions: str = param(
        "set", choices=("set", "all"), doc="set: rows for the concepts of an example's class; all: for every concept"
    )
    max_examples: int = param(
        20_000,
        ge=1,
        le=100_000_000,
        unit="examples",
        doc="most examples in concept_attributions, a sample of the others",
    )
    top: int = param(8, ge=1, le=1000, unit="examples", doc="kept for each concept in concept_examples")
    inputs: int = param(
        3,
        ge=0,
        le=8,
        unit="examples",
        doc="of these, attributed to their inputs; fewer where inputs or concepts are many",
    )
    n_steps: int = param(50, ge=1, le=10_000, doc="points of the integral")
    tolerance: float = param(1e-4, gt=0, le=1, unit="logit", doc="largest completeness error that is accepted")


@dataclass(frozen=True, eq=False)
class PosthocHybridCBM:
    """A concept bottleneck with a linear residual on the embedding.

    Attributes:
        bottleneck: the frozen concept part.
        weight: float64 (C, d), R.
        bias: float64 (C,), r.
    """

    bottleneck: PosthocCBM
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        bottleneck: PosthocCBM,
        features: NDArray[np.float32],
        projections: NDArray[np.float64],
        labels: NDArray[np.int64],
        *,
        lr: float = 0.01,
        epochs: int = 20,
        batch: int = 64,
        penalty: float = 1e-3,
        seed: int,
    ) -> PosthocHybridCBM:
        """Fit the residual to what the bottleneck leaves.

        Args:
            features: (N, d) embeddings.
            projections: (N, K) of the same examples.
            labels: (N,).
            seed: of the order of the batches.
        """
        phi = torch.from_numpy(np.asarray(features, np.float32))
        base = torch.from_numpy(bottleneck.logits(projections).astype(np.float32))
        y = torch.from_numpy(np.asarray(labels, np.int64))
        weight = torch.zeros(base.shape[1], phi.shape[1], requires_grad=True)
        bias = torch.zeros(base.shape[1], requires_grad=True)
        optimizer = torch.optim.Adam([weight, bias], lr=lr)
        order = generator(derive_seed("residual", seed))
        for _ in range(epochs):
            for rows in torch.randperm(len(y), generator=order).split(batch):
                loss = F.cross_entropy(base[rows] + phi[rows] @ weight.T + bias, y[rows])
                loss = loss + penalty * weight.square().mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        return cls(bottleneck, weight.detach().double().numpy(), bias.detach().double().numpy())

    def logits(self, projections: NDArray[np.float64], features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, C) of projections (N, K) and embeddings (N, d)."""
        residual = np.asarray(features, np.float64) @ self.weight.T + self.bias
        return self.bottleneck.logits(projections) + residual


@analysis(
    AnalysisSpec(
        name="concepts",
        wants=("outputs", "classes", "features"),
        doc="Concepts of the model: how well they are read off it, which classes they carry, which examples show them.",
        source="Yuksekgonul et al., ICLR 2023; Sundararajan et al., ICML 2017; arXiv 2405.15662 (2024)",
        config=ConceptsConfig,
        version=2,
        needs=("model",),
        tables=(
            CLASS_CONCEPT_PROFILE,
            CLASS_CONCEPTS,
            CLASS_CONCEPT_OVERLAP,
            CONCEPT_BANK,
            CONCEPT_BOTTLENECK,
            CONCEPT_EXAMPLES,
            CONCEPT_ATTRIBUTIONS,
            CONCEPT_INPUTS,
        ),
        pictures=(
            Picture(
                table="concept_examples",
                title="Examples that show each concept most",
                kind="examples",
                x="example_id",
                y="projection",
                series="concept",
            ),
            Picture(
                table="concept_inputs",
                title="What in the first of these shows the concept: light for it, dark against",
                kind="images",
                x="example_id",
                y="shown",
                series="concept",
                value="projection",
            ),
            Picture(
                table="class_concept_profile",
                title="The concepts that carry each class",
                kind="bars",
                x="concept",
                y="mean_attribution",
                series="class_name",
                where=(("in_set", True),),
            ),
            Picture(
                table="concept_bank",
                title="How well each concept is read off the model",
                kind="bars",
                x="concept",
                y="val_acc",
            ),
            Picture(
                table="concept_bottleneck",
                title="Test accuracy through concepts",
                kind="bars",
                x="head",
                y="accuracy",
                where=(("split", "test"),),
            ),
        ),
    )
)
def concepts(
    data: ExampleSet, *, config: ConceptsConfig, seed: int, progress: Progress = silent, model: nn.Module
) -> dict[str, pl.DataFrame]:
    """The concepts of ``model``, learned on the training split.

    Args:
        data: both splits, classification.
        config: which concepts; by default clusters of the model's embeddings.
        seed: of samples, clusters and the residual's batches.
        progress: called at each stage.
        model: the audited model; put into eval mode and back.

    Returns:
        The eight tables of the declaration. Without a concept (embeddings that do not differ) those about concepts are
        empty.

    Raises:
        NotApplicable: not classification, or a model without a linear output layer.
        DataError: labels out of range, no training examples, an id used twice, activations or outputs that are not
            finite, or a named concept that cannot be learned.
        ConfigError: a concept names an unknown class.
        InvalidInput: integrated gradients that are not complete within the tolerance.
    """
    require(data, "concepts", "classes")
    train = data.part("train")
    check_outputs("concepts", data, model)
    found = fit_concepts(model, train, config=config, seed=seed)
    progress(1, 5, "concepts: bank and head")
    hybrid = PosthocHybridCBM.fit(found.head, found.features, found.projections, found.labels, seed=seed)
    progress(2, 5, "concepts: residual")
    bottleneck = _bottleneck(model, data, found, hybrid, batch=config.batch)
    progress(3, 5, "concepts: accuracy through concepts")
    examples = _top_examples(model, train, found.bank, top=config.top, batch=config.batch)
    progress(4, 5, "concepts: examples")
    attributions = _attributions(model, train, found, config=config, seed=seed)
    inputs = _inputs(model, train, found, examples, config=config)
    progress(5, 5, "concepts: attributions")
    overlap = found.classes.overlap()
    profile = class_concept_profile(
        found.classes, concepts=found.bank.names, class_names=data.class_names, baseline=found.baseline
    )
    return {
        "class_concept_profile": profile,
        "class_concepts": _class_concepts(found, overlap, data.class_names),
        "class_concept_overlap": _pairs(overlap),
        "concept_bank": _bank(found.bank, config),
        "concept_bottleneck": bottleneck,
        "concept_examples": examples,
        "concept_attributions": attributions,
        "concept_inputs": inputs,
    }


def _bank(bank: ConceptBank, config: ConceptConfig) -> pl.DataFrame:
    listed = {name for name, group in config.concept_examples.items() if not isinstance(group, Mapping)}
    nearest: dict[str, tuple[str, float]] = {}
    for first, second, cosine in bank.correlated():  # strongest first
        nearest.setdefault(first, (second, cosine))
        nearest.setdefault(second, (first, cosine))
    return pl.DataFrame(
        {
            "concept": pl.Series(bank.names, dtype=pl.String),
            "svm_c": bank.svm_c,
            "train_acc": bank.train_acc,
            "val_acc": bank.val_acc,
            "n_pos": bank.n_pos,
            "n_neg": bank.n_neg,
            "assumed_without": pl.Series([name in listed for name in bank.names], dtype=pl.Boolean),
            "correlated_with": pl.Series([nearest.get(n, (None,))[0] for n in bank.names], dtype=pl.String),
            "cosine": pl.Series([nearest.get(n, (None, None))[1] for n in bank.names], dtype=pl.Float64),
        }
    )


def _class_concepts(found: Concepts, overlap: NDArray[np.float64], class_names: tuple[str, ...]) -> pl.DataFrame:
    classes, names = found.classes, found.bank.names
    others = overlap - 2 * np.eye(len(overlap))
    nearest = others.argmax(axis=1)
    most = others.max(axis=1).clip(min=0.0)
    order = np.argsort(classes.rank, axis=1)
    return pl.DataFrame(
        {
            "class_id": np.arange(len(class_names)),
            "class_name": pl.Series(class_names, dtype=pl.String),
            "concept_set": [
                ", ".join(names[k] for k in o if row[k]) for o, row in zip(order, classes.in_set, strict=True)
            ],
            "entropy": classes.entropy(),
            "most_alike": pl.Series(
                [class_names[j] if m > 0 else None for j, m in zip(nearest, most, strict=True)], dtype=pl.String
            ),
            "overlap": most,
        },
        nan_to_null=True,
    )


def _pairs(overlap: NDArray[np.float64]) -> pl.DataFrame:
    first, second = np.nonzero(~np.eye(len(overlap), dtype=bool))
    return pl.DataFrame({"class_id": first, "other_class": second, "overlap": overlap[first, second]})


def _bottleneck(
    model: nn.Module, data: ExampleSet, found: Concepts, hybrid: PosthocHybridCBM, *, batch: int
) -> pl.DataFrame:
    """Accuracy of the model and of the two heads; on the training side where the heads were fitted."""
    parts = {"train": data.subset(found.example_id), "test": data.part("test")}
    rows = []
    for split, part in parts.items():
        if not len(part):
            continue
        own = predict_logits(model, part, batch=batch).argmax(axis=1)
        phi = found.features if split == "train" else embeddings(model, part, batch=batch)
        z = found.bank.project(phi)
        said = {
            "model": own,
            "concepts": found.head.logits(z).argmax(axis=1),
            "concepts_and_residual": hybrid.logits(z, phi).argmax(axis=1),
        }
        rows += [
            {
                "head": head,
                "split": split,
                "accuracy": float((answer == part.y).mean()),
                "agreement": float((answer == own).mean()),
                "n": len(part),
            }
            for head, answer in said.items()
        ]
    return pl.DataFrame(rows)


def _top_examples(model: nn.Module, train: ExampleSet, bank: ConceptBank, *, top: int, batch: int) -> pl.DataFrame:
    """The ``top`` examples of largest projection on each concept, one block of examples at a time; ties by id."""
    best = pl.DataFrame(schema={"concept": pl.String, "example_id": pl.Int64, "projection": pl.Float64})
    for block, z in projections_of(model, train, bank, batch=batch):
        best = pl.concat(
            [
                best,
                pl.DataFrame(
                    {
                        "concept": pl.Series(
                            np.repeat(np.array(bank.names, dtype=object), len(block)), dtype=pl.String
                        ),
                        "example_id": np.tile(block.example_id, len(bank)),
                        "projection": z.T.ravel(),
                    }
                ),
            ]
        )
        best = best.sort("projection", "example_id", descending=[True, False]).group_by("concept").head(top)
    order = pl.DataFrame({"concept": pl.Series(bank.names, dtype=pl.String)}).with_row_index("number")
    best = best.join(order, on="concept").sort(["number", "projection", "example_id"], descending=[False, True, False])
    return best.select(
        "concept", (pl.int_range(pl.len()).over("concept") + 1).alias("rank"), "example_id", "projection"
    )


def _attributions(
    model: nn.Module, train: ExampleSet, found: Concepts, *, config: ConceptsConfig, seed: int
) -> pl.DataFrame:
    if len(train) > config.max_examples:
        rng = np.random.default_rng(derive_seed("attributed", seed))
        train = train.subset(np.sort(rng.choice(np.sort(train.example_id), config.max_examples, replace=False)))
    model_id = arrays_digest(to_arrays(model))
    names = np.array(found.bank.names, dtype=object)
    parts = []
    for block, z in projections_of(model, train, found.bank, batch=config.batch):
        each = concept_integrated_gradients(
            found.head, z, baseline=found.baseline, target=block.y, n_steps=config.n_steps, tolerance=config.tolerance
        )
        shown = np.ones(z.shape, bool) if config.attributions == "all" else found.classes.in_set[block.y]
        row, k = np.nonzero(shown)
        parts.append(
            pl.DataFrame(
                {
                    "example_id": block.example_id[row],
                    "concept": pl.Series(names[k], dtype=pl.String),
                    "target_class": block.y[row],
                    "attribution": each.values[row, k],
                    "projection": z[row, k],
                    "baseline": found.baseline[k],
                    "delta": each.delta[row],
                    "model_id": pl.Series([model_id] * len(row), dtype=pl.String),
                }
            )
        )
    return pl.concat(parts)


def _inputs(
    model: nn.Module, train: ExampleSet, found: Concepts, examples: pl.DataFrame, *, config: ConceptsConfig
) -> pl.DataFrame:
    """The inputs of the first of ``examples``; every concept's best before any second."""
    most = _MOST_VALUES // prod(train.input_shape)
    best = examples.filter(pl.col("rank") <= config.inputs).with_row_index("place")
    best = best.sort("rank", maintain_order=True).head(most).sort("place")
    if best.is_empty():
        return frame_of(CONCEPT_INPUTS, [])
    shown = train.take(train.positions(best["example_id"].to_numpy()))  # an example may be the best of several concepts
    number = {name: k for k, name in enumerate(found.bank.names)}
    mean = _mean_input(train.subset(found.example_id), batch=config.batch)
    each = concept_input_gradients(
        model,
        shown,
        found.bank,
        concept=np.array([number[name] for name in best["concept"]]),
        baseline=mean,
        n_steps=config.n_steps,
        batch=config.batch,
    )
    x = shown.inputs(slice(None)).reshape(len(shown), -1)
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    largest = np.abs(each.values).max(axis=1, keepdims=True)
    scaled = np.divide(each.values, largest, out=np.zeros_like(each.values), where=largest > 0)
    return best.drop("place").with_columns(
        baseline=pl.col("projection") + pl.Series(each.delta - each.values.sum(axis=1)),
        attribution=pl.Series(each.values.tolist(), dtype=pl.List(pl.Float64)),
        shown=pl.Series(((low + high) / 2 + scaled * (high - low) / 2).tolist(), dtype=pl.List(pl.Float64)),
        delta=pl.Series(each.delta),
    )


def _mean_input(data: ExampleSet, *, batch: int) -> NDArray[np.float64]:
    total = np.zeros(data.input_shape)
    for start in range(0, len(data), batch):
        total += data.inputs(slice(start, min(start + batch, len(data)))).sum(axis=0, dtype=np.float64)
    return total / len(data)
