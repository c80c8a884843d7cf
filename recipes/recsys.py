"""Training a recommender on implicit feedback: BPR or BCE, plain, with loss truncation, or with personalised denoising
(PLD).

A step: B active users, uniform with replacement; one negative n_u each, uniform over the items outside the user's list;
one positive c_u each, see below. s_ui = p_u . q_i.

    bpr: l_uc = softplus(s_un - s_uc)                    bce: l_uc = softplus(-s_uc)  (the loss adds softplus(s_un))
    loss = mean_u l_u + reg * (mean |e_u|^2 + mean |e_c|^2 + mean |e_n|^2)        e: raw vectors, also for LightGCN

    none:        c_u uniform over the user's items
    truncation:  the same; the drop_rate of the batch with the largest losses takes no part in the step
    pld:         a pool of k of the user's items, no gradient; c_u drawn from it with probability softmax_c(-l_uc / tau)

The pool's losses share one negative: with one each the softmax would compare negatives. ``warmup_epochs`` epochs are
plain. Every user is expected to be updated as often under pld as under none; truncation takes updates from users whose
losses are high. An epoch is ceil(N / B) steps. tau is on the scale of the losses: well fitted pools have losses near 0
and are drawn from uniformly.

Source: Rendle et al., "BPR" (UAI 2009, arXiv 1205.2618); Zhang et al., "Personalized Denoising Implicit Feedback for
    Robust
Recommender System" (WWW 2025, arXiv 2502.00348), section 4 and the authors' code; Wang et al., "Denoising Implicit
Feedback" (WSDM 2021, arXiv 2006.04153), truncation. The LightGCN graph keeps the noisy interactions: only the loss is
denoised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, NotApplicable
from contracts.methods import RecipeSpec, recipe
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.checkpoints import load_arrays, to_arrays
from recipes.fitting import Observe
from recipes.keeping import Keeping, resume, run_arrays, run_fingerprint
from recipes.models import Build
from recipes.recsys_lists import Lists
from recipes.recsys_models import is_ranker
from recipes.recsys_topk import evaluate_topk
from recipes.rng import generator, local_rng
from recipes.schedule import epochs_to_train
from sources.example_set import ExampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class BprConfig(Config):
    """Loss, denoising and optimiser. The length of the vectors belongs to the model."""

    loss: str = param("bpr", choices=("bpr", "bce"), doc="pairwise, or pointwise")
    denoise: str = param("none", choices=("none", "pld", "truncation"), doc="how noise is kept out of the steps")
    pool: int = param(5, ge=1, le=1000, doc="pld: candidates k of a user's own items; 1 is plain training")
    tau: float = param(0.1, gt=0, le=1e6, unit="nats", doc="pld: temperature; large is plain training")
    drop_rate: float = param(0.2, ge=0, lt=1, doc="truncation: share of each batch left out; wants the noise rate")
    warmup_epochs: int = param(5, ge=0, le=100_000, unit="epochs", doc="plain epochs before denoising")
    lr: float = param(1e-3, gt=0, le=100, doc="AdamW, constant")
    weight_decay: float = param(0.01, ge=0, le=1, doc="AdamW's own, decoupled, on all vectors; its usual default")
    reg: float = param(1e-4, ge=0, le=1, doc="weight of the batch's squared norms in the loss")
    batch: int = param(2048, ge=1, le=1_000_000, unit="users", doc="users a step, with replacement")
    epochs: int = param(100, ge=1, le=100_000, doc="of ceil(interactions / batch) steps")
    validation: float = param(
        0.0,
        ge=0,
        lt=1,
        doc="share of each user's interactions that is not trained on and chooses the epoch by Recall@20; 0 keeps the "
        "last: an audit wants every training example to be trained on",
    )
    validate_from: int = param(40, ge=1, le=100_000, unit="epochs", doc="first validation")
    validate_every: int = param(20, ge=1, le=100_000, unit="epochs", doc="between validations; the last epoch is one")


@recipe(
    RecipeSpec(
        name="bpr",
        doc="Implicit feedback by sampled negatives: BPR or BCE loss, plain, truncated, or denoised per user (PLD).",
        source="Rendle et al., UAI 2009 (arXiv 1205.2618); Zhang et al., WWW 2025 (arXiv 2502.00348)",
        config=BprConfig,
        wants=("interactions",),
        early=True,
        observable=True,
    )
)
def bpr(
    build: Build,
    data: ExampleSet,
    *,
    config: BprConfig,
    seed: int,
    device: str = "cpu",
    stop_after: int | None = None,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "bpr",
    checkpoint_every: int = 10,
    progress: Progress = silent,
    observe: Observe | None = None,
) -> nn.Module:
    """Train a fresh model on the interactions of ``data``.

    Args:
        build: seed -> fresh model with vectors of users and items (``mf``, ``lightgcn``, or one that is a ``Ranker``).
        data: the training interactions (the caller passes ``data.part("train")`` or a subset); their order does not
            matter.
        config: loss, denoising, optimiser.
        seed: of initialisation, validation and every draw; in [0, 2**63).
        device: "cpu" or "cuda".
        stop_after: epochs after which training stops; None for all. The best model validated by then is returned, the
            last one where none was.
        checkpoints, checkpoint_name, checkpoint_every: as for ``supervised``.
        progress: called with (epochs done, epochs, "training").
        observe: called with every step before it is taken: positions in ``data`` of the interactions in it, int64 (B,)
            on the CPU, and their losses (B,).

    Returns:
        The model in eval mode on ``device``.

    Raises:
        NotApplicable: another task, or a model without vectors of users and items.
        DataError: no interactions, indexes out of range, a pair twice, no user with an item left as a negative; names
            the ids.
        ConfigError: the model is for other numbers of users or items; no interaction can be spared for validation.
        Diverged: the loss or a vector is no longer finite (names the epoch).
        IntegrityError: the stored checkpoint is damaged.
    """
    last = epochs_to_train(config.epochs, stop_after)
    keeping = Keeping(store=checkpoints, name=checkpoint_name, every=checkpoint_every)
    everything = Lists.of(data)
    model = build(seed).to(device)
    _check_model(model, data)
    lists, held_out = everything, None
    if config.validation:
        lists, held_out = _carve(everything, config.validation, seed=seed)
    rows = torch.from_numpy(everything.order[lists.order] if lists is not everything else lists.order)
    if not len(lists.active):
        raise DataError(f"{data.name}: no user has an item left as a negative", example_ids=data.example_id)
    run = run_fingerprint(model, data, config=config, seed=seed)
    assert is_ranker(model)
    model.set_graph(lists.users, lists.items)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    stored = keeping.load()
    start = resume(model, optimizer, stored, run=run, last=last)
    best = _best_of(stored) if start else None
    watch = None if observe is None else lambda at, losses: observe(rows[at], losses)
    for epoch in range(start, last):
        train_epoch(model, lists, optimizer, config=config, seed=seed, epoch=epoch, observe=watch)
        done = epoch + 1
        if held_out is not None and (
            done == config.epochs or (done >= config.validate_from and done % config.validate_every == 0)
        ):
            recall = evaluate_topk(model, known=lists, test=held_out, ks=(20,))["recall20"]
            if best is None or recall > best[0]:
                best = recall, to_arrays(model)
        reached, kept = best or (None, {})
        keeping.after(
            done,
            last=last,
            arrays=lambda kept=kept: run_arrays(model, optimizer) | {f"best/{n}": a for n, a in kept.items()},
            run=run,
            best=reached,
        )
        progress(done, last, "training")
    if best is not None:
        load_arrays(model, best[1])
    return model.eval()


def train_epoch(
    model: nn.Module,
    lists: Lists,
    optimizer: torch.optim.Optimizer,
    *,
    config: BprConfig,
    seed: int,
    epoch: int,
    observe: Observe | None = None,
) -> None:
    """One epoch in place; the model is left in eval mode, settled. What is drawn depends on (seed, epoch) alone.

    Raises:
        Diverged: the loss or a vector is not finite.
    """
    assert is_ranker(model)
    device = model.user.weight.device
    draw = generator(derive_seed("bpr", seed, epoch))
    denoise = config.denoise if epoch >= config.warmup_epochs else "none"
    total = torch.zeros((), device=device)
    model.train()
    with local_rng(derive_seed("noise", seed, epoch), device=device):  # a user's own model may have dropout
        for _ in range(num_steps(len(lists), config)):
            users = lists.draw_users(config.batch, generator=draw)
            negatives = lists.draw_negatives(users, generator=draw).to(device)
            p, q = model.vectors()
            p_B, q_neg = F.embedding(users.to(device), p), F.embedding(negatives, q)
            s_neg = (p_B * q_neg).sum(1)
            if denoise == "pld":
                pools = lists.draw_pools(users, config.pool, generator=draw)
                with torch.no_grad():
                    candidates = F.embedding(lists.items[pools].to(device), q)  # (k, B, d)
                    losses = pool_losses(config.loss, torch.linalg.vecdot(candidates, p_B), s_neg)
                at = choose(losses, tau=config.tau, generator=draw)
                positions = pools.gather(0, at[None]).squeeze(0)
            else:
                positions = lists.draw_positives(users, generator=draw)
            positives = lists.items[positions].to(device)
            q_pos = F.embedding(positives, q)
            losses = step_losses(config.loss, (p_B * q_pos).sum(1), s_neg)
            if denoise == "truncation":
                kept = losses.detach().topk(len(losses) - int(config.drop_rate * len(losses)), largest=False).indices
                losses, positions = losses[kept], positions[kept.cpu()]
            if observe is not None:
                observe(positions, losses.detach())
            raw = (
                (p_B, q_pos, q_neg)
                if p is model.user.weight
                else (model.user(users.to(device)), model.item(positives), model.item(negatives))
            )
            loss = losses.mean() + config.reg * sum(e.square().sum() for e in raw) / config.batch
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
    optimizer.zero_grad(set_to_none=True)
    if not all(bool(v.isfinite().all()) for v in (total, *(w.detach() for w in model.parameters()))):
        raise Diverged(
            f"training diverged in epoch {epoch + 1} of {config.epochs}: the loss or a vector is not finite. "
            f"Lower lr (= {config.lr:g})"
        )
    model.settle()
    model.eval()


def num_steps(num_interactions: int, config: BprConfig) -> int:
    """Steps an epoch, ceil(N / B)."""
    return -(-num_interactions // config.batch)


def step_losses(loss: str, positive: Tensor, negative: Tensor) -> Tensor:
    """What a step minimises, elementwise: ``loss`` "bpr" or "bce" on the scores of the positive and the negative
    item."""
    return F.softplus(negative - positive) if loss == "bpr" else F.softplus(-positive) + F.softplus(negative)


def pool_losses(loss: str, positive_kB: Tensor, negative_B: Tensor) -> Tensor:
    """What candidates are compared by, (k, B): the part of the loss that depends on the positive item."""
    return F.softplus(negative_B - positive_kB) if loss == "bpr" else F.softplus(-positive_kB)


def choose(losses_kB: Tensor, *, tau: float, generator: torch.Generator) -> Tensor:
    """A candidate of each pool (a column), drawn with probability softmax(-loss / tau): int64 (B,) on the CPU.

    A constant added to a pool changes nothing.
    """
    with torch.no_grad():
        cumulated = torch.softmax(losses_kB.cpu().double() / -tau, dim=0).cumsum(0)
        drawn = torch.rand(losses_kB.shape[1], dtype=torch.float64, generator=generator) * cumulated[-1]
        return (cumulated <= drawn).sum(0).clamp(max=len(cumulated) - 1)


def _check_model(model: nn.Module, data: ExampleSet) -> None:
    if not is_ranker(model):
        raise NotApplicable(
            f"recipe bpr needs vectors of users and items (mf, lightgcn); {type(model).__name__} has none"
        )
    got = (model.user.num_embeddings, model.item.num_embeddings)
    if got != (data.num_users, data.num_classes):
        raise ConfigError(
            f"the model is for {got[0]} users and {got[1]} items; {data.name} has {data.num_users} and "
            f"{data.num_classes}"
        )


def _carve(lists: Lists, fraction: float, *, seed: int) -> tuple[Lists, Lists]:
    """Training and validation lists: floor(fraction * n_u) positions of each user are held out, uniformly."""
    users = lists.users.numpy()
    order = np.lexsort((np.random.default_rng(derive_seed("validation", seed)).random(len(users)), users))
    place = np.empty(len(users), np.int64)
    place[order] = np.arange(len(users)) - lists.start.numpy()[users]
    out = place < np.floor(fraction * lists.count.numpy() + 1e-9)[users]
    if not out.any():
        raise ConfigError(
            f"BprConfig.validation = {fraction:g} holds out nothing: no user has {1 / fraction:.3g} items"
        )
    parts = [
        Lists(users[m], lists.items.numpy()[m], num_users=lists.num_users, num_items=lists.num_items)
        for m in (~out, out)
    ]
    parts[0].order = np.flatnonzero(~out)  # already in order: positions in ``lists``
    return parts[0], parts[1]


def _best_of(
    stored: tuple[dict[str, np.ndarray], dict[str, object]] | None,
) -> tuple[float, dict[str, np.ndarray]] | None:
    if stored is None or stored[1].get("best") is None:
        return None
    return float(stored[1]["best"]), {n.removeprefix("best/"): a for n, a in stored[0].items() if n.startswith("best/")}  # type: ignore[arg-type]
