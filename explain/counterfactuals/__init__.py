"""Counterfactual explanations ("had your features been x', you would have been accepted") and what deletions do to
them."""

from explain.counterfactuals.cchvae import CchvaeConfig, cchvae
from explain.counterfactuals.influence import (
    INFLUENCES,
    Influence,
    gradients,
    hessian,
    influence_at,
    influence_matrix,
    leave_out,
    most_negative,
    newton_step,
    worst_logit,
)
from explain.counterfactuals.logistic import LogisticModel, fit_logistic, retrain, with_one
from explain.counterfactuals.nearest import Actions, Counterfactuals, cost, nearest_valid
from explain.counterfactuals.nonlinear import nonlinear_counterfactuals, surrogate_influence
from explain.counterfactuals.roar import RoarConfig, roar, worst_shifted_logit
from explain.counterfactuals.rocerf import MARGIN, rocerf
from explain.counterfactuals.softplus_mlp import SoftplusMLPConfig, SoftplusMLPs, fit_softplus_mlps
from explain.counterfactuals.surrogate import DAMPING, SurrogateConfig, local_surrogates
from explain.counterfactuals.wachter import SolverConfig, linear, solve, wachter_counterfactual
from explain.counterfactuals.worst_case import SEARCHES, Search, exchanged, worst_deletion

__all__ = [
    "DAMPING",
    "INFLUENCES",
    "MARGIN",
    "SEARCHES",
    "Actions",
    "CchvaeConfig",
    "Counterfactuals",
    "Influence",
    "LogisticModel",
    "RoarConfig",
    "Search",
    "SoftplusMLPConfig",
    "SoftplusMLPs",
    "SolverConfig",
    "SurrogateConfig",
    "cchvae",
    "cost",
    "exchanged",
    "fit_logistic",
    "fit_softplus_mlps",
    "gradients",
    "hessian",
    "influence_at",
    "influence_matrix",
    "leave_out",
    "linear",
    "local_surrogates",
    "most_negative",
    "nearest_valid",
    "newton_step",
    "nonlinear_counterfactuals",
    "retrain",
    "roar",
    "rocerf",
    "solve",
    "surrogate_influence",
    "wachter_counterfactual",
    "with_one",
    "worst_deletion",
    "worst_logit",
    "worst_shifted_logit",
]
