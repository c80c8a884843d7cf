"""A registered unlearner under a mask of weights: whatever it does, it does with the weights that may move.

    plan     a method that says its descent: the mask is put on the plan, as a projection after its own
    masked   a method of another kind, which takes ``mask`` itself

Either way the method draws as it does alone, and what the mask holds is in the result as it was in the model, to the
bit. A number to predict is descended in units of its own: the held weights are held there, and put back once more when
the units have been changed back, which rounds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from contracts.errors import ConfigError, NotApplicable
from contracts.methods import UnlearnerSpec, unlearner
from contracts.progress import Progress
from contracts.registry import Method
from contracts.subject import Choice
from unlearning.descent import Descent, Parameters, descend, start
from unlearning.masks import Held, Mask, check_mask

Project = Callable[[Parameters, int, int], None]


def check_choice(choice: Choice, *, where: str) -> None:
    """The fields of a chosen unlearner are within their ranges. A name that is not registered is left to whoever
    checks references, who can say where in the plan it stands.

    Raises:
        ConfigError: naming the place.
    """
    if choice.name not in unlearner:
        return
    try:
        unlearner.get(choice.name).spec.config.from_mapping(choice.config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def takes_mask(spec: UnlearnerSpec) -> bool:
    """Whether a method can be run under a mask."""
    return spec.masked or spec.plan is not None


def unlearn_masked(
    method: Method[UnlearnerSpec], model: nn.Module, *, mask: Mask | None, progress: Progress, **given: Any
) -> nn.Module:
    """``method(model, progress=progress, **given)`` with weights held.

    Args:
        mask: weights that may move, by name of parameter; None: every one, which is the method as it is.
        given: retain, forget, config, seed, and what the method needs.

    Raises:
        NotApplicable: the method can be put under no mask.
        InvalidInput: a mask that does not fit the model.
        Others: as the method raises.
    """
    spec = method.spec
    if not takes_mask(spec):
        raise NotApplicable(f"{spec.name} takes no mask of weights: it neither declares masked nor says a plan")
    if mask is None:
        return method(model, progress=progress, **given)  # type: ignore[no-any-return]
    check_mask(model, mask)
    if spec.masked:
        return method(model, mask=mask, progress=progress, **given)  # type: ignore[no-any-return]
    assert spec.plan is not None
    return descend_masked(spec.plan(model, **given), model, mask, progress=progress)


def descend_masked(plan: Descent, model: nn.Module, mask: Mask, *, progress: Progress) -> nn.Module:
    """Carry out a plan with the weights outside ``mask`` held at what they are in ``model``, also where the plan starts
    from other weights.

    Raises:
        As ``descend``.
    """
    given = Held.of(dict(model.named_parameters()), mask)
    begin = copy.deepcopy(plan.model)
    given.restore(dict(begin.named_parameters()))
    ready = copy.deepcopy(begin)
    start(ready, plan.retain)
    held = Held.of(dict(ready.named_parameters()), mask)

    def project(parameters: Parameters, done: int, total: int) -> None:
        if plan.project is not None:
            plan.project(parameters, done, total)
        held.restore(parameters)

    student = descend(replace(plan, model=begin, project=project), progress=progress)
    given.restore(dict(student.named_parameters()))
    return student
