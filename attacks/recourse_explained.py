"""The two models whose explanations are audited: how each explains, which deletions are aimed at it, how it is
retrained.

Logistic      closed forms, exact retraining of any number of sets at once, a deletion of its own for every explanation
AuditedModel  local surrogates and black-box search, retraining by the subject's own recipe, one training a set
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attacks.recourse_invalidation import greedy_deletion, greedy_rows, own_deletion_logits, worst_case_deletion
from contracts.digests import derive_seed
from contracts.errors import DataError
from explain.counterfactuals import (
    Actions,
    Counterfactuals,
    Influence,
    LogisticModel,
    SurrogateConfig,
    cchvae,
    influence_matrix,
    nonlinear_counterfactuals,
    retrain,
    roar,
    rocerf,
    surrogate_influence,
    with_one,
    worst_logit,
)
from recipes.inputs import model_device, model_dtype
from recipes.predict import eval_mode

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Decide = Callable[[Float], Float]

ROBUST: Mapping[str, Mapping[str, Any]] = {
    "rocerf": {"influence": "first"},
    "rocerf_one_shot": {"influence": "first", "mode": "one_shot"},
    "rocerf_newton": {"influence": "newton"},
    "rocerf_retrain": {"influence": "retrain", "search": "exchange"},
}
_VALIDATION = 50  # rejected training examples on which ROAR chooses its lambda
_SURROGATE = SurrogateConfig(draws=2000)
_BLOCK = 16_384  # rows a forward pass


class Explained(Protocol):
    """``exact``: retraining is the one minimiser, so that nothing but the deletion changes the model."""

    examples: LogisticModel
    methods: tuple[str, ...]
    exact: bool

    def decide(self, x: Float) -> Float:
        """Logits (R,) of (R, d); >= 0 is the favourable decision."""

    def explain(self, method: str, x: Float, *, k: int, norm: int, actions: Actions) -> Counterfactuals:
        """Counterfactuals of (Q, d) queries made for k deletions."""

    def influence(self, x_cf: Float) -> Float:
        """(Q, n): first-order shift of each logit by each deletion."""

    def bound(self, x_cf: Float, *, k: int) -> Float | None:
        """F_k (Q,), or None where there is no such bound."""

    def greedy(self, x_cf: Float, *, k: int) -> Bool:
        """(n,) one deletion for all."""

    def own_deletions(self, x_cf: Float, *, k: int) -> Iterable[tuple[str, Bool, Float]]:
        """(kind, (Q, n) deletions, (Q,) logits after): a deletion for each explanation, as far as it can be
        afforded."""

    def retrained(self, removed: Bool) -> Callable[[Float], Float]:
        """Really retrain without each of B sets; the result takes (Q, d) to (B, Q) logits."""


class Logistic:
    """A logistic regression on the training examples."""

    methods: tuple[str, ...] = ("plain", *ROBUST, "roar", "c_chvae")
    exact: bool = True

    def __init__(self, examples: LogisticModel, *, seed: int) -> None:
        self.examples, self.seed = examples, seed

    def decide(self, x: Float) -> Float:
        return np.asarray(self.examples.logits(x))

    def explain(self, method: str, x: Float, *, k: int, norm: int, actions: Actions) -> Counterfactuals:
        inputs = self.examples.x[:, :-1]
        if method == "c_chvae":
            return cchvae(self.decide, x, train=inputs, seed=self.seed, norm=norm, actions=actions)
        if method == "roar":
            rejected = inputs[self.decide(inputs) < 0][:_VALIDATION]
            return roar(self.examples, x, validation=rejected, norm=norm, actions=actions)
        return rocerf(self.examples, x, k=k, norm=norm, actions=actions, **ROBUST.get(method, {}))

    def influence(self, x_cf: Float) -> Float:
        return np.asarray(influence_matrix(self.examples, x_cf))

    def bound(self, x_cf: Float, *, k: int) -> Float | None:
        return np.asarray(worst_logit(self.examples, x_cf, k=k)[0])

    def greedy(self, x_cf: Float, *, k: int) -> Bool:
        return greedy_deletion(self.examples, x_cf, k=k)

    def own_deletions(self, x_cf: Float, *, k: int) -> Iterable[tuple[str, Bool, Float]]:
        worst = worst_case_deletion(self.examples, x_cf, k=k)
        yield "worst", worst, own_deletion_logits(self.examples, x_cf, worst)
        searched = worst_case_deletion(self.examples, x_cf, k=k, search="best")
        yield "searched", searched, own_deletion_logits(self.examples, x_cf, searched)

    def retrained(self, removed: Bool) -> Callable[[Float], Float]:
        weights = retrain(self.examples, removed)
        return lambda x: np.asarray(weights @ with_one(x).T)


class AuditedModel:
    """The audited model, known by its decisions and by the subject's recipe."""

    methods: tuple[str, ...] = ("plain", "rocerf", "rocerf_newton", "c_chvae")
    exact: bool = False

    def __init__(
        self,
        examples: LogisticModel,
        decide: Decide,
        *,
        train_many: Callable[..., Sequence[nn.Module]],
        favourable: int,
        seed: int,
    ) -> None:
        self.examples, self._decide, self._train_many = examples, decide, train_many
        self._favourable, self.seed = favourable, seed

    def decide(self, x: Float) -> Float:
        return self._decide(x)

    def explain(self, method: str, x: Float, *, k: int, norm: int, actions: Actions) -> Counterfactuals:
        if method == "c_chvae":
            return cchvae(self.decide, x, train=self.examples.x[:, :-1], seed=self.seed, norm=norm, actions=actions)
        influence: Influence = "newton" if method == "rocerf_newton" else "first"
        return nonlinear_counterfactuals(
            self.decide,
            self.examples,
            x,
            k=k,
            seed=self.seed,
            norm=norm,
            influence=influence,
            actions=actions,
            config=_SURROGATE,
        )

    def influence(self, x_cf: Float) -> Float:
        found = surrogate_influence(self.decide, self.examples, x_cf, seed=self.seed, config=_SURROGATE)
        return np.asarray(found)

    def bound(self, x_cf: Float, *, k: int) -> None:
        return None

    def greedy(self, x_cf: Float, *, k: int) -> Bool:
        return greedy_rows(self.decide(x_cf), self.influence(x_cf), k=k)

    def own_deletions(self, x_cf: Float, *, k: int) -> Iterable[tuple[str, Bool, Float]]:
        return ()

    def retrained(self, removed: Bool) -> Callable[[Float], Float]:
        members = [self.examples.example_id[~row] for row in removed]
        seeds = [derive_seed(self.seed, "recourse", b) % 2**31 for b in range(len(members))]
        decisions = [decision(model, self._favourable) for model in self._train_many(members, seeds)]
        return lambda x: np.stack([decide(x) for decide in decisions])


def decision(model: nn.Module, favourable: int) -> Decide:
    """The log-odds of one class against all others, (R, d) float64 -> (R,) float64.

    Raises:
        DataError: (when called) the model's outputs are not finite.
    """
    device = model_device(model)

    def decide(x: Float) -> Float:
        parts = [np.empty(0)]
        with eval_mode(model), torch.no_grad():
            for start in range(0, len(x), _BLOCK):
                z = model(torch.from_numpy(x[start : start + _BLOCK]).to(device, model_dtype(model))).double()
                others = torch.cat([z[:, :favourable], z[:, favourable + 1 :]], dim=1).logsumexp(dim=1)
                parts.append((z[:, favourable] - others).cpu().numpy())
        out = np.concatenate(parts)
        if not np.isfinite(out).all():
            raise DataError("the model's outputs at a counterfactual are not finite")
        return out

    return decide
