"""The statistics that audits stand on: exact intervals, rank statistics, paired and multiple tests, what n can claim."""

from attacks.statistics.binomial import clopper_pearson, lower_bound, upper_bound
from attacks.statistics.multiple import benjamini_hochberg, holm
from attacks.statistics.paired import (
    AucDifference,
    PairedInterval,
    delong_paired,
    mcnemar,
    paired_bootstrap,
    sign_flip_p_value,
    wilcoxon_p_value,
)
from attacks.statistics.power import (
    auc_power,
    auc_stderr,
    examples_for_auc,
    examples_for_auc_difference,
    examples_for_tpr_difference,
    minimum_negatives,
    minimum_references,
    pairs_for_tpr_difference,
    rate_test_power,
    trials_for_rate,
)
from attacks.statistics.ranking import (
    AucInterval,
    auc,
    auc_interval,
    exceedance_p_value,
    low_fpr_p_value,
    placements,
)

__all__ = [
    "AucDifference",
    "AucInterval",
    "PairedInterval",
    "auc",
    "auc_interval",
    "auc_power",
    "auc_stderr",
    "benjamini_hochberg",
    "clopper_pearson",
    "delong_paired",
    "examples_for_auc",
    "examples_for_auc_difference",
    "examples_for_tpr_difference",
    "exceedance_p_value",
    "holm",
    "low_fpr_p_value",
    "lower_bound",
    "mcnemar",
    "minimum_negatives",
    "minimum_references",
    "paired_bootstrap",
    "pairs_for_tpr_difference",
    "placements",
    "rate_test_power",
    "sign_flip_p_value",
    "trials_for_rate",
    "upper_bound",
    "wilcoxon_p_value",
]
