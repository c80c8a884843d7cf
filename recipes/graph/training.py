"""The recipe ``node_classifier``: a graph network from a fresh initialisation, by the mean cross-entropy of its nodes.

    G = subgraph that the members induce;   theta_0 = build(seed);   minimise  mean_{v in batch} -log p(y_v | G; theta)

Every step runs the network on the whole of G and takes the loss of the nodes of its batch; by default that is all of
them. Optimiser, schedule and their resumption are those of ``recipes.fitting``: the same (build, data, config, seed,
device, thread count) give the same bits, also when a run was killed and resumed, or is left early and taken up later.
Nodes are put in the order of their ids first, so that the order of the rows does not matter.

Not transductive: a node that is no member is not in G, so that its features reach no model that was not trained on it
(Olatunji et al., TPS 2021). The trained model is read on the full graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.errors import ConfigError, DataError
from contracts.methods import RecipeSpec, recipe
from contracts.params import param
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.fitting import Observe, descend, make_optimizer, trainable
from recipes.inputs import Inputs, model_dtype
from recipes.keeping import Keeping
from recipes.models import Build
from recipes.predict import eval_mode
from recipes.schedule import SupervisedConfig, epochs_to_train, num_epochs
from sources.example_set import ExampleSet
from tasks.base import require


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeTrainingConfig(SupervisedConfig):
    """Optimiser and schedule, with the settings that graph networks are commonly trained with."""

    optimizer: str = param("adamw", choices=("sgd", "adamw"), doc="adamw: betas 0.9, 0.999, eps 1e-8")
    lr: float = param(0.01, gt=0, le=100, doc="peak learning rate")
    weight_decay: float = param(5e-4, ge=0, le=1, doc="decoupled, of AdamW")
    batch: int = param(
        1_000_000, ge=1, le=1_000_000, unit="nodes", doc="whose loss a step takes; every step reads the whole graph"
    )
    epochs: int = param(100, ge=1, le=100_000, doc="of the full schedule")
    schedule: str = param("constant", choices=("cosine", "constant", "multistep"), doc="learning rate, set every step")


@dataclass(frozen=True, eq=False)
class MemberGraph:
    """The subgraph that training members induce, as tensors; node k is example k, in the order of their ids.

    Attributes:
        data: the members, ascending ids.
        x: (N, D) features as the model sees them.
        edge_index: int64 (2, E), from and to.
        labels: int64 (N,).
    """

    data: ExampleSet
    x: Tensor
    edge_index: Tensor
    labels: Tensor

    @classmethod
    def of(cls, data: ExampleSet, *, dtype: torch.dtype, device: str | torch.device) -> MemberGraph:
        """The graph of ``data`` and of nothing else.

        Raises:
            NotApplicable: the examples are no nodes.
            DataError: no examples, or labels that are not classes of the data; names the ids.
        """
        require(data, "training on a graph", "losses", "classes", "nodes")
        if not len(data):
            raise DataError(f"{data.name}: there is no example to train on")
        data.check_targets()
        data = data.by_id()
        alone = data.only(np.arange(len(data)))
        batch = Inputs(alone, dtype=dtype, device=device).slice(0, len(alone))
        return cls(alone, batch.inputs["x"], batch.inputs["edge_index"], batch.targets)

    def __len__(self) -> int:
        return len(self.labels)


@contextmanager
def reproducible(device: torch.device | str) -> Iterator[None]:
    """On CUDA messages are summed in a fixed order inside the block; on the CPU they are anyway."""
    if torch.device(device).type != "cuda":
        yield
        return
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def check_answers(model: Any, graph: MemberGraph) -> None:
    """Refuse a model that does not answer of one node with one logit a class.

    Raises:
        ConfigError: what it answers.
    """
    first = torch.zeros(1, dtype=torch.int64, device=graph.x.device)
    with eval_mode(model), torch.no_grad():
        said = model(x=graph.x, edge_index=graph.edge_index, nodes=first)
    if tuple(said.shape) != (1, graph.data.num_classes):
        raise ConfigError(
            f"the model maps one node of {graph.data.name} to shape {tuple(said.shape)}; "
            f"(1, {graph.data.num_classes}) is needed"
        )


@recipe(
    RecipeSpec(
        name="node_classifier",
        doc="Trains a graph network on the cross-entropy of the nodes, on the subgraph that they induce.",
        source="Kipf & Welling, ICLR 2017; Velickovic et al., ICLR 2018; induced subgraph: Olatunji et al., TPS 2021",
        config=NodeTrainingConfig,
        wants=("losses", "classes", "nodes"),
        early=True,
        observable=True,
        counts_steps=True,
    )
)
def node_classifier(
    build: Build,
    data: ExampleSet,
    *,
    config: NodeTrainingConfig,
    seed: int,
    device: str = "cpu",
    stop_after: int | None = None,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "node_classifier",
    checkpoint_every: int = 10,
    observe: Observe | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Train a fresh graph network on the nodes of ``data`` and the edges among them.

    Args:
        build: seed -> freshly initialised model, (x=, edge_index=, nodes=) -> logits (B, K).
        data: the training nodes.
        config: loss, optimiser, schedule.
        seed: of initialisation, batch order and dropout; in [0, 2**63).
        device: "cpu" or "cuda".
        stop_after: epochs after which the full schedule is left (0 gives the initialisation); None trains to its end.
        checkpoints: where the run is kept, every ``checkpoint_every`` epochs and at its end. A checkpoint of another
            configuration, initialisation or data is not used.
        checkpoint_name: its name there.
        observe: called with every mini-batch before its step: positions in ``data`` (b,), int64, and the logits (b, K)
            that its loss is taken of, detached. A run that is observed starts at its first epoch.
        progress: called with (epochs done, epochs, "training").

    Returns:
        The model in eval mode on ``device``.

    Raises:
        NotApplicable: the examples are no nodes with one of K classes.
        DataError: no examples, or labels that are not classes of the data.
        ConfigError: the model's answers do not fit the labels; ``stop_after`` beyond the schedule.
        Diverged: the loss is no longer finite (names the epoch).
        IntegrityError: the stored checkpoint is damaged.
    """
    keeping = Keeping(store=checkpoints, name=checkpoint_name, every=checkpoint_every)
    model = build(seed).to(device)
    graph = MemberGraph.of(data, dtype=model_dtype(model), device=device)
    check_answers(model, graph)
    last = epochs_to_train(num_epochs(len(graph), config), stop_after)
    optimizer = make_optimizer(trainable(model), config)
    start, after_epoch = keeping.taken_up(
        model, optimizer, graph.data, config=config, seed=seed, last=last, progress=progress, anew=observe is not None
    )
    place = torch.from_numpy(data.positions(graph.data.example_id)).to(graph.labels.device)

    def cost(at: Tensor) -> Tensor:
        logits = model(x=graph.x, edge_index=graph.edge_index, nodes=at)
        if observe is not None:
            observe(place[at], logits.detach())
        return F.cross_entropy(logits, graph.labels[at], label_smoothing=config.label_smoothing)

    with reproducible(device):
        descend(
            model,
            torch.arange(len(graph), device=graph.labels.device),
            cost,
            config=config,
            seed=seed,
            stop_after=last,
            optimizer=optimizer,
            start=start,
            after_epoch=after_epoch,
        )
    return model
