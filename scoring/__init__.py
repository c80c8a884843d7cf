"""Per-example scores, one method a file. Importing the package registers them all."""

from scoring.cleanlab_issues import cleanlab_issues
from scoring.concept_attribution import concept_attribution
from scoring.concepts import concepts
from scoring.data_diet import data_diet
from scoring.el2n import el2n
from scoring.forget_selectors import choose, forget_selectors
from scoring.forgetting import forgetting
from scoring.grand import grand
from scoring.influence import high_influence_pairs, influence, influence_matrix
from scoring.knn_disagreement import knn_disagreement
from scoring.label_quality import label_quality, output_label_quality
from scoring.long_tail import long_tail_report
from scoring.memorization import memorization, memorization_scores
from scoring.near_duplicates import near_duplicates
from scoring.output_error import output_error
from scoring.personal_loss import personal_loss, selection_probability
from scoring.pool_laws import pool_laws
from scoring.pruning_curve import pruning_curve
from scoring.qualification import qualification
from scoring.quality_pools import quality_pools
from scoring.recsys_eval import recsys_eval
from scoring.scaling_fit import fit_pool_laws
from scoring.scaling_laws import PoolLaw, best_pool, mixture_error
from scoring.train_test_duplicates import train_test_duplicates
from scoring.worst_case_forget import select_worst_case, worst_case_forget

__all__ = [
    "PoolLaw",
    "best_pool",
    "choose",
    "cleanlab_issues",
    "concept_attribution",
    "concepts",
    "data_diet",
    "el2n",
    "fit_pool_laws",
    "forget_selectors",
    "forgetting",
    "grand",
    "high_influence_pairs",
    "influence",
    "influence_matrix",
    "knn_disagreement",
    "label_quality",
    "long_tail_report",
    "memorization",
    "memorization_scores",
    "mixture_error",
    "near_duplicates",
    "output_error",
    "output_label_quality",
    "personal_loss",
    "pool_laws",
    "pruning_curve",
    "qualification",
    "quality_pools",
    "recsys_eval",
    "select_worst_case",
    "selection_probability",
    "train_test_duplicates",
    "worst_case_forget",
]
