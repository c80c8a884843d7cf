"""How the audited model is trained, and the reference ensemble. Importing this package registers every recipe."""

from recipes.checkpoints import load_arrays, to_arrays
from recipes.design import balanced_design
from recipes.early import early_models, early_snapshots
from recipes.ensemble import ReferenceEnsemble, train_ensemble
from recipes.models import Build, build, builder
from recipes.predict import predict_logits
from recipes.recsys import BprConfig, bpr
from recipes.recsys_lists import Lists
from recipes.recsys_topk import evaluate_topk, top_items
from recipes.schedule import SupervisedConfig
from recipes.stacked import StackedTrainer
from recipes.supervised import supervised
from recipes.training import Trainer

__all__ = [
    "BprConfig",
    "Build",
    "Lists",
    "ReferenceEnsemble",
    "StackedTrainer",
    "SupervisedConfig",
    "Trainer",
    "balanced_design",
    "bpr",
    "build",
    "builder",
    "early_models",
    "early_snapshots",
    "evaluate_topk",
    "load_arrays",
    "predict_logits",
    "supervised",
    "to_arrays",
    "top_items",
    "train_ensemble",
]
