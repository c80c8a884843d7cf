"""How a run is kept and taken up again: every few epochs, at its end, and only where it is this very run.

    stored     arrays of the model and of its optimiser, {"run": fingerprint, "epoch": epochs done}
    resumed    when the fingerprint is the same and the run is not past where it shall end

A run that resumes gives the same bits as one that was never interrupted, because orders and rates are functions of the
epoch (``recipes.schedule``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from contracts.digests import digest
from contracts.errors import ConfigError
from contracts.params import Config
from contracts.progress import Progress
from contracts.stores import CheckpointStore, NoStore
from recipes.checkpoints import arrays_digest, load_arrays, to_arrays
from sources.example_set import ExampleSet

Stored = tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where a run is kept, and how often.

    Raises:
        ConfigError: ``every`` below 1.
    """

    store: CheckpointStore
    name: str
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"checkpoint_every = {self.every} must be >= 1 epochs")

    @property
    def active(self) -> bool:
        """Whether anything is kept at all."""
        return not isinstance(self.store, NoStore)

    def load(self) -> Stored | None:
        """What was stored under this name, of whatever run."""
        return self.store.load(self.name)

    def after(self, done: int, *, last: int, arrays: Callable[[], Mapping[str, Any]], **meta: Any) -> None:
        """Keep the run after ``done`` of ``last`` epochs, when it is time to."""
        if self.active and (done == last or done % self.every == 0):
            self.store.save(self.name, arrays(), {**meta, "epoch": done})

    def taken_up(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: ExampleSet,
        *,
        config: Config,
        seed: int,
        last: int,
        progress: Progress,
        what: str = "training",
        anew: bool = False,
    ) -> tuple[int, Callable[[int], None]]:
        """A run by epochs that is kept as it goes, and goes on from where it was kept.

        Args:
            model, optimizer: as the run begins; in place, as it was kept.
            last: epochs that it shall have.
            progress: called with (epochs done, ``last``, ``what``) after each.
            anew: start at the first epoch, whatever is stored.

        Returns:
            Epochs that are done already, and what is to be called with the number done after each further one.
        """
        run = run_fingerprint(model, data, config=config, seed=seed)
        start = resume(model, optimizer, None if anew else self.load(), run=run, last=last)

        def after_epoch(done: int) -> None:
            self.after(done, last=last, arrays=lambda: run_arrays(model, optimizer), run=run)
            progress(done, last, what)

        return start, after_epoch


def run_arrays(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """What :func:`resume` takes up: ``model/<name>`` and ``optimizer/<index>/<key>``, copied."""
    return {f"model/{n}": a for n, a in to_arrays(model).items()} | optimizer_arrays(optimizer)


def run_fingerprint(
    model: nn.Module, data: ExampleSet, *, config: Config, seed: int, initial: str | None = None
) -> str:
    """What a checkpoint must agree on to be resumed: configuration, seed, initial weights, data and its order.

    Args:
        initial: digest of the initial weights; that of the model's arrays when None.
    """
    return digest(
        {
            "config": config,
            "seed": seed,
            "initial": arrays_digest(to_arrays(model)) if initial is None else initial,
            "data": data.digest,
            "order": hashlib.sha256(np.ascontiguousarray(data.example_id)).hexdigest(),
        }
    )


def resume(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    stored: Stored | None,
    *,
    run: str,
    last: int,
) -> int:
    """Load a checkpoint of this very run that is not past ``last``; return the epochs it has done, else 0."""
    if stored is None or stored[1].get("run") != run or stored[1]["epoch"] > last:
        return 0
    arrays, meta = stored
    load_arrays(model, {n.removeprefix("model/"): a for n, a in arrays.items() if n.startswith("model/")})
    load_optimizer(optimizer, arrays)
    return int(meta["epoch"])


def load_optimizer(optimizer: torch.optim.Optimizer, arrays: Mapping[str, Any]) -> None:
    """Put the state that :func:`optimizer_arrays` gave, among other arrays, into a fresh optimiser of the same
    parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = torch.from_numpy(np.array(array))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def optimizer_arrays(optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """The optimiser's state as arrays ``optimizer/<index>/<key>``, copied."""
    return {
        f"optimizer/{index}/{key}": value.detach().cpu().numpy().copy()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }
