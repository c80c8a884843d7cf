"""Per-example signals of a classifier's output, all from logits, in float64 and in log space.

Shapes: N examples, K classes, ``...`` any leading axes (models). Logits z of shape (..., N, K) in any float type,
labels y of shape (N,) in [0, K). With p = softmax(z):

    log-odds (LiRA)             phi = z_y - log sum_{k != y} exp z_k = log(p_y / (1 - p_y))
    loss                        l   = -log p_y = log(1 + exp(-phi))                     nats
    entropy                     H   = -sum_k p_k log p_k                                nats
    of a token                  log p_y, and mean and standard deviation of log p_k over k drawn from p (Min-K%++)
    modified entropy (Song)     ME  = -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k), logs cut at log 1e-30

Sources: Carlini et al., IEEE S&P 2022 (phi); Song and Mittal, USENIX Security 2021, eq. 9 (ME).
Not: 1 - p_y in floating point. A softmax in float32 gives p_y = 1 exactly for most members, and every strong
attack then drowns in ties; here phi keeps full precision until the logits themselves overflow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

_BLOCK = 1024  # examples turned at a time, fewer of many classes: what is turned stays in the cache
_TURNED = 2**20  # float64 values turned at a time: of 50,000 words twice as quick as _BLOCK tokens at once
_TOKEN_VALUES = 2**18  # of tokens, of which several arrays are held at once: four times as quick as 64 tokens at once
_LOG_FLOOR = np.log(1e-30)


def log_odds(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Float:
    """phi = log(p_y / (1 - p_y)), the logit-scaled confidence; larger = surer of the label.

    Args:
        logits: (..., N, K) with K >= 2, finite.
        labels: (N,) class indices in [0, K).

    Returns:
        (..., N) float64.

    >>> log_odds(np.array([[3.0, 1.0]]), np.array([0]))
    array([2.])
    """
    lead, (num, _) = logits.shape[:-2], logits.shape[-2:]
    rows = logits.reshape(-1, *logits.shape[-2:])
    phi = np.empty((len(rows), num))
    block = max(1, min(_BLOCK, _TURNED // logits.shape[-1]))
    for start in range(0, num, block):
        stop = min(start + block, num)
        y, column = labels[start:stop], np.arange(stop - start)
        for model, out in zip(rows, phi, strict=True):
            # Classes first: numpy reduces over a short last axis ten times slower than over the first one.
            z = model[start:stop].T.astype(np.float64, order="C")
            own = z[y, column]
            z[y, column] = -np.inf
            top = z.max(axis=0)
            z -= top
            np.exp(z, out=z)
            own -= top
            out[start:stop] = own - np.log(z.sum(axis=0))
    return phi.reshape(*lead, num)


def loss_from_log_odds(phi: Float) -> Float:
    """Cross-entropy in nats, log(1 + exp(-phi)); exact to relative precision on both sides."""
    return np.logaddexp(0.0, -phi)


def confidence_from_log_odds(phi: Float) -> Float:
    """p_y = 1 / (1 + exp(-phi)), in [0, 1]; small values keep their relative precision.

    >>> float(confidence_from_log_odds(np.array([0.0]))[0])
    0.5
    """
    with np.errstate(over="ignore"):  # exp(-phi) = inf gives p = 0, which is the right limit
        p: Float = np.exp(-phi)
    p += 1.0
    np.divide(1.0, p, out=p)
    return p


def log_softmax(logits: NDArray[np.floating]) -> Float:
    """(..., K) float64 log-probabilities."""
    z = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return z


def token_statistics(logits: NDArray[np.floating], tokens: NDArray[np.integer]) -> Float:
    """What a model says of tokens and how surely it could say anything there, nats: (P, 3) float64.

    Args:
        logits: (P, V), finite.
        tokens: (P,) in [0, V).

    Returns:
        log p_y; sum_v p_v log p_v, minus the entropy; and the root of sum_v p_v (log p_v - that mean)^2, 0 where one
        token has all the probability.

    >>> token_statistics(np.zeros((1, 4)), np.array([2])).round(4).tolist()
    [[-1.3863, -1.3863, 0.0]]
    """
    found = np.empty((len(logits), 3))
    block = max(1, _TOKEN_VALUES // logits.shape[-1])
    for start in range(0, len(logits), block):
        some = slice(start, min(start + block, len(logits)))
        log_p = log_softmax(logits[some])
        p = np.exp(log_p)
        mean = (p * log_p).sum(axis=-1)
        found[some, 0] = log_p[np.arange(len(log_p)), tokens[some]]
        found[some, 1] = mean
        log_p -= mean[:, None]
        found[some, 2] = np.sqrt((p * log_p * log_p).sum(axis=-1))
    return found


def entropy(logits: NDArray[np.floating]) -> Float:
    """H = -sum_k p_k log p_k in nats, (..., N); larger = less sure, whatever the label."""
    log_p = log_softmax(logits)
    # 0 * log 0 = 0 needs no care: an underflown p has a finite log_p.
    return np.asarray(-(np.exp(log_p) * log_p).sum(axis=-1))


def modified_entropy(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Float:
    """ME of Song and Mittal, (..., N) in nats: small when sure of the label, large when sure of another class.

    log(1 - p_k) is formed as log sum_{j != k} p_j, never from 1 - p_k.
    """
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    log_rest = np.maximum(_log_one_minus(p, log_p), _LOG_FLOOR)
    log_own = np.maximum(np.take_along_axis(log_p, _at(labels, log_p.ndim), axis=-1)[..., 0], _LOG_FLOOR)
    rest_own = np.exp(np.take_along_axis(_log_one_minus(p, log_p), _at(labels, log_p.ndim), axis=-1)[..., 0])
    others = np.where(np.arange(p.shape[-1]) == labels[:, None], 0.0, p * log_rest)
    return np.asarray(-rest_own * log_own - others.sum(axis=-1))


def correct(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """argmax_k z_k = y, (..., N)."""
    return np.asarray(logits.argmax(axis=-1) == labels)


def _at(labels: NDArray[np.integer], ndim: int) -> NDArray[np.integer]:
    return labels.reshape((1,) * (ndim - 2) + (-1, 1))


def _log_one_minus(p: Float, log_p: Float) -> Float:
    """log(1 - p_k) of every class: from p_k where p_k <= 1/2, else from the sum of the others."""
    with np.errstate(divide="ignore"):
        direct = np.log1p(-np.minimum(p, 0.5))
    top = p.argmax(axis=-1)[..., None]
    rest = np.where(np.arange(p.shape[-1]) == top, 0.0, p).sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        log_rest = np.log(rest)  # at most one class lies above 1/2, and it is the top one
    return np.where(p > 0.5, log_rest, direct)
