"""Many adapters on one frozen base: the reference models of a language model that is too large to be trained M times.

    for m = 1 .. M:   A, B fresh from seed m;   trained on members[m];   every example read;   A, B kept, or thrown away

The base is loaded once and never copied: what one more reference model costs is its own passes over its examples, and
its memory is r (d_in + d_out) numbers a layer. Each adapter is what the recipe ``lora`` gives on these rows with that
seed, before it is merged: same draws, same batches, same bits.

Halves are drawn of the *whole* pool (``recipes.design``), so that every example is a member of half of the models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from contracts.digests import digest
from contracts.errors import ConfigError
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from contracts.subject import Ensemble
from recipes.design import halves
from recipes.ensemble import ReferenceEnsemble, labels_of
from recipes.language.fitting import fit_tokens
from recipes.language.lora import LoraConfig, adapter_arrays, attach, restart, state_digest
from recipes.predict import read
from recipes.schedule import num_epochs
from sources.example_set import ExampleSet
from tasks.base import Reading


@dataclass(frozen=True, eq=False)
class Adapter:
    """One reference model.

    Attributes:
        arrays: its A and B by name, float32; ``recipes.language.lora.load_adapter`` puts them into a model again.
        reading: (N, 4) what it says of every example.
    """

    arrays: dict[str, np.ndarray]
    reading: Reading


def train_adapters(
    base: nn.Module,
    data: ExampleSet,
    *,
    config: LoraConfig,
    members: Sequence[np.ndarray],
    seeds: Sequence[int],
    device: str = "cpu",
    batch: int = 32,
    progress: Progress = silent,
) -> Iterator[Adapter]:
    """One adapter after the other; the next is trained when it is asked for.

    Args:
        base: model of transformers; taken over: its layers are wrapped, its weights stay what they are.
        data: N token sequences.
        config: adapters, optimiser, schedule; ``merge`` is not looked at.
        members: for each adapter the positions in ``data`` that it is trained on, int64.
        seeds: one for each.
        device: "cpu" or "cuda".
        batch: sequences read together.
        progress: told (adapters done, in all, "adapters").

    Raises:
        ConfigError: unequal numbers of sets and seeds, or layers that cannot be adapted.
        NotApplicable, DataError, Diverged: see ``fit_tokens``.
    """
    if len(members) != len(seeds):
        raise ConfigError(f"{len(members)} training sets for {len(seeds)} seeds: one seed for each set is needed")
    model = attach(base, config, seed=0).to(device)
    for done, (rows, seed) in enumerate(zip(members, seeds, strict=True), start=1):
        restart(model, seed=seed)
        # A set of rows is a data set of its own: positions in it, not in the whole, decide the order of its batches.
        own = data.take(rows)
        fit_tokens(
            model,
            own,
            np.arange(len(own)),
            config=config,
            seed=seed,
            stop_after=num_epochs(max(len(own), 1), config),
        )
        yield Adapter(adapter_arrays(model), read(model, data, batch=batch))
        progress(done, len(seeds), "adapters")


def adapter_ensemble(
    base: nn.Module,
    data: ExampleSet,
    *,
    config: LoraConfig,
    ensemble: Ensemble,
    seed: int,
    device: str = "cpu",
    batch: int = 32,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "adapters",
    progress: Progress = silent,
) -> ReferenceEnsemble:
    """The reference ensemble of M adapters, each on a random half of the pool, read on pool and population.

    Args:
        base: as of :func:`train_adapters`.
        data: the whole data set, both splits.
        config: adapters, optimiser, schedule.
        ensemble: M, pool and population; its ``block`` says nothing here, as an adapter is kept as soon as it is read.
        seed: of the design and, with the model's number, of every adapter.
        device, batch: as of :func:`train_adapters`.
        checkpoints: keeps what each adapter said, as ``<checkpoint_name>-<number>``; one of this very ensemble is not
            trained again.
        checkpoint_name: see above.
        progress: called with (adapters done, in all, "reference models").

    Raises:
        NotApplicable, DataError, ConfigError, Diverged: see :func:`train_adapters` and ``recipes.design``.
        IntegrityError: a stored reading is damaged.
    """
    drawn = halves(data, ensemble=ensemble, seed=seed)
    run = digest(
        {
            "recipe": "lora",
            "config": config,
            "ensemble": [ensemble.num_models, ensemble.pool_size, ensemble.population_fraction],
            "seed": seed,
            "base": state_digest(base),
            "data": data.digest,
        }
    )
    names = [f"{checkpoint_name}-{m:05d}" for m in range(ensemble.num_models)]
    stored = [checkpoints.load(name) for name in names]
    reading: dict[int, np.ndarray] = {
        m: np.asarray(found[0]["reading"]) for m, found in enumerate(stored) if found and found[1].get("run") == run
    }
    missing = [m for m in range(ensemble.num_models) if m not in reading]
    made = train_adapters(
        base,
        drawn.view,
        config=config,
        members=drawn.members(missing),
        seeds=[drawn.seeds[m] for m in missing],
        device=device,
        batch=batch,
    )
    for m, adapter in zip(missing, made, strict=True):
        reading[m] = adapter.reading.values
        checkpoints.save(names[m], {"reading": reading[m]}, {"run": run})
        progress(len(reading), ensemble.num_models, "reference models")
    return ReferenceEnsemble(
        example_id=drawn.view.example_id,
        pool=drawn.pool,
        labels=labels_of(drawn.view),
        keep=drawn.keep,
        reading=np.stack([reading[m] for m in range(ensemble.num_models)]),
        config_digest=run,
    )
