"""What is measured on a model that predicts a number after unlearning. Closer to retraining is better, throughout.

    W1       1-Wasserstein distance of two samples of predictions on D_f, in the target's unit
    MIA      share of D_f that an SVM (RBF, C = 3, gamma = 1) on |error| calls member, fitted on as many training
             as test examples
    AIN      rt(unlearned) / rt(retrained),  rt = batches of training on all of D until the mean absolute error on the
             forgotten validation examples is at most (1 + a) times the original's, looked at after each batch
    relative |f_u(x) - f_r(x)| / |y|

AIN 1 is ideal, near 0 means the knowledge is still there. The larger forget error is not the better one: targets are
bounded, and outside the retained range retraining extrapolates; so compare distributions. The membership attack flags
a model retrained without a range of targets as non-member by construction: run it on random forgetting too.

Source: Tarun et al., "Deep Regression Unlearning" (ICML 2023); AIN: Chundawat et al. (2023). The published code of AIN
trains the models it is given; here copies are trained.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import wasserstein_distance
from sklearn.svm import SVC
from torch import nn

from contracts.digests import derive_seed
from contracts.errors import DataError, Diverged, InvalidInput
from recipes.fitting import take_step
from recipes.predict import predict_logits
from recipes.rng import generator, local_rng
from sources.example_set import ExampleSet
from tasks.base import require
from unlearning.descent import batches_of, inputs_of, sizes_of, start
from unlearning.regression.errors import WANTS, own_errors

ERROR_RANGE, RELEARN_EPOCHS, ATTACK_SIDE = 0.05, 10, 2000


def predictions(model: nn.Module, data: ExampleSet) -> NDArray[np.float64]:
    """(N,) the number that the model says of each example, in the order of ``data``, in the target's unit.

    Raises:
        NotApplicable: the task's target is no number.
        Diverged: a prediction that is not finite.
    """
    require(data, "predictions of a number", "numbers")
    try:
        said = predict_logits(model, data)
    except DataError as error:
        raise Diverged(str(error)) from error
    return said.reshape(len(data)).astype(np.float64)


def mean_absolute_error(model: nn.Module, data: ExampleSet) -> float:
    """Mean of |f(x) - y| in the target's unit; NaN without examples."""
    return float(np.abs(predictions(model, data) - data.y).mean()) if len(data) else float("nan")


def wasserstein_to_retrain(unlearned: ArrayLike, retrained: ArrayLike) -> float:
    """W1 of two samples of predictions (n,) and (m,), >= 0, in their unit; lower = closer.

    Raises:
        InvalidInput: an empty sample, or values that are not finite.

    >>> wasserstein_to_retrain([0.0, 1.0], [3.0, 2.0])
    2.0
    """
    own, other = (_finite(values, "predictions") for values in (unlearned, retrained))
    return float(wasserstein_distance(own, other))


def relative_difference(unlearned: ArrayLike, retrained: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
    """(n,) |f_u - f_r| / |y| of each example, >= 0; NaN where the target is 0, of which there is no share.

    Raises:
        InvalidInput: other lengths, or values that are not finite.
    """
    own, other, y = (_finite(values, "predictions or targets") for values in (unlearned, retrained, targets))
    if not len(own) == len(other) == len(y):
        raise InvalidInput(f"{len(own)} and {len(other)} predictions for {len(y)} targets: one each is needed")
    return np.divide(np.abs(own - other), np.abs(y), out=np.full(len(y), np.nan), where=y != 0)


def error_membership_rate(
    train: ArrayLike, test: ArrayLike, asked: ArrayLike, *, seed: int, most: int = ATTACK_SIDE
) -> float:
    """Share in [0, 1] of the ``asked`` examples that the attack calls member; NaN without any.

    Args:
        train, test: |errors| of members and of non-members; as many of each are drawn for the fit, at most ``most``.
        asked: |errors| of the forgotten examples.

    Raises:
        InvalidInput: no example on a side, or values that are not finite.
    """
    sides = [_finite(values, "errors") for values in (train, test)]
    if not len(np.atleast_1d(asked)):
        return float("nan")
    size = min(most, *map(len, sides))
    rng = np.random.default_rng(derive_seed("error membership", seed))
    drawn = [rng.choice(np.sort(side), size, replace=False) for side in sides]
    attack = SVC(C=3, gamma="auto", kernel="rbf")
    attack.fit(np.concatenate(drawn)[:, None], np.repeat([1, 0], size))
    return float(attack.predict(_finite(asked, "errors")[:, None]).mean())


@dataclass(frozen=True)
class Relearning:
    """How long a model takes to know again.

    Attributes:
        batches: steps done, >= 1.
        reached: whether the error was reached within the epochs allowed.
    """

    batches: int
    reached: bool


def relearning(
    model: nn.Module,
    data: ExampleSet,
    watched: ExampleSet,
    *,
    error: float,
    seed: int,
    lr: float = 0.001,
    batch: int = 256,
    epochs: int = RELEARN_EPOCHS,
) -> Relearning:
    """rt: steps of Adam on the absolute error of all of ``data`` until that of ``watched`` is at most ``error``.

    Args:
        model: not changed.
        data: D, all training examples, retained and forgotten.
        watched: validation examples of what was forgotten.
        error: mean absolute error in the target's unit.
        seed: batch order and dropout: one for all models that are compared.
        lr: of Adam; published 1e-3 by default, 1e-2 in use. In units of the targets' own spread.
        epochs: at most, over ``data``.

    Raises:
        NotApplicable: the task's target is no number.
        InvalidInput: no example to train on or to watch.
        Diverged: the run left the finite numbers.
    """
    for part, name in ((data, "data"), (watched, "watched")):
        require(part, "relearning", *WANTS)
        if not len(part):
            raise InvalidInput(f"relearning: {name} holds no examples")
    student, inputs = copy.deepcopy(model), inputs_of(model, data)
    units = start(student, data)
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=lr)
    order, done = generator(derive_seed("relearning", "order", seed)), 0
    losses = own_errors("l1")
    with local_rng(derive_seed("relearning", "noise", seed), device=inputs.device):
        for _ in range(epochs):
            for rows in batches_of(torch.randperm(len(inputs), generator=order), batch):
                student.train()
                one = inputs.batch(rows.to(inputs.device))
                if units is not None:
                    one = dataclasses.replace(one, targets=units.of(one.targets))
                loss = take_step(optimizer, losses(student, one).mean())
                done += 1
                if not bool(torch.isfinite(loss)):
                    raise Diverged(f"relearning at lr {lr:g}: loss {float(loss)} in step {done}")
                said = predictions(student, watched)
                if units is not None:
                    said = said * units.scale + units.shift
                if float(np.abs(said - watched.y).mean()) <= error:
                    return Relearning(done, True)
    return Relearning(done, False)


def anamnesis_index(
    unlearned: nn.Module,
    *,
    original: nn.Module,
    retrained: nn.Module,
    data: ExampleSet,
    watched: ExampleSet,
    seed: int,
    error_range: float = ERROR_RANGE,
    lr: float = 0.001,
    batch: int = 256,
) -> tuple[float, Relearning, Relearning]:
    """AIN >= 0 of an unlearned model, and how the two models relearned; no model is changed.

    Where one does not reach the error within ten epochs, its rt is all of their batches, as published: see ``reached``.

    Args:
        error_range: a.
        others: as of :func:`relearning`.
    """
    error = (1 + error_range) * mean_absolute_error(original, watched)
    own, other = (
        relearning(model, data, watched, error=error, seed=seed, lr=lr, batch=batch) for model in (unlearned, retrained)
    )
    return own.batches / other.batches, own, other


def run_figures(
    model: nn.Module,
    *,
    original: nn.Module,
    retain: ExampleSet,
    forget: ExampleSet,
    train: ExampleSet,
    test: ExampleSet,
    seed: int,
) -> tuple[dict[str, float], NDArray[np.float64], Relearning]:
    """What is measured of one unlearned model alone; W1 and AIN want what retraining gives here, too.

    What is relearnt is the error on the forgotten examples themselves: a plan holds no validation examples of theirs.
    Adam at 0.01 (published: 0.001 to 0.01) on batches of a hundredth of ``train``, of 32 at least, which bounds the
    time.

    Args:
        model, original: the unlearned and the audited model; neither is changed.
        retain, forget: the parts of ``train``; one retained and one forgotten example at least.
        test: one example at least.
        seed: one for all methods that are compared.

    Returns:
        ``mae_forget``, ``mae_retain``, ``mae_test`` in the target's unit and ``mia_member`` in percent; the (N_f,)
        predictions on ``forget``, by its order; and how it relearned.

    Raises:
        NotApplicable: the task's target is no number.
        InvalidInput: no example on a side.
        Diverged: a prediction is not finite.
    """
    said = predictions(model, forget)
    gone, kept, unseen = (
        np.abs(found - data.y)
        for found, data in ((said, forget), (predictions(model, retain), retain), (predictions(model, test), test))
    )
    member = error_membership_rate(kept, unseen, gone, seed=seed)
    figures = {
        "mae_forget": gone.mean(),
        "mae_retain": kept.mean(),
        "mae_test": unseen.mean(),
        "mia_member": 100 * member,
    }
    batch = max(32, len(train) // 100)
    goal = (1 + ERROR_RANGE) * mean_absolute_error(original, forget)
    try:
        relearned = relearning(model, train, forget, error=goal, seed=seed, lr=0.01, batch=batch)
    except Diverged:  # of the measurement, not of the model: it never gets there
        relearned = Relearning(RELEARN_EPOCHS * len(sizes_of(len(train), batch)), False)
    return {name: float(value) for name, value in figures.items()}, said, relearned


def against_retraining(
    predicted: ArrayLike, own: Relearning, *, retrained: ArrayLike, reference: Relearning
) -> dict[str, float]:
    """``w1`` and ``ain`` of a run, and its ``relearn_batches`` where it relearned within the epochs allowed.

    Args:
        predicted, own: predictions on the forget set and relearning of the run. ``retrained``, ``reference``: those of
            retraining of the same seed.

    Returns:
        No ``ain`` where neither relearned: the ratio of two bounds says nothing.

    >>> never, late, soon = Relearning(70, False), Relearning(40, True), Relearning(2, True)
    >>> against_retraining([0.0], soon, retrained=[1.0], reference=late)
    {'w1': 1.0, 'relearn_batches': 2.0, 'ain': 0.05}
    >>> against_retraining([0.0], never, retrained=[1.0], reference=never)
    {'w1': 1.0}
    """
    found = {"w1": wasserstein_to_retrain(predicted, retrained)}
    if own.reached:
        found["relearn_batches"] = float(own.batches)
    if own.reached or reference.reached:
        found["ain"] = own.batches / reference.batches
    return found


def _finite(values: ArrayLike, what: str) -> NDArray[np.float64]:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise InvalidInput(f"{what} of shape {found.shape}: (n,) finite numbers are needed, n >= 1")
    return found
