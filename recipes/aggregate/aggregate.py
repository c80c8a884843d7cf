"""Training on mean responses of bags: whole bags in a mini-batch, shuffled bag by bag; nothing else of the responses.

    theta <- argmin (1/n) sum_a k_a l(ybar_a, fbar_a) + rho R    (``loss: bag``, ``interpolating``; see ``losses``)
    a batch of b bags estimates it without bias: sum over its bags, divided by b n/m

The bags, and the noise of label differential privacy where it is asked for, are functions of the examples and of
``release``, not of the training seed: models of several seeds are trained on one release of the responses, fixed once
(another one would tell more). Even the units in which a number is trained on are of the released means. What the
responses are besides their bag means changes no bit of the model.

The noise of this recipe is drawn from ``release``, so that a run can be repeated: it is as private as that number.
A data set that is given away has noise under a secret: maker ``bags``.

Source: Javanmard et al., ICLR 2024 (arXiv 2401.11081), section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, NotApplicable
from contracts.methods import RecipeSpec, recipe
from contracts.params import param
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.aggregate.losses import bag_loss, instance_loss, interpolating_loss
from recipes.fitting import Observe, check_trainable, descend, make_optimizer, smallest_batch, trainable, units_of
from recipes.inputs import Inputs, model_dtype
from recipes.keeping import Keeping
from recipes.models import Build
from recipes.schedule import SupervisedConfig, epochs_to_train, num_epochs
from sources.bags import Bags, Release, bags_of, on_simplex, release_of
from sources.example_set import ExampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregateConfig(SupervisedConfig):
    """Bags, loss and release beside optimiser and schedule."""

    batch: int = param(16, ge=1, le=1_000_000, unit="bags", doc="whole bags; the last, shorter batch is kept")
    bag_size: int = param(5, ge=1, le=1_000_000, unit="examples", doc="k, of bags at random")
    column: str = param("", doc="column whose values are the bags, in place of bags at random")
    loss: str = param("interpolating", choices=("bag", "instance", "interpolating"), doc="of predictions against means")
    rho: float = param(0.1, ge=0, le=1e6, doc="interpolating: weight of the variance of predictions within bags")
    epsilon: float | None = param(None, gt=0, le=1e6, doc="of label differential privacy; none: exact means")
    clip: float | None = param(None, gt=0, le=1e12, doc="numbers: largest distance of a response from center")
    center: float = param(0.0, ge=-1e12, le=1e12, doc="numbers: what responses are clipped around; public")
    release: int = param(0, ge=0, le=2**31 - 1, doc="seed of the bags and of the noise, the same for every model")

    def check(self) -> None:
        SupervisedConfig.check(self)
        if self.label_smoothing:
            raise ConfigError(f"AggregateConfig.label_smoothing = {self.label_smoothing}: bags have shares, no labels")


@recipe(
    RecipeSpec(
        name="aggregate",
        doc="Training on mean responses of bags of examples, or on their class shares.",
        source="Javanmard et al., Learning from Aggregate Responses, ICLR 2024 (arXiv 2401.11081)",
        config=AggregateConfig,
        wants=("losses", "features"),
        early=True,
        observable=True,
        counts_steps=True,
    )
)
def aggregate(
    build: Build,
    data: ExampleSet,
    *,
    config: AggregateConfig,
    seed: int,
    device: str = "cpu",
    stop_after: int | None = None,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "aggregate",
    checkpoint_every: int = 10,
    observe: Observe | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Train a fresh model on the bag means of every row of ``data``; arguments and result as ``supervised``.

    Raises:
        NotApplicable: examples that are no vectors or images, or targets that are neither classes nor numbers.
        ConfigError: no such column; epsilon for numbers without clip; otherwise as ``supervised``.
        DataError, Diverged, IntegrityError: as ``supervised``.
    """
    model = build(seed).to(device)
    inputs = Inputs(data, dtype=model_dtype(model), device=device)
    check_trainable(model, inputs)
    bags, said = released(data, config)
    classes = data.task.gives("classes")
    means = on_simplex(said.means) if classes and said.epsilon is not None else said.means
    units = None if classes else units_of(model, inputs, np.repeat(means[:, 0], bags.sizes))
    targets = torch.from_numpy(np.array(means)).to(inputs.device, inputs.dtype)
    targets = targets if units is None else units.of(targets)
    order = torch.from_numpy(bags.order).to(inputs.device)
    sizes = torch.from_numpy(bags.sizes).to(inputs.device)
    starts, typical = sizes.cumsum(0) - sizes, len(data) / len(bags)
    keeping = Keeping(store=checkpoints, name=checkpoint_name, every=checkpoint_every)
    last = epochs_to_train(num_epochs(len(bags), config, smallest=smallest_batch(model)), stop_after)
    optimizer = make_optimizer(trainable(model), config)
    start, after_epoch = keeping.taken_up(
        model,
        optimizer,
        data,
        config=config,
        seed=seed,
        last=last,
        progress=progress,
        what="training on bags",
        anew=observe is not None,
    )

    def cost(chosen: Tensor) -> Tensor:
        own = sizes[chosen]
        first = (own.cumsum(0) - own).repeat_interleave(own)
        rows = order[starts[chosen].repeat_interleave(own) + torch.arange(len(first), device=own.device) - first]
        outputs = model(inputs.gather(rows))
        if observe is not None:
            observe(rows, outputs.detach())
        kind = "cross_entropy" if classes else "squared"
        if config.loss == "instance":
            found = instance_loss(outputs, targets[chosen], own, loss=kind)
        elif config.loss == "bag":
            found = bag_loss(outputs, targets[chosen], own, loss=kind)
        else:
            found = interpolating_loss(outputs, targets[chosen], own, rho=config.rho, loss=kind)
        return found * (len(rows) / (len(chosen) * typical))

    descend(
        model,
        torch.arange(len(bags), device=inputs.device),
        cost,
        config=config,
        seed=seed,
        stop_after=last,
        optimizer=optimizer,
        start=start,
        after_epoch=after_epoch,
    )
    if units is not None:
        units.fold(model)
    return model


def released(data: ExampleSet, config: AggregateConfig) -> tuple[Bags, Release]:
    """The bags of these examples and all that training sees of their responses.

    Raises:
        NotApplicable: targets that are neither classes nor one number each.
        ConfigError: no such column, or epsilon for numbers without clip.
    """
    if not (data.task.gives("classes") or data.task.gives("numbers")):
        raise NotApplicable(f"recipe aggregate averages classes or numbers; {data.name} is a {data.task} task")
    seed = derive_seed("bags", config.release)
    bags = bags_of(data, size=config.bag_size, column=config.column, asked="AggregateConfig.column", seed=seed)
    rng = np.random.default_rng(derive_seed("noise", config.release, data.digest))
    return bags, release_of(data, bags, epsilon=config.epsilon, clip=config.clip, center=config.center, rng=rng)
