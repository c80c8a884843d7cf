"""The one ranking by which examples are kept or pruned (Paul et al. 2021): what is measured is what is kept.

    v_(1) <= ... <= v_(N)    the values ascending; of equal values, the smaller position counts as the higher

Every pruned set is a window of it. Stratified, examples are ranked by (rank within the class - 1/2) / size of the class
in place of the value: every prefix, and every suffix, then holds each class in proportion to within one example (the
divisor method of Webster), and sets are nested in their size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ranking(values: NDArray[np.float64], classes: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Positions (N,), lowest value first.

    Args:
        values: (N,), no NaN; in the order of the examples' ids, so that the result depends on ids alone.
        classes: (N,) class indexes >= 0, to stratify; None does not.

    >>> ranking(np.array([0.5, 0.1, 0.5, 0.9])).tolist()
    [1, 2, 0, 3]
    >>> ranking(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 1])).tolist()
    [0, 2, 1, 3]
    """
    num = len(values)
    order = num - 1 - np.argsort(values[::-1], kind="stable")
    if classes is None:
        return order
    by_class = order[np.argsort(classes[order], kind="stable")]
    sizes = np.bincount(classes)
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    share = np.empty(num)
    share[by_class] = (np.arange(num) - first + 0.5) / np.repeat(sizes, sizes)
    return order[np.argsort(share[order], kind="stable")]
