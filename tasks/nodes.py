"""Nodes: one of K classes a node of a graph; the four numbers of classification, node by node.

    answers         model(x=, edge_index=, nodes=) -> logits (B, K) of the nodes asked for, read on the full graph
    loss, signal, log_likelihood, quality     as of ``tasks.classification``

A node is trained on the subgraph that the members of a model's training set induce (``ExampleSet.only``), and read on
the full graph: what an attacker can ask of a served model (Olatunji et al., "Membership inference attack on graph
neural networks", TPS 2021). A node that is no member still has a neighbourhood in what is read, so a signal over
reference models varies with its neighbours' membership as well as with its own.
"""

from __future__ import annotations

from contracts.errors import DataError
from contracts.methods import EVERY_TASK, TaskSpec, task
from tasks.base import Examples
from tasks.classification import Classification


@task(
    TaskSpec(
        name="nodes",
        doc="One of K classes a node of a graph.",
        source="Carlini et al., IEEE S&P 2022 (signal); Olatunji et al., TPS 2021 (induced subgraph)",
        gives=(*EVERY_TASK, "outputs", "classes", "nodes"),
        quality="accuracy",
        loss="cross-entropy (nats)",
    )
)
class Nodes(Classification):
    """See the file."""

    repeatable = False  # a node is in its graph once

    def check(self, data: Examples) -> None:
        """As of classification, of the nodes of a graph."""
        if getattr(data.x, "edges", None) is None:
            raise DataError(f"{data.name}: x is no graph; nodes have one list of edges")
        super().check(data)

    def describe(self, data: Examples) -> str:
        return f"nodes of {len(data.class_names)} classes, {data.x.edges.shape[1]:,} edges"
