"""Audits: what a trained, or an unlearned, model tells an attacker. Importing the package registers the attacks."""

from attacks import membership
from attacks.membership import Evidence, attack_report, report_over_targets, roc, tpr_at_fpr

__all__ = ["Evidence", "attack_report", "membership", "report_over_targets", "roc", "tpr_at_fpr"]
