"""The statistics that audits stand on: exact binomial intervals, rank statistics, multiple testing, what n can claim."""

from attacks.statistics.binomial import clopper_pearson, fewest_trials, lower_bound, upper_bound
from attacks.statistics.multiple import benjamini_hochberg, holm
from attacks.statistics.ranking import AucInterval, auc, auc_interval, exceedance_p_value, low_fpr_p_value

__all__ = [
    "AucInterval",
    "auc",
    "auc_interval",
    "benjamini_hochberg",
    "clopper_pearson",
    "exceedance_p_value",
    "fewest_trials",
    "holm",
    "low_fpr_p_value",
    "lower_bound",
    "upper_bound",
]
