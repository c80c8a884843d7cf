"""A long-tailed mixture of subpopulations, and the price of not memorising what was seen once.

Draw p_x uniformly from a list of frequencies pi for each of N subpopulations, D(x) = p_x / sum_x p_x; the label of x is
uniform in k classes, independent of the others. With alpha distributed as D(x) over this draw,

    tau_l = E[alpha^(l+1) (1 - alpha)^(n-l)] / E[alpha^l (1 - alpha)^(n-l)]
          = expected frequency of a subpopulation that occurs exactly l times among n samples,
    err(A) >= err(optimal) + sum_l tau_l * (number of subpopulations seen l times that A mislabels),   equal here.

An algorithm that guesses the label of what it saw once pays tau_1 * (number of singletons) * (1 - 1/k).

Source: Feldman, "Does Learning Require Memorization? A Short Tale about a Long Tail" (STOC 2020, arXiv 1906.05271),
sections 2.1 to 2.3. A model of data, for planting known rarity; not a fit to real data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import logsumexp

from contracts.errors import InvalidInput


def zipf_prior(num: int) -> np.ndarray:
    """Frequencies pi_i proportional to 1/i, i = 1..num, summing to 1: float64 (num,)."""
    frequencies = 1.0 / np.arange(1, num + 1)
    return frequencies / frequencies.sum()


@dataclass(frozen=True, eq=False)
class LongTailMixture:
    """One draw of the domain.

    Attributes:
        frequency: (N,) float64, D(x), sums to 1.
        label: (N,) int64 in [0, num_classes), one a subpopulation.
        num_classes: k.
    """

    frequency: np.ndarray
    label: np.ndarray
    num_classes: int

    @classmethod
    def draw(cls, prior: np.ndarray, *, num_classes: int, seed: int) -> Self:
        """A domain of ``len(prior)`` subpopulations whose frequencies come from ``prior``, with replacement.

        Raises:
            InvalidInput: a frequency that is not positive and finite, or fewer than two classes.
        """
        prior = _checked(prior)
        if num_classes < 2:
            raise InvalidInput(f"num_classes = {num_classes} must be >= 2")
        rng = np.random.default_rng(seed)
        drawn = rng.choice(prior, size=len(prior))
        return cls(drawn / drawn.sum(), rng.integers(0, num_classes, len(prior)), num_classes)

    def sample(self, num: int, *, seed: int) -> np.ndarray:
        """Subpopulation of each of ``num`` independent samples: int64 (num,)."""
        return np.random.default_rng(seed).choice(len(self.frequency), size=num, p=self.frequency)

    def vectors(self, subpopulation: np.ndarray, *, dim: int = 64, noise: float = 0.3, seed: int) -> np.ndarray:
        """Features for learners: float32 (len(subpopulation), dim).

        Each subpopulation has a random unit-norm mean (the same for a given ``seed`` and ``dim``); samples scatter about
        it with standard deviation noise / sqrt(dim) a coordinate, so that neighbours share a subpopulation and nothing
        generalises from one subpopulation to another.
        """
        means_rng, noise_rng = np.random.default_rng(seed).spawn(2)
        means = means_rng.normal(size=(len(self.frequency), dim))
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        scatter = noise_rng.normal(scale=noise / np.sqrt(dim), size=(len(subpopulation), dim))
        return (means[subpopulation] + scatter).astype(np.float32)


def frequency_prior_tau(prior: np.ndarray, *, num_samples: int, ell: int, draws: int = 200, seed: int = 0) -> float:
    """tau_ell: expected frequency of a subpopulation that occurs exactly ``ell`` times among ``num_samples``.

    The expectation over alpha is exact over the subpopulation's own frequency and averaged over ``draws`` draws of the
    others' sum; powers are taken in log space, where alpha^l (1 - alpha)^(n-l) does not underflow.

    Args:
        prior: (N,) frequencies pi; also the number of subpopulations.
        num_samples: n >= 1.
        ell: 0 .. n.
        draws: of the sum of the other N - 1 frequencies; for the Zipf prior it varies by some 15% between draws, and tau
            with it, so that the relative error is about 0.15 / sqrt(draws).
        seed: of the draws.

    Raises:
        InvalidInput: ell, num_samples or draws out of range, or a frequency that is not positive and finite.

    >>> round(1000 * frequency_prior_tau(zipf_prior(1000), num_samples=1000, ell=1), 2)
    0.57
    """
    prior = _checked(prior)
    if num_samples < 1 or not 0 <= ell <= num_samples or draws < 1:
        raise InvalidInput(
            f"num_samples = {num_samples} and draws = {draws} must be >= 1, ell = {ell} in 0..num_samples"
        )
    if len(prior) < 2:
        raise InvalidInput("a mixture has at least two subpopulations")
    rng = np.random.default_rng(seed)
    above = below = -np.inf
    for _ in range(draws):
        others = rng.choice(prior, size=len(prior) - 1).sum()
        log_alpha = np.log(prior) - np.log(prior + others)
        weight = ell * log_alpha + (num_samples - ell) * (np.log(others) - np.log(prior + others))
        above = np.logaddexp(above, logsumexp(weight + log_alpha))
        below = np.logaddexp(below, logsumexp(weight))
    return float(np.exp(above - below))


def _checked(prior: np.ndarray) -> np.ndarray:
    prior = np.asarray(prior, np.float64)
    if prior.ndim != 1 or not len(prior) or not (np.isfinite(prior) & (prior > 0)).all():
        raise InvalidInput("prior must be a list of positive, finite frequencies")
    return prior
