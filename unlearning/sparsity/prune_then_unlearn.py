"""Prune first, then unlearn: the same unlearner on a sparse model, whose mask stays (Jia et al., NeurIPS 2023).

    1 prune     omp       m: the (1 - s) d largest |theta_E| of a dense run on D = D_r and D_f
                imp       the same in rounds of rate ``imp_rate``, as many as s takes: s = 1 - (1 - rate)^n
                synflow   m from the initialisation alone
                random    any m of that size: the control
    2 train     theta_s: the plan's recipe on D with m, from
                rewind    the weights of epoch ``rewind_epoch`` of the dense run
                lt        its initialisation
                pt        the trained weights; the dense run is then the audited model itself
    3 unlearn   any registered unlearner that takes a mask, on theta_s: pruned weights stay zero

The recipe's whole schedule is run again from its start; the published code starts its scheduler at the epoch that it
rewinds to. The sparse model and its mask depend on D, the recipe and the seed alone, not on the unlearner: ``unlearner:
none`` gives the sparse model as it is, and ``unlearner: retrain`` the only fair reference, a fresh model trained on D_r
under the same mask. Against a dense retraining a sparse unlearner is not measured but punished.

It trains on the examples to be forgotten before it forgets them, so it is no faster than retraining where the model
under audit is not sparse yet; and the mask itself was chosen with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import NotApplicable
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.registry import Method
from contracts.subject import Choice
from sources.example_set import ExampleSet
from sources.rows import Rows
from unlearning.descent import beats_constant, check_sets, probe
from unlearning.masked import check_choice, takes_mask, unlearn_masked
from unlearning.masks import Mask
from unlearning.sparsity.pruning import (
    LAYERS,
    iterative_magnitude_prune,
    kept,
    moved,
    prunable,
    random_mask,
    synflow_mask,
    train_masked,
)

if TYPE_CHECKING:
    from recipes.training import Trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class PruningConfig(Config):
    """How a sparse model is made."""

    pruner: str = param("omp", choices=("omp", "imp", "synflow", "random"), doc="what chooses the mask")
    prune_type: str = param(
        "rewind", choices=("rewind", "lt", "pt"), doc="weights that are trained under the mask; synflow: always lt"
    )
    sparsity: float = param(0.95, ge=0, lt=1, doc="s, share of the prunable weights that is set to zero")
    rewind_epoch: int = param(8, ge=0, le=100_000, unit="epochs", doc="rewind: how far the weights are trained")
    imp_rate: float = param(0.2, gt=0, lt=1, doc="imp: share of the remaining weights that goes in a round")
    synflow_rounds: int = param(100, ge=1, le=100_000, doc="synflow: rounds")
    layers: str = param("conv_linear", choices=LAYERS, doc="which weights are pruned; conv: as published for ResNets")
    last_layer: bool = param(False, doc="prune the output layer too")


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneThenUnlearnConfig(PruningConfig):
    unlearner: Choice = param(
        Choice(name="finetune"),
        doc="a registered unlearner that takes a mask, retrain or none, and its fields",
        ref="unlearner",
    )

    def check(self) -> None:
        check_choice(self.unlearner, where="PruneThenUnlearnConfig.unlearner")


def rounds_of(sparsity: float, rate: float) -> int:
    """The fewest rounds of a rate that reach a sparsity, at least one.

    >>> rounds_of(0.95, 0.2), rounds_of(0.2, 0.2), rounds_of(0.0, 0.2)
    (14, 1, 1)
    """
    return max(1, ceil(log(1 - sparsity) / log(1 - rate) - 1e-9))


def sparse_model(
    trainer: Trainer,
    data: ExampleSet,
    seed: int,
    *,
    config: PruningConfig,
    dense: nn.Module | None = None,
    progress: Progress = silent,
) -> tuple[nn.Module, Mask]:
    """A model of the recipe, pruned and trained again.

    Args:
        trainer: the recipe, with its configuration and architecture.
        data: trained on, in its order.
        seed: of the initialisation, the batch order and a random mask.
        config: see :class:`PruningConfig`.
        dense: the trained model whose weights ``pt`` prunes; needed by that alone.
        progress: as the recipe tells it.

    Returns:
        The sparse model, eval mode, and its mask, True = kept.

    Raises:
        NotApplicable: nothing to prune, a recipe that cannot stop early (``rewind``) or train under a mask, or no
            ``dense`` model.
        Others: as the recipe raises.
    """
    pruner, start = config.pruner, "lt" if config.pruner == "synflow" else config.prune_type
    if start == "pt" and dense is None:
        raise NotApplicable("prune_type 'pt' prunes a trained model, and none is given")
    fresh = trainer.build(seed).to(trainer.device)
    names = prunable(fresh, layers=config.layers, last_layer=config.last_layer)
    count = kept(sum(p.numel() for name, p in fresh.named_parameters() if name in names), config.sparsity)
    epochs: list[int | None] = [config.rewind_epoch] if start == "rewind" else []
    epochs += [None] if pruner in ("omp", "imp") and start != "pt" else []
    rows = [np.arange(len(data))]
    runs = trainer.snapshots(data, members=rows, seeds=[seed], epochs=epochs, progress=progress) if epochs else []
    origin = runs[0][0] if start == "rewind" else dense if start == "pt" else None
    if pruner in ("omp", "imp"):
        trained = dense if start == "pt" else runs[-1][0]
        assert trained is not None
        rate, rounds = config.sparsity, 1
        if pruner == "imp":
            rate, rounds = config.imp_rate, rounds_of(config.sparsity, config.imp_rate)
        return iterative_magnitude_prune(
            trainer,
            data,
            seed,
            dense=trained,
            names=names,
            rate=rate,
            rounds=rounds,
            origin=origin,
            rewind=start != "pt",
            progress=progress,
        )
    if pruner == "synflow":
        shape, rounds = data.input_shape, config.synflow_rounds
        mask = synflow_mask(fresh, names, config.sparsity, input_shape=shape, rounds=rounds)
    else:
        mask = random_mask(fresh, names, count, seed=seed)
    return train_masked(trainer, data, seed, mask, origin=origin, progress=progress), mask


@unlearner(
    UnlearnerSpec(
        name="prune_then_unlearn",
        wants=("losses", "reading", "features"),
        doc="Makes a sparse model by the plan's recipe and runs another unlearner on it with the mask fixed.",
        source="Jia et al., Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023, arXiv 2304.04934",
        config=PruneThenUnlearnConfig,
        needs=("recipe",),
    )
)
def prune_then_unlearn(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: PruneThenUnlearnConfig,
    seed: int,
    recipe: Trainer,
    progress: Progress = silent,
) -> nn.Module:
    """Prune, train on all of the examples, and unlearn ``forget`` under the mask.

    Args:
        model: trained; not changed. Its weights are pruned by ``pt``; else it is replaced.
        retain: (N_r) examples to keep, at least one.
        forget: (N_f) examples to remove.
        config: see :class:`PruneThenUnlearnConfig`.
        seed: of the sparse model and of the unlearner.
        recipe: the plan's.
        progress: as recipe and unlearner tell it.

    Returns:
        The unlearned sparse model, eval mode: pruned weights are exactly zero.

    Raises:
        UnknownName: no such unlearner.
        NotApplicable: it takes no mask; see also :func:`sparse_model`, and the tasks of the unlearner.
        DataError, Diverged: as recipe and unlearner raise.
    """
    method = unlearner.get(config.unlearner.name)
    _refuse_unmasked(method)
    check_sets(model, retain=retain, forget=forget, trains_on_retain=True, wants=("features", *method.spec.wants))
    beats_constant(model, probe(retain, seed=seed), what="the model before unlearning")  # it has to be one
    data = joined(retain, forget)
    sparse_seed = derive_seed("prune_then_unlearn", seed) % 2**31
    sparse, mask = sparse_model(recipe, data, sparse_seed, config=config, dense=model, progress=progress)
    given: dict[str, Any] = {"retain": retain, "forget": forget, "seed": seed, "progress": progress}
    given["config"] = method.spec.config.from_mapping(config.unlearner.config)
    if "train" in method.spec.needs:
        given["train"] = lambda part, seed: train_masked(recipe, part, seed, mask, progress=progress)
    masked = takes_mask(method.spec)
    result: nn.Module = unlearn_masked(method, sparse, mask=mask, **given) if masked else method(sparse, **given)
    if num := moved(result, mask):
        raise NotApplicable(f"prune_then_unlearn: {method.spec.name} has moved {num} pruned weights")
    return result


def _refuse_unmasked(method: Method[UnlearnerSpec]) -> None:
    def can(one: Method[UnlearnerSpec]) -> bool:
        spec = one.spec
        return (takes_mask(spec) or spec.exact or spec.control) and set(spec.needs) <= {"train"}

    if not can(method):
        able = ", ".join(one.spec.name for one in unlearner if can(one))
        raise NotApplicable(f"prune_then_unlearn: {method.spec.name} takes no mask of weights; these do: {able}")


def joined(*sets: ExampleSet) -> ExampleSet:
    """Parts of one data set of arrays as one, in the order of their ids; an empty part adds nothing."""
    parts: Sequence[ExampleSet] = [one for one in sets if len(one)] or sets[:1]
    first = parts[0]
    columns = ("y", "example_id", "split", "owner", "content_hash")
    origins = [one.origin for one in parts]
    whole = dataclasses.replace(
        first,
        x=first.x if len(parts) == 1 else Rows([np.asarray(one.x) for one in parts]),
        **{name: np.concatenate([np.asarray(getattr(one, name)) for one in parts]) for name in columns},
        origin=None if any(o is None for o in origins) else np.concatenate(origins),  # type: ignore[arg-type]
        columns={name: np.concatenate([one.columns[name] for one in parts]) for name in first.columns},
        whole=first.constants,
    )
    return whole.by_id()
