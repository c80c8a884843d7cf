"""The learning rate of the corrective unlearning bench: a short warm-up, then down in a line, never to 0.

    t < W    lr * (t + 1) / (W + 1)                       W = whole steps in 1% of T
    t >= W   lr * (1 - (t - W) / (1.25 T))                t = 0 .. T - 1

Source: Goel et al., TMLR 2024 (arXiv 2402.14015), and its published code; budgeted training, Li et al., ICLR 2020.
"""

from __future__ import annotations


def bench_rate(step: int, steps: int) -> float:
    """Factor of the learning rate in step ``step`` (from 0) of ``steps``, in (0, 1].

    >>> [round(bench_rate(t, 4), 2) for t in range(4)]
    [1.0, 0.8, 0.6, 0.4]
    """
    warm = steps // 100
    return (step + 1) / (warm + 1) if step < warm else 1 - (step - warm) / (1.25 * steps)
