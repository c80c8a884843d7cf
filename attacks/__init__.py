"""Audits: what a trained, or an unlearned, model tells an attacker. Importing the package registers the attacks."""

from attacks import backdoor_audit, concept_leakage, epsilon_audit, gradient_inversion, membership, recourse_audit
from attacks.membership import Evidence, attack_report, report_over_targets, roc, tpr_at_fpr

__all__ = [
    "Evidence",
    "attack_report",
    "backdoor_audit",
    "concept_leakage",
    "epsilon_audit",
    "gradient_inversion",
    "membership",
    "recourse_audit",
    "report_over_targets",
    "roc",
    "tpr_at_fpr",
]
