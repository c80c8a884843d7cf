"""k-NN Shapley: what each training example contributes to a nearest-neighbour model's answers, exactly.

    classes   v_j(S) = (1/K) #{ of the min(K, |S|) nearest of S to j with the label of j }
        alpha_1, ..., alpha_N: players by distance to j, nearest first, equals (up to rounding) by id
        s_{alpha_N} = min(K, N) 1[y_{alpha_N} = y_j] / (N K)
        s_{alpha_i} = s_{alpha_{i+1}} + (1[y_{alpha_i} = y_j] - 1[y_{alpha_{i+1}} = y_j]) / K  min(K, i) / i
    numbers   v_j(S) = -( (1/K) sum over the min(K, |S|) nearest of y  -  y_j )^2, y standardised over the players
    value_i = mean over j of s_i(j)                          in [-1, 1] for classes; positive = helps

The Shapley value of the game over all examples at once, in O(N log N) a test point: no retraining and no sampling.

The score has no test points besides the training examples: each of the N asks all others (for itself it is no player),
so the value of i is its mean over j != i, in what the model sees: penultimate activations, by cosine similarity. A
wrong label takes points away from its neighbours, and its value falls below that of right ones.

Source: Jia et al., "Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms" (VLDB 2019, arXiv
1908.08619), theorems 1 and 6. It values examples for the nearest-neighbour model, not for the network.
Shapes: players (N, d), test points (T, d) -> values (N,); memory is that of a block of test points by N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from contracts.errors import InvalidInput, NotApplicable
from contracts.methods import Call, ScoreSpec, score
from contracts.params import Config, param
from contracts.tables import Column
from explain.embeddings import embeddings
from explain.neighbours import by_id, unit_vectors
from sources.example_set import ExampleSet
from tasks.base import require

Floats = NDArray[np.float64]
_CELLS = 2_000_000  # players x test points held at a time
_ROUNDING = 4e-6  # of squared distances between unit vectors in single precision


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnShapleyConfig(Config):
    k: int = param(10, ge=1, le=10_000, doc="neighbours that answer")
    batch: int = param(1024, ge=1, le=1_000_000, doc="examples a forward pass; bounds memory")


@score(
    ScoreSpec(
        name="knn_shapley",
        wants=("features",),
        doc="Shapley value of each training example for a nearest-neighbour model on the penultimate layer.",
        source="Jia et al., Efficient Task-Specific Data Valuation, VLDB 2019 (arXiv 1908.08619)",
        config=KnnShapleyConfig,
        needs=("encoder",),
        columns=(
            Column(
                name="knn_shapley",
                dtype="float64",
                high=1,
                nullable=True,
                direction="higher = helps more",
                doc="mean over the other examples of what it contributes to their answers; null without others",
            ),
            Column(
                name="knn_shapley_stderr",
                dtype="float64",
                low=0,
                nullable=True,
                doc="standard error of that mean, the other examples taken for a sample; null below two others",
            ),
            Column(
                name="harmful_share",
                dtype="float64",
                low=0,
                high=1,
                nullable=True,
                doc="harm over harm and help in the others' answers; above 0.5 the value is negative; null without any",
            ),
        ),
        value="knn_shapley",
        stderr="knn_shapley_stderr",
        higher_means="helpful",
        calls=Call("noisy", column="harmful_share", above=0.5),
    )
)
def knn_shapley(data: ExampleSet, *, config: KnnShapleyConfig, seed: int, encoder: nn.Module) -> pl.DataFrame:
    """The value of every example.

    Args:
        data: N training examples; classes or numbers.
        config: k and batch.
        seed: not used.
        encoder: its penultimate activations are compared: the audited model, or stored features; left as it is.

    Returns:
        One row an example, ordered by id; columns as declared.

    Raises:
        NotApplicable: targets that are neither classes nor numbers, or a model without penultimate activations.
        DataError: ids used twice, targets that are none, activations that are not finite.
    """
    require(data, "knn_shapley", "features")
    if not (data.task.gives("classes") or data.task.gives("numbers")):
        raise NotApplicable(f"knn_shapley values classes or numbers; {data.name} is a {data.task} task")
    ordered = by_id("knn_shapley", data, encoder)
    ordered.check_targets()
    num = len(ordered)
    undefined = np.full(num, np.nan)
    found = {"knn_shapley": undefined, "knn_shapley_stderr": undefined, "harmful_share": undefined}
    if num > 1:
        unit = unit_vectors(embeddings(encoder, ordered, batch=config.batch))
        if ordered.task.gives("classes"):
            values = knn_shapley_values(unit, ordered.y, k=config.k)
        else:
            values = knn_shapley_values(unit, (ordered.y - ordered.y.mean()) / (ordered.y.std() or 1.0), k=config.k)
        found = {
            "knn_shapley": values.mean,
            "knn_shapley_stderr": values.stderr,
            "harmful_share": values.harmful_share,
        }
    return pl.DataFrame({"example_id": ordered.example_id, **found}, nan_to_null=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class Values:
    """float64 (N,) each, over the test points.

    Attributes:
        mean: the Shapley values; they sum to the mean over test points of v(all) - v(nobody).
        stderr: standard error of the mean; NaN below two test points.
        harmful_share: what negative values make of the sum of all sizes; NaN where all are 0.
    """

    mean: Floats
    stderr: Floats
    harmful_share: Floats


def knn_shapley_values(
    points: NDArray[np.float32],
    y: NDArray[np.int64 | np.float64],
    *,
    k: int,
    test_points: NDArray[np.float32] | None = None,
    test_y: NDArray[np.int64 | np.float64] | None = None,
    block: int | None = None,
) -> Values:
    """Shapley values of N players for the answers of their k nearest to each test point.

    Args:
        points: (N, d) float32; y: (N,) classes (int64) or numbers (float64).
        k: >= 1.
        test_points, test_y: (T, d) and (T,); without them each player is asked by all others.
        block: test points at a time; by default what keeps a block at two million distances. Changes no order.

    Raises:
        InvalidInput: shapes or types that do not fit, k or block below 1, nobody to ask.
    """
    itself = test_points is None
    asked, answers = (points, y) if test_points is None or test_y is None else (test_points, test_y)
    if k < 1 or (block is not None and block < 1):
        raise InvalidInput(f"k = {k} and block = {block} must be >= 1")
    if points.ndim != 2 or asked.ndim != 2 or asked.shape[1] != points.shape[1] or y.dtype != answers.dtype:
        raise InvalidInput(
            f"players {points.shape}, {y.dtype} and test points {asked.shape}, {answers.dtype} do not fit"
        )
    if y.shape != points.shape[:1] or answers.shape != asked.shape[:1] or not len(asked) or len(points) <= itself:
        raise InvalidInput(f"{len(y)} targets of {len(points)} players, {len(answers)} of {len(asked)} test points")
    one: Callable[[NDArray[np.int64 | np.float64], NDArray[np.int64 | np.float64], int], Floats]
    one = _of_classes if y.dtype.kind == "i" else _of_numbers
    num, step = len(points), block or max(1, _CELLS // len(points))
    total, square, harms, says = (np.zeros(num) for _ in range(4))
    points, asked = points.astype(np.float64), asked.astype(np.float64)
    squared = np.einsum("nd,nd->n", points, points)
    for start in range(0, len(asked), step):
        rows = np.arange(start, min(start + step, len(asked)))
        distance = squared - 2 * (asked[rows] @ points.T) + np.square(asked[rows]).sum(1)[:, None]
        if itself:
            distance[np.arange(len(rows)), rows] = np.inf
        order = _by_distance(distance)
        order = order[:, :-1] if itself else order
        s = one(y[order], answers[rows], k)
        value = np.zeros((len(rows), num))
        np.put_along_axis(value, order, s, axis=1)
        total += value.sum(0)
        square += np.square(value).sum(0)
        harms += np.maximum(-value, 0).sum(0)
        says += np.abs(value).sum(0)
    count = len(asked) - itself
    mean = total / count
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(np.maximum(square / count - mean**2, 0) / (count - 1)) if count > 1 else np.full(num, np.nan)
        return Values(mean=mean, stderr=spread, harmful_share=harms / says)


def _by_distance(distance: Floats) -> NDArray[np.int64]:
    """Positions (b, N) nearest first; distances that differ by rounding alone, each from the next, are equal: these go
    by position."""
    num = distance.shape[1]
    order = np.argsort(distance, axis=1, kind="stable")
    with np.errstate(invalid="ignore"):  # infinity next to itself
        apart = np.diff(np.take_along_axis(distance, order, axis=1), axis=1) > _ROUNDING
    group = np.concatenate([np.zeros((len(order), 1), np.int64), apart.cumsum(1)], axis=1)
    return np.take_along_axis(order, np.argsort(group * num + order, axis=1), axis=1)


def _of_classes(y: NDArray[np.int64 | np.float64], wanted: NDArray[np.int64 | np.float64], k: int) -> Floats:
    """s (b, N) of players in the order of their distance, from their classes (b, N)."""
    right = (y == wanted[:, None]).astype(np.float64)
    place = np.arange(1, y.shape[1] + 1)
    out = np.empty_like(right)
    out[:, -1] = right[:, -1] * min(k, y.shape[1]) / (y.shape[1] * k)
    out[:, :-1] = (right[:, :-1] - right[:, 1:]) / k * np.minimum(k, place[:-1]) / place[:-1]
    return np.asarray(out[:, ::-1].cumsum(1)[:, ::-1])


def _of_numbers(y: NDArray[np.int64 | np.float64], wanted: NDArray[np.int64 | np.float64], k: int) -> Floats:
    """s (b, N) of players in the order of their distance, from their numbers (b, N): theorem 6, in prefix sums.

    s_i - s_{i+1} = (y_{i+1} - y_i)/K min(K, i)/i ( (1/K) sum_l A_l y_l - 2 y_j ):  A_l = min(K-1, i-1)/(i-1) nearer
    than i, 1 for i and i + 1, min(K, l-1) min(K-1, l-2) i / ((l-1)(l-2) min(K, i)) beyond
    """
    num, t = y.shape[1], wanted[:, None]
    out = np.empty(y.shape, np.float64)
    if num == 1:
        return np.asarray(np.square(t) - np.square(y / k - t))
    i = np.arange(1, num)  # the pair (i, i + 1)
    nearer = np.concatenate([np.zeros((len(y), 1)), y[:, :-2].cumsum(1)], axis=1) if num > 2 else np.zeros((len(y), 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(i > 1, np.minimum(k - 1, i - 1) / (i - 1), 0.0)
    place = np.arange(1, num + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(
            place >= 3,
            np.minimum(k, place - 1) * np.minimum(k - 1, place - 2) / ((place - 1) * (place - 2.0)),
            0.0,
        )
    later = (y * weight)[:, ::-1].cumsum(1)[:, ::-1]
    later = np.concatenate([later[:, 2:], np.zeros((len(y), 1))], axis=1)
    inside = nearer * share + y[:, :-1] + y[:, 1:] + later * (i / np.minimum(k, i))
    step = (y[:, 1:] - y[:, :-1]) / k * np.minimum(k, i) / i * (inside / k - 2 * t)
    out[:, -1], out[:, :-1] = 0, step
    out = out[:, ::-1].cumsum(1)[:, ::-1]
    whole = np.square(wanted) - np.square(y[:, :k].sum(1) / k - wanted)  # the values sum to v(all) - v(nobody)
    return np.asarray(out + ((whole - out.sum(1)) / num)[:, None])
