"""The reference ensemble: M models of the audited recipe on random halves of the pool, and what each says of everybody.

    keep[m, j] = 1 if model m trained on example j,   reading[m, j, :] = the task's four numbers of f_m on example j,
                                                      eval mode
    pool example: in exactly M/2 models (of given ones: in and out of some);  population example: in none

Trained once; memorization (Feldman & Zhang 2020, subset ratio 1/2), LiRA and RMIA all read it. Every model is made by
the recipe under audit (recipes.training), unless the plan has another policy (recipes.policies). Models themselves are
not kept: an ensemble is evidence about examples, and each model of it would be one more copy to erase. A reading is 32
bytes an example and model whatever the number of classes; whole outputs (M, N, K) are kept only where a method that
reads them is listed. Of the outputs on the population, a sample is always kept where the task has such: it says on
which scale these models speak (``attacks.membership.scale``).

BatchNorm mixes the examples of a batch while it trains, so that what a model has learnt of one example depends on its
neighbours, as it does in the audited model; what it says of an example afterwards, by its running statistics, does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
from torch import nn

from contracts.digests import digest
from contracts.errors import DataError, InvalidInput, NotApplicable
from contracts.methods import RecipeSpec
from contracts.params import Config
from contracts.progress import Progress, silent
from contracts.registry import Method
from contracts.stores import CheckpointStore, NoStore
from contracts.subject import Ensemble
from recipes.checkpoints import arrays_digest, to_arrays
from recipes.design import halves
from recipes.inputs import Inputs, model_dtype
from recipes.models import Build
from recipes.predict import finite_reading, outputs_of, reading_of
from recipes.retention import held
from recipes.training import Trainer
from sources.example_set import ExampleSet
from tasks.base import READING, OutputTask, Reading, named


@dataclass(frozen=True, eq=False)
class ReferenceEnsemble:
    """M models on N examples; checked on construction.

    Attributes:
        example_id: (N,) int64, pool and population examples, in the order of the data set.
        pool: (N,) bool; False marks the population, non-members of every model.
        labels: (N,) the targets that were trained on where an example has one, else zeros.
        keep: (M, N) bool; a pool column sums to M/2, or what ``each_side`` allows, a population column to 0.
        reading: (M, N, 4) float64, see ``tasks.base.Reading``.
        config_digest: SHA-256 of recipe, ensemble configuration, seed, initialisation and data.
        logits: (M, N, K) float32, finite, or None where they were not kept; readers convert to float64.
        held: (M, N) bool; which of its own examples a model's recipe still keeps after training (a replay buffer);
            None: none.
        spoken: (S,) float32, S <= ``SPOKEN``: the outputs on the population, all models and classes together, every
            k-th of them; None where a model's outputs are no vector an example.
        each_side: models on either side of an example of the pool at least, of given models; None: exactly M/2.
    """

    example_id: np.ndarray
    pool: np.ndarray
    labels: np.ndarray
    keep: np.ndarray
    reading: np.ndarray
    config_digest: str
    logits: np.ndarray | None = None
    spoken: np.ndarray | None = None
    held: np.ndarray | None = None
    each_side: int | None = None

    def __post_init__(self) -> None:
        models, num = self.keep.shape
        for name, dtype in {"example_id": np.int64, "pool": np.bool_}.items():
            value = getattr(self, name)
            if value.shape != (num,) or value.dtype != dtype:
                raise InvalidInput(f"ensemble: {name} is {value.dtype} {value.shape}, not {np.dtype(dtype)} ({num},)")
        if self.labels.shape != (num,):
            raise InvalidInput(f"ensemble: labels have shape {self.labels.shape}, not ({num},)")
        if self.keep.dtype != np.bool_ or self.reading.dtype != np.float64:
            raise InvalidInput(f"ensemble: keep is {self.keep.dtype}, reading {self.reading.dtype}, not bool, float64")
        if self.reading.shape != (models, num, len(READING)):
            raise InvalidInput(
                f"ensemble: reading has shape {self.reading.shape}, not ({models}, {num}, {len(READING)})"
            )
        if self.logits is not None and (self.logits.dtype != np.float32 or self.logits.shape[:2] != (models, num)):
            raise InvalidInput(
                f"ensemble: logits are {self.logits.dtype} {self.logits.shape}, not ({models}, {num}, K)"
            )
        inside = self.keep.sum(0)
        if self.each_side is None:
            wrong, wanted = inside * 2 != models * self.pool, "in exactly half of the models"
        else:
            short = np.minimum(inside, models - inside) < self.each_side
            wrong, wanted = np.where(self.pool, short, inside > 0), f"in and out of {self.each_side} models each"
        if wrong.any():
            raise DataError(f"ensemble: examples are not {wanted}", example_ids=self.example_id[wrong])
        if self.held is not None and (
            self.held.shape != (models, num) or self.held.dtype != np.bool_ or (self.held & ~self.keep).any()
        ):
            raise InvalidInput(
                f"ensemble: held must be bool ({models}, {num}), of examples that the model was trained on"
            )
        if len(np.unique(self.example_id)) != num:
            raise DataError("ensemble: example ids are not unique")

    @property
    def num_models(self) -> int:
        return len(self.keep)

    @property
    def readings(self) -> Reading:
        """(M, N) readings by name."""
        return Reading(self.reading)

    @property
    def outputs(self) -> np.ndarray:
        """(M, N, K) float32.

        Raises:
            NotApplicable: they were not kept.
        """
        if self.logits is None:
            raise NotApplicable(NOT_KEPT)
        return self.logits

    def by_id(self) -> Self:
        """The same evidence, examples in ascending order of their ids."""
        order = np.argsort(self.example_id, kind="stable")
        columns = {n: getattr(self, n)[order] for n in ("example_id", "pool", "labels")}
        by_model = {n: getattr(self, n)[:, order] for n in ("keep", "reading")}
        some = {n: None if getattr(self, n) is None else getattr(self, n)[:, order] for n in ("logits", "held")}
        return dataclasses.replace(self, **columns, **by_model, **some)

    def meta(self) -> dict[str, Any]:
        """What :meth:`to_arrays` leaves out."""
        side = {} if self.each_side is None else {"each_side": self.each_side}
        return {"config_digest": self.config_digest, **side}

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays, for an artefact store."""
        every = {n: getattr(self, n) for n in (*_ARRAYS, "logits", "spoken", "held")}
        return {name: array for name, array in every.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_arrays` and :meth:`meta`.

        Raises:
            InvalidInput: an array is missing or does not fit.
        """
        missing = set(_ARRAYS) - set(arrays)
        if missing or "config_digest" not in meta:
            raise InvalidInput(f"ensemble: missing {', '.join(sorted(missing)) or 'config_digest'}")
        return cls(
            **{n: np.asarray(a) for n, a in arrays.items()},
            config_digest=str(meta["config_digest"]),
            each_side=meta.get("each_side"),
        )

    @classmethod
    def of_logits(cls, *, logits: np.ndarray, labels: np.ndarray, pool: np.ndarray, **others: Any) -> Self:
        """An ensemble of classifiers whose outputs (M, N, K) are known."""
        reading = named("classification").reading_of(logits, labels, {}).values  # type: ignore[attr-defined]
        heard = logits[:, ~pool].reshape(-1, logits.shape[-1])
        spoken = _thinned(heard, points=len(heard), before=0)
        return cls(logits=logits, labels=labels, pool=pool, reading=reading, spoken=spoken, **others)


_ARRAYS = ("example_id", "pool", "labels", "keep", "reading")
SPOKEN = 2_000_000
NOT_KEPT = "the whole outputs of the reference models were not kept: no listed method declares them"


def train_ensemble(
    build: Build,
    data: ExampleSet,
    *,
    recipe: str | Method[RecipeSpec],
    config: Config,
    ensemble: Ensemble,
    seed: int,
    device: str = "cpu",
    outputs: bool = False,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "ensemble",
    progress: Progress = silent,
) -> ReferenceEnsemble:
    """Train the ensemble, block by block, and evaluate every model on pool and population.

    Args:
        build: seed -> fresh model, the architecture under audit.
        data: the whole data set, both splits.
        recipe: the recipe under audit, or its name: an attack is strong when its reference models are made as the
            target was.
        config: the recipe's configuration.
        ensemble: M, pool, population, and the block in which models are trained and stored.
        seed: of the design and, with the model's number, of every model.
        device: "cpu" or "cuda".
        outputs: keep the whole outputs too, of a task that gives them.
        checkpoints: keeps each block, as ``<checkpoint_name>-<first>-<end>``; a block of this very ensemble is not
            trained again.
        checkpoint_name: see above.
        progress: called with (model-epochs done, in all, "reference models"); models, for a recipe without epochs.

    Raises:
        NotApplicable: a recipe for another task, outputs that the task does not give, or a network whose outputs in
            eval mode mix examples.
        DataError, ConfigError: see ``pool_and_population`` and ``Trainer``.
        IntegrityError: a stored block is damaged.
        Others: as the recipe raises.
    """
    trainer = Trainer(recipe=recipe, build=build, config=config, device=device)
    drawn = halves(data, ensemble=ensemble, seed=seed)
    view, in_pool, keep, seeds = drawn.view, drawn.pool, drawn.keep, drawn.seeds
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
    refuse_no_outputs(data, outputs)
    inputs = Inputs(view, dtype=model_dtype(first), device=device)
    each = int(getattr(config, "epochs", 1))
    total = ensemble.num_models * each
    gathered = Gathered(ensemble.num_models)
    for start in range(0, ensemble.num_models, ensemble.block):
        end = min(start + ensemble.block, ensemble.num_models)
        name, meta = f"{checkpoint_name}-{start:05d}-{end:05d}", {"ensemble": config_digest, "start": start, "end": end}
        block = _stored(checkpoints.load(name), meta=meta, keep=keep[start:end], outputs=outputs)
        if block is None:

            def tell(done: int, of: int, _: str, before: int = start * each, more: int = (end - start) * each) -> None:
                progress(before + more * min(done, of) // max(of, 1), total, "reference models")

            members = drawn.members(range(start, end))
            models = trainer.many(view, members=members, seeds=seeds[start:end], inputs=inputs, progress=tell)
            block = said(models, inputs, ~in_pool, first=start, of=ensemble.num_models, outputs=outputs)
            own = np.stack([held(model, view.example_id) for model in models])
            block |= {"held": own} if own.any() else {}
            checkpoints.save(name, {"keep": keep[start:end], **block}, meta)
        gathered.add(block, start=start)
        progress(end * each, total, "reference models")
    return ReferenceEnsemble(
        example_id=view.example_id,
        pool=in_pool,
        labels=labels_of(view),
        keep=keep,
        config_digest=config_digest,
        **gathered.arrays,
    )


def labels_of(data: ExampleSet) -> np.ndarray:
    """(N,) targets where an example has one, else zeros."""
    return data.y if data.y.ndim == 1 else np.zeros(len(data), np.int64)


def refuse_no_outputs(data: ExampleSet, outputs: bool) -> None:
    """Raise :class:`NotApplicable` where whole outputs are wanted of a task that gives none."""
    if outputs and not _speaks(data):
        raise NotApplicable(f"whole outputs are kept of class logits; {data.name} is a {data.task} task")


def _speaks(data: ExampleSet) -> bool:
    """Whether a model gives a vector an example."""
    return isinstance(data.task, OutputTask) and data.task.gives("outputs")


class Gathered:
    """What M models said, each array once, filled block by block.

    Attributes:
        arrays: by name; of models first, except for the sample ``spoken``.
    """

    def __init__(self, num_models: int) -> None:
        self._num, self.arrays = num_models, dict[str, np.ndarray]()

    def add(self, block: Mapping[str, np.ndarray], *, start: int) -> None:
        """Put in what the models ``start``, ``start + 1``, ... said; blocks come in their order."""
        for what, part in block.items():
            if what == "spoken":
                known = self.arrays.get(what)
                self.arrays[what] = part if known is None else np.concatenate([known, part])
                continue
            if what not in self.arrays:
                self.arrays[what] = np.zeros((self._num, *part.shape[1:]), part.dtype)
            self.arrays[what][start : start + len(part)] = part


def said(
    models: Sequence[nn.Module], inputs: Inputs, population: np.ndarray, *, first: int, of: int, outputs: bool
) -> dict[str, np.ndarray]:
    """Readings (b, N, 4) of the models ``first``, ``first + 1``, ... of ``of``; where an output is a vector, a sample
    of them on the population, and the whole outputs (b, N, K) where they are wanted. Memory is bounded by the batch
    besides what is returned."""
    if not _speaks(inputs.data):
        return {"reading": np.stack([reading_of(model, inputs).values for model in models])}
    data, task = inputs.data, cast(OutputTask, inputs.data.task)
    reading, spoken, whole = np.empty((len(models), len(data), len(READING))), [], []
    for m, model in enumerate(models):
        every, before = [], int(population.sum()) * (first + m)  # population points that spoke before these
        with np.errstate(all="ignore"):  # what is not finite is refused below
            for rows, z in outputs_of(model, inputs, batch=_BATCH):
                reading[m, rows] = task.reading_of(z, data.targets(rows), data.constants).values
                heard = z[population[rows]]
                spoken.append(_thinned(heard, points=int(population.sum()) * of, before=before))
                before += len(heard)
                every += [z] if outputs else []
        finite_reading(reading[m], data)
        whole += [np.concatenate(every)] if outputs else []
    found = {"reading": reading, "spoken": np.concatenate(spoken)}
    return {**found, "logits": np.stack(whole)} if outputs else found


_BATCH = 4096


def _thinned(outputs: np.ndarray, *, points: int, before: int) -> np.ndarray:
    """Every k-th of the values of outputs (B, K), which come after ``before`` of ``points`` points, k such that about
    ``SPOKEN`` of all values are kept."""
    step = max(1, points * outputs.shape[1] // SPOKEN)
    return outputs.reshape(-1)[-(before * outputs.shape[1]) % step :: step].astype(np.float32)


def _refuse_mixing(model: nn.Module) -> None:
    """Raise :class:`NotApplicable` for BatchNorm without running statistics: it mixes examples in eval mode, too."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise NotApplicable(
                f"layer {name!r}, a {type(module).__name__} without running statistics, mixes the examples of a batch "
                "in eval mode too: what a model says of one example depends on others. Use track_running_stats=True"
            )


def _stored(
    found: tuple[dict[str, Any], dict[str, Any]] | None, *, meta: dict[str, Any], keep: np.ndarray, outputs: bool
) -> dict[str, np.ndarray] | None:
    """What a stored block holds, or None when there is none of this very ensemble (with outputs, where they are
    wanted)."""
    if found is None or any(found[1].get(k) != v for k, v in meta.items()):
        return None
    arrays = {name: np.asarray(array) for name, array in found[0].items()}
    if not np.array_equal(arrays.pop("keep"), keep) or (outputs and "logits" not in arrays):
        return None
    if not outputs:
        arrays.pop("logits", None)
    return arrays
