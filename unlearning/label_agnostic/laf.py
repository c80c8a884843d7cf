"""LAF, label-agnostic forgetting: move the extractor so that retained embeddings stay and forgotten ones stop fitting
(Shen et al., ICLR 2024).

    h_r, h_f   autoencoders of the trained model's embeddings on D and on D_f, fitted first, then frozen
    epoch      forget batches and as many retained ones side by side, as many as the shorter side has:
                 Adam(lr_ue) on L_UE( |h_r(e_r) - e_r|^2, |h_f(e_f) - e_f|^2 )
                 embeddings anew;  Adam(lr_ra), with a state of its own, on L_RA( cosines to the trained model's )

The embedding is the input of the last linear layer; that layer has no gradient from either loss and keeps its bits.
h_r is of all examples, as published (D_r is nearly D). Eval mode throughout: running statistics stay, dropout is off;
what the autoencoders draw comes from the seed. Losses in ``unlearning.label_agnostic.objectives``.

Source: arXiv 2404.00506 and its published code: 20 epochs, lr_ue 5e-5, lr_ra 1e-4, tau 20 (class removal, noisy
labels) or 5 (random removal) for a small CNN, 40 epochs, lr_ue 1e-5, lr_ra 4e-5 for a ResNet-18. The rates go with the
number of steps: where D_f is small an epoch is short, and they have to be larger.

No label is read. (Data sets with targets that are none are refused as by every method.) What is forgotten is a set of
embeddings, not of labels: for a random part of a class the target is a high accuracy, as of retraining, and going on
until it is low is a failure; only an evaluation with labels can say when to stop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import Diverged
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import Config, param
from contracts.progress import Progress, silent
from explain.embeddings import embedder, embeddings
from recipes.fitting import take_step
from recipes.inputs import Inputs
from recipes.rng import generator
from sources.example_set import ExampleSet
from unlearning.descent import check_finite, check_sets, inputs_of
from unlearning.label_agnostic.embedding_vae import (
    EmbeddingVAE,
    EmbeddingVAEConfig,
    fit_embedding_vae,
    units_of_embeddings,
)
from unlearning.label_agnostic.objectives import (
    cosine_distance,
    extractor_unlearning_loss,
    representation_alignment_loss,
)

TRACE = {
    "epoch": pl.Int64,
    "loss_ue": pl.Float64,
    "loss_ra": pl.Float64,
    "mean_cos_retain": pl.Float64,
    "mean_cos_forget": pl.Float64,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LafConfig(Config):
    """Autoencoders and the two alternating losses."""

    vae: EmbeddingVAEConfig = param(EmbeddingVAEConfig(), doc="the two autoencoders of embeddings")
    epochs: int = param(20, ge=0, le=10_000, doc="passes over the shorter of the two sets; 0 returns the model")
    lr_ue: float = param(5e-5, ge=0, le=1, doc="learning rate of extractor unlearning; 0 leaves it out")
    lr_ra: float = param(1e-4, ge=0, le=1, doc="learning rate of representation alignment; 0 leaves it out")
    temperature: float = param(20.0, gt=0, le=1e6, doc="tau of the forgotten examples' distances")
    batch: int = param(32, ge=1, le=65_536, unit="examples", doc="of either set in a step")
    error: str = param(
        "sum",
        choices=("sum", "mean"),
        doc="squared error of an embedding, over its dimensions; mean where sums are large and the loss saturates",
    )


@unlearner(
    UnlearnerSpec(
        name="laf",
        wants=("features",),
        doc="Moves the embeddings of forgotten examples away and holds those of the others, without any label.",
        source="Shen et al., Label-Agnostic Forgetting, ICLR 2024 (arXiv 2404.00506)",
        config=LafConfig,
    )
)
def laf(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: LafConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """The model of :func:`label_agnostic_forgetting`, which see."""
    return label_agnostic_forgetting(model, retain=retain, forget=forget, config=config, seed=seed, progress=progress)[
        0
    ]


def label_agnostic_forgetting(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: LafConfig,
    seed: int,
    progress: Progress = silent,
) -> tuple[nn.Module, pl.DataFrame]:
    """Forget ``forget`` in a copy of ``model`` without reading a label.

    Args:
        model: trained, with a linear output layer that is called once on (B, d); not changed.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove; with none of them the copy is returned as it is.
        config: see :class:`LafConfig`.
        seed: autoencoders, their noise, and batch order.
        progress: called after each pair of steps.

    Returns:
        The unlearned copy, eval mode; and how it went, a row an epoch: ``epoch`` from 1, ``loss_ue`` and ``loss_ra``
        (means over its steps, each before its own step), ``mean_cos_retain`` and ``mean_cos_forget`` in [-1, 1] (mean
        cosine to the trained model's embeddings, over the examples seen).

    Raises:
        DataError, NotApplicable: see ``check_sets``; a model without a linear output layer on (B, d).
        Diverged: embeddings, a loss or a weight is not finite.
    """
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True, wants=("features",))
    student = copy.deepcopy(model).eval()
    if not len(forget) or not config.epochs:
        check_finite(student, what="laf: the model before unlearning")
        return student, pl.DataFrame(schema=TRACE)
    sides = _sides(student, retain, forget, config, seed=seed)
    trained = [p for p in student.parameters() if p.requires_grad]
    unlearn, align = (torch.optim.Adam(trained, lr=lr, fused=True) for lr in (config.lr_ue, config.lr_ra))
    draw = generator(derive_seed("laf", "draws", seed))
    steps = min(math.ceil(len(side.before) / config.batch) for side in sides)
    run, trace = f"laf at lr_ue {config.lr_ue:g}, lr_ra {config.lr_ra:g}", []
    with embedder(student) as embed:
        for epoch in range(config.epochs):
            seen = []
            for number, rows in enumerate(_batches(sides, config, draw)):
                loss_ue = take_step(unlearn, _extractor_loss(embed, sides, rows, config, draw))
                kept, gone = (
                    cosine_distance(embed(side.inputs.gather(at)), side.before[at])
                    for side, at in zip(sides, rows, strict=True)
                )
                loss_ra = take_step(align, representation_alignment_loss(kept, gone, temperature=config.temperature))
                seen.append(torch.stack([loss_ue, loss_ra, 1 - kept.detach().mean(), 1 - gone.detach().mean()]))
                progress(epoch * steps + number + 1, config.epochs * steps, "laf")
            means = torch.stack(seen).double().mean(dim=0).tolist()
            if not all(map(math.isfinite, means)):
                raise Diverged(f"{run}: a loss of epoch {epoch + 1} is not finite; use smaller rates")
            trace.append((epoch + 1, *means))
    for optimizer in (unlearn, align):
        optimizer.zero_grad(set_to_none=True)
    check_finite(student, what=run)
    return student, pl.DataFrame(trace, schema=TRACE, orient="row")


@dataclass(frozen=True, eq=False)
class _Side:
    """The examples to keep, or those to forget.

    Attributes:
        inputs: n examples in the order of their ids; their targets are not asked for.
        before: (n, d) embeddings by the trained model.
        vae: frozen autoencoder that their embeddings are measured by.
    """

    inputs: Inputs
    before: Tensor
    vae: EmbeddingVAE


def _sides(
    model: nn.Module, retain: ExampleSet, forget: ExampleSet, config: LafConfig, *, seed: int
) -> tuple[_Side, _Side]:
    """What stays fixed while the extractor moves: retained examples, then forgotten ones."""
    like = next(model.parameters())
    kept, gone = (
        torch.from_numpy(embeddings(model, data.by_id())).to(like.device, like.dtype) for data in (retain, forget)
    )
    everyone = torch.cat([kept, gone])
    units = units_of_embeddings(everyone, config.vae)
    fitted = (
        fit_embedding_vae(of, config=config.vae, units=units, seed=derive_seed("laf", which, seed))
        for of, which in ((everyone, "all"), (gone, "forget"))
    )
    return (
        _Side(inputs_of(model, retain), kept, next(fitted)),
        _Side(inputs_of(model, forget), gone, next(fitted)),
    )


def _batches(sides: tuple[_Side, _Side], config: LafConfig, draw: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of both sides side by side, each shuffled; the shorter side ends the epoch."""
    kept, gone = (torch.randperm(len(side.before), generator=draw).split(config.batch) for side in sides)
    for pair in zip(kept, gone, strict=False):
        yield pair[0].to(sides[0].before.device), pair[1].to(sides[1].before.device)


def _extractor_loss(
    embed: Callable[[Tensor], Tensor],
    sides: tuple[_Side, _Side],
    rows: tuple[Tensor, Tensor],
    config: LafConfig,
    draw: torch.Generator,
) -> Tensor:
    """L_UE of one pair of batches, with fresh noise in the autoencoders."""
    errors = []
    for side, at in zip(sides, rows, strict=True):
        now = embed(side.inputs.gather(at))
        noise = torch.randn(len(at), config.vae.latent, generator=draw).to(now)
        error, _, _ = side.vae(now, noise)
        errors.append(error / now.shape[1] if config.error == "mean" else error)
    return extractor_unlearning_loss(*errors)
