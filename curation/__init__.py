"""Data sets built out of data sets. Importing this package registers every curator."""

from curation import (
    by_class,
    by_ids,
    by_owner,
    by_predicate,
    closure,
    denoise_implicit,
    manipulations,
    prune,
    quality_pools,
    random_fraction,
    top_score,
)
from curation.split import apply_split

__all__ = [
    "apply_split",
    "by_class",
    "by_ids",
    "by_owner",
    "by_predicate",
    "closure",
    "denoise_implicit",
    "manipulations",
    "prune",
    "quality_pools",
    "random_fraction",
    "top_score",
]
