"""Outliers: examples that are far from their own nearest neighbours, against the tail of these distances.

    s_i   ln of the mean distance of i to the k nearest others, at least a hundredth of the median over all
    p_i   P[S > s_i] of a tail that is exponential beyond u:  p_i = F exp(-(s_i - u) / beta)  for s_i > u, else 1
    u     the 0.8 quantile of s, F the share above it
    beta  ( sum of s - u between u and c + n_c (c - u) ) / number between,  c the 0.95 quantile, n_c above it:
          maximum likelihood under censoring at c, so that up to 5% of outliers do not move it
    called where Benjamini and Hochberg's adjusted p-value is at most alpha

A distance whose own tail falls as a power has an exponential one in its logarithm, and most fall faster: then too few
are called. A small sparse group counts as outlying, and where much of the data is sparse it is the tail, and nothing
is. Against the distances of the neighbours (LOF) strange pictures were found less: 6 or 7 of 12 among digits over three
seeds, by the plain distance 11 or 12, as the neighbours of what is strange lie apart as well. Not what is rare by label
or by what the model answers: that is for the scores.

Sources: Ramaswamy, Rastogi, Shim (SIGMOD 2000), for the distance; Hill (Annals of Statistics 1975), for the tail.
"""

from __future__ import annotations

import numpy as np

from explain.neighbours import Floats
from stats import benjamini_hochberg
from studies.issues.neighbourhood import Neighbourhood

_FROM, _TO, _FLOOR = 0.80, 0.95, 0.01
FEWEST = 50  # examples from which a tail is fitted


def remoteness(near: Neighbourhood) -> Floats:
    """s, float64 (N,); higher = further from its neighbours."""
    own = near.distance.mean(1)
    remote: Floats = np.log(np.maximum(own, _FLOOR * float(np.median(own)) or 1.0))
    return remote


def tail_p_values(remote: Floats) -> Floats:
    """Adjusted p-values of the outlying ones, float64 (N,); 1 for all where there are fewer than ``FEWEST``."""
    if len(remote) < FEWEST:
        return np.ones(len(remote))
    low, high = np.quantile(remote, [_FROM, _TO])
    above, seen = remote > low, (remote > low) & (remote <= high)
    if not seen.any() or high <= low:
        return np.ones(len(remote))
    beta = ((remote[seen] - low).sum() + (remote > high).sum() * (high - low)) / seen.sum()
    return benjamini_hochberg(np.where(above, above.mean() * np.exp(-np.maximum(remote - low, 0) / beta), 1.0))
