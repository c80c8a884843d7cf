"""The recipe ``erase``: a graph encoder trained by coding rate reduction on labels that the graph itself corrects.

    once      Yd = given labels, smoothed over the training nodes                       (``label_propagation``)
    epoch     Z  = encoder(x, edges)                          rows L1-normalised, >= 0
              L  = argmax of Q(Yd, Z), a hard label of EVERY node, training node or not, without gradient
              minimise  -g2 R(Z) + g1 Rc(Z, L)                                          (``coding_rate``)
              Adam (AMSGrad), L2 penalty in the gradient
    read-out  logistic regression on Z / ||Z||_2 of the training nodes, fitted to their corrected labels L;
              the epoch with the best accuracy on the validation nodes is kept, encoder and read-out

Large graphs (``neighbours``, the paper's setting for ogbn-arxiv: 5 and 5, 200 nodes, denoising by propagation):
    epoch     Z of all nodes in eval mode, L from it, once;  then for every batch B of nodes, in random order
              Z_B of the sampled surroundings of B (``sampling``);  minimise  -g2 R(Z_B) + g1 Rc(Z_B, L_B)
so that a step holds a batch and its surroundings, never the graph with its gradient. Rates told of such an epoch are
means over its batches.

The fitted read-out is the model's own layer ``head`` over normalised rows, so that one network is stored, read,
attacked and unlearned like any other. Validation nodes are a share of the members, drawn within their (noisy) classes:
their labels choose the epoch and do nothing else. Choosing by clean labels would leak what the method has to find;
:func:`train_erase` takes whatever labels it is given. Members train on the subgraph that they induce, so all of these
nodes are members here; a caller of :func:`train_erase` may have nodes without a label besides.

Source: Chen et al., "ERASE: Error-Resilient Representation Learning on Graphs for Label Noise Tolerance" (CIKM 2024,
arXiv 2312.08852), algorithm 1, with the defaults that the authors use for Cora; written from the equations. Where a
class has no training node left its prototype is zero, and classes that no node is given have no term in Rc (the
published code stops there). Wide encoders can collapse to one direction: ``Epoch.effective_rank`` tells.
Not a noise-robust loss: labels are replaced, and what is learnt of a node need not be its given label.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged
from contracts.methods import RecipeSpec, recipe
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.fitting import take_step
from recipes.graph.coding_rate import CodingRateReduction, effective_rank
from recipes.graph.label_propagation import (
    NORMALIZATIONS,
    Floats,
    Ints,
    Propagator,
    corrected_labels,
    denoise_labels,
    propagate_labels,
    semantic_labels,
)
from recipes.graph.networks import GraphNetwork
from recipes.graph.sampling import InEdges, batches
from recipes.graph.training import MemberGraph, reproducible
from recipes.inputs import model_dtype
from recipes.keeping import Keeping, Stored, resume, run_arrays, run_fingerprint
from recipes.models import Build
from recipes.predict import eval_mode
from recipes.rng import local_rng
from recipes.schedule import epochs_to_train
from sources.example_set import ExampleSet
from sources.splits import largest_remainders, stratified_split

_READ_OUT_STEPS = 1000
HOPS = 2  # layers of the encoder
DENOISING = ("smoothing", "propagation")
NOT_KEPT = Keeping(store=NoStore(), name="", every=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PropagationConfig(Config):
    """How labels are corrected: of ERASE's training, and of what is told of a trained model's labels."""

    keep: float = param(
        0.6, ge=0, le=1, doc="a, share of its own row that a node keeps in each step; 1: no propagation"
    )
    trust: float = param(0.6, ge=0, le=1, doc="b, weight of the denoised labels beside the semantic ones; 1: no others")
    steps: int = param(5, ge=0, le=1000, doc="T, propagation steps, before training and in every epoch")
    normalization: str = param(
        "column", choices=NORMALIZATIONS, doc="of the adjacency matrix; column as in the authors' code"
    )

    def propagator(self, edge_index: Ints, num_nodes: int, *, among: Ints | None = None) -> Propagator:
        """The propagation over these edges, or over those among some nodes."""
        return Propagator.of(
            edge_index, num_nodes, steps=self.steps, keep=self.keep, normalization=self.normalization, among=among
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EraseConfig(PropagationConfig):
    """Fields of ERASE; the defaults are the authors' for Cora."""

    expand: float = param(2.0, gt=0, le=100, doc="g2, weight of the rate of the whole embedding")
    compress: float = param(1.0, gt=0, le=100, doc="g1, weight of the rates of the classes")
    eps: float = param(0.05, gt=0, le=100, doc="e, distortion; 0.01 to 0.4 for rows that sum to 1")
    neighbours: tuple[int, ...] = param(
        (),
        ge=1,
        le=100_000,
        added=True,
        doc="in-edges drawn of a node, hop by hop (two of them); (): the whole graph in one step",
    )
    batch: int = param(
        200, ge=2, le=1_000_000, unit="nodes", added=True, doc="whose rates a step is of, where neighbours are drawn"
    )
    denoising: str = param(
        "smoothing",
        choices=DENOISING,
        added=True,
        doc="of the given labels; propagation as the authors' for large graphs",
    )
    denoise: bool = param(True, doc="smooth the given labels before training; false to see what that is worth")
    lr: float = param(1e-3, gt=0, le=1, doc="learning rate of Adam (AMSGrad)")
    weight_decay: float = param(5e-4, ge=0, le=1, doc="L2 penalty, in the gradient")
    epochs: int = param(400, ge=1, le=100_000, doc="of the full run")
    patience: int = param(150, ge=1, le=100_000, unit="epochs", doc="without a better validation accuracy: stop")
    validation: float = param(
        0.1, ge=0, lt=1, doc="share of the members whose labels only choose the epoch; 0 keeps the last epoch"
    )
    read_every: int = param(1, ge=1, le=100_000, unit="epochs", doc="a read-out is fitted and judged")

    def check(self) -> None:
        if len(self.neighbours) not in (0, HOPS):
            raise ConfigError(
                f"EraseConfig.neighbours = {list(self.neighbours)}: the encoder has {HOPS} layers, so {HOPS} numbers"
            )


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch at which a read-out was fitted.

    Attributes:
        epoch: from 1; 0 is the initialisation.
        expanded: R of the training pass, nats.
        compressed: Rc, nats.
        effective_rank: of the embeddings in eval mode.
        accuracy: on the validation labels as they were given, NaN without any.
    """

    epoch: int
    expanded: float
    compressed: float
    effective_rank: float
    accuracy: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Labelled:
    """What is known of the nodes of a graph.

    Attributes:
        train, val: (n,) and (m,) nodes, distinct and disjoint; m may be 0.
        train_labels, val_labels: their given labels in [0, num_classes).
    """

    train: Ints
    train_labels: Ints
    val: Ints
    val_labels: Ints
    num_classes: int


def train_erase(
    model: GraphNetwork,
    x: Tensor,
    edge_index: Tensor,
    known: Labelled,
    *,
    config: EraseConfig,
    seed: int,
    epochs: int | None = None,
    watch: Callable[[int, Floats, Ints], None] | None = None,
    keeping: Keeping = NOT_KEPT,
    run: str = "",
    progress: Progress = silent,
) -> list[Epoch]:
    """Train encoder and read-out in place; the model is left in eval mode as it was at the chosen epoch.

    Args:
        model: fresh, ``rows: l1``, on the device of ``x``.
        x: (V, D) features; ``edge_index``: int64 (2, E).
        known: at least one training node.
        seed: of dropout.
        epochs: to train, ``config.epochs`` when None; 0 fits the read-out to the initialisation.
        watch: called after each epoch with its number, Q (V, K) and the training nodes' corrected labels.
        keeping: where the run is kept; ``run`` is what a kept one must agree on to be taken up
            (``recipes.keeping.run_fingerprint``).

    Returns:
        The epochs that were read, in order; the chosen one is the first with the best accuracy, the last without
        validation nodes.

    Raises:
        Diverged: the loss or an embedding is not finite; names the epoch.
    """
    last = config.epochs if epochs is None else epochs
    edges, num = edge_index.cpu().numpy(), len(x)
    whole, denoised = config.propagator(edges, num), _denoised(known, edges, num, config)
    around = InEdges.of(edges, num) if config.neighbours else None
    loss_of = CodingRateReduction(eps=config.eps, expand=config.expand, compress=config.compress)
    encoder = [p for name, p in model.named_parameters() if not name.startswith("head.") and p.requires_grad]
    optimizer = torch.optim.Adam(encoder, lr=config.lr, weight_decay=config.weight_decay, amsgrad=True)
    stored = keeping.load()
    start = resume(model, optimizer, stored, run=run, last=last)
    read, best = _kept(stored, x.device) if start and stored is not None else ([], {})

    def waited(epoch: int) -> bool:
        return bool(len(known.val) and read) and epoch - _best(read).epoch >= config.patience

    for epoch in range(0 if last == 0 else start + 1, last + 1):
        if waited(epoch - 1):
            break
        with local_rng(derive_seed("noise", seed, epoch), device=x.device), reproducible(x.device):
            model.train(epoch > 0 and around is None)
            with torch.set_grad_enabled(epoch > 0 and around is None):
                z = model.embed(x, edge_index)
            q, labels = _correct(z, denoised, known, whole, config, epoch=epoch)
            classes = torch.from_numpy(labels).to(z.device)
            if around is not None and epoch:
                rng = np.random.default_rng(derive_seed("neighbours", seed, epoch))
                steps = _sampled(model.train(), x, classes, around, config, rng)
            else:
                steps = iter([(z, classes)])
            told_rates = []
            for rows, own in steps:
                rates = loss_of.rates(rows, own, known.num_classes)
                told_rates.append([float(rate.detach()) for rate in rates])
                if epoch:
                    loss = take_step(optimizer, config.compress * rates[1] - config.expand * rates[0])
                    if not math.isfinite(float(loss)):
                        raise Diverged(
                            f"ERASE diverged in epoch {epoch} of {last}: loss {float(loss)}; use a smaller lr"
                        )
        if watch is not None:
            watch(epoch, q, labels[known.train])
        if epoch == last or (len(known.val) and epoch % config.read_every == 0):
            told, before = _read(model, x, edge_index, known, labels, epoch, np.mean(told_rates, axis=0)), read
            if not before or not len(known.val) or told.accuracy > max(one.accuracy for one in before):
                best = copy.deepcopy(model.state_dict())
            read.append(told)
        keeping.after(
            epoch,
            last=last,
            arrays=lambda kept=best: run_arrays(model, optimizer) | _as_arrays(kept),  # type: ignore[misc]
            run=run,
            read=[[*dataclasses.astuple(one)[:-1], None if math.isnan(one.accuracy) else one.accuracy] for one in read],
        )
        progress(epoch, last, "training")
    model.load_state_dict(best)
    model.eval().zero_grad(set_to_none=True)
    return read


def _denoised(known: Labelled, edges: Ints, num: int, config: EraseConfig) -> Floats:
    """Yd (V, K), before any training."""
    by_propagation = config.denoising == "propagation"
    way = dataclasses.replace(config, normalization="sym") if by_propagation else config
    inner = way.propagator(edges, num, among=known.train)
    inner = inner if config.denoise else Propagator(inner.matrix, 0, config.keep)
    make = propagate_labels if by_propagation else denoise_labels
    return make(known.train_labels, known.train, inner, num_classes=known.num_classes)


def _sampled(
    model: GraphNetwork, x: Tensor, classes: Tensor, around: InEdges, config: EraseConfig, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeddings (B, d) of a batch of nodes by its sampled surroundings, and the classes (B,), batch by batch; each is
    computed when it is asked for, by the model as it is then. A last batch of one node joins no step: it has no
    rate."""
    for own in batches(len(x), config.batch, rng):
        if len(own) < 2 and len(x) > 1:
            continue
        nodes, edges = around.sample(own, config.neighbours, rng)
        met = torch.from_numpy(nodes).to(x.device)
        yield model.embed(x[met], torch.from_numpy(edges).to(x.device))[: len(own)], classes[met[: len(own)]]


def _as_arrays(state: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {f"best/{name}": value.cpu().numpy() for name, value in state.items()}


def _kept(stored: Stored, device: torch.device) -> tuple[list[Epoch], dict[str, Tensor]]:
    """What was read of the epochs before, and the best state of them."""
    arrays, meta = stored
    read = [Epoch(*(math.nan if value is None else value for value in one)) for one in meta["read"]]
    best = {name: array for name, array in arrays.items() if name.startswith("best/")}
    return read, {n.removeprefix("best/"): torch.from_numpy(np.array(a)).to(device) for n, a in best.items()}


def _best(read: list[Epoch]) -> Epoch:
    return max(read, key=lambda one: one.accuracy)  # the first of equals


def _correct(
    z: Tensor, denoised: Floats, known: Labelled, whole: Propagator, config: PropagationConfig, *, epoch: int
) -> tuple[Floats, Ints]:
    embedded = z.detach().double().cpu().numpy()
    if not np.isfinite(embedded).all():
        raise Diverged(f"ERASE diverged in epoch {epoch}: an embedding is not finite; use a smaller lr")
    q = corrected_labels(denoised, semantic_labels(embedded, denoised, known.train), whole, trust=config.trust)
    return q, q.argmax(axis=1)


def _read(
    model: GraphNetwork,
    x: Tensor,
    edge_index: Tensor,
    known: Labelled,
    labels: Ints,
    epoch: int,
    rates: Floats,
) -> Epoch:
    """Fit the model's head to the corrected labels of the training nodes, in place, and judge it."""
    with eval_mode(model), torch.no_grad(), reproducible(x.device):
        z = model.embed(x, edge_index)
        if not bool(torch.isfinite(z).all()):
            raise Diverged(f"ERASE diverged in epoch {epoch}: an embedding is not finite; use a smaller lr")
        unit = torch.nn.functional.normalize(z, dim=1)
        weight, bias = fit_read_out(
            unit[torch.from_numpy(known.train).to(x.device)].double().cpu().numpy(),
            labels[known.train],
            known.num_classes,
        )
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))
        said = model.read_out(z[torch.from_numpy(known.val).to(x.device)]).argmax(dim=1).cpu().numpy()
    accuracy = float((said == known.val_labels).mean()) if len(known.val) else math.nan
    return Epoch(epoch, float(rates[0]), float(rates[1]), effective_rank(z), accuracy)


def fit_read_out(rows: Floats, labels: Ints, num_classes: int) -> tuple[Floats, Floats]:
    """Weight (K, d) and bias (K,) of the logistic regression (L2 penalty 1/2, L-BFGS) of labels (n,) on rows (n, d).

    A class without a row gets a constant logit: the smallest that any other class can have on a unit vector, less
    log(n + 1).

    >>> weight, bias = fit_read_out(np.eye(2), np.array([1, 1]), 3)
    >>> bool(weight.any()), bias.round(3).tolist()
    (False, [-1.099, 0.0, -1.099])
    """
    present = np.unique(labels)
    weight, bias = np.zeros((num_classes, rows.shape[1])), np.zeros(num_classes)
    if len(present) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(max_iter=_READ_OUT_STEPS).fit(rows, labels)
        coefficients, intercepts = fitted.coef_, fitted.intercept_
        if len(present) == 2:  # one row, the log-odds of the second class
            coefficients, intercepts = (
                np.stack([-coefficients[0], coefficients[0]]) / 2,
                np.array([-1, 1]) * intercepts / 2,
            )
        weight[present], bias[present] = coefficients, intercepts
    least = float((bias[present] - np.linalg.norm(weight[present], axis=1)).min())
    bias[np.setdiff1d(np.arange(num_classes), present)] = least - math.log(len(rows) + 1)
    return weight, bias


@recipe(
    RecipeSpec(
        name="erase",
        doc="Trains a graph encoder by coding rate reduction on labels corrected by the graph (ERASE).",
        source="Chen et al., ERASE, CIKM 2024 (arXiv 2312.08852)",
        config=EraseConfig,
        wants=("losses", "classes", "nodes"),
        early=True,
    )
)
def erase(
    build: Build,
    data: ExampleSet,
    *,
    config: EraseConfig,
    seed: int,
    device: str = "cpu",
    stop_after: int | None = None,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "erase",
    checkpoint_every: int = 10,
    progress: Progress = silent,
) -> nn.Module:
    """Train a fresh encoder and its read-out on the nodes of ``data`` and the edges among them.

    Args:
        build: seed -> a fresh ``gat`` or ``gcn`` with ``rows: l1``.
        data: the training nodes, with labels that may be wrong.
        config: see :class:`EraseConfig`.
        seed: of initialisation, validation nodes and dropout; in [0, 2**63).
        device: "cpu" or "cuda".
        stop_after: epochs after which the full run is left; the best of these is chosen. 0: the initialisation.
        checkpoints, checkpoint_name, checkpoint_every: as for ``node_classifier``.
        progress: called with (epochs done, epochs, "training").

    Returns:
        The model in eval mode on ``device``.

    Raises:
        NotApplicable: the examples are no nodes with one of K classes.
        DataError: no examples, labels that are not classes of the data, or no node that can be spared for validation.
        ConfigError: another network; ``stop_after`` beyond the run.
        Diverged: the loss or an embedding is not finite; names the epoch.
    """
    keeping = Keeping(store=checkpoints, name=checkpoint_name, every=checkpoint_every)
    model = build(seed).to(device)
    if not (isinstance(model, GraphNetwork) and model.l1):
        raise ConfigError("recipe erase trains a built-in graph network whose rows sum to 1: model.config.rows: l1")
    graph = MemberGraph.of(data, dtype=model_dtype(model), device=device)
    last = epochs_to_train(config.epochs, stop_after)
    known = _known(graph.data, share=config.validation, seed=derive_seed("validation", seed))
    train_erase(
        model,
        graph.x,
        graph.edge_index,
        known,
        config=config,
        seed=seed,
        epochs=last,
        keeping=keeping,
        run=run_fingerprint(model, graph.data, config=config, seed=seed),
        progress=progress,
    )
    return model


def _known(data: ExampleSet, *, share: float, seed: int) -> Labelled:
    """Training and validation nodes of the members, drawn within classes."""
    held: NDArray[np.bool_] = np.zeros(len(data), bool)
    if share:
        _, sizes = np.unique(data.y, return_counts=True)
        if not largest_remainders(sizes, share, total=max(1, round(share * len(data)))).sum():
            raise DataError(
                f"{data.name}: {len(data)} nodes in {len(sizes)} classes leave none to choose the epoch by; set "
                "recipe.config.validation to 0"
            )
        held = stratified_split(data.y, data.example_id, test_fraction=share, seed=seed) == "test"
    train, val = np.flatnonzero(~held), np.flatnonzero(held)
    return Labelled(
        train=train, train_labels=data.y[train], val=val, val_labels=data.y[val], num_classes=data.num_classes
    )
