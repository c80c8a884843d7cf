"""What a task is: how an example's loss is taken, which four numbers a model is read by, what its targets may be.

    losses(model, batch)  -> (B,)     with gradient: what recipes minimise, GraNd and unlearners use
    read(model, batch)    -> (B, 4)   float64, no gradient, deterministic

    loss            lower = fits better
    signal          unbounded, near normal over models, higher = surer: LiRA and U-LiRA read it
    log_likelihood  nats, up to a constant an example: RMIA reads it
    quality         0..1, what the task's users call right: memorization reads it; UA, RA and TA are its means

Every audit asks for these and for no task by name, so it runs on every task; what a method wants beyond them is a view
(``contracts.methods.VIEWS``) that a task gives or not. A task is one object however often it is looked up.

Shapes: B examples, M models, N examples, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from contracts import methods
from contracts.errors import DataError, NotApplicable
from contracts.methods import VIEWS, TaskSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

READING = ("loss", "signal", "log_likelihood", "quality")
Constants = Mapping[str, NDArray[Any]]
NO_CONSTANTS: Constants = {}


@dataclass(frozen=True, eq=False)
class Reading:
    """What models say of examples, four numbers each.

    Attributes:
        values: float64 (..., N, 4), leading axes are models; the last axis is ``READING``.

    >>> Reading.of(loss=np.ones(2), signal=np.zeros(2), log_likelihood=-np.ones(2), quality=np.ones(2)).loss.tolist()
    [1.0, 1.0]
    """

    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.values.dtype != np.float64 or self.values.ndim < 2 or self.values.shape[-1] != len(READING):
            raise DataError(f"a reading is float64 (..., N, 4), not {self.values.dtype} {self.values.shape}")

    @classmethod
    def of(cls, *, loss: Any, signal: Any, log_likelihood: Any, quality: Any) -> Reading:
        """From the four numbers, each (..., N) of any float or bool type."""
        return cls(np.stack([np.asarray(v, np.float64) for v in (loss, signal, log_likelihood, quality)], axis=-1))

    def __len__(self) -> int:
        """N."""
        return int(self.values.shape[-2])

    def __getitem__(self, rows: Any) -> Reading:
        """The examples ``rows`` (a slice, a mask or positions), of every model."""
        return Reading(self.values[..., rows, :])

    @property
    def loss(self) -> NDArray[np.float64]:
        """(..., N), lower = fits better."""
        return self.values[..., 0]

    @property
    def signal(self) -> NDArray[np.float64]:
        """(..., N), higher = surer."""
        return self.values[..., 1]

    @property
    def log_likelihood(self) -> NDArray[np.float64]:
        """(..., N), nats up to a constant an example."""
        return self.values[..., 2]

    @property
    def quality(self) -> NDArray[np.float64]:
        """(..., N) in [0, 1]."""
        return self.values[..., 3]


@dataclass(frozen=True, eq=False)
class Batch:
    """B examples as a model and its task see them.

    Attributes:
        inputs: what the model is called with: ``model(t)`` for a tensor (B, ...), ``model(**d)`` for a dict of tensors.
        targets: what the task compares the answer with; int64 (B,) classes or items, float (B, 1) numbers, (B, ...)
            others.
        example_id: int64 (B,): what is drawn an example is seeded by it.
        constants: population constants of the whole data set, the same for every model and every subset.
    """

    inputs: Any
    targets: Any
    example_id: Tensor
    constants: Constants = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.example_id)


class Examples(Protocol):
    """What a task looks at of a data set (``sources.example_set.ExampleSet``)."""

    @property
    def name(self) -> str: ...

    @property
    def x(self) -> Any: ...

    @property
    def y(self) -> NDArray[Any]: ...

    @property
    def example_id(self) -> NDArray[np.int64]: ...

    @property
    def split(self) -> NDArray[np.str_]: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    @property
    def constants(self) -> Constants: ...

    def refusal(self, message: str, chosen: NDArray[Any]) -> DataError: ...


class Task:
    """A kind of thing that is learnt. One file a kind; ``spec`` is its declaration."""

    spec: ClassVar[TaskSpec]
    target_dtype: ClassVar[str] = "int64"
    likeliest: ClassVar[float] = 0.0  # log-likelihood (nats) of the best answer there can be: offline RMIA's 1
    affine: ClassVar[bool] = (
        False  # answers and targets are numbers on one scale: a model may be trained in units of its spread
    )
    repeatable: ClassVar[bool] = True  # a data set may hold one example several times

    @property
    def name(self) -> str:
        return self.spec.name

    def __str__(self) -> str:
        return self.spec.name

    def __repr__(self) -> str:
        return f"<task {self.spec.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.spec.name == other.spec.name

    def __hash__(self) -> int:
        return hash(self.spec.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return named, (self.spec.name,)

    def gives(self, *views: str) -> bool:
        """Whether the task gives all of these views."""
        return set(views) <= set(self.spec.gives)

    # -- models ---------------------------------------------------------------------------------------------------

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) loss of every example, with gradient."""
        raise NotImplementedError

    def read(self, model: nn.Module, batch: Batch) -> Reading:
        """The four numbers of every example, (B, 4), without gradient; the model is in eval mode."""
        raise NotImplementedError

    def read_tokens(self, model: nn.Module, batch: Batch, *, factor: float = 1.0) -> NDArray[np.float32]:
        """What the model says of every token, (B, T, 3) float32, ``tasks.signals.token_statistics``; NaN where a token
        does not count.

        Args:
            factor: by which all logits are multiplied.

        Raises:
            NotApplicable: examples are no sequences of tokens.
        """
        raise NotApplicable(f"{self} has no tokens that a model could be read on")

    def token_logits(
        self, model: nn.Module, batch: Batch
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]]:
        """Some sequences at a time: the logits (P, V) and tokens (P,) at their P counted positions, row by row, and
        where these are, (b, T - 1) bool.

        Raises:
            NotApplicable: examples are no sequences of tokens.
        """
        raise NotApplicable(f"{self} has no tokens that a model could be read on")

    def losses_and_reading(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Reading]:
        """:meth:`losses`, with gradient, and :meth:`read`, of one model in one state."""
        return self.losses(model, batch), self.read(model, batch)

    def loss_unit(self, constants: Constants) -> float:
        """What :meth:`losses` are divided by to be in the unit of a reading's loss, in which one step size suits every
        data set."""
        return 1.0

    def of_signal(self, signal: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """(loss, log-likelihood) of any signal, where both are functions of it, the same for every example; None where
        not.

        Attacks that map the signals of a model to another scale read loss and log-likelihood on it by this.
        """
        return None

    def num_outputs(self, data: Examples) -> int:
        """Numbers that a built-in network has to answer for one example."""
        return len(data.class_names) or 1

    def output_shape(self, data: Examples) -> tuple[int, ...]:
        """Shape of a model's answer to one example."""
        return (self.num_outputs(data),)

    def target_tensor(self, y: NDArray[Any], dtype: Any) -> Tensor:
        """Targets as tensors; ``dtype`` is the model's, for targets that are numbers."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(y))

    # -- data -----------------------------------------------------------------------------------------------------

    def check_targets(self, data: Examples) -> None:
        """Refuse targets that are none of this task, of a whole data set or a part of one.

        Raises:
            DataError: names the examples.
        """

    def check(self, data: Examples) -> None:
        """Refuse a whole data set that cannot be learnt from: :meth:`check_targets`, and what it must hold.

        Raises:
            DataError: names the examples.
        """
        self.check_targets(data)

    def describe(self, data: Examples) -> str:
        """What is learnt, in a few words for people ("10 classes")."""
        return self.spec.doc.rstrip(".")

    def strata(self, x: Any, y: NDArray[Any], example_id: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) group of each example within which splits and pools are drawn."""
        return np.zeros(len(example_id), np.int64)

    def constants(self, data: Examples) -> Constants:
        """What a reading needs of the whole data set; the same for every model."""
        return NO_CONSTANTS

    def constant_quality(self, data: Examples) -> float:
        """Mean quality on ``data``, N >= 1, of the best answer that is the same for all of them: what a model that has
        lost everything still reaches. 0 for a task that knows of no such answer."""
        return 0.0

    def wrong_targets(self, data: Examples, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
        """A target that is wrong for each of these rows, and that a model can only learn by heart: canaries are given
        it.

        Raises:
            NotApplicable: the task knows of none, or an example leaves none.
        """
        raise NotApplicable(f"{self} has no wrong targets to give to canaries")

    def peers(self, data: Examples, rows: NDArray[np.int64] | NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(N,) examples that these rows may be compared with: those of their classes; all, where there are no
        classes."""
        if not self.gives("classes"):
            return np.ones(len(data.example_id), bool)
        return np.isin(data.y, data.y[rows])

    def target_digest(self, y: NDArray[Any]) -> list[Any]:
        """What the data digest covers of the targets, JSON-able, one entry an example."""
        return list(y.tolist())

    def shown(self, data: Examples) -> dict[str, NDArray[Any]]:
        """Columns (N,) that tell people which example is meant, beside its id: any of ``label``, ``label_name``,
        ``target``."""
        return {}


class OutputTask(Task):
    """A task for which one answer of the model and the target say everything: most are."""

    def losses_of(self, outputs: Any, targets: Any) -> Tensor:
        """(B,) loss of every example from the model's answers (B, ...), with gradient."""
        raise NotImplementedError

    def reading_of(self, outputs: NDArray[Any], targets: NDArray[Any], constants: Constants) -> Reading:
        """The four numbers from answers (..., N, K) and targets (N,), in float64."""
        raise NotImplementedError

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.losses_of(answers(model, batch), batch.targets)

    def read(self, model: nn.Module, batch: Batch) -> Reading:
        import torch

        with torch.no_grad():
            outputs = answers(model, batch)
        return self._reading(outputs, batch)

    def losses_and_reading(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Reading]:
        """From one pass, where a model answers with a tensor."""
        import torch

        outputs = answers(model, batch)
        losses = self.losses_of(outputs, batch.targets)
        return losses, self._reading(outputs, batch) if torch.is_tensor(outputs) else self.read(model, batch)

    def _reading(self, outputs: Tensor, batch: Batch) -> Reading:
        import torch

        targets = batch.targets.detach().cpu().numpy()
        return self.reading_of(outputs.detach().to(torch.float32).cpu().numpy(), targets, batch.constants)


def answers(model: nn.Module, batch: Batch) -> Any:
    """The model on a batch: ``model(tensor)`` or ``model(**dict)``."""
    return respond(model, batch.inputs)


def respond(model: nn.Module, inputs: Any) -> Any:
    """The model on the inputs of a batch: ``model(tensor)`` or ``model(**dict)``."""
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


@cache
def _made(method: Any) -> Task:
    made: Task = method.function()
    type(made).spec = method.spec
    return made


def named(name: str) -> Task:
    """The task of that name.

    Raises:
        UnknownName: with the list of the known ones.
    """
    return _made(methods.task.get(name))


def names() -> tuple[str, ...]:
    """Names of the known tasks."""
    return methods.task.names()


def gives(data: Any, *views: str) -> bool:
    """Whether the task of a data set gives all of these views, or its examples do: images are no matter of the task."""
    of_task = [view for view in views if view != "images"]
    return data.task.gives(*of_task) and ("images" not in views or len(data.input_shape) == 3)


def lacking(data: Any, views: Sequence[str]) -> str:
    """What a method wants and a data set does not give, as a sentence; "" when it gives everything."""
    missing = [VIEWS[view] for view in views if not gives(data, view)]
    return f"it wants that {'; and that '.join(missing)}" if missing else ""


def require(data: Any, who: str, *views: str) -> None:
    """Refuse a data set that does not give what a method wants, before any work.

    Raises:
        NotApplicable: names the method, the data set, its task, and what is missing.
    """
    if why := lacking(data, views):
        raise NotApplicable(f"{who} does not apply to {data.name}, a {data.task} task: {why}")
