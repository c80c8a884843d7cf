"""The nearest point on the accepted side of several half-spaces, for many queries at once, and what a person can
change.

    min ||x' - x||_p   s.t.  v_c . x~' >= margin  for every cut c;    cuts (Q, m, D), x (Q, d), delta = x' - x
    p = 2   dual: min_{l >= 0} l' G l / 2 - b' l,  G = V V',  b_c = margin - v_c . x~,  delta = V' l: Lawson and
            Hanson's active set, exact, all queries in step; one cut gives the closed form  delta = (margin - f) v /
                ||v||^2
    p = 1   one sparse linear program for all queries (block diagonal, so each is solved exactly; HiGHS)

Immutable features have their column of V struck out. Features that move in steps (whole numbers) are moved outwards to
the next step, away from x, the others are solved again with these held, and the result is checked: ``found`` says
whether every cut holds. Rounding first is not the optimum over whole numbers, only a point that is sure to be valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import block_diag, csr_array, hstack

from contracts.errors import CheckBroken, InvalidInput, UnknownName
from explain.counterfactuals.logistic import with_one
from sources.example_set import ExampleSet

_SLACK_COST = 1e7  # of violating a cut, against 1 a unit of distance
_TOLERANCE = 1e-7  # logits by which a cut may be missed and still count as met


@dataclass(frozen=True, eq=False)
class Actions:
    """What a person can change, feature by feature, on the model's input scale.

    Attributes:
        free: (d,) bool, False = immutable.
        step: (d,) float64, 0 = any value, else the values allowed are origin + step * whole number.
        origin: (d,) float64.
    """

    free: np.ndarray
    step: np.ndarray
    origin: np.ndarray

    @classmethod
    def anything(cls, num_features: int) -> Actions:
        """Every feature takes any value."""
        return cls(np.ones(num_features, bool), np.zeros(num_features), np.zeros(num_features))

    @classmethod
    def of(cls, data: ExampleSet, *, immutable: Sequence[str] = (), integer: Sequence[str] = ()) -> Actions:
        """By feature names of ``data``; whole numbers are whole on the raw scale, before center and scale.

        Raises:
            UnknownName: a feature that the data does not have.
        """
        names = list(data.feature_names)
        for name in (*immutable, *integer):
            if name not in names:
                raise UnknownName("feature", name, names)
        center, scale = (np.broadcast_to(v, data.input_shape).astype(np.float64) for v in (data.center, data.scale))
        whole = np.isin(names, integer)
        return cls(~np.isin(names, immutable), np.where(whole, np.abs(scale), 0.0), -center * scale)


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """Explanations "had your features been x', the decision would have been favourable", one a query.

    Attributes:
        x: (Q, d) float64; the query itself where none was found.
        found: (Q,) bool: every constraint that the method was given holds at x.
        num_cuts: (Q,) int64: models it was made valid for.
    """

    x: np.ndarray
    found: np.ndarray
    num_cuts: np.ndarray


def cost(x: np.ndarray, x_cf: np.ndarray, *, norm: int) -> np.ndarray:
    """||x' - x||_p of each row, p = 1 or 2."""
    return np.linalg.norm(np.asarray(x_cf, np.float64) - x, ord=check_norm(norm), axis=-1)


def check_norm(norm: int) -> int:
    """``norm``, 1 or 2."""
    if norm not in (1, 2):
        raise InvalidInput(f"norm = {norm!r} is not one of 1, 2")
    return norm


def nearest_valid(
    cuts: np.ndarray, x: np.ndarray, *, margin: float, norm: int = 2, actions: Actions | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """See the head of this file.

    Args:
        cuts: (Q, m, D) weights of the models for which each x' must be accepted; m >= 1, a cut may be repeated.
        x: (Q, d) queries.
        margin: smallest logit that counts as accepted, > 0 so that rounding does not decide.
        norm: 1 or 2.
        actions: what may change; anything when None.

    Returns:
        (Q, d) float64 points and (Q,) bool, whether all cuts hold there. Where they cannot, the query itself.
    """
    solve = _least_norm if check_norm(norm) == 2 else _least_sum
    actions = Actions.anything(x.shape[1]) if actions is None else actions
    x = np.asarray(x, np.float64)
    slopes = cuts[:, :, :-1] * actions.free
    wanted = margin - (cuts @ with_one(x)[:, :, None])[:, :, 0]
    delta = solve(slopes, wanted)
    whole = actions.free & (actions.step > 0)
    if whole.any():
        held = _outwards(x, x + delta, actions) - x
        held = np.where(whole, held, 0.0)
        rest = solve(slopes * ~whole, wanted - (slopes @ held[:, :, None])[:, :, 0])
        delta = np.where(whole, held, rest)
    found = ((slopes @ delta[:, :, None])[:, :, 0] >= wanted - _TOLERANCE).all(axis=1)
    return np.where(found[:, None], x + delta, x), found


def _outwards(x: np.ndarray, moved: np.ndarray, actions: Actions) -> np.ndarray:
    """The next allowed value beyond ``moved`` as seen from x; a feature that did not move stays."""
    step = np.where(actions.step > 0, actions.step, 1.0)
    place = (moved - actions.origin) / step
    # A place that is whole but for rounding is that whole number.
    place = np.where(np.abs(place - np.round(place)) < 1e-6, np.round(place), place)
    up = moved > x
    return np.where(np.abs(moved - x) < 1e-9, x, actions.origin + step * np.where(up, np.ceil(place), np.floor(place)))


def _least_norm(slopes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """argmin ||delta||_2 s.t. slopes delta >= wanted: (Q, d). Where that is impossible the result breaks a cut."""
    gram = slopes @ slopes.transpose(0, 2, 1)
    q, m = wanted.shape
    size = np.einsum("qcc->qc", gram)
    hopeless = size <= 1e-24  # nothing that may change matters to this cut
    size = np.maximum(size, 1e-24)
    dual, active, live = np.zeros((q, m)), np.zeros((q, m), bool), np.ones(q, bool)
    for _ in range(10 * (m + 1)):
        short = wanted - (gram @ dual[:, :, None])[:, :, 0]
        met = short <= 1e-10 * np.maximum(1.0, np.abs(wanted))
        entering = np.where(active | met | hopeless, -np.inf, short / np.sqrt(size))
        live &= np.isfinite(entering.max(axis=1))
        if not live.any():
            break
        active[live, entering.argmax(axis=1)[live]] = True
        for _ in range(m + 1):
            target = _on_active(gram, wanted, active)
            falling = active & (target <= 0) & live[:, None]
            if not falling.any():
                break
            # Walk from dual towards target until the first multiplier reaches zero, and drop it.
            room = np.where(falling, dual / np.maximum(dual - target, 1e-300), np.inf)
            step = np.minimum(room.min(axis=1), 1.0)[:, None]
            dual = np.where(live[:, None], dual + step * (target - dual), dual)
            active &= ~(falling & (room <= step + 1e-15))
        dual = np.where(live[:, None], np.where(active, target, 0.0), dual)
    return (dual[:, None, :] @ slopes)[:, 0]


def _on_active(gram: np.ndarray, wanted: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Multipliers that meet the active cuts with equality, zero elsewhere: (Q, m)."""
    both = active[:, :, None] & active[:, None, :]
    scale = np.maximum(np.einsum("qcc->qc", gram).max(axis=1), 1e-300)[:, None, None]
    # Cuts that repeat one another make the system singular; a relative 1e-13 picks one of its solutions.
    system = np.where(both, gram, 0.0) + scale * np.eye(gram.shape[1]) * np.where(active, 1e-13, 1.0)[:, :, None]
    return np.where(active, np.linalg.solve(system, np.where(active, wanted, 0.0)[:, :, None])[:, :, 0], 0.0)


def _least_sum(slopes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """argmin ||delta||_1 s.t. slopes delta >= wanted: (Q, d), all queries in one linear program."""
    q, m, d = slopes.shape
    if not q:
        return np.empty((0, d))
    up = block_diag([csr_array(s) for s in slopes], format="csr")
    slack = csr_array(np.kron(np.eye(q), np.ones((m, 1))))
    price = np.concatenate([np.ones(2 * q * d), np.full(q, _SLACK_COST)])
    found = linprog(price, A_ub=-hstack([up, -up, slack], format="csr"), b_ub=-wanted.ravel(), method="highs")
    if found.x is None:
        raise CheckBroken(f"the linear program of the nearest counterfactuals was not solved: {found.message}")
    plus, minus = found.x[: q * d], found.x[q * d : 2 * q * d]
    return (plus - minus).reshape(q, d)
