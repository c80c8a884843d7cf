"""Forget requests that name an edge of a graph in place of rows: what a person and another have to do with each other.

An edge has no row, no owner and no score; it is known by the ids of its two nodes. No method can take it out of a
trained model short of training without it, and no attack tells one edge: so it is removed by exact retraining alone.

    registered   the edge is there                                              (``refuse_no_edge``)
    run          refused, with what is to be done                               (``refuse_edge``)
    closed       when it is in no data and everything was trained again         (``assets.request_closing``)
    afterwards   data that hold it are refused                                  (``refuse_erased_edges``)

All nodes around an edge are rows like others: the selector is ``neighbourhood``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.errors import DataError, NotApplicable
from contracts.requests import EDGE, ForgetRequest, RequestState

if TYPE_CHECKING:
    from sources.example_set import ExampleSet
    from sources.payloads.graph import Graph
    from warehouse import Warehouse


def graph_of(data: ExampleSet, what: str) -> Graph:
    """The graph whose nodes the examples are.

    Raises:
        NotApplicable: they are none.
    """
    from sources.payloads.graph import Graph

    if not isinstance(data.payload, Graph):
        raise NotApplicable(f"{what} is of a graph: the examples of {data.name} are no nodes of one")
    return data.payload


def has_edge(request: ForgetRequest, data: ExampleSet) -> bool:
    """Whether the edge that a request names is in the data, in either direction."""
    first, second = request.edge
    return graph_of(data, "an edge").has_edge(first, second)


def refuse_no_edge(request: ForgetRequest, data: ExampleSet) -> None:
    """Nothing, when the edge that a request names is in the data.

    Raises:
        NotApplicable: the data are no graph.
        DataError: there is no such edge.
    """
    if not has_edge(request, data):
        first, second = request.edge
        raise DataError(f"request {request.request_id}: no edge joins nodes {first} and {second} of {data.name}")


def refuse_edge(request: ForgetRequest) -> None:
    """Nothing, for a request that names no edge.

    Raises:
        NotApplicable: it names one; says how it is removed.
    """
    if not request.edge:
        return
    raise NotApplicable(
        f"request {request.request_id} asks to forget an edge: no method of unlearning takes one out, and no attack on "
        f"a model tells one. {how_to_remove(request)} Nothing was run, and the request stands as it was"
    )


def how_to_remove(request: ForgetRequest) -> str:
    """What a person does with a request that names an edge, as a sentence."""
    first, second = request.edge
    return (
        f"Take it out of the source, or list [{first}, {second}] under without_edges in the plan, and train everything "
        f"again: palimpsest request close {request.subject} {request.request_id} --retrained."
    )


def refuse_erased_edges(subject: str, data: ExampleSet, warehouse: Warehouse) -> None:
    """Nothing, when no edge is in the data that was removed for a forget request.

    Raises:
        DataError: one is; says of which request.
    """
    if not data.task.gives("nodes"):
        return
    listed = warehouse.requests.list(subject)
    for row in listed.iter_rows(named=True):
        if row["selector"] != EDGE or row["state"] != RequestState.CLOSED.value:
            continue
        request = warehouse.requests.get(row["request_id"]).request
        if has_edge(request, data):
            raise DataError(
                f"the source of {subject} still holds the edge that was removed for request {request.request_id}. Take "
                f"it out of it, or, where it cannot be changed, list {list(request.edge)} under 'without_edges' in the "
                "plan: nothing is trained on it again"
            )
