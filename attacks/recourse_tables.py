"""The tables of the audit of explanations, and the names of explanations and deletions that may stand in them."""

from __future__ import annotations

from contracts.tables import Column, TableSpec

METHODS = ("plain", "rocerf", "rocerf_one_shot", "rocerf_newton", "rocerf_retrain", "roar", "c_chvae")
DELETIONS = ("worst", "searched", "greedy", "random", "split", "none")


def _column(name: str, dtype: str, doc: str, **more: object) -> Column:
    return Column(name=name, dtype=dtype, doc=doc, **more)  # type: ignore[arg-type]


_QUERY = _column("query_id", "int64", "test example explained", low=0)
_METHOD = _column("method", "str", "how the explanation was made", choices=METHODS)
_PERCENT = _column(
    "k_percent",
    "float64",
    "deletions the explanation was made for, or, where it was made for none, those allowed",
    unit="percent",
    low=0,
    high=100,
)
_K = _column("k", "int64", "the same as a number of examples", low=0)
COUNTERFACTUALS = TableSpec(
    schema="audits",
    name="robust_counterfactuals",
    key=("query_id", "method", "k_percent"),
    doc="Counterfactual explanations of rejected test examples. k_percent is 0 for those made for no deletion in "
    "particular.",
    columns=(
        _QUERY,
        _METHOD,
        _PERCENT,
        _K,
        _column("norm", "int64", "norm of the distance", low=1, high=2),
        _column("found", "bool", "a point that meets the method's constraints was found"),
        _column("cost", "float64", "distance from the query on the model's input scale", low=0, nullable=True),
        _column("logit", "float64", "logit of the explained model; valid from 0 on", nullable=True),
        _column(
            "worst_logit_linear",
            "float64",
            "F_k: lowest logit after k deletions, linearised; logistic only",
            nullable=True,
        ),
        _column("logit_audited", "float64", "log-odds of the favourable class by the audited model", nullable=True),
        _column("n_cuts", "int64", "models the explanation was made valid for", low=1),
        _column(
            "x_cf",
            "floats",
            "the counterfactual, on the scale of the model's inputs; the query itself if none was found",
        ),
    ),
)
AUDIT = TableSpec(
    schema="audits",
    name="recourse_audit",
    key=("query_id", "method", "k_percent", "deletion", "split", "draw"),
    doc="Every explanation found, after every deletion, on a model really retrained without it.",
    columns=(
        _QUERY,
        _METHOD,
        _PERCENT,
        _K,
        _column("deletion", "str", "how the set was chosen", choices=DELETIONS),
        _column("split", "str", "stored split deleted, else empty"),
        _column("draw", "int64", "random set or seed, else 0", low=0),
        _column("num_removed", "int64", "examples deleted", low=0),
        _column("valid", "bool", "the retrained model accepts the counterfactual"),
        _column("logit_after", "float64", "its logit"),
    ),
)
INFLUENCE = TableSpec(
    schema="audits",
    name="influence_on_recourse",
    key=("query_id", "example_id"),
    doc="The training examples whose deletion most hurts each plain explanation.",
    columns=(
        _QUERY,
        _column("example_id", "int64", "training example", low=0),
        _column("rank", "int64", "1 = most harmful", low=1),
        _column(
            "a_over_n",
            "float64",
            "shift of the explanation's logit by the deletion, first order",
            unit="logits",
            direction="negative = towards rejection",
        ),
    ),
)
SUMMARY = TableSpec(
    schema="audits",
    name="recourse_summary",
    key=("method", "k_percent", "deletion", "split"),
    doc="Share of the explanations that survive each kind of deletion, with exact intervals, and what they cost.",
    columns=(
        _METHOD,
        _PERCENT,
        _K,
        _column("deletion", "str", "how the set was chosen", choices=DELETIONS),
        _column("split", "str", "stored split deleted, else empty"),
        _column("num_explanations", "int64", "explanations found", low=1),
        _column(
            "num_broken", "int64", "of these, invalid after the deletion (random, none: after at least one)", low=0
        ),
        _column(
            "validity", "float64", "share valid after real retraining", low=0, high=1, direction="higher = more robust"
        ),
        _column("validity_lo", "float64", "lower bound", low=0, high=1),
        _column("validity_hi", "float64", "upper bound", low=0, high=1),
        _column(
            "share_audited",
            "float64",
            "share that the audited model accepts: below 1 the explained model does not stand for it",
            low=0,
            high=1,
        ),
        _column("mean_cost", "float64", "mean distance from the query", low=0),
        _column(
            "cost_ratio", "float64", "the same over the plain explanations of the same queries", low=0, nullable=True
        ),
        _column("mean_logit_after", "float64", "mean logit after the deletion"),
        _column(
            "bound_gap",
            "float64",
            "largest F_k - logit after the deletion: above 0, the linearised bound was too hopeful; worst and searched "
            "sets only",
            nullable=True,
        ),
    ),
)
