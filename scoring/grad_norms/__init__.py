"""Exact per-example gradient norms. Importing the package registers the closed form of every known layer."""

from scoring.grad_norms import conv, embedding, linear, normalisation  # noqa: F401  (registers)
from scoring.grad_norms.closed_forms import closed_form
from scoring.grad_norms.per_example import GradNorms, PerExampleGradNorm

__all__ = ["GradNorms", "PerExampleGradNorm", "closed_form"]
