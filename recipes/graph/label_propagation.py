"""Labels that are wrong, corrected by a graph: smoothed over the training nodes, compared with prototypes, propagated.

    A_n             column: A D^-1    row: D^-1 A    sym: D^-1/2 A D^-1/2        a node without an edge: zeros
    denoised        Y0 = onehot(given label) on training nodes, else 0;  A_tr = (A * tr tr^T) normalised
                    T times  Y <- (1 - a) A_tr Y + a Y;                          the result is Yd
    or, propagated  T times  Y <- clip((1 - a) A_tr Y + a Y0, 0, 1),  A_tr by sym
    semantic        mu_c = mean of Z over training nodes with argmax Yd = c (zero where there are none)
                    S = |cos(Z, mu)|                                             (V, K) in [0, 1]
    corrected       Q = softmax_row(b Yd + (1 - b) S);   T times  Q <- (1 - a) A_n Q + a Q;   L = argmax_row Q

V nodes, K classes, d embedding size; float64 throughout, no gradient. A is 0/1 and symmetric (an edge counts both ways
here, whatever the network makes of it), without loops.

``column`` is what the authors' code does, although it calls it a row normalisation: neighbours of many edges count
less, and a node's row is no average of its neighbours'. ``row`` is the average. a = 1 changes nothing; b = 1 makes the
embeddings irrelevant.

Source: Chen et al., "ERASE: Error-Resilient Representation Learning on Graphs for Label Noise Tolerance" (CIKM 2024,
arXiv 2312.08852), sections 4.1 and 4.2. ``denoise_labels`` is not label propagation as it is known otherwise (Zhou et
al., NeurIPS 2003), which starts every step from the given labels again: that is ``propagate_labels``, which the authors
take for large graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from contracts.errors import InvalidInput

NORMALIZATIONS = ("column", "row", "sym")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Propagator:
    """T steps of Y <- (1 - a) A_n Y + a Y.

    Attributes:
        matrix: A_n, sparse (V, V).
        steps: T.
        keep: a, the share of a node's own row that it keeps in every step.
    """

    matrix: sp.csr_array
    steps: int
    keep: float

    @classmethod
    def of(
        cls, edge_index: Ints, num_nodes: int, *, steps: int, keep: float, normalization: str, among: Ints | None = None
    ) -> Self:
        """Of the edges (2, E) of a graph, loops and repetitions left out, each counted both ways.

        Args:
            among: nodes; edges that lead elsewhere are left out. None: all.

        Raises:
            InvalidInput: edges outside 0..V-1, ``keep`` outside [0, 1], or another normalisation.
        """
        if edge_index.size and not 0 <= edge_index.min() <= edge_index.max() < num_nodes:
            raise InvalidInput(f"edges lead to {edge_index.min()}..{edge_index.max()}, outside 0..{num_nodes - 1}")
        if not 0 <= keep <= 1 or steps < 0 or normalization not in NORMALIZATIONS:
            raise InvalidInput(
                f"propagation: keep = {keep} in [0, 1], steps = {steps} >= 0 and normalization = {normalization!r} in "
                f"{', '.join(NORMALIZATIONS)} are needed"
            )
        a, b = edge_index[:, edge_index[0] != edge_index[1]]
        if among is not None:
            inside = np.zeros(num_nodes, bool)
            inside[among] = True
            a, b = a[inside[a] & inside[b]], b[inside[a] & inside[b]]
        both = np.concatenate([a, b]), np.concatenate([b, a])
        links = sp.csr_array((np.ones(2 * len(a)), both), shape=(num_nodes, num_nodes))  # repetitions are summed
        links.data[:] = 1.0
        degree = np.asarray(links.sum(axis=1)).ravel()
        inverse = np.divide(1.0, degree, out=np.zeros(num_nodes), where=degree > 0)
        left, right = {
            "column": (np.ones(num_nodes), inverse),
            "row": (inverse, np.ones(num_nodes)),
            "sym": (np.sqrt(inverse), np.sqrt(inverse)),
        }[normalization]
        return cls(sp.csr_array(sp.diags_array(left) @ links @ sp.diags_array(right)), steps, keep)

    def __call__(self, rows: Floats) -> Floats:
        """(V, K) -> (V, K)."""
        for _ in range(self.steps):
            rows = (1 - self.keep) * (self.matrix @ rows) + self.keep * rows
        return rows


def denoise_labels(labels: Ints, among: Ints, propagator: Propagator, *, num_classes: int) -> Floats:
    """Yd (V, K): the given labels, smoothed over the training nodes before any training.

    Args:
        labels: (n,) given labels of the training nodes.
        among: (n,) the training nodes, distinct.
        propagator: of the edges among them.
    """
    given = np.zeros((propagator.matrix.shape[0], num_classes))
    given[among, labels] = 1.0
    return propagator(given)


def propagate_labels(labels: Ints, among: Ints, propagator: Propagator, *, num_classes: int) -> Floats:
    """Yd (V, K) by label propagation (Zhou et al., NeurIPS 2003): a of every step is the given labels, not what the
    step before left of them.

    Args:
        labels, among: as of :func:`denoise_labels`.
        propagator: of the edges among them, ``sym``; its steps and a are taken.
    """
    given = np.zeros((propagator.matrix.shape[0], num_classes))
    given[among, labels] = 1.0
    rows, keep = given, propagator.keep
    for _ in range(propagator.steps):
        rows = np.clip((1 - keep) * (propagator.matrix @ rows) + keep * given, 0.0, 1.0)
    return rows


def semantic_labels(embeddings: Floats, denoised: Floats, among: Ints) -> Floats:
    """S (V, K): how alike each node's embedding and the prototype of each class are, 0 to 1.

    Args:
        embeddings: Z (V, d).
        denoised: Yd (V, K).
        among: (n,) the training nodes, of which prototypes are made.
    """
    z = np.asarray(embeddings, np.float64)
    to_class = np.eye(denoised.shape[1])[denoised[among].argmax(axis=1)]  # (n, K)
    sums, sizes = to_class.T @ z[among], to_class.sum(axis=0)
    prototypes = sums / np.maximum(sizes, 1)[:, None]
    return np.abs(_unit(z) @ _unit(prototypes).T)


def corrected_labels(denoised: Floats, semantic: Floats, propagator: Propagator, *, trust: float) -> Floats:
    """Q (V, K): the mix of both labels, propagated over the graph; its largest entry is a node's corrected label.

    Args:
        denoised: Yd (V, K).
        semantic: S (V, K).
        propagator: of all edges.
        trust: b in [0, 1], weight of ``denoised``.
    """
    mixed = trust * denoised + (1 - trust) * semantic
    shifted = np.exp(mixed - mixed.max(axis=1, keepdims=True))
    return propagator(shifted / shifted.sum(axis=1, keepdims=True))


def _unit(rows: Floats) -> Floats:
    """Rows of length 1; rows of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
