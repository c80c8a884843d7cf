"""ERASE labels: what the graph and the model's embedding make of each training node's label.

    Yd = given labels of the training nodes, smoothed over the edges among them
    S  = |cosine| of each node's embedding and the mean embedding of each class
    Q  = softmax(b Yd + (1 - b) S), propagated over the whole graph                  (recipes.graph.label_propagation)

    denoised_label = argmax_k Q_k      confidence = max_k Q_k / sum Q      margin = (first - second) / sum Q
    excess         = (max_k Q_k - Q_label) / sum Q       > 0 where another label is likelier: higher = likelier wrong

This is one step of the label correction of ERASE for a model that is there, however it was trained: by ``erase`` it is
the correction that its read-out was fitted to, up to dropout and to the nodes whose labels chose its epoch, which count
as training nodes here. Rows of Q are divided by their sum: with column-normalised edges they are no probabilities.
Nodes without a training label take part with their embedding. A node's own label is part of what it is judged by.

Source: Chen et al., "ERASE" (CIKM 2024, arXiv 2312.08852), sections 4.1 and 4.2. Not a probability of being wrong.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from torch import nn

from contracts.errors import DataError
from contracts.methods import Call, ScoreSpec, score
from contracts.tables import Column
from explain.embeddings import embedder
from recipes.graph.erase import PropagationConfig
from recipes.graph.label_propagation import Floats, corrected_labels, denoise_labels, semantic_labels
from recipes.graph.networks import GraphNetwork
from recipes.inputs import Inputs, model_device, model_dtype
from recipes.predict import eval_mode
from sources.example_set import ExampleSet
from tasks.base import require


@score(
    ScoreSpec(
        name="erase_labels",
        wants=("classes", "nodes"),
        doc="The label that neighbours and embedding give to each node, and how far it is from the given one.",
        source="Chen et al., ERASE, CIKM 2024 (arXiv 2312.08852)",
        config=PropagationConfig,
        needs=("model",),
        columns=(
            Column(name="denoised_label", dtype="int64", low=0, doc="index of the corrected class"),
            Column(name="confidence", dtype="float64", low=0, high=1, doc="share of the corrected class in the row"),
            Column(name="margin", dtype="float64", low=0, high=1, doc="its share less that of the second"),
            Column(name="flagged", dtype="bool", doc="whether the corrected class is not the given one"),
            Column(
                name="excess",
                dtype="float64",
                low=0,
                high=1,
                direction="higher = likelier wrong",
                doc="share of the corrected class less that of the given one",
            ),
        ),
        value="excess",
        higher_means="label contradicted",
        calls=Call("noisy", column="excess"),
    )
)
def erase_labels(data: ExampleSet, *, config: PropagationConfig, seed: int, model: nn.Module) -> pl.DataFrame:
    """Corrected labels of the training nodes.

    Args:
        data: N training nodes of one graph; the other nodes of the graph are there without a label.
        config: see :class:`recipes.graph.erase.PropagationConfig`.
        seed: not used; the score is a function of model and data.
        model: on any device, with a linear output layer; its mode is as before after the call.

    Returns:
        One row a node, in the order of ``data``; columns as declared.

    Raises:
        NotApplicable: no nodes with one of K classes, or a model without a linear output layer.
        DataError: labels that are no classes, a node twice, or activations that are not finite; names the nodes.
    """
    require(data, "erase_labels", "classes", "nodes")
    data.check_targets()
    q = correction(data, model, config)
    q /= np.where(q.sum(axis=1) > 0, q.sum(axis=1), 1.0)[:, None]  # a row is empty where a lone node keeps nothing
    top = np.partition(q, -2, axis=1) if data.num_classes > 1 else np.pad(q, ((0, 0), (1, 0)))
    found = q.argmax(axis=1)
    return pl.DataFrame(
        {
            "example_id": data.example_id,
            "denoised_label": found.astype(np.int64),
            "confidence": np.clip(top[:, -1], 0, 1),
            "margin": np.clip(top[:, -1] - top[:, -2], 0, 1),
            "flagged": found != data.y,
            "excess": np.clip(q.max(axis=1, initial=0) - q[np.arange(len(data)), data.y], 0, 1),
        }
    )


def correction(data: ExampleSet, model: nn.Module, config: PropagationConfig) -> Floats:
    """Q (N, K) of the training nodes ``data``, in their order; errors as of :func:`erase_labels`."""
    ordered, graph = data.by_id(), data.x
    embedded = embeddings(model, ordered)
    edges, num, known = graph.edge_index, len(graph.features), ordered.x.nodes
    denoised = denoise_labels(
        ordered.y, known, config.propagator(edges, num, among=known), num_classes=data.num_classes
    )
    semantic = semantic_labels(embedded, denoised, known)
    q: Floats = corrected_labels(denoised, semantic, config.propagator(edges, num), trust=config.trust)[data.x.nodes]
    return q


def embeddings(model: nn.Module, data: ExampleSet, *, own: bool = False) -> Floats:
    """(V, d) activations of all nodes of the graph, float64: what enters the last linear layer; with ``own`` the
    embedding itself of a built-in graph network, before its rows are brought to length 1.

    Raises:
        NotApplicable: a model without a linear output layer.
        DataError: activations that are not finite; names the nodes.
    """
    device = model_device(model)
    if not len(data):
        return np.zeros((len(data.x.features), 1))
    inputs = Inputs(data, dtype=model_dtype(model), device=device).block(0, 1)
    inputs["nodes"] = torch.arange(len(data.x.features), device=device)
    with eval_mode(model), torch.no_grad():
        if own and isinstance(model, GraphNetwork):
            found = model.embed(inputs["x"], inputs["edge_index"]).double().cpu().numpy()
        else:
            with embedder(model) as embed:
                found = embed(inputs).double().cpu().numpy()
    broken = ~np.isfinite(found).all(axis=1)
    if broken.any():
        raise DataError(
            f"the model's activations on {int(broken.sum())} nodes are not finite",
            example_ids=data.x.node_id[broken],
        )
    return found  # type: ignore[no-any-return]
