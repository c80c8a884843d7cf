"""The reference ensemble: M models of the audited recipe on random halves of the pool, and what each says of everybody.

    keep[m, j] = 1 if model m trained on example j,   logits[m, j, :] = f_m(x_j), eval mode
    pool example: in exactly M/2 models;  population example: in none

Trained once; memorization (card 15, subset ratio 1/2), LiRA and RMIA (card 57) all read it. Every model is made by the
recipe under audit (recipes.training). Models themselves are not kept: an ensemble is evidence about examples, and each
model of it would be one more copy to erase.

BatchNorm mixes the examples of a batch while it trains, so that what a model has learnt of one example depends on its
neighbours, as it does in the audited model; what it says of an example afterwards, by its running statistics, does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from torch import nn

from contracts.digests import derive_seed, digest
from contracts.errors import DataError, InvalidInput, NotApplicable
from contracts.methods import RecipeSpec
from contracts.params import Config
from contracts.progress import Progress, silent
from contracts.registry import Method
from contracts.stores import CheckpointStore, NoStore
from contracts.subject import Ensemble
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.design import balanced_design, pool_and_population
from recipes.inputs import Inputs, model_dtype
from recipes.models import Build
from recipes.predict import logits_of
from recipes.retention import held
from recipes.training import Trainer
from sources.example_set import ExampleSet


@dataclass(frozen=True, eq=False)
class ReferenceEnsemble:
    """M models on N examples; checked on construction.

    Attributes:
        example_id: (N,) int64, pool and population examples, in the order of the data set.
        pool: (N,) bool; False marks the population, non-members of every model.
        labels: (N,) int64.
        keep: (M, N) bool; a pool column sums to M/2, a population column to 0.
        logits: (M, N, K) float32, finite; readers convert to float64.
        held: (M, N) bool; which of its own examples a model's recipe still keeps after training (a replay buffer): none for most.
        config_digest: SHA-256 of recipe, ensemble configuration, seed, initialisation and data.
    """

    example_id: np.ndarray
    pool: np.ndarray
    labels: np.ndarray
    keep: np.ndarray
    logits: np.ndarray
    config_digest: str
    held: np.ndarray | None = None

    def __post_init__(self) -> None:
        models, num = self.keep.shape
        columns = {"example_id": np.int64, "pool": np.bool_, "labels": np.int64}
        for name, dtype in columns.items():
            value = getattr(self, name)
            if value.shape != (num,) or value.dtype != dtype:
                raise InvalidInput(f"ensemble: {name} is {value.dtype} {value.shape}, not {np.dtype(dtype)} ({num},)")
        if self.keep.dtype != np.bool_ or self.logits.dtype != np.float32:
            raise InvalidInput(f"ensemble: keep is {self.keep.dtype} and logits {self.logits.dtype}, not bool, float32")
        if self.logits.ndim != 3 or self.logits.shape[:2] != (models, num):
            raise InvalidInput(f"ensemble: logits have shape {self.logits.shape}, not ({models}, {num}, K)")
        wrong = self.keep.sum(0) * 2 != models * self.pool
        if wrong.any():
            raise DataError(
                "ensemble: examples are not in exactly half of the models", example_ids=self.example_id[wrong]
            )
        if self.held is None:
            object.__setattr__(self, "held", np.zeros((models, num), np.bool_))
        if self.held.shape != (models, num) or self.held.dtype != np.bool_ or (self.held & ~self.keep).any():  # type: ignore[union-attr]
            raise InvalidInput(
                f"ensemble: held must be bool ({models}, {num}), of examples that the model was trained on"
            )
        if len(np.unique(self.example_id)) != num:
            raise DataError("ensemble: example ids are not unique")

    @property
    def num_models(self) -> int:
        return len(self.keep)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything but the digest, for an artefact store."""
        return {n: getattr(self, n) for n in ("example_id", "pool", "labels", "keep", "logits", "held")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_arrays`; ``meta`` carries ``config_digest``.

        Raises:
            InvalidInput: an array is missing or does not fit.
        """
        missing = {"example_id", "pool", "labels", "keep", "logits"} - set(arrays)
        if missing or "config_digest" not in meta:
            raise InvalidInput(f"ensemble: missing {', '.join(sorted(missing)) or 'config_digest'}")
        return cls(**{n: np.asarray(a) for n, a in arrays.items()}, config_digest=str(meta["config_digest"]))


def train_ensemble(
    build: Build,
    data: ExampleSet,
    *,
    recipe: str | Method[RecipeSpec],
    config: Config,
    ensemble: Ensemble,
    seed: int,
    device: str = "cpu",
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "ensemble",
    progress: Progress = silent,
) -> ReferenceEnsemble:
    """Train the ensemble, block by block, and evaluate every model on pool and population.

    Args:
        build: seed -> fresh model, the architecture under audit.
        data: the whole data set, both splits.
        recipe: the recipe under audit, or its name: an attack is strong when its reference models are made as the target was.
        config: the recipe's configuration.
        ensemble: M, pool, population, and the block in which models are trained and stored.
        seed: of the design and, with the model's number, of every model.
        device: "cpu" or "cuda".
        checkpoints: keeps each block, as ``<checkpoint_name>-<first>-<end>``; a block of this very ensemble is not trained again.
        checkpoint_name: see above.
        progress: told (model-epochs done, in all, "reference models"); models, for a recipe without epochs.

    Raises:
        NotApplicable: regression; a recipe for another task; a network whose outputs in eval mode mix examples.
        DataError, ConfigError: see ``pool_and_population`` and ``Trainer``.
        IntegrityError: a stored block is damaged.
        Others: as the recipe raises.
    """
    if data.task != "classification":
        raise NotApplicable(f"the reference ensemble needs class labels; {data.name} is a {data.task} task")
    trainer = Trainer(recipe=recipe, build=build, config=config, device=device)
    pool, population = pool_and_population(data, ensemble=ensemble, seed=seed)
    rows = np.sort(np.concatenate([pool, population]))
    view = data.subset(data.example_id[rows])
    in_pool = np.isin(rows, pool)
    keep = np.zeros((ensemble.num_models, len(rows)), bool)
    keep[:, in_pool] = balanced_design(ensemble.num_models, len(pool), seed=derive_seed("design", seed))

    seeds = [derive_seed("reference", seed, m) for m in range(ensemble.num_models)]
    first = build(seeds[0])
    _refuse_mixing(first)
    config_digest = digest(
        {
            "recipe": [trainer.spec.name, trainer.spec.version],
            "config": config,
            # The block is how the work is cut, not what is made.
            "ensemble": [ensemble.num_models, ensemble.pool_size, ensemble.population_fraction],
            "seed": seed,
            "initial": arrays_digest(to_arrays(first)),
            "data": data.digest,
            "rows": arrays_digest({"example_id": view.example_id}),
        }
    )
    inputs = Inputs(view, dtype=model_dtype(first), device=device)
    each = int(getattr(config, "epochs", 1))
    total = ensemble.num_models * each
    blocks, retained = [], []
    for start in range(0, ensemble.num_models, ensemble.block):
        end = min(start + ensemble.block, ensemble.num_models)
        name, meta = f"{checkpoint_name}-{start:05d}-{end:05d}", {"ensemble": config_digest, "start": start, "end": end}
        stored = _stored(checkpoints.load(name), meta=meta, keep=keep[start:end])
        if stored is not None:
            logits, own = stored
        else:

            def tell(done: int, of: int, _: str, before: int = start * each, more: int = (end - start) * each) -> None:
                progress(before + more * min(done, of) // max(of, 1), total, "reference models")

            members = [np.flatnonzero(row) for row in keep[start:end]]
            models = trainer.many(view, members=members, seeds=seeds[start:end], inputs=inputs, progress=tell)
            logits = np.stack([logits_of(model, inputs, batch=4096) for model in models])
            own = np.stack([held(model, view.example_id) for model in models])
            checkpoints.save(name, {"keep": keep[start:end], "logits": logits, "held": own}, meta)
        blocks.append(logits)
        retained.append(own)
        progress(end * each, total, "reference models")
    return ReferenceEnsemble(
        example_id=view.example_id,
        pool=in_pool,
        labels=view.y,
        keep=keep,
        logits=np.concatenate(blocks),
        held=np.concatenate(retained),
        config_digest=config_digest,
    )


def _refuse_mixing(model: nn.Module) -> None:
    """Raise :class:`NotApplicable` for BatchNorm without running statistics: it mixes examples in eval mode, too."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise NotApplicable(
                f"layer {name!r}, a {type(module).__name__} without running statistics, mixes the examples of a batch in eval "
                "mode too: what a model says of one example depends on others. Use track_running_stats=True"
            )


def _stored(
    found: tuple[dict[str, Any], dict[str, Any]] | None, *, meta: dict[str, Any], keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """(logits, held) of a stored block, or None when there is none of this very ensemble."""
    if found is None or any(found[1].get(k) != v for k, v in meta.items()):
        return None
    if not np.array_equal(found[0]["keep"], keep):
        return None
    return np.asarray(found[0]["logits"]), np.asarray(found[0]["held"])
