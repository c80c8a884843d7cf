"""Coding rates of a trained graph network: how far its classes have come apart, and on which labels.

    R     = 1/2 logdet(I + d / (N e) Z^T Z)                  the whole embedding, nats
    R_c   = 1/2 logdet(I + d / (n_c e) Z_c^T Z_c)            of the nodes of class c alone
    Rc    = sum_c n_c / N R_c           delta = R - Rc >= 0  what knowing the class saves: 0 where classes share their
                                                             directions, larger the nearer they are to orthogonal
    rank  = exp of the entropy of the singular values' shares, of Z and of every Z_c; about 1 is a collapse

Z (N, d) are the training nodes' embeddings in eval mode, on the full graph. The classes are
taken twice: as the labels were ``given``, and as the graph and the embedding have ``corrected`` them (the score
``erase_labels``). R is the same for both; a larger delta of the corrected labels says that the embedding is organised
by them and not by the given ones, which is what ERASE trains for. e is to match the scale of the rows: the recipe's own
for a network trained by ``erase`` (rows that sum to 1 or less), about 0.5 for rows of unit length.

Source: Yu et al., NeurIPS 2020 (arXiv 2006.08558), equations 1 to 4; Chen et al., ERASE, CIKM 2024 (arXiv 2312.08852);
effective rank: Roy and Vetterli, EUSIPCO 2007. Not a test of the labels, and not comparable between networks of other
widths or scales. Not the training's own figures, which are of the pass with dropout on the members' subgraph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contracts.errors import DataError
from contracts.methods import AnalysisSpec, Picture, analysis
from contracts.params import param
from contracts.progress import Progress, silent
from contracts.tables import Column, TableSpec
from recipes.graph.coding_rate import coding_rate, effective_rank
from recipes.graph.erase import PropagationConfig
from scoring.erase_labels import correction, embeddings
from sources.example_set import ExampleSet
from sources.frames import frame_of
from tasks.base import require

LABELS = ("given", "corrected")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodingRatesConfig(PropagationConfig):
    """How labels are corrected, and how finely the embedding is coded."""

    eps: float = param(0.05, gt=0, le=100, doc="e, distortion; as of the recipe erase, about 0.5 for rows of length 1")


_OF = Column(name="labels", dtype="str", choices=LABELS, doc="the classes: as given, or as corrected")
_NUM = Column(name="num_nodes", dtype="int64", low=0, doc="training nodes")
_RANK = Column(
    name="effective_rank",
    dtype="float64",
    low=0,
    direction="about 1 = collapsed to one direction",
    doc="exp of the entropy of the singular values' shares; 0 without a row that is not zero",
)


def _nats(name: str, doc: str, **more: Any) -> Column:
    return Column(name=name, dtype="float64", unit="nats", doc=doc, **more)


SUMMARY = TableSpec(
    schema="scores",
    name="coding_rate_summary",
    key=("labels",),
    doc="Coding rates of the training nodes' embeddings, whole and class by class.",
    columns=(
        _OF,
        _NUM,
        Column(name="dim", dtype="int64", low=1, doc="d, size of an embedding"),
        Column(name="eps", dtype="float64", low=0, doc="e, distortion"),
        _nats("rate", "R, of the whole embedding; the same for both labels", low=0),
        _nats("class_rate", "Rc, of the classes, weighted by their nodes", low=0),
        _nats("delta", "R - Rc", direction="higher = classes further apart"),
        _RANK,
        Column(name="changed", dtype="float64", low=0, high=1, doc="share of nodes whose class is not the given one"),
    ),
)
CLASSES = TableSpec(
    schema="scores",
    name="coding_rates",
    key=("labels", "label"),
    doc="Coding rate and effective rank of every class's embeddings.",
    columns=(
        _OF,
        Column(name="label", dtype="int64", low=0, doc="class index"),
        Column(name="label_name", dtype="str", doc="class name"),
        _NUM,
        _nats("rate", "R_c, of the class's nodes alone; 0 without any", low=0),
        _nats("part", "n_c / N R_c, what the class adds to Rc", low=0),
        _RANK,
    ),
)


@analysis(
    AnalysisSpec(
        name="coding_rates",
        wants=("classes", "nodes"),
        doc="How many nats the embedding of the nodes takes, whole and class by class, by given and by corrected "
        "labels, and how many directions it uses.",
        source="Yu et al., NeurIPS 2020, arXiv 2006.08558; Chen et al., ERASE, CIKM 2024, arXiv 2312.08852",
        config=CodingRatesConfig,
        needs=("model",),
        tables=(SUMMARY, CLASSES),
        pictures=tuple(
            Picture(
                table="coding_rates",
                title=f"{what} of each class, labels as {labels}",
                kind="bars",
                x="label_name",
                y=y,
                where=(("labels", labels),),
            )
            for y, what in (("rate", "Coding rate"), ("effective_rank", "Effective rank"))
            for labels in LABELS
        ),
    )
)
def coding_rates(
    data: ExampleSet, *, config: CodingRatesConfig, seed: int, model: nn.Module, progress: Progress = silent
) -> dict[str, pl.DataFrame]:
    """Tables ``coding_rate_summary`` (two rows) and ``coding_rates`` (two a class).

    Args:
        data: both splits of nodes of one graph; the training split is measured.
        config: see :class:`CodingRatesConfig`.
        seed: not used.
        model: on any device; of a built-in graph network the embedding is its own, of any other what enters its last
            linear layer. Its mode is as before afterwards.
        progress: called with (labelings done, 2, "coding rates").

    Raises:
        NotApplicable: no nodes with one of K classes, or a model without a linear output layer.
        DataError: no training node, labels that are no classes, or embeddings that are not finite.
    """
    require(data, "coding_rates", "classes", "nodes")
    train = data.part("train").by_id()
    if not len(train):
        raise DataError(f"{data.name}: there is no training node whose embedding could be measured")
    train.check_targets()
    corrected = correction(train, model, config).argmax(axis=1)
    z = torch.from_numpy(embeddings(model, train, own=True)[train.x.nodes])
    whole, rank = float(coding_rate(z, eps=config.eps)), effective_rank(z)
    summary, rows = [], []
    for done, (name, labels) in enumerate(zip(LABELS, (train.y, corrected), strict=True), start=1):
        classes = [_of_class(z, labels, c, train, config.eps) for c in range(train.num_classes)]
        apart = sum(row["part"] for row in classes)
        of_all = {"num_nodes": len(train), "dim": z.shape[1], "eps": config.eps, "effective_rank": rank}
        of_all |= {"rate": whole, "class_rate": apart, "delta": whole - apart}
        summary.append({"labels": name, **of_all, "changed": float((labels != train.y).mean())})
        rows += [{"labels": name, **row} for row in classes]
        progress(done, len(LABELS), "coding rates")
    return {SUMMARY.name: frame_of(SUMMARY, summary), CLASSES.name: frame_of(CLASSES, rows)}


def _of_class(z: Tensor, labels: NDArray[np.int64], label: int, data: ExampleSet, eps: float) -> dict[str, Any]:
    own = z[torch.from_numpy(labels == label)]
    rate = float(coding_rate(own, eps=eps))
    return {
        "label": label,
        "label_name": data.class_names[label],
        "num_nodes": len(own),
        "rate": rate,
        "part": len(own) / len(z) * rate,
        "effective_rank": effective_rank(own) if len(own) else 0.0,
    }
