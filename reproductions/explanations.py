"""Explanations against deletions (Krishna et al., ICML 2023) on scikit-learn's breast cancer, 398 training examples of
569.

Eight stratified 70/30 splits, features standardised on the training part, logistic regression with C = 0.01, the first
20 rejected test inputs of each; k = 3 and k = 19 deletions (0.75% and 4.8%); real retraining throughout.

1. First-order influence predicts the weights after a single deletion.
2. Random deletions: robust explanations stay valid, plain ones often do not.
3. Worst deletions: plain explanations all break. First-order robust ones break too, reported here; one Newton step
   corrects most, at k = 19 not all, and a deletion searched step by step breaks half of those. Cuts found step by step
   and really retrained survive it, and every one of the 398 single deletions.
4. Robustness costs more the more deletions it is for; the published one-shot choice of S leaves the linearised bound
   broken.
5. Invariants of the algebra and of the solvers.
6. A network that is not linear, through soft local surrogates: as 2, by real retraining of the network.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch

from attacks.recourse_invalidation import own_deletion_logits, random_deletions, recourse_validity, worst_case_deletion
from contracts.digests import derive_seed
from contracts.progress import Progress
from explain.counterfactuals import (
    LogisticModel,
    SolverConfig,
    SurrogateConfig,
    cost,
    fit_logistic,
    fit_softplus_mlps,
    hessian,
    influence_matrix,
    leave_out,
    linear,
    nonlinear_counterfactuals,
    retrain,
    rocerf,
    solve,
    wachter_counterfactual,
    worst_logit,
)
from reproductions.framework import Claim, at_least, at_most, reproduction
from sources.loading import load

SPLITS, QUERIES, DRAWS, SIZES = 8, 20, 30, (3, 19)
GRID = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
METHODS = {
    "first": {"influence": "first"},
    "one-shot": {"influence": "first", "mode": "one_shot"},
    "newton": {"influence": "newton"},
    "retrain": {"influence": "retrain", "search": "exchange"},
}


@reproduction(card=30, name="explanations", paper="Krishna et al. 2023")
def explanations(seed: int, progress: Progress) -> list[Claim]:
    rows = []
    for split in range(SPLITS):
        root = derive_seed("split", seed, split) % 2**31
        rows.append({**_split(root), **(_network(root) if split < 2 else {})})
        progress(split + 1, SPLITS, "splits of breast cancer")
    names = {name for row in rows for name in row}
    mean = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
    worst = {name: float(np.max([row[name] for row in rows if name in row])) for name in names}
    least = {name: float(np.min([row[name] for row in rows if name in row])) for name in names}
    claims = [
        at_least("1. correlation of predicted and true weights, worst of 80 single deletions", least["corr"], 0.99)
    ]
    for k in SIZES:
        claims += [
            at_least(f"2. random deletions, k = {k}: newton ROCERF valid", mean[f"random newton {k}"], 0.98),
            at_least(f"2. random deletions, k = {k}: first-order ROCERF valid", mean[f"random first {k}"], 0.98),
            at_most(f"2. random deletions, k = {k}: plain valid", mean[f"random plain {k}"], 0.75),
            at_most(f"3. worst deletions, k = {k}: plain valid", mean[f"worst plain {k}"], 0.05),
            at_most(f"3. worst deletions, k = {k}: first-order ROCERF valid (it fails)", mean[f"worst first {k}"], 0.2),
            at_least(f"3. searched deletions, k = {k}: retrained ROCERF valid", mean[f"searched retrain {k}"], 0.95),
            at_least(f"4. cutting plane, k = {k}: share with F_k >= 0", least[f"bound first {k}"], 1.0),
            at_least(
                f"4. the same above one-shot, k = {k}", mean[f"bound first {k}"] - mean[f"bound one-shot {k}"], 0.2
            ),
        ]
    claims += [
        at_least("3. worst deletions, k = 3: newton ROCERF valid", mean["worst newton 3"], 0.9),
        # One split: 0.75 to 0.95 on 12 of them, 0.88 on average (0.93 of 15 queries when first measured, on one split).
        # Mean over five splits: 0.85 to 0.95 on seeds 0 to 4; over eight: 0.88 to 0.93 on seeds 0, 1, 5, 6, 7.
        at_least("3. worst deletions, k = 19: newton ROCERF valid", mean["worst newton 19"], 0.8),
        at_most("3. searched deletions, k = 19: newton ROCERF valid (half fails)", mean["searched newton 19"], 0.75),
        at_least("3. all 398 single deletions: retrained ROCERF for k = 1 valid", mean["every single"], 0.98),
        at_most("3. cost of newton ROCERF / plain, k = 3", mean["cost newton 3"] / mean["cost plain 3"], 1.2),
        # One split: 1.16 to 1.28, since queries near the boundary have small plain costs. Mean over five: 1.18 to 1.23;
        # over eight: 1.18 to 1.20.
        at_most("3. cost of newton ROCERF / plain, k = 19", mean["cost newton 19"] / mean["cost plain 19"], 1.25),
        at_most("3. cost of retrained ROCERF / newton, k = 19", mean["cost retrain 19"] / mean["cost newton 19"], 1.05),
        at_least("4. smallest growth of the mean cost along k = 0, 0.5, 1, 2, 3, 5%", least["growth"], 1e-3),
        at_most("5. |F_k by sorting - F_k by all subsets|, n = 12, k <= 3", worst["subsets"], 1e-9),
        at_most("5. |ROCERF with k = 0 - closed form of the plain one|", worst["k = 0"], 1e-9),
        at_most("5. largest rise of F_k with k", worst["rise"], 1e-9),
        at_most("5. largest breach of concavity on random segments", worst["convex"], 1e-9),
        at_most("5. Adam's cost over the closed form - 1", worst["adam"], 1e-2),
        at_most("5. |H - Hessian by autograd|", worst["autograd"], 1e-9),
        # Robust 0.97 to 1.00, plain 0.46 to 0.53 on seeds 0, 1, 6 and 7.
        at_least("6. network, random deletions, k = 19: robust valid", mean["network robust"], 0.9),
        at_most("6. network, random deletions, k = 19: plain valid", mean["network plain"], 0.8),
        at_most("6. network: cost of robust / plain", mean["network cost"], 1.3),
    ]
    return sorted(claims, key=lambda claim: claim.name[0])


def _split(seed: int) -> dict[str, float]:
    model, x = _world(seed)
    n, rng = len(model.y), np.random.default_rng(seed)
    single = random_deletions(model, k=1, draws=10, seed=seed)
    true, predicted = retrain(model, single) - model.weights, leave_out(model, single) - model.weights
    found = {"corr": min(float(np.corrcoef(a, b)[0, 1]) for a, b in zip(true, predicted, strict=True))}
    plain = wachter_counterfactual(model, x)
    for k in SIZES:
        given = {"plain": plain, **{name: rocerf(model, x, k=k, **how) for name, how in METHODS.items()}}  # type: ignore[arg-type]
        chance = random_deletions(model, k=k, draws=DRAWS, seed=seed)
        for name, explained in given.items():
            points = explained.x
            found[f"cost {name} {k}"] = float(cost(x, points, norm=2).mean())
            found[f"bound {name} {k}"] = float((worst_logit(model, points, k=k)[0] >= 0).mean())
            found[f"random {name} {k}"] = float((recourse_validity(model, points, chance) >= 0).mean())
            for what, search in (("worst", "one_shot"), ("searched", "best")):
                removed = worst_case_deletion(model, points, k=k, search=search)  # type: ignore[arg-type]
                found[f"{what} {name} {k}"] = float((own_deletion_logits(model, points, removed) >= 0).mean())
    for_one = rocerf(model, x, k=1, **METHODS["retrain"])  # type: ignore[arg-type]
    found["every single"] = float((recourse_validity(model, for_one.x, np.eye(n, dtype=bool)) >= 0).all(axis=0).mean())
    by_size = [cost(x, rocerf(model, x, k=int(p * n / 100)).x, norm=2).mean() for p in GRID]
    return {**found, "growth": float(np.diff(by_size).min()), **_invariants(model, x, rng)}


def _invariants(model: LogisticModel, x: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    values = {k: worst_logit(model, x, k=k)[0] for k in range(0, 40, 3)}
    a, b, t = x, x[rng.permutation(len(x))] + rng.normal(size=x.shape), rng.random((len(x), 1))
    between, ends = (worst_logit(model, p, k=19)[0] for p in (t * a + (1 - t) * b, np.concatenate([a, b])))
    chord = t[:, 0] * ends[: len(a)] + (1 - t[:, 0]) * ends[len(a) :]
    few = rng.choice(len(model.y), 12, replace=False)
    few[:2] = np.flatnonzero(model.y == 0)[0], np.flatnonzero(model.y == 1)[0]
    small = fit_logistic(model.x[few, :-1], model.y[few], np.arange(12), c=model.c)
    shifts = influence_matrix(small, x)
    gaps = []
    for k in range(4):
        sets = [list(s) for size in range(k + 1) for s in combinations(range(12), size)]
        brute = small.logits(x) + np.min([shifts[:, s].sum(axis=1) for s in sets], axis=0)
        gaps.append(np.abs(brute - worst_logit(small, x, k=k)[0]).max())
    v = model.weights[:-1]
    formula = x + ((1e-3 - model.logits(x)) / (v @ v))[:, None] * v
    adam = solve(linear(model), x[:6], target=1e-3, config=SolverConfig(iterations=30_000))
    closed = cost(x[:6], formula[:6], norm=2)
    # A query on the boundary costs nothing: below a tenth of a standard deviation the error counts against that.
    over = (cost(x[:6], adam.x, norm=2) - closed) / np.maximum(closed, 0.1)
    return {
        "subsets": float(max(gaps)),
        "k = 0": float(np.abs(rocerf(model, x, k=0).x - formula).max()),
        "rise": float(np.diff(np.stack(list(values.values())), axis=0).max()),
        "convex": float((chord - between).max()),
        "adam": float(np.abs(over).max()),
        "autograd": float(np.abs(hessian(model) - _autograd_hessian(model)).max()),
    }


def _autograd_hessian(model: LogisticModel) -> np.ndarray:
    x, y, penalty = (torch.from_numpy(v) for v in (model.x, model.y, model.penalty))

    def loss(w: torch.Tensor) -> torch.Tensor:
        f = x @ w
        return (torch.nn.functional.softplus(f) - y * f).mean() + 0.5 * (penalty * w**2).sum() / len(y)

    return torch.autograd.functional.hessian(loss, torch.from_numpy(model.weights)).numpy()  # type: ignore[no-untyped-call]


def _network(seed: int) -> dict[str, float]:
    model, x = _world(seed)
    removed = random_deletions(model, k=19, draws=DRAWS, seed=seed)
    removed = np.concatenate([np.zeros_like(removed[:1]), removed])
    inputs = model.x[:, :-1]
    networks = fit_softplus_mlps(inputs, model.y, removed, seed=seed)
    whole = fit_softplus_mlps(inputs, model.y, removed[:1], seed=seed)

    def decide(points: np.ndarray) -> np.ndarray:
        return whole.logits(points)[0]

    queries = x[decide(x) < 0][:10]
    found, config = {}, SurrogateConfig(draws=3000)
    given = {
        name: nonlinear_counterfactuals(decide, model, queries, k=k, seed=seed, config=config)
        for name, k in (("plain", 0), ("robust", 19))
    }
    for name, explained in given.items():
        points = explained.x[explained.found]
        found[f"network {name}"] = float((networks.logits(points)[1:] >= 0).mean()) if len(points) else float("nan")
    both = given["plain"].found & given["robust"].found
    prices = [cost(queries, given[name].x, norm=2)[both].mean() for name in ("robust", "plain")]
    return {**found, "network cost": float(prices[0] / prices[1])}


def _world(seed: int) -> tuple[LogisticModel, np.ndarray]:
    """The fitted model and the rejected test inputs with the smallest ids."""
    data = load("sklearn", {"dataset": "breast_cancer", "test_fraction": 0.3}, seed=seed)
    train, test = data.part("train"), data.part("test")
    model = fit_logistic(train.inputs(slice(0, len(train))), train.y, train.example_id, c=0.01)
    points = test.by_id().inputs(slice(0, len(test))).astype(np.float64)
    return model, points[model.logits(points) < 0][:QUERIES]
