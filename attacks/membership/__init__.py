"""Membership inference: was this example in training? One attack a file."""

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
