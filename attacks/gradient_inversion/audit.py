"""Audit: what a curious server would see of single examples in the gradients of THIS model, dropout included.

    client   B training examples, masks of its own in training mode -> the gradient of its mean cross-entropy
    server   the weights and the gradient; labels read off the output layer; then each attack
    row      example x attack x dropout rate: PSNR, SSIM, MSE, label, masks found

    ig        cosine matching, dropout off          dia    masks found together with the input
    wiig      control: the client's own masks       dlg    squared matching by L-BFGS         analytic   first layer's
              g_W / g_b

A model with dropout of its own is audited at its own rates; one without gets the configured rates after its hidden
layers, and the table says so. At rate 0 dia and wiig are ig and are not repeated. The attacks are lower bounds: what
they do not rebuild, a better one may. Nothing is judged: no plan says how many decibels are too many.

Source: Scheliga, Maeder, Seeland (AAAI 2023, arXiv 2208.06163), and what each attack's file names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from attacks.gradient_inversion.analytic import analytic_linear_inversion
from attacks.gradient_inversion.cohort import Cohort, checked, choose, cohort, modes, valid_box
from attacks.gradient_inversion.dlg import deep_leakage
from attacks.gradient_inversion.dropout_inversion import dropout_inversion
from attacks.gradient_inversion.engine import InversionConfig, Inverted
from attacks.gradient_inversion.instrument import Instrumented
from attacks.gradient_inversion.inverting_gradients import inverting_gradients
from attacks.gradient_inversion.measures import measured, originals, summarise
from attacks.gradient_inversion.tables import ATTACKS, DRAWN, IMAGES, PICTURES, ROWS, SUMMARY
from attacks.gradient_inversion.well_informed import well_informed
from contracts.errors import NotApplicable
from contracts.methods import AnalysisSpec, analysis
from contracts.params import Config, param
from contracts.progress import Progress, silent
from recipes.threads import threads_for
from sources.example_set import ExampleSet
from sources.frames import frame_of

_COPIES = 8  # of the clients' gradients that are alive at once
_MASKED = ("dia", "wiig")  # without dropout both are ig


@dataclass(frozen=True, kw_only=True, slots=True)
class DropoutInversionConfig(Config):
    """Which examples are attacked, how, and for how long."""

    num_examples: int = param(
        8, ge=1, le=100_000, doc="training examples attacked, drawn at random; rounded down to whole batches"
    )
    batch: int = param(1, ge=1, le=1024, doc="examples of one client, B")
    attacks: tuple[str, ...] = param(ATTACKS, choices=ATTACKS, doc="which attacks; wiig is a control")
    dropout: tuple[float, ...] = param(
        (0.0, 0.25, 0.5), ge=0, lt=1, doc="rates audited; other than 0 only for a model without dropout of its own"
    )
    labels: str = param("recovered", choices=("recovered", "known"), doc="the labels ig, dia and wiig work with")
    steps: int = param(600, ge=1, le=1_000_000, doc="most steps of ig, dia and wiig")
    patience: int = param(100, ge=1, le=1_000_000, doc="steps without a fall of the loss before lr x 0.1")
    stop_patience: int = param(4000, ge=1, le=1_000_000, doc="steps without improvement that end an attack")
    lr: float = param(0.1, gt=0, le=10, doc="Adam's first learning rate")
    tv: float = param(1e-5, ge=0, le=10, doc="weight of the total variation; images only")
    mask_weight: float = param(1e-4, ge=0, le=10, doc="dia: weight of |dropped share of a mask - p|")
    mask_init: str = param("bernoulli", choices=("bernoulli", "ones", "uniform"), doc="dia: masks at the start")
    polish_steps: int = param(0, ge=0, le=1_000_000, doc="dia: steps on the input alone with rounded masks")
    restarts: int = param(1, ge=1, le=1000, doc="starts of each attack; the lowest loss is kept")
    dlg_steps: int = param(100, ge=1, le=1_000_000, doc="iterations of dlg; the paper's are 300")
    memory_mib: int = param(
        512, ge=1, le=1_000_000, unit="MiB", doc="for the gradients of clients attacked side by side"
    )

    @property
    def inversion(self) -> InversionConfig:
        """What ig, dia and wiig share."""
        names = {f.name for f in fields(self)} & {f.name for f in fields(InversionConfig)}
        return InversionConfig(**{name: getattr(self, name) for name in names})


@analysis(
    AnalysisSpec(
        name="dropout_inversion",
        version=2,
        wants=("outputs", "classes", "features"),
        doc="Gradient inversion with and without dropout: what a curious server rebuilds of single training examples.",
        source="Scheliga et al., AAAI 2023 (arXiv 2208.06163); Geiping et al., NeurIPS 2020; Zhu et al., NeurIPS 2019",
        config=DropoutInversionConfig,
        needs=("model",),
        tables=(ROWS, SUMMARY, IMAGES),
        pictures=PICTURES,
    )
)
def dropout_inversion_audit(
    data: ExampleSet,
    *,
    config: DropoutInversionConfig,
    seed: int,
    model: nn.Module,
    progress: Progress = silent,
) -> dict[str, pl.DataFrame]:
    """Attack the gradients of some training examples of the audited model.

    Args:
        data: both splits, classification; the examples come from the training split, the box of valid inputs is its
            range.
        config: how many examples, which attacks, how long.
        seed: of the choice of examples, the clients' masks and the attacks' starts; an example's are its own.
        model: the audited model, left as it is.
        progress: called with how far each attack is.

    Returns:
        ``dropout_inversion`` (one row an example x attack x rate), ``dropout_inversion_summary``, ``inversion_images``.

    Raises:
        NotApplicable: a task without classes, a model whose training cannot be opened, an output layer that is not
            linear.
        DataError: no examples, ids used twice, labels out of range, inputs or gradients that are not finite, a training
            split of one value everywhere.
    """
    train = checked(data, batch=config.batch)
    box = valid_box(train)
    chosen = choose(train, num=config.num_examples, batch=config.batch, seed=seed)
    nets, remarks = modes(model, data.input_shape, batch=config.batch, rate=max(config.dropout, default=0.0) or None)
    rows, images, refused = [], [], {}
    for net, batchnorm in nets:
        for part in _blocks(chosen, net, config):
            everybody = cohort(
                net, part, box=box, rates=config.dropout, batchnorm=batchnorm, seed=seed, known=config.labels == "known"
            )
            images.append(originals(part, batchnorm=batchnorm))
            for attack in ATTACKS:
                people = everybody.rows(everybody.p > 0) if attack in _MASKED else everybody
                if attack not in config.attacks or not len(people):
                    continue
                try:
                    with threads_for(people.net.model, examples=len(people.labels)):
                        found = _run(attack, people, config=config, progress=progress)
                except NotApplicable as error:
                    refused.update({(attack, float(p), batchnorm): str(error) for p in np.unique(people.p)})
                    continue
                measures, pictures = measured(attack, people, found)
                rows.append(measures)
                if attack in DRAWN:
                    images.append(pictures)
    if nets[0][0].kinks:
        remarks.append("piecewise linear activations: second derivatives are 0 where they exist")
    table = pl.concat(rows) if rows else frame_of(ROWS, [])
    return {
        ROWS.name: table,
        SUMMARY.name: summarise(table, origin=nets[0][0].origin, remarks=remarks, refused=refused),
        IMAGES.name: pl.concat(images),
    }


def _blocks(chosen: ExampleSet, net: Instrumented, config: DropoutInversionConfig) -> Iterator[ExampleSet]:
    """Whole clients, as many at a time as the memory allows at every rate side by side."""
    weights = sum(p.numel() * p.element_size() for p in net.params.values())
    each = _COPIES * config.restarts * max(len(config.dropout), 2) * weights
    size = max(1, config.memory_mib * 2**20 // each) * config.batch
    for start in range(0, len(chosen), size):
        yield chosen.subset(chosen.example_id[start : start + size])


def _run(attack: str, part: Cohort, *, config: DropoutInversionConfig, progress: Progress) -> Inverted:
    net, update, seeds = part.net, part.update, part.seeds
    if attack == "analytic":
        x = analytic_linear_inversion(net, update)
        unknown = x.new_full((len(x),), torch.nan)
        return Inverted(x, (), part.labels, unknown, unknown, torch.zeros(len(x), dtype=torch.int64))
    if attack == "dlg":
        return deep_leakage(net, update, seeds=seeds, steps=config.dlg_steps, progress=progress)
    plan = config.inversion
    shared: dict[str, Any] = {
        "labels": part.labels,
        "box": part.box,
        "config": plan,
        "seeds": seeds,
        "progress": progress,
    }
    if attack == "ig":
        return inverting_gradients(net, update, **shared)
    if attack == "dia":
        return dropout_inversion(net, update, rates=part.memory.rates, **shared)
    return well_informed(net, update, part.memory, **shared)
