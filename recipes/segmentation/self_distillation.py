"""Self-distillation of segmentation: a model is trained on the soft maps that an earlier one gives of its training
pictures.

    teacher: f_T = segmentation(x, g)            from its own initialisation, trained to the end, then thrown away
    soft maps: s_i = softmax(f_T(x_i))           of the pictures as they are, no random colours
    student: f_S = argmin L(f_S(x), s)           from a fresh initialisation; the loss's maps are of argmax s

Soft maps average over labels that disagree on like pixels: noise of a label that the teacher did not learn by heart is
gone from them. Not distillation into a smaller network. Early models and stops are of the student; the teacher is
always trained in full. The examples are kept by neither, but every output of the student has passed through the
teacher's.

Source: Valverde, Koga et al., "TopoMortar" (BMVC 2025, arXiv 2503.03365); Furlanello et al., "Born Again Neural
Networks" (ICML 2018). Shapes: ``losses.base``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.methods import RecipeSpec, recipe
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.fitting import Observe, check_finite
from recipes.inputs import Inputs, model_dtype
from recipes.keeping import Keeping
from recipes.models import Build
from recipes.predict import eval_mode, examples_at_once
from recipes.segmentation.training import Learnt, SegmentationConfig, check_segmentation, train
from sources.example_set import ExampleSet


@recipe(
    RecipeSpec(
        name="self_distillation",
        doc="Segmentation on the soft maps of an earlier model of the same recipe.",
        source="Valverde, Koga et al., TopoMortar, BMVC 2025 (arXiv 2503.03365)",
        config=SegmentationConfig,
        wants=("losses", "features", "pixels"),
        early=True,
        observable=True,
        counts_steps=True,
    )
)
def self_distillation(
    build: Build,
    data: ExampleSet,
    *,
    config: SegmentationConfig,
    seed: int,
    device: str = "cpu",
    stop_after: int | None = None,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "self_distillation",
    checkpoint_every: int = 10,
    observe: Observe | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Train a teacher, then a fresh model on its soft maps; arguments and result as ``supervised``.

    Raises:
        NotApplicable: examples without masks, or rand_hue of pictures that are not RGB.
        DataError, ConfigError, Diverged, IntegrityError: as ``supervised``.
    """
    first = derive_seed("teacher", seed)
    teacher = build(first).to(device)
    inputs = Inputs(data, dtype=model_dtype(teacher), device=device)
    check_segmentation(teacher, inputs, config)
    train(
        teacher,
        data,
        inputs,
        Learnt.of(config, data.num_classes, labels=inputs.targets),
        config=config,
        seed=first,
        stop_after=None,
        keeping=Keeping(store=checkpoints, name=f"{checkpoint_name}_teacher", every=checkpoint_every),
        observe=None,
        progress=lambda done, of, what: progress(done, 2 * of, what),
        what="training the teacher",
    )
    return student(
        build,
        data,
        inputs,
        soft_maps(teacher, inputs, config=config),
        config=config,
        seed=seed,
        device=device,
        stop_after=stop_after,
        keeping=Keeping(store=checkpoints, name=checkpoint_name, every=checkpoint_every),
        observe=observe,
        progress=lambda done, of, what: progress(of + done, 2 * of, what),
    )


def soft_maps(teacher: nn.Module, inputs: Inputs, *, config: SegmentationConfig) -> Tensor:
    """softmax of what a model says of every picture, (N, K, H, W) of its own dtype, without gradient.

    Raises:
        Diverged: they are not finite.
    """
    parts, step = [], examples_at_once(inputs.data)
    with eval_mode(teacher), torch.no_grad():
        for start in range(0, len(inputs), step):
            parts.append(teacher(inputs.block(start, min(start + step, len(inputs)))).softmax(1))
    found = torch.cat(parts)
    check_finite([found], epoch=config.epochs - 1, epochs=config.epochs, config=config, who="the teacher")
    return found


def student(
    build: Build,
    data: ExampleSet,
    inputs: Inputs,
    soft: Tensor,
    *,
    config: SegmentationConfig,
    seed: int,
    device: str,
    stop_after: int | None,
    keeping: Keeping,
    observe: Observe | None,
    progress: Progress,
) -> nn.Module:
    """A fresh model trained on soft maps (N, K, H, W) of the rows of ``data``."""
    model = build(seed).to(device)
    train(
        model,
        data,
        inputs,
        Learnt.of(config, data.num_classes, labels=inputs.targets, soft=soft),
        config=config,
        seed=seed,
        stop_after=stop_after,
        keeping=keeping,
        observe=observe,
        progress=progress,
    )
    return model
