"""Membership inference: was this example in training? One attack a file; importing the package registers them all."""

from attacks.membership import (  # noqa: F401  (imported for their registration)
    entropy,
    exposure_audit,
    gap,
    lira,
    loss,
    modified_entropy,
    population,
    reference,
    rmia,
    shadow_audit,
    shadow_model,
)
from attacks.membership.calibration import Leakage, Threshold, Trials, at_best, at_fpr
from attacks.membership.evidence import Evidence
from attacks.membership.exposure import exposure_table
from attacks.membership.metrics import attack_report, report_over_targets, roc, tpr_at_fpr

__all__ = [
    "Evidence",
    "Leakage",
    "Threshold",
    "Trials",
    "at_best",
    "at_fpr",
    "attack_report",
    "exposure_table",
    "report_over_targets",
    "roc",
    "tpr_at_fpr",
]
