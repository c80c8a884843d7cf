"""How the audited model is trained, and the reference ensemble. Importing this package registers every recipe."""

from recipes.checkpoints import load_arrays, to_arrays
from recipes.design import balanced_design
from recipes.early import early_models
from recipes.ensemble import ReferenceEnsemble, train_ensemble
from recipes.models import Build, build, builder
from recipes.predict import predict_logits
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
from recipes.supervised import supervised

__all__ = [
    "Build", "ReferenceEnsemble", "StackedTrainer", "SupervisedConfig",
    "balanced_design", "build", "builder", "early_models", "load_arrays", "predict_logits", "supervised", "to_arrays",
    "train_ensemble",
]  # fmt: skip
