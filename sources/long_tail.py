"""A long-tailed mixture of subpopulations, and the price of not memorising what was seen once.

Draw p_x uniformly from a list of frequencies pi for each of N subpopulations, D(x) = p_x / sum_x p_x; the label of x is
uniform in k classes, independent of the others. With alpha distributed as D(x) over this draw,

    tau_l = E[alpha^(l+1) (1 - alpha)^(n-l)] / E[alpha^l (1 - alpha)^(n-l)]
          = expected frequency of a subpopulation that occurs exactly l times among n samples,
    err(A) >= err(optimal) + sum_l tau_l * (number of subpopulations seen l times that A mislabels),   equal here.

An algorithm that guesses the label of what it saw once pays tau_1 * (number of singletons) * (1 - 1/k).

Source: Feldman, "Does Learning Require Memorization? A Short Tale about a Long Tail" (STOC 2020, arXiv 1906.05271),
sections 2.1 to 2.3. A model of data, for planting known rarity; not a fit to real data. As the source
``long_tail_mixture`` it needs no file: the domain and the samples are a function of ``process_seed``, the source's own
seed decides which of the samples, all drawn alike, are the test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from contracts.errors import InvalidInput
from contracts.methods import SourceSpec, source
from contracts.params import Config, param
from sources.assemble import assemble
from sources.example_set import ExampleSet


def zipf_prior(num: int, *, exponent: float = 1.0) -> np.ndarray:
    """Frequencies pi_i proportional to i^-exponent, i = 1..num, summing to 1: float64 (num,). Exponent 0 is uniform."""
    frequencies = np.arange(1, num + 1, dtype=np.float64) ** -exponent
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

        Each subpopulation has a random unit-norm mean (the same for a given ``seed`` and ``dim``); samples scatter
        about it with standard deviation noise / sqrt(dim) a coordinate, so that neighbours share a subpopulation and
        nothing generalises from one subpopulation to another.
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
        draws: of the sum of the other N - 1 frequencies; for the Zipf prior it varies by some 15% between draws, and
            tau with it, so that the relative error is about 0.15 / sqrt(draws).
        seed: of the draws.

    Raises:
        InvalidInput: ell, num_samples or draws out of range, or a frequency that is not positive and finite.

    >>> round(1000 * frequency_prior_tau(zipf_prior(1000), num_samples=1000, ell=1), 2)
    0.57
    """
    from scipy.special import logsumexp  # slow to import, and needed here only

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


def price_of_not_memorising(
    prior: np.ndarray, mislabelled: Mapping[int, float], *, num_samples: int, draws: int = 200, seed: int = 0
) -> float:
    """Expected error above the best possible of an algorithm that mislabels what it saw: sum_l tau_l errn(A, l), l >=
    1.

    Args:
        prior: (N,) frequencies pi, of N subpopulations.
        mislabelled: l -> errn(A, l) >= 0, the (expected) number of subpopulations seen l times that the algorithm
            mislabels.
        num_samples: n, of the training set.
        draws, seed: see :func:`frequency_prior_tau`.

    Raises:
        InvalidInput: an l outside 1..n, a negative or non-finite number, or as :func:`frequency_prior_tau`.

    >>> round(price_of_not_memorising(np.ones(20), {1: 3, 2: 1}, num_samples=50), 9)  # four of twenty equal parts
    0.2
    """
    wrong = {ell: num for ell, num in mislabelled.items() if ell < 1 or not 0 <= num < np.inf}
    if wrong:
        raise InvalidInput(f"mislabelled = {wrong}: keys must be in 1..num_samples, numbers finite and >= 0")
    return sum(
        frequency_prior_tau(prior, num_samples=num_samples, ell=ell, draws=draws, seed=seed) * num
        for ell, num in mislabelled.items()
    )


def _checked(prior: np.ndarray) -> np.ndarray:
    prior = np.asarray(prior, np.float64)
    if prior.ndim != 1 or not len(prior) or not (np.isfinite(prior) & (prior > 0)).all():
        raise InvalidInput("prior must be a list of positive, finite frequencies")
    return prior


# ---- the source --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class LongTailMixtureConfig(Config):
    """The domain and how much is drawn from it."""

    num_train: int = param(1000, ge=1, le=10_000_000, unit="examples", doc="training samples, n")
    num_test: int = param(1000, ge=1, le=10_000_000, unit="examples", doc="test samples, drawn alike")
    num_subpopulations: int = param(1000, ge=2, le=10_000_000, doc="subpopulations of the domain, N")
    exponent: float = param(1.0, ge=0, le=10, doc="frequencies pi_i are proportional to i^-exponent; 0 for no tail")
    num_classes: int = param(10, ge=2, le=100_000, doc="labels, k; each subpopulation has one, drawn uniformly")
    dim: int = param(64, ge=1, le=4096, doc="of the feature vectors")
    noise: float = param(
        0.3, ge=0, le=100, doc="distance of a sample from its subpopulation's mean, beside a norm of 1"
    )
    process_seed: int = param(0, ge=0, lt=2**31, doc="of the domain and the samples")


@source(
    SourceSpec(
        name="long_tail_mixture",
        doc="Synthetic long-tailed mixture of subpopulations, whose rare examples are known; needs no file.",
        source="Feldman, STOC 2020 (arXiv 1906.05271), section 2.1",
        config=LongTailMixtureConfig,
        self_contained=True,
    )
)
def long_tail_mixture(*, config: LongTailMixtureConfig, seed: int) -> ExampleSet:
    """Samples of one draw of the domain; which subpopulation each is of, :func:`draw_long_tail` says by its id."""
    mixture, where, x = draw_long_tail(config)
    test = np.random.default_rng(seed).permutation(len(where)) < config.num_test
    return assemble(
        x,
        mixture.label[where],
        name="long_tail_mixture",
        task="classification",
        class_names=[f"class {k}" for k in range(config.num_classes)],
        seed=seed,
        test_fraction=config.num_test / len(where),
        example_id=np.arange(len(where), dtype=np.int64),
        split=np.where(test, "test", "train"),
        feature_names=[f"x{i}" for i in range(config.dim)],
        provenance={
            "source": "long_tail_mixture",
            "split": f"{config.num_test} at random, seed {seed}",
            "process": {n: getattr(config, n) for n in config.__dataclass_fields__},
            "licence": "public domain (random numbers)",
        },
    )


def draw_long_tail(config: LongTailMixtureConfig) -> tuple[LongTailMixture, np.ndarray, np.ndarray]:
    """The domain, the subpopulation of each sample int64 (n,), and its features float32 (n, dim), in the order of the
    ids."""
    domain, sample, vectors = np.random.SeedSequence(config.process_seed).generate_state(3).tolist()
    prior = zipf_prior(config.num_subpopulations, exponent=config.exponent)
    mixture = LongTailMixture.draw(prior, num_classes=config.num_classes, seed=domain)
    where = mixture.sample(config.num_train + config.num_test, seed=sample)
    return mixture, where, mixture.vectors(where, dim=config.dim, noise=config.noise, seed=vectors)
