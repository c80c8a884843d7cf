"""The saliency mask around another unlearner, as the published code of Fan et al. (SalUn, ICLR 2024) has it.

    theta <- unlearner(theta0, D_r, D_f),   theta_j = theta0_j wherever m_j = 0      m: as of ``salun``, once, at theta0

Any registered unlearner that can be put under a mask (``unlearning.masked``: FT, GA, RL, boundary shrink and expand,
IU, l1-sparse, ...) runs as it is, with the same random numbers; a share k of the weights, those that react most to the
forget set, may move. With k = 1 the result is that of the unlearner alone, to the bit.

It is not a method of its own: what forgets is the unlearner that is named.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from contracts.errors import NotApplicable
from contracts.methods import UnlearnerSpec, unlearner
from contracts.params import Config, param
from contracts.progress import Progress, silent
from contracts.subject import Choice
from sources.example_set import ExampleSet
from unlearning.descent import check_sets
from unlearning.masked import check_choice, takes_mask, unlearn_masked
from unlearning.masks import Mask, both, check_mask
from unlearning.saliency import saliency_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class SaliencyMaskedConfig(Config):
    unlearner: Choice = param(
        Choice(name="finetune"), doc="a registered unlearner that takes a mask, and its fields", ref="unlearner"
    )
    mask_fraction: float = param(0.5, gt=0, le=1, doc="k, share of the weights that may move; 1: the unlearner alone")

    def check(self) -> None:
        check_choice(self.unlearner, where="SaliencyMaskedConfig.unlearner")


@unlearner(
    UnlearnerSpec(
        name="saliency_masked",
        wants=("losses", "reading"),
        doc="Another unlearner, moving only the weights that are salient to the examples to be forgotten.",
        source="Fan et al., SalUn, ICLR 2024, arXiv 2310.12508",
        config=SaliencyMaskedConfig,
        masked=True,
    )
)
def saliency_masked(
    model: nn.Module,
    *,
    retain: ExampleSet,
    forget: ExampleSet,
    config: SaliencyMaskedConfig,
    seed: int,
    mask: Mask | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """Run an unlearner on ``model`` with all but the salient weights held.

    Args:
        model: trained; not changed.
        retain: (N_r) examples to keep.
        forget: (N_f) examples to remove.
        config: see :class:`SaliencyMaskedConfig`.
        seed: of the unlearner, which draws as it does alone.
        mask: weights that may move besides: only those that both let do; None: every one.
        progress: as the unlearner tells it.

    Returns:
        The unlearned copy, eval mode.

    Raises:
        UnknownName: no such unlearner.
        NotApplicable: it takes no mask, or needs what this one is not given; a task that it is not defined for.
        DataError, Diverged: as the unlearner raises.
    """
    method = unlearner.get(config.unlearner.name)
    if not takes_mask(method.spec) or method.spec.needs:
        can = ", ".join(m.spec.name for m in unlearner if takes_mask(m.spec) and not m.spec.needs)
        raise NotApplicable(f"saliency_masked: {method.spec.name} takes no mask of weights; these do: {can}")
    check_sets(model, retain=retain, forget=forget, trains_on_retain=False, wants=method.spec.wants)
    check_mask(model, mask)
    salient = saliency_mask(model, forget, retain=retain, fraction=config.mask_fraction)
    return unlearn_masked(
        method,
        model,
        retain=retain,
        forget=forget,
        config=method.spec.config.from_mapping(config.unlearner.config),
        seed=seed,
        mask=both(salient, mask),
        progress=progress,
    )
