"""Experience replay: a buffer of old examples, trained on beside the examples of each step. The baseline with stored
data.

    L = 1/(B + R) [ sum_{i in batch} l_i + sum_{j in R drawn from the buffer} l_j ]     l: over all classes seen so far

The buffer holds examples of earlier steps; those of a step join it when the step ends (recipes.continual.buffer). R are
drawn without replacement for every batch. Classes, loss and schedule are those of ``rehearsal_free``, so that the two
differ in what they keep. The ids of what is in the buffer after the last step come with the model
(``recipes.retention``).

Source: Chaudhry et al., "On Tiny Episodic Memories in Continual Learning" (arXiv 1902.10486); Rolnick et al.,
"Experience Replay for
Continual Learning" (NeurIPS 2019, arXiv 1811.11682).
Examples of the last step may be in the buffer, but have never been drawn from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from contracts.digests import derive_seed
from contracts.methods import RecipeSpec, recipe
from contracts.params import param
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.continual.buffer import Buffer, updated
from recipes.continual.loop import Plan, Run, classification_loss, stacked, train_stream
from recipes.continual.stream import StreamConfig
from recipes.models import Build
from recipes.retention import Retained
from recipes.rng import generator
from sources.example_set import ExampleSet


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig(StreamConfig):
    """The buffer beside the stream."""

    buffer: int = param(200, ge=1, le=100_000_000, unit="examples", doc="K, the size of the buffer")
    policy: str = param(
        "class_balanced", choices=("reservoir", "class_balanced"), doc="a uniform sample of all, or of each class"
    )
    replay_batch: int = param(64, ge=1, le=1_000_000, unit="examples", doc="R, drawn from the buffer for every batch")


class ReplayLearner:
    """See the module. Between steps it keeps the buffer."""

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self.buffer = Buffer.empty()
        self._rows = torch.empty(0, dtype=torch.int64)
        self._draw = generator(0)

    def begin(self, run: Run, step: int, old: Sequence[int]) -> None:
        """Positions of what is in the buffer."""
        self._rows = torch.from_numpy(run.inputs.data.positions(self.buffer.example_id))

    def begin_epoch(self, run: Run, step: int, epoch: int) -> None:
        """What is drawn in an epoch depends on (seed, step, epoch)."""
        self._draw = generator(derive_seed("replay", run.seed, step, epoch))

    def loss(self, run: Run, rows: Tensor) -> Tensor:
        """Of the batch and as many of the buffer as are drawn for it, together."""
        if len(self._rows):
            chosen = torch.randperm(len(self._rows), generator=self._draw)[: self.config.replay_batch]
            rows = torch.cat([rows, self._rows[chosen].to(rows.device)])
        logits = run.model(run.inputs.gather(rows)).index_select(1, run.head.columns)
        return classification_loss(logits, run.targets(rows), loss=self.config.loss)

    def end(self, run: Run, step: int, rows: np.ndarray) -> None:
        """The step's examples join."""
        data = run.inputs.data
        self.buffer = updated(
            self.buffer,
            data.example_id[rows],
            data.y[rows],
            size=self.config.buffer,
            policy=self.config.policy,  # type: ignore[arg-type] - one of the policies: the configuration checked it
            seed=run.seed,
            step=step,
        )

    def kept(self) -> dict[str, np.ndarray]:
        """The buffer's ids, labels and priorities."""
        return {name: getattr(self.buffer, name) for name in ("example_id", "label", "priority")}

    def restore(self, arrays: Mapping[str, np.ndarray], device: torch.device) -> None:
        """See :meth:`kept`."""
        self.buffer = Buffer(**arrays)

    def retained(self, run: Run) -> Retained:
        """The ids of the examples in the buffer."""
        return Retained(example_id=self.buffer.example_id)


@recipe(
    RecipeSpec(
        name="replay",
        wants=("outputs", "classes"),
        doc="A stream of steps with a buffer of old examples that are trained on again.",
        source="Chaudhry et al., arXiv 1902.10486; Rolnick et al., NeurIPS 2019",
        config=ReplayConfig,
        retains=("replay buffer (up to K training examples as they are)",),
        early=True,
        stacked=stacked(ReplayLearner),
    )
)
def replay(
    build: Build,
    data: ExampleSet,
    *,
    config: ReplayConfig,
    seed: int,
    device: str = "cpu",
    stop_after: int | None = None,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "replay",
    progress: Progress = silent,
) -> nn.Module:
    """Train a fresh model through the steps of ``data``; arguments, result and errors as ``rehearsal_free``."""
    plan = Plan(
        ends=(stop_after,), device=device, checkpoints=checkpoints, checkpoint_name=checkpoint_name, progress=progress
    )
    return train_stream(build, data, config=config, seed=seed, learner=ReplayLearner(config), plan=plan)[0]
