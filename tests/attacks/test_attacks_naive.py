"""Every registered attack against a transcription of its paper's formula: loops over plain lists, the ``math`` module.

Nothing of the package is used on the expected side, not even the log-odds: softmax(z) is formed by shifted
exponentials, 1 - p as the sum of the other probabilities. Agreement to 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest
from planted_logits import LogitEvidence
from sklearn.linear_model import LogisticRegression

from contracts.methods import attack

CASES = [
    {"seed": 20},
    {"seed": 21, "models": 9, "balanced": False},
    {"seed": 22, "models": 14, "self_targets": False, "balanced": False},
]
Rows = list[float]


def softmax(z: Rows) -> Rows:
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / math.fsum(e) for v in e]


def rest(p: Rows, k: int) -> float:
    return math.fsum(p[:k] + p[k + 1 :])


def phi_of(z: Rows, y: int) -> float:
    p = softmax(z)
    return math.log(p[y]) - math.log(rest(p, y))


def loss_of(z: Rows, y: int) -> float:
    return -math.log(softmax(z)[y])


def entropy_of(z: Rows) -> float:
    return -math.fsum(v * math.log(v) for v in softmax(z))


def modified_entropy_of(z: Rows, y: int) -> float:
    p = softmax(z)
    mine = -rest(p, y) * math.log(max(p[y], 1e-30))
    return mine - math.fsum(p[k] * math.log(max(rest(p, k), 1e-30)) for k in range(len(p)) if k != y)


class World:
    """An LogitEvidence as lists, the references without each target's own row."""

    def __init__(self, evidence: LogitEvidence) -> None:
        self.y = evidence.labels.tolist()
        self.target = evidence.target_logits.astype(np.float64).tolist()
        self.reference = evidence.reference_logits.astype(np.float64).tolist()
        self.keep = evidence.keep.tolist()
        self.z_y = evidence.population_labels.tolist()
        self.z_target = evidence.population_target_logits.astype(np.float64).tolist()
        self.z_reference = evidence.population_reference_logits.astype(np.float64).tolist()
        self.left_out = evidence.left_out.tolist()

    def others(self, t: int) -> list[int]:
        return [m for m in range(len(self.reference)) if m != self.left_out[t]]

    def groups(self, t: int, n: int) -> tuple[list[int], list[int]]:
        rows = self.others(t)
        return [m for m in rows if self.keep[m][n]], [m for m in rows if not self.keep[m][n]]

    def scores(self, of: Callable[[int, int], float]) -> np.ndarray:
        return np.array([[of(t, n) for n in range(len(self.y))] for t in range(len(self.target))])


def log_normal(x: float, mu: float, s: float) -> float:
    s += 1e-30
    return -0.5 * math.log(2 * math.pi) - math.log(s) - 0.5 * ((x - mu) / s) ** 2


def log_ratio(x: float, a: float, s: float, b: float, t: float) -> float:
    return log_normal(x, a, s) - log_normal(x, b, t)


def online_pooled(x: float, a: float, s: float, b: float, t: float) -> float:
    """The log ratio up to its turning point; from there on that of two normals of the wider spread."""
    below, here, above = (log_ratio(u, a, s, b, t) for u in (-1.0, 0.0, 1.0))
    vertex = (below - above) / (2 * (above + below - 2 * here))
    if (x - vertex) * ((a + b) / 2 - vertex) >= 0:
        return log_ratio(x, a, s, b, t)
    wide = max(s, t)
    return log_ratio(vertex, a, s, b, t) + log_ratio(x, a, wide, b, wide) - log_ratio(vertex, a, wide, b, wide)


def spread(values: Rows) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


def lira(world: World, kind: str, variance: str) -> np.ndarray:
    y = world.y
    phi = [[phi_of(row, c) for row, c in zip(model, y, strict=True)] for model in world.reference]

    def shared(t: int, side: int) -> float:
        """One spread for all examples: within-example residuals pooled, or all values at once."""
        columns = [[phi[m][n] for m in world.groups(t, n)[side]] for n in range(len(y))]
        if variance == "fixed":
            return spread([v for column in columns for v in column])
        squares = [spread(c) ** 2 * len(c) for c in columns if len(c) >= 2]
        return math.sqrt(math.fsum(squares) / sum(len(c) - 1 for c in columns if len(c) >= 2))

    pooled = {
        (t, side): shared(t, side) if variance != "per_example" else math.nan
        for t in range(len(world.target))
        for side in (0, 1)
    }

    def score(t: int, n: int) -> float:
        inside, outside = ([phi[m][n] for m in group] for group in world.groups(t, n))
        if len(outside) < 2 or (kind == "online" and len(inside) < 2):
            return math.nan
        x = phi_of(world.target[t][n], y[n])
        s_in = spread(inside) if variance == "per_example" and len(inside) >= 2 else pooled[t, 0]
        s_out = spread(outside) if variance == "per_example" else pooled[t, 1]
        if kind == "online":
            s_out = s_in if variance == "fixed" else s_out
            ratio = online_pooled if variance == "pooled" else log_ratio
            return ratio(x, median(inside), s_in, median(outside), s_out)
        if kind == "upper":
            return (x - median(outside)) / (s_out + 1e-30)
        return -log_normal(x, median(outside), s_out)

    return world.scores(score)


def rmia(world: World, gamma: float, a: float | None) -> np.ndarray:
    """The paper's share of z, in (0, 1, ..., P) / P, without our tie-break."""
    p = [[softmax(row)[c] for row, c in zip(model, world.y, strict=True)] for model in world.reference]
    z = [[softmax(row)[c] for row, c in zip(model, world.z_y, strict=True)] for model in world.z_reference]

    def mean(values: Rows) -> float:
        return math.fsum(values) / len(values)

    ratio_z = [
        [
            softmax(row)[c] / mean([z[m][i] for m in world.others(t)])
            for i, (row, c) in enumerate(zip(world.z_target[t], world.z_y, strict=True))
        ]
        for t in range(len(world.target))
    ]

    def score(t: int, n: int) -> float:
        inside, outside = ([p[m][n] for m in group] for group in world.groups(t, n))
        if not outside or (a is None and not inside):
            return math.nan
        out = mean(outside)
        marginal = (mean(inside) + out) / 2 if a is None else ((1 + a) * out + (1 - a)) / 2
        ratio = softmax(world.target[t][n])[world.y[n]] / marginal
        return mean([float(ratio / r >= gamma) for r in ratio_z[t]])

    return world.scores(score)


def run(name: str, evidence: LogitEvidence, **config: object) -> np.ndarray:
    method = attack.get(name)
    return method(evidence, config=method.spec.config.from_mapping(config), seed=0)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attacks_on_the_target_alone(planted, case: dict) -> None:
    evidence = planted(**case)
    w = World(evidence)
    same(run("loss", evidence), w.scores(lambda t, n: -loss_of(w.target[t][n], w.y[n])))
    same(run("entropy", evidence), w.scores(lambda t, n: -entropy_of(w.target[t][n])))
    same(run("modified_entropy", evidence), w.scores(lambda t, n: -modified_entropy_of(w.target[t][n], w.y[n])))
    same(run("gap", evidence), w.scores(lambda t, n: float(w.target[t][n].index(max(w.target[t][n])) == w.y[n])))
    z_loss = [[loss_of(row, c) for row, c in zip(model, w.z_y, strict=True)] for model in w.z_target]
    population = w.scores(lambda t, n: sum(v > loss_of(w.target[t][n], w.y[n]) for v in z_loss[t]) / len(w.z_y))
    same(run("population", evidence), population)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_attack(planted, case: dict) -> None:
    evidence = planted(**case)
    w = World(evidence)

    def share(t: int, n: int) -> float:
        outside = w.groups(t, n)[1]
        mine = loss_of(w.target[t][n], w.y[n])
        return sum(loss_of(w.reference[m][n], w.y[n]) > mine for m in outside) / len(outside) if outside else math.nan

    same(run("reference", evidence), w.scores(share))


@pytest.mark.parametrize("variance", ["pooled", "per_example", "fixed"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lira(planted, case: dict, variance: str) -> None:
    evidence = planted(**case)
    world = World(evidence)
    same(run("lira_online", evidence, variance=variance), lira(world, "online", variance))
    for tail in ("upper", "density"):
        same(run("lira_offline", evidence, variance=variance, tail=tail), lira(world, tail, variance))


@pytest.mark.parametrize("name", ["lira_online", "lira_offline"])
def test_lira_over_queries_is_the_mean_of_its_single_queries(planted, name: str) -> None:
    """Eighteen queries an example, as in the paper: each its own attack, then their mean."""
    evidence = planted(23, queries=18, examples=12)
    fields = {f: getattr(evidence, f) for f in evidence.__dataclass_fields__}
    singles = []
    for q in range(18):
        one = fields | {part: fields[part][:, :, q] for part in ("target_logits", "reference_logits")}
        singles.append(lira(World(LogitEvidence(**one)), "online" if name == "lira_online" else "upper", "pooled"))
    same(run(name, evidence), np.mean(singles, axis=0))


@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rmia(planted, case: dict, gamma: float) -> None:
    evidence = planted(**case)
    world, points = World(evidence), len(evidence.population_labels)
    for a in (None, 0.0, 0.3, 1.0):
        more = {} if a is None else {"a": a}
        found = run("rmia_online" if a is None else "rmia_offline", evidence, gamma=gamma, **more)
        # Ours is (number of z + a fraction below 1 that breaks ties) / (P + 1).
        same(np.floor(found * (points + 1)) / points, rmia(world, gamma, a))


def test_modified_entropy_per_class(planted) -> None:
    """Song's threshold of each class: the value of the shadow's own that is best on the shadow's own."""
    evidence = planted(24, models=6, examples=120)
    w = World(evidence)
    found = run("modified_entropy_per_class", evidence)
    order = np.random.default_rng(0).permutation(6).tolist()
    tau: dict[tuple[int, int], float] = {}
    for shadow in order[:2]:
        values = [modified_entropy_of(z, c) for z, c in zip(w.reference[shadow], w.y, strict=True)]
        for c in sorted(set(w.y)):
            members, others = (
                [v for v, y, k in zip(values, w.y, w.keep[shadow], strict=True) if y == c and k == kind]
                for kind in (True, False)
            )

            def balanced(limit: float, members: Rows = members, others: Rows = others) -> float:
                tpr = sum(v <= limit for v in members) / len(members)
                return (tpr + sum(v > limit for v in others) / len(others)) / 2

            # Among equals the first in Song's ascending search.
            tau[shadow, c] = max(sorted(members + others), key=balanced)

    def score(t: int, n: int) -> float:
        shadow = order[0] if order[0] != t else order[1]
        return tau[shadow, w.y[n]] - modified_entropy_of(w.target[t][n], w.y[n])

    same(found, w.scores(score))


def test_shadow_model(planted) -> None:
    """Shokri's rows by hand, one logistic regression a class on standardised columns; strangers as targets."""
    evidence = planted(25, models=9, examples=60, self_targets=False)
    w = World(evidence)

    def row(z: Rows, y: int) -> Rows:
        return [*sorted(softmax(z), reverse=True)[:3], loss_of(z, y), entropy_of(z), float(z.index(max(z)) == y)]

    expected = np.full((3, 60), np.nan)
    for c in sorted(set(w.y)):
        examples = [n for n in range(60) if w.y[n] == c]
        x = np.array([row(w.reference[m][n], c) for m in range(6) for n in examples])
        member = [w.keep[m][n] for m in range(6) for n in examples]
        centre, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale == 0] = 1
        model = LogisticRegression(max_iter=1000).fit((x - centre) / scale, member)
        for t in range(3):
            own = np.array([row(w.target[t][n], c) for n in examples])
            logit = ((own - centre) / scale) @ model.coef_[0] + model.intercept_[0]
            expected[t, examples] = 1 / (1 + np.exp(-logit))
    same(run("shadow_model", evidence), expected)
