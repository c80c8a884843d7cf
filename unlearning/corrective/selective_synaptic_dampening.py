"""SSD, selective synaptic dampening: shrink the weights that the forgotten examples use more than the others do (Foster
et al., AAAI 2024).

    I_f, I_D   importance of each parameter for S_f and for the other examples (``unlearning.corrective.importance``)
    for each j with I_f[j] > alpha * I_D[j]:      theta_j <- theta_j * min( lambda * I_D[j] / I_f[j], 1 )

No training, no step size: one pass for each importance. I_D is of D \\ S_f, as in the corrective unlearning bench (Goel
et al., TMLR 2024), or of all of D as in Foster et al. (``reference``). Defaults of Foster et al.: alpha 10, lambda 1.
alpha = 10 selects next to nothing in a small network that fits its data: search it over decades, with lambda tied to
it. The bench searches alpha in {0.1, 1, 10, 50, 100, 500, 1e3, 1e4, 1e5, 1e6} x lambda in alpha * {0.1, 0.5, 1, 5,
10}; on Fashion-MNIST at 6,000 examples 3e-4 to 1 was of use, another value for each model and identified set, and whole
decades were too coarse: the step from half healed to harmed lies between two of them.

Both importances are taken at one batch size, which is the field ``batch``: a poison's gradients agree and do not cancel
within a batch, those of the rest do, and that is what selects. At batches of one example the method is another.

Beside the published code, from one model, class 3 of 4,000 images of Fashion-MNIST forgotten with lambda alpha / 2, the
importances at batches of 64 and of all of D, five orders of the examples, mean and standard deviation: at alpha 10 UA
98.5 (0.9) here and 98.7 (0.2) there, RA 99.7 (0.1) and 99.8 (0.1), TA 85.9 (0.2) and 86.1 (0.2); at alpha 1 RA 75 (1)
and 76 (5), TA 70 (1) and 70 (3).

It is not a repair: weights only shrink, none grows, flips its sign or is trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracts.errors import InvalidInput
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import Config, param
from contracts.progress import Progress, silent
from sources.example_set import ExampleSet
from unlearning.corrective.importance import Importance, parameter_importance
from unlearning.descent import check_sets, finish, start
from unlearning.edits import finished


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectiveSynapticDampeningConfig(Config):
    alpha: float = param(
        10.0, gt=0, le=1e12, search=(0.1, 1e6), doc="selects what forget uses more than alpha times as much; search it"
    )
    lambda_: float = param(1.0, ge=0, le=1e12, doc="dampening of what is selected; larger shrinks less")
    batch: int = param(512, ge=1, le=65_536, unit="examples", doc="a batch of both importances; part of the measure")
    reference: str = param("retain", choices=("retain", "all"), doc="what forget is compared with: the rest, or all")


def dampening(forget: Importance, other: Importance, *, alpha: float, lambda_: float) -> dict[str, Tensor]:
    """Factor of every parameter.

    Args:
        forget, other: of the same parameters at the same batch size.
        alpha: > 0; infinity selects nothing.
        lambda_: >= 0.

    Returns:
        name -> factors in [0, 1], of the parameter's shape; 1 where it is not selected.

    Raises:
        InvalidInput: alpha or lambda out of range, or importances that cannot be compared.
    """
    if not alpha > 0 or not lambda_ >= 0:
        raise InvalidInput(f"alpha = {alpha} must be > 0 and lambda = {lambda_} >= 0")
    if forget.batch != other.batch or forget.values.keys() != other.values.keys():
        raise InvalidInput(
            f"importances at batches of {forget.batch} and {other.batch} examples cannot be compared, nor those of "
            "different parameters"
        )
    factors = {}
    for name, used in forget.values.items():
        of_other = other.values[name]
        chosen = used > alpha * of_other  # infinity times 0 is NaN, and not less
        factor = torch.ones_like(used)
        factor[chosen] = (lambda_ * of_other[chosen] / used[chosen]).clamp(max=1.0)
        factors[name] = factor
    return factors


@torch.no_grad()
def dampen(model: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Multiply the named parameters of ``model`` in place."""
    for name, parameter in model.named_parameters():
        if name in factors:
            parameter.mul_(factors[name])


@unlearner(
    UnlearnerSpec(
        name="selective_synaptic_dampening",
        wants=("losses", "reading"),
        doc="Shrinks the weights that the forgotten examples use more than the others do, without training.",
        source="Foster et al., AAAI 2024 (arXiv 2308.07707)",
        config=SelectiveSynapticDampeningConfig,
    )
)
def selective_synaptic_dampening(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: SelectiveSynapticDampeningConfig,
    seed: int,
    progress: Progress = silent,
) -> nn.Module:
    """Dampen a copy of ``model``.

    A number to predict is dampened in units of its own mean and spread, as it was trained: towards the mean, not to 0.

    Args:
        model: trained; not changed.
        retain: (N_r) examples to keep; at least one unless ``reference`` is "all".
        forget: (N_f) examples to remove; with none of them the copy is returned as it is.
        config: see :class:`SelectiveSynapticDampeningConfig`.
        seed: how the examples are cut into batches.
        progress: called after each importance.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        DataError, NotApplicable: see ``check_sets``; ``reference`` "all" for examples that are no rows of arrays.
        Diverged: a gradient is not finite, or the model collapsed.
    """
    check_sets(model, retain=retain, forget=forget, trains_on_retain=config.reference == "retain")
    run = f"selective_synaptic_dampening at alpha {config.alpha:g}, lambda {config.lambda_:g}"
    student = copy.deepcopy(model)
    units = start(student, retain)
    factors: dict[str, Tensor] = {}
    if len(forget):
        used = parameter_importance(student, forget, batch=config.batch, seed=seed, beside=retain)
        progress(1, 2, "selective_synaptic_dampening")
        compared = (retain, forget) if config.reference == "all" else (retain,)
        other = parameter_importance(student, *compared, batch=config.batch, seed=seed)
        progress(2, 2, "selective_synaptic_dampening")
        factors = dampening(used, other, alpha=config.alpha, lambda_=config.lambda_)
    if all(bool((factor == 1).all()) for factor in factors.values()):
        student.load_state_dict(model.state_dict())  # to and fro between units would round
        units = None
    dampen(student, factors)
    finish(student, units)
    return finished(student, model, retain=retain, seed=seed, run=run)
