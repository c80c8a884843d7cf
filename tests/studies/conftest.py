"""Fixtures of :mod:`scoring_fixtures` for this folder."""

from scoring_fixtures import examples, mlp, naive, regression

__all__ = ["examples", "mlp", "naive", "regression"]
