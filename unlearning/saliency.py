"""Which weights of a trained model react to the forget set: weight saliency (Fan et al., SalUn, ICLR 2024).

    s = | sum_{i in D_f} grad_theta l(theta0; x_i, y_i) |          signed sum first, absolute value last; eval mode
    mask_j = 1  for the floor(k d) weights with the largest s_j, 0 for the others

All parameters are ranked together, biases and norms included, by rank: the paper's threshold (the median) with >= takes
more than k d weights where many are exactly zero. The published code sums the mean losses of mini-batches, which is the
same ranking where the batches are of one size. d counts the weights that train.

It says nothing of the retained examples: a weight may matter to both.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from contracts.errors import InvalidInput
from recipes.recsys_models import is_ranker
from sources.example_set import ExampleSet
from unlearning.descent import inputs_of, start
from unlearning.gradients import summed_gradient
from unlearning.masks import Mask, part_of, top


def weight_saliency(model: nn.Module, forget: ExampleSet, *, retain: ExampleSet) -> dict[str, Tensor]:
    """Saliency of every weight that trains, float64 >= 0 of the parameter's shape, by name; higher = reacts more.

    Args:
        model: trained; not changed.
        forget: (N_f) examples to remove; of none every saliency is zero.
        retain: (N_r) retained examples, which a number to predict has its units from, and which nodes to be
            forgotten have for neighbours; else not looked at.

    Raises:
        Diverged: a gradient is not finite.
    """
    student, units = model, None
    if is_ranker(model) or retain.task.affine:
        student = copy.deepcopy(model)  # what makes it ready changes it
        units = start(student, retain)
    found = summed_gradient(student, inputs_of(student, forget, beside=retain), units=units)
    return {name: g.abs() for name, g in found.items()}


def saliency_mask(model: nn.Module, forget: ExampleSet, *, retain: ExampleSet, fraction: float) -> Mask | None:
    """The share of the weights that react most to ``forget``: those that may move.

    Args:
        model, forget, retain: as of :func:`weight_saliency`.
        fraction: k, in (0, 1]; 1 is no mask at all.

    Returns:
        bool by name, with exactly floor(k d) True, or None where k = 1.

    Raises:
        InvalidInput: a fraction outside (0, 1].
        Diverged: a gradient is not finite.
    """
    if not 0 < fraction <= 1:
        raise InvalidInput(f"fraction = {fraction} is outside its allowed range: > 0 and <= 1")
    if fraction == 1:
        return None
    scores = weight_saliency(model, forget, retain=retain)
    return top(scores, part_of(fraction, sum(s.numel() for s in scores.values())))
