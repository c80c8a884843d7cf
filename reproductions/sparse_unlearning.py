"""Model sparsity can simplify machine unlearning (Jia et al., NeurIPS 2023) on Fashion-MNIST.

    4,000 training and 2,000 test images, conv 16 - conv 32 of stride 2 - fc 64, 30 epochs of SGD 0.05 with a cosine;
    class 3 is forgotten, 5 epochs at 0.02; all convolutions and linear maps are pruned
    1   l1-sparse forgets more than plain fine-tuning with the same steps (of 48 images), for the same accuracy
    2   so does fine-tuning (steps of 32) after pruning to 99%, and comes nearer to the retraining of the same mask than
        the dense model to its own; the weights under the mask lie nearer to the retrained ones, too
    3   pruned weights stay zero, and the sparsity is what was asked for
    4   200 images with a 4 x 4 white patch in the corner, labelled class 0, are forgotten: 10 epochs of l1-sparse at
        0.02 take the backdoor out for little accuracy, as many of fine-tuning do not

Every unlearning is run three times, in other orders of the examples, and its mean is judged: a single run at this rate,
which does not fall, ends up to 5 points of accuracy elsewhere. What pruning costs in accuracy is a matter of the model,
the orders aside: -4.2 points on one, -2.2 (1.3) on six. So 2 is judged on three models.

Measured on ten fresh seeds, mean and standard deviation: l1-sparse 48 (8) points of UA ahead, RA 96.9 (0.7), TA -0.4
(0.6); at 99% 63 (8) points ahead, 0.15 (0.08) of the dense gap, TA -1.7 (0.6), 0.77 (0.01) of the weight distance. The
thresholds are the source's (15 points, RA 95 and TA -2; 45 points, half of the gap), but for TA at 99%, of which it
asks for -2 of one model, here -3.5. At 98%, where the source has 25 points, fine-tuning was 59, 15 and 15 points ahead
on three seeds, and nothing is claimed; nor at 80% to 95%: on so small a network the effect is absent there, or
reversed.

The source cleans a backdoor by fine-tuning a pruned model. On one seed this network held on to it whatever the mask
(90% to 99%: an attack success of 95 to 98 percent after 5 epochs at 0.02, the dense model 96), and nothing is claimed
of that; the l1 penalty, at 3e-3, does it. On six fresh seeds attack success was 98.5 (1.0) before, 4.4 (1.9) after
l1-sparse and 94.8 (3.5) after fine-tuning, and l1-sparse cost 1.9 (1.7) points of accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import nn

from attacks.backdoor import attack_success_rate
from contracts.digests import derive_seed
from contracts.progress import Progress, silent
from recipes.predict import predict_logits
from reproductions.framework import Claim, at_least, at_most, mean_of, reproduction
from reproductions.salun import FORGOTTEN, TRAINER, Figures, Split, avg_gap, fashion, of_rows
from sources.example_set import ExampleSet
from sources.planted_poison import add_poison_trigger, triggered
from unlearning.finetune import FinetuneConfig, finetune, finetune_plan
from unlearning.masked import descend_masked
from unlearning.sparsity.l1_sparse import L1SparseConfig, l1_sparse
from unlearning.sparsity.measures import near_zero, sparsity, weight_distance
from unlearning.sparsity.prune_then_unlearn import joined
from unlearning.sparsity.pruning import iterative_magnitude_prune, prunable, train_masked

REWIND, SPARSITY = 2, 0.99  # epochs; share
POISONED, TARGET, PATCH = 200, 0, 4  # images; class; pixels
CLEANING = {"lr": 0.02, "epochs": 10, "batch": 32}
REPEATS = 3  # of every unlearning: one run is a matter of luck
MODELS = 3  # whose mean claim 2 judges: what pruning costs in accuracy is a matter of the model
L1, SPARSE_FT = {"lr": 0.02, "epochs": 5, "batch": 48}, {"lr": 0.02, "epochs": 5, "batch": 32}


@reproduction(card=48, name="sparse_unlearning", paper="Jia et al. 2023")
def claims(seed: int, progress: Progress) -> list[Claim]:
    """All claims; about three minutes on one core."""
    train, test = fashion(seed)
    steps, compared = MODELS + 2, list[dict[str, float]]()
    for number in range(MODELS):
        own = derive_seed("model", seed, number) % 2**31
        model = TRAINER.one(train, _model_seed(own))
        split = of_rows(train, test, train.y == FORGOTTEN, seed=own)
        compared.append(_pruned(model, split))
        progress(number + 1, steps, "dense and sparse models")
    found = _l1(model, split)
    progress(steps - 1, steps, "l1-sparse")
    found += _sparsity_claims(compared) + _backdoor(train, test, seed=seed)
    progress(steps, steps, "backdoor")
    return found


def _model_seed(seed: int) -> int:
    return derive_seed("model", seed) % 2**31


def _repeated(run: Callable[[int], nn.Module], split: Split) -> tuple[list[nn.Module], Figures]:
    """Models of an unlearner on the same model, other orders of the examples, and their mean figures."""
    models = [run(derive_seed("order", split.seed, r) % 2**31) for r in range(REPEATS)]
    each = [split.figures(model) for model in models]
    return models, mean_of(each)


def _tuned(model: nn.Module, split: Split, steps: Mapping[str, float]) -> tuple[list[nn.Module], Figures]:
    config = FinetuneConfig.from_mapping(steps)
    return _repeated(lambda seed: finetune(model, **split.sets, config=config, seed=seed), split)


def _l1(model: nn.Module, split: Split) -> list[Claim]:
    _, tuned = _tuned(model, split, L1)
    config = L1SparseConfig.from_mapping({**L1, "gamma": 1e-3})
    models, figures = _repeated(lambda seed: l1_sparse(model, **split.sets, config=config, seed=seed), split)
    small = float(np.mean([near_zero(sparse) for sparse in models]))
    return [
        at_least("1. UA of l1-sparse above that of fine-tuning", figures["ua"] - tuned["ua"], 15.0),
        at_least("1. RA of l1-sparse", figures["ra"], 95.0),
        at_least("1. TA of l1-sparse above that of fine-tuning", figures["ta"] - tuned["ta"], -2.0),
        at_least("1. share of weights of l1-sparse below 1e-3", small, 0.5),
    ]


def _pruned(model: nn.Module, split: Split) -> dict[str, float]:
    """Figures of fine-tuning a pruned model beside those of fine-tuning the dense one, and how far off the sparsity is,
    in weights."""
    (dense, *_), tuned = _tuned(model, split, SPARSE_FT)
    dense_reference = split.retrained()
    data, names = joined(split.retain, split.forget), prunable(model, last_layer=True)
    early = TRAINER.one(data, _model_seed(split.seed), stop_after=REWIND)
    sparse, mask = iterative_magnitude_prune(
        TRAINER, data, _model_seed(split.seed), dense=model, names=names, rate=SPARSITY, origin=early
    )
    config = FinetuneConfig.from_mapping(SPARSE_FT)

    def run(seed: int) -> nn.Module:
        plan = finetune_plan(sparse, **split.sets, config=config, seed=seed)
        return descend_masked(plan, sparse, mask, progress=silent)

    (unlearned, *_), figures = _repeated(run, split)
    fresh = train_masked(TRAINER, split.retain, split.retrained_seed, mask)
    size = sum(p.numel() for name, p in model.named_parameters() if name in names)
    return {
        "ua": figures["ua"] - tuned["ua"],
        "ta": figures["ta"] - tuned["ta"],
        "gap": avg_gap(figures, split.figures(fresh)) / avg_gap(tuned, split.figures(dense_reference)),
        "apart": weight_distance(unlearned, fresh, mask=mask) / weight_distance(dense, dense_reference),
        "off": abs(sparsity(unlearned, names) - SPARSITY) * size,
    }


def _sparsity_claims(each: list[dict[str, float]]) -> list[Claim]:
    mean = mean_of(each)
    off = max(figures["off"] for figures in each)
    return [
        at_least("2. UA of fine-tuning at 99% above that of the dense model", mean["ua"], 45.0),
        at_most("2. gap to retraining at 99%, as a share of the dense one", mean["gap"], 0.5),
        at_least("2. TA at 99% above that of the dense model", mean["ta"], -3.5),
        at_most("2. weight distance to retraining at 99%, as a share of the dense one", mean["apart"], 0.9),
        at_most("3. weights by which the sparsity is off", off, 1.0),
    ]


def _backdoor(train: ExampleSet, test: ExampleSet, *, seed: int) -> list[Claim]:
    """Success of the attack (of test images of other classes that carry the patch) and accuracy on clean ones."""
    data = joined(train, test)
    poisoned, ids = add_poison_trigger(
        data, count=POISONED, target=TARGET, patch=PATCH, seed=derive_seed("trigger", seed) % 2**31
    )
    marked = triggered(data, test.example_id, patch=PATCH).subset(test.example_id)
    planted = poisoned.subset(train.example_id)
    split = of_rows(planted, test, np.isin(planted.example_id, ids), seed=seed)

    def said(model: nn.Module) -> tuple[float, float]:
        success = attack_success_rate(predict_logits(model, marked), marked.y, target=TARGET).value
        right = predict_logits(model, test).argmax(axis=1) == test.y
        return 100 * (np.nan if success is None else success), 100 * float(right.mean())

    model, order = TRAINER.one(planted, _model_seed(seed)), derive_seed("cleaned", seed) % 2**31
    tuned = finetune(model, **split.sets, config=FinetuneConfig.from_mapping(CLEANING), seed=order)
    sparse_config = L1SparseConfig.from_mapping({**CLEANING, "gamma": 3e-3})
    sparse = l1_sparse(model, **split.sets, config=sparse_config, seed=order)
    (before, right), (left, _), (gone, kept) = said(model), said(tuned), said(sparse)
    return [
        at_least("4. attack success of the model with the backdoor", before, 90.0),
        at_most("4. attack success after l1-sparse", gone, 15.0),
        at_least("4. attack success after fine-tuning above that after l1-sparse", left - gone, 70.0),
        at_least("4. accuracy on clean images after l1-sparse above that before", kept - right, -6.0),
    ]
