"""Continual learning without a stored example: distillation and weight penalties hold what earlier steps have taught.

Step n, classes seen C_n, teacher = the model at the end of step n-1, anchor = its parameters; n = 1: the pre-trained
model where there is one, for features and L2 alone (it has no logits of these classes, and EWC no F):

    L = L_class + pred L_pred + feat (1/B) sum_i ||phi_n(x_i) - phi_{n-1}(x_i)||^2 + l2 sum_j (theta_j - a_j)^2
        + ewc sum_j F_j (theta_j - a_j)^2

    bce   L_class + pred L_pred: recipes.continual.distillation.bce_with_distilled_targets; pred = 1 is LwF.MC, 0 plain
    ce    L_class softmax over the seen classes (``mask_old``: over this step's), L_pred softened, T = 2

Penalties are on the encoder; ``anchor_old_rows`` adds the head's rows of classes seen before, never those of new ones.
After an erasure, a teacher or anchor made before it must not be used again: the next step would teach what was removed
(tests/recipes/test_recipes_continual_stale.py). Here both are made anew from the model at the start of every step.
F is the empirical Fisher information of every step just ended, of -log p of the plain loss over the classes seen by
then, accumulated.

Source: Smith, Tian, Halbe, Hsu, Kira, "A Closer Look at Rehearsal-Free Continual Learning" (CVPRW 2023, arXiv
2203.17269); Li and Hoiem (ECCV 2016); Rebuffi et al. (CVPR 2017); Kirkpatrick et al. (PNAS 2017).
What it finds: from random weights distillation with BCE is the strong baseline, and penalties buy less forgetting for
less plasticity; from a pre-trained convolutional encoder L2 wins. What of it holds at small scale is measured in
reproductions.rehearsal_free. Penalties without distilled targets do not repair softmax on new data alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.errors import ConfigError
from contracts.methods import RecipeSpec, recipe
from contracts.params import param
from contracts.progress import Progress, silent
from contracts.stores import CheckpointStore, NoStore
from recipes.continual.anchors import CAP, EWCAnchor, L2Anchor, accumulate
from recipes.continual.distillation import bce_with_distilled_targets, feature_distillation, softmax_distillation
from recipes.continual.fisher import empirical_fisher_diagonal
from recipes.continual.head import encoder_names, features_of
from recipes.continual.loop import Plan, Run, classification_loss, stacked, train_stream
from recipes.continual.stream import StreamConfig
from recipes.models import Build
from recipes.retention import Retained
from sources.example_set import ExampleSet

_READ = 256  # examples at a time for the Fisher information


@dataclass(frozen=True, kw_only=True, slots=True)
class RehearsalFreeConfig(StreamConfig):
    """The weights of what protects earlier steps. Weights of penalties do not carry over between bce, a sum over
    classes, and ce."""

    pred: float = param(1.0, ge=0, le=1e6, doc="prediction distillation mu; 0: none")
    temperature: float = param(2.0, gt=0, le=1e3, doc="ce only: of the softened predictions")
    feat: float = param(0.0, ge=0, le=1e9, doc="distillation of the penultimate features")
    l2: float = param(0.0, ge=0, le=1e9, doc="squared distance from the anchor")
    ewc: float = param(0.0, ge=0, le=1e9, doc="the same, weighted by Fisher information")
    fisher: str = param("sum", choices=("sum", "average", "online"), doc="how that of all steps is accumulated")
    fisher_decay: float = param(0.9, ge=0, le=1, doc="online only")
    fisher_cap: float = param(CAP, gt=0, le=1e9, doc="average only: largest value that takes part")
    built_pretrained: bool = param(
        False, doc="the model is built with pre-trained weights: L2 and feat hold to them from the first step on"
    )
    anchor_old_rows: bool = param(False, doc="penalties also on the head's rows of classes seen before")
    mask_old: bool = param(False, doc="ce only: softmax over this step's classes alone; logits of others take no part")

    def check(self) -> None:
        StreamConfig.check(self)
        if self.mask_old and self.loss != "ce":
            raise ConfigError("RehearsalFreeConfig.mask_old goes with loss = 'ce'")


class RehearsalFreeLearner:
    """See the module. Between steps it keeps the Fisher information; teacher and anchor are the model of the step
    before."""

    def __init__(self, config: RehearsalFreeConfig) -> None:
        self.config = config
        self.fisher: dict[str, Tensor] | None = None
        self._teacher: tuple[nn.Module, nn.Linear] | None = None
        self._anchors: list[tuple[float, L2Anchor]] = []
        self._old = torch.empty(0, dtype=torch.int64)
        self._own = torch.empty(0, dtype=torch.int64)

    def begin(self, run: Run, step: int, old: Sequence[int]) -> None:
        """Freeze a copy of the model as the teacher, and move the anchors to it."""
        config, device = self.config, run.inputs.device
        self._old = torch.tensor(old, dtype=torch.int64, device=device)
        classes = torch.tensor(run.stream.classes[step], dtype=torch.int64, device=device)
        self._own = run.head.places(classes)
        self._teacher = None
        pretrained = run.pretrained or config.built_pretrained
        if (old and config.pred) or ((old or pretrained) and config.feat):
            frozen = copy.deepcopy(run.model).eval().requires_grad_(False)
            self._teacher = frozen, frozen.get_submodule(run.head.name)  # type: ignore[assignment]
        own_names = self._anchored(run) if old else encoder_names(run.model, run.head.name)
        params = {n: p for n, p in run.model.named_parameters() if n in own_names}
        rows = {n: self._old for n in params if n.startswith(f"{run.head.name}.")}
        self._anchors = []
        if config.l2 and params and (old or pretrained):
            self._anchors.append((config.l2, L2Anchor(params, rows=rows)))
        if config.ewc and params and self.fisher is not None:
            self._anchors.append((config.ewc, EWCAnchor(params, self.fisher, rows=rows)))

    def _anchored(self, run: Run) -> list[str]:
        """The parameters that penalties hold; of the head's, the rows of old classes."""
        of_head = [f"{run.head.name}.{n}" for n, p in run.head.layer.named_parameters() if p.requires_grad]
        return encoder_names(run.model, run.head.name) + (of_head if self.config.anchor_old_rows else [])

    def begin_epoch(self, run: Run, step: int, epoch: int) -> None:
        """Nothing is drawn."""

    def loss(self, run: Run, rows: Tensor) -> Tensor:
        """The total of the module's equation on one batch."""
        config = self.config
        x, targets = run.inputs.gather(rows), run.targets(rows)
        with features_of(run.head.layer) as features:
            logits = run.model(x).index_select(1, run.head.columns)
        taught = None
        total = logits.new_zeros(())
        if self._teacher is not None:
            frozen, layer = self._teacher
            with torch.no_grad(), features_of(layer) as old_features:
                taught = frozen(x).index_select(1, self._old)
            if config.feat:
                total = total + config.feat * feature_distillation(features[0], old_features[0])
        if not config.pred or not len(self._old):
            taught = None
        if config.loss == "bce":
            total = total + bce_with_distilled_targets(
                logits, targets, teacher=taught, own=self._own, weight=config.pred
            )
        else:
            total = total + self._softmax(logits, targets)
            if taught is not None:
                total = total + config.pred * softmax_distillation(logits, taught, temperature=config.temperature)
        for weight, anchor in self._anchors:
            total = total + weight * anchor.penalty()
        return total

    def _softmax(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not self.config.mask_old:
            return F.cross_entropy(logits, targets)
        masked = torch.full_like(logits, -torch.inf)
        masked[:, self._own] = logits[:, self._own]
        return F.cross_entropy(masked, targets)

    def end(self, run: Run, step: int, rows: np.ndarray) -> None:
        """Add the Fisher information of the step; forget teacher and anchors, which the next step makes anew."""
        names = self._anchored(run)
        if self.config.ewc and names:
            columns, kind = run.head.columns, self.config.loss
            new = empirical_fisher_diagonal(
                run.model,
                _batches(run, rows),
                loss_of=lambda outputs, y: classification_loss(outputs.index_select(1, columns), y, loss=kind),
                names=names,
            )
            self.fisher = accumulate(
                self.fisher,
                new,
                how=self.config.fisher,  # type: ignore[arg-type] - one of the ways: the configuration checked it
                old_share=len(self._old) / len(run.head.seen),
                cap=self.config.fisher_cap,
                decay=self.config.fisher_decay,
            )
        self._teacher, self._anchors = None, []

    def kept(self) -> dict[str, np.ndarray]:
        """fisher/<parameter> where EWC is on."""
        return {f"fisher/{n}": f.cpu().numpy().copy() for n, f in (self.fisher or {}).items()}

    def restore(self, arrays: Mapping[str, np.ndarray], device: torch.device) -> None:
        """See :meth:`kept`."""
        found = {n.removeprefix("fisher/"): torch.from_numpy(a).to(device) for n, a in arrays.items()}
        self.fisher = found or None

    def retained(self, run: Run) -> Retained:
        """The Fisher information, by parameter; no example."""
        return Retained(derived=self.kept())


def _batches(run: Run, rows: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(rows), _READ):
        at = torch.from_numpy(rows[start : start + _READ]).to(run.inputs.device)
        yield run.inputs.gather(at), run.targets(at)


@recipe(
    RecipeSpec(
        name="rehearsal_free",
        version=2,  # the features of a pre-trained model are distilled in the first step, too
        wants=("outputs", "classes"),
        doc="A stream of steps without a stored example: distilled predictions and features, L2 and EWC penalties.",
        source="Smith et al., CVPRW 2023 (arXiv 2203.17269)",
        config=RehearsalFreeConfig,
        retains=(
            "teacher (a copy of the model of the step before; pred or feat > 0)",
            "anchor (its parameters; l2 or ewc > 0)",
            "Fisher information (second moments of per-example gradients over the examples of every step; ewc > 0)",
        ),
        early=True,
        stacked=stacked(RehearsalFreeLearner),
    )
)
def rehearsal_free(
    build: Build,
    data: ExampleSet,
    *,
    config: RehearsalFreeConfig,
    seed: int,
    device: str = "cpu",
    stop_after: int | None = None,
    checkpoints: CheckpointStore = NoStore(),  # noqa: B008 - stateless
    checkpoint_name: str = "rehearsal_free",
    progress: Progress = silent,
) -> nn.Module:
    """Train a fresh model through the steps of ``data``.

    Args:
        build: seed -> freshly initialised model with a linear output layer.
        data: the training examples, in any order.
        config: steps, loss, penalties.
        seed: of initialisation, pre-training, batch order and dropout; in [0, 2**63).
        device: "cpu" or "cuda".
        stop_after: epochs, counted over all steps, after which the run is left; None trains to its end.
        checkpoints: where the run is kept after every step.
        checkpoint_name: its name there.
        progress: told (epochs done, epochs, "training").

    Returns:
        The model after the last step, in eval mode on ``device``; ``recipes.retention.retained_of`` says what is kept
        beside it.

    Raises:
        As ``recipes.continual.loop.train_stream``.
    """
    plan = Plan(
        ends=(stop_after,), device=device, checkpoints=checkpoints, checkpoint_name=checkpoint_name, progress=progress
    )
    return train_stream(build, data, config=config, seed=seed, learner=RehearsalFreeLearner(config), plan=plan)[0]
