"""The data sets that scikit-learn carries inside its own package: no download, no file of the user's.

    digits         (1797, 1, 8, 8) uint8 0..16, 10 classes; inputs = raw / 16. The embedded default.
    breast_cancer  (569, 30) float32, 2 classes
    wine           (178, 13) float32, 3 classes
    diabetes       (442, 10) float32, regression (disease progression, 25..346)

Ids are the row numbers of scikit-learn's file, which has not changed since the sets were added. There is no test
split of their own, and no owners are known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contracts.methods import SourceSpec, source
from contracts.params import Config, param
from sources.assemble import assemble
from sources.example_set import ExampleSet

_LICENCES = {
    "digits": "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)",
    "breast_cancer": "CC BY 4.0 (UCI Breast Cancer Wisconsin, Diagnostic)",
    "wine": "CC BY 4.0 (UCI Wine)",
    "diabetes": "as distributed with scikit-learn (Efron, Hastie, Johnstone, Tibshirani 2004)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SklearnConfig(Config):
    dataset: str = param("digits", choices=tuple(_LICENCES), doc="which of the bundled sets")
    test_fraction: float = param(0.25, gt=0, lt=1, doc="share of the test split")


@source(
    SourceSpec(
        name="sklearn",
        doc="Data sets bundled with scikit-learn: digits, breast_cancer, wine, diabetes.",
        source="Pedregosa et al., JMLR 12 (2011); UCI Machine Learning Repository",
        config=SklearnConfig,
        self_contained=True,
    )
)
def sklearn_set(*, config: SklearnConfig, seed: int) -> ExampleSet:
    """One bundled set with a seeded stratified split; see the module for shapes and ranges."""
    from sklearn import datasets  # slow to import, and needed for this source only

    bunch = getattr(datasets, f"load_{config.dataset}")()
    regression = config.dataset == "diabetes"
    if config.dataset == "digits":
        x = bunch.images.astype(np.uint8)[:, None]
    else:
        x = bunch.data.astype(np.float32)
    return assemble(
        x,
        bunch.target.astype(np.float64 if regression else np.int64),
        name=config.dataset,
        task="regression" if regression else "classification",
        class_names=() if regression else tuple(map(str, bunch.target_names)),
        seed=seed,
        test_fraction=config.test_fraction,
        example_id=np.arange(len(x), dtype=np.int64),
        white=16,
        feature_names=() if x.ndim == 4 else tuple(map(str, bunch.feature_names)),
        provenance={"source": "sklearn", "dataset": config.dataset, "licence": _LICENCES[config.dataset]},
    )
