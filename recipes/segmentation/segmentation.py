"""The recipe of segmentation: one model on masks, with a loss of masks by name.

Deterministic as ``supervised`` is, resumable and stoppable at epochs alike; what differs is the loss (``losses``, of a
whole batch where a paper says so) and, if it is asked for, RandHue. No geometric augmentation: a membership audit
compares what a model says of an example with and without it, and the maps of labels are kept.

Source: Valverde, Koga et al., "TopoMortar" (BMVC 2025, arXiv 2503.03365), which compares these losses with one another.
"""

from __future__ import annotations

from torch import nn

from contracts.methods import RecipeSpec, recipe
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.fitting import Observe
from recipes.inputs import Inputs, model_dtype
from recipes.keeping import Keeping
from recipes.models import Build
from recipes.segmentation.training import Learnt, SegmentationConfig, check_segmentation, train
from sources.example_set import ExampleSet


@recipe(
    RecipeSpec(
        name="segmentation",
        doc="Minibatch training on masks with an overlap or topology loss.",
        source="Valverde, Koga et al., TopoMortar, BMVC 2025 (arXiv 2503.03365)",
        config=SegmentationConfig,
        wants=("losses", "features", "pixels"),
        early=True,
        observable=True,
        counts_steps=True,
    )
)
def segmentation(
    build: Build,
    data: ExampleSet,
    *,
    config: SegmentationConfig,
    seed: int,
    device: str = "cpu",
    stop_after: int | None = None,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "segmentation",
    checkpoint_every: int = 10,
    observe: Observe | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Train a fresh model on the masks of every row of ``data``; arguments and result as ``supervised``.

    Raises:
        NotApplicable: examples without masks, or rand_hue of pictures that are not RGB.
        DataError, ConfigError, Diverged, IntegrityError: as ``supervised``.
    """
    keeping = Keeping(store=checkpoints, name=checkpoint_name, every=checkpoint_every)
    model = build(seed).to(device)
    inputs = Inputs(data, dtype=model_dtype(model), device=device)
    check_segmentation(model, inputs, config)
    learnt = Learnt.of(config, data.num_classes, labels=inputs.targets)
    train(
        model,
        data,
        inputs,
        learnt,
        config=config,
        seed=seed,
        stop_after=stop_after,
        keeping=keeping,
        observe=observe,
        progress=progress,
    )
    return model
