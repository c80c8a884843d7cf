"""LiRA against a naive transcription of each formula, and its invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_logits import LogitEvidence

from attacks.membership import Evidence, gaussian, leave_one_out, lira
from attacks.membership.lira import LiraOfflineConfig, LiraOnlineConfig, lira_offline, lira_online, log_ratio
from contracts.errors import ConfigError
from stats import auc
from tasks.base import Reading
from tasks.signals import log_odds

TINY = 1e-30


def log_normal(x: float, mu: float, s: float) -> float:
    return -0.5 * np.log(2 * np.pi) - np.log(s) - 0.5 * ((x - mu) / s) ** 2


def naive_spread(phi: np.ndarray, member: np.ndarray, n: int, variance: str) -> float:
    """phi, member: (references, N) without the target."""
    if variance == "per_example":
        return float(np.std(phi[member[:, n], n])) + TINY
    if variance == "fixed":
        return float(np.std(phi[member])) + TINY
    squares, freedom = 0.0, 0
    for j in range(phi.shape[1]):
        values = phi[member[:, j], j]
        if len(values) >= 2:
            squares += ((values - values.mean()) ** 2).sum()
            freedom += len(values) - 1
    return float(np.sqrt(squares / freedom)) + TINY


def not_beyond_the_vertex(x: float, a: float, s: float, b: float, t: float) -> float:
    """x, or the vertex of the parabola log N(.; a, s^2) - log N(.; b, t^2) where it lies between x and the centres."""
    below, here, above = (log_normal(u, a, s) - log_normal(u, b, t) for u in (-1.0, 0.0, 1.0))
    vertex = (below - above) / (2 * (above + below - 2 * here))
    return float(vertex if (x - vertex) * ((a + b) / 2 - vertex) < 0 else x)


def naive_lira(evidence: LogitEvidence, rows_of, variance: str, mode: str) -> np.ndarray:
    queries = evidence.target_logits.ndim == 4
    shape = (evidence.target_logits if queries else evidence.target_logits[:, :, None]).shape
    scores = np.full((shape[0], shape[1]), np.nan)
    for t in range(shape[0]):
        rows = rows_of(evidence, t)
        keep = evidence.keep[rows]
        per_query = np.full((shape[2], shape[1]), np.nan)
        for q in range(shape[2]):
            pick = (lambda z, q=q: z[:, :, q]) if queries else (lambda z: z)
            x = log_odds(pick(evidence.target_logits), evidence.labels)[t]
            phi = log_odds(pick(evidence.reference_logits), evidence.labels)[rows]
            shared = variance != "per_example"  # then one spread serves all examples
            all_in, all_out = (naive_spread(phi, g, 0, variance) if shared else None for g in (keep, ~keep))
            for n in range(shape[1]):
                inside, outside = phi[keep[:, n], n], phi[~keep[:, n], n]
                if len(outside) < 2 or (mode == "online" and len(inside) < 2):
                    continue
                s_out = all_out if shared else naive_spread(phi, ~keep, n, variance)
                if mode == "online":
                    s_in = all_in if shared else naive_spread(phi, keep, n, variance)
                    s_out = s_in if variance == "fixed" else s_out
                    a, b = np.median(inside), np.median(outside)
                    at = x[n] if variance != "pooled" else not_beyond_the_vertex(x[n], a, s_in, b, s_out)
                    ratio = log_normal(at, a, s_in) - log_normal(at, b, s_out)
                    per_query[q, n] = ratio + (a - b) * (x[n] - at) / max(s_in, s_out) ** 2
                elif mode == "upper":
                    per_query[q, n] = (x[n] - np.median(outside)) / s_out
                else:
                    per_query[q, n] = -log_normal(x[n], np.median(outside), s_out)
        scores[t] = per_query.mean(axis=0)
    return scores


CASES = [
    {"seed": 0},
    {"seed": 1, "models": 9, "balanced": False},
    {"seed": 2, "self_targets": False, "models": 13, "balanced": False},
    {"seed": 3, "queries": 3},
    {"seed": 4, "models": 7, "examples": 40, "balanced": False},
]


@pytest.mark.parametrize("variance", ["pooled", "per_example", "fixed"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_lira_equals_its_naive_transcription(planted, references_of, monkeypatch, case: dict, variance: str) -> None:
    for module in (gaussian, lira):
        monkeypatch.setattr(module, "BLOCK", 11)
    evidence = planted(**case)
    found = lira_online(evidence, config=LiraOnlineConfig(variance=variance), seed=0)
    np.testing.assert_allclose(found, naive_lira(evidence, references_of, variance, "online"), rtol=1e-9, atol=1e-9)
    for tail in ("upper", "density"):
        found = lira_offline(evidence, config=LiraOfflineConfig(variance=variance, tail=tail), seed=0)
        np.testing.assert_allclose(found, naive_lira(evidence, references_of, variance, tail), rtol=1e-9, atol=1e-9)


def test_targets_inside_and_outside_the_references_may_be_mixed(planted, references_of) -> None:
    evidence = planted(10, models=9, balanced=False)
    index = np.where(np.arange(9) % 3 == 0, -1, np.arange(9))
    mixed = LogitEvidence(**{**{f: getattr(evidence, f) for f in evidence.__dataclass_fields__}, "target_index": index})
    for variance in ("pooled", "per_example", "fixed"):
        found = lira_online(mixed, config=LiraOnlineConfig(variance=variance), seed=0)
        np.testing.assert_allclose(found, naive_lira(mixed, references_of, variance, "online"), rtol=1e-9, atol=1e-9)


def test_group_statistics_survive_a_target_that_holds_all_the_spread() -> None:
    rng = np.random.default_rng(0)
    values = 1.0 + 1e-7 * rng.normal(size=(8, 5))
    values[2] += 1e6
    member = np.ones((8, 5), dtype=bool)
    member[5:, 3] = False
    group = leave_one_out.Group(values, member, np.arange(8))
    for t in range(8):
        for n in range(5):
            rows = np.flatnonzero(member[:, n] & (np.arange(8) != t))
            v = values[rows, n]
            assert group.size[t, n] == len(v)
            assert group.median[t, n] == pytest.approx(np.median(v), rel=1e-12)
            assert group.sum_squares[t, n] == pytest.approx(((v - v.mean()) ** 2).sum(), rel=1e-9)


@pytest.mark.parametrize("holder", [0, 3, 7])
def test_the_pooled_spread_survives_a_target_that_holds_nearly_all_of_it(monkeypatch, holder: int) -> None:
    monkeypatch.setattr(gaussian, "BLOCK", 5)
    rng = np.random.default_rng(holder)
    values, member = 1e-3 * rng.normal(size=(8, 23)), rng.random((8, 23)) < 0.7
    values[holder] += 1e8 * rng.normal(size=23)
    found = gaussian.fit(values, member, np.arange(8), variance="pooled")
    for t in range(8):
        others = np.arange(8) != t
        assert found.scale[t, 0] == pytest.approx(naive_spread(values[others], member[others], 0, "pooled"), rel=1e-12)


@given(
    st.lists(st.integers(-9, 9), max_size=70),
    st.lists(st.one_of(st.integers(-9, 9), st.sampled_from([np.inf, -np.inf, -0.0])), max_size=40),
    st.sampled_from(["left", "right"]),
)
def test_count_below_is_searchsorted(limits: list[float], values: list[float], side: str) -> None:
    ascending = np.sort(np.array(limits, dtype=np.float64))
    found = leave_one_out.count_below(ascending, np.array(values, dtype=np.float64), side=side)
    assert found.tolist() == np.searchsorted(ascending, np.array(values, dtype=np.float64), side=side).tolist()
    assert leave_one_out.count_below(ascending, np.array([np.nan]), side=side).tolist() == [0]


def test_group_statistics_of_equal_values_and_small_groups() -> None:
    values = np.full((3, 2), 4.0)
    member = np.array([[True, True], [True, False], [True, False]])
    group = leave_one_out.Group(values, member, np.arange(3))
    assert group.size.tolist() == [[2, 0], [2, 1], [2, 1]]
    assert (group.sum_squares[:, 0] == 0).all() and group.sum_squares[1, 1] == 0
    assert np.isnan(group.median[0, 1]) and group.median[1, 1] == 4


def test_too_few_models_for_an_example_gives_nan_and_leaves_the_others_alone(planted) -> None:
    evidence = planted(0, models=10)
    keep = evidence.keep.copy()
    keep[:, 0] = False
    keep[3, 0] = True  # one IN model: undefined online, defined offline
    keep[:, 1] = True  # no OUT model
    changed = LogitEvidence(**{**{f: getattr(evidence, f) for f in evidence.__dataclass_fields__}, "keep": keep})
    online = lira_online(changed, config=LiraOnlineConfig(), seed=0)
    offline = lira_offline(changed, config=LiraOfflineConfig(), seed=0)
    assert np.isnan(online[:, :2]).all() and np.isfinite(online[:, 2:]).all()
    assert np.isfinite(offline[:, 0]).all() and np.isnan(offline[:, 1]).all()


def test_scores_do_not_depend_on_the_numbering_of_the_models(planted) -> None:
    evidence = planted(5, self_targets=False, models=15)
    order = np.random.default_rng(0).permutation(evidence.num_references)
    renumbered = LogitEvidence(
        **{
            **{f: getattr(evidence, f) for f in evidence.__dataclass_fields__},
            "reference_logits": evidence.reference_logits[order],
            "keep": evidence.keep[order],
            "population_reference_logits": evidence.population_reference_logits[order],
        }
    )
    for variance in ("pooled", "per_example", "fixed"):
        config = LiraOnlineConfig(variance=variance)
        np.testing.assert_allclose(
            lira_online(evidence, config=config, seed=0), lira_online(renumbered, config=config, seed=0), rtol=1e-10
        )


def test_with_equal_variances_the_score_is_linear_in_the_log_odds(planted) -> None:
    evidence = planted(6, classes=2, self_targets=False, models=15)
    grid = np.arange(-6, 7, 2, dtype=np.float32)  # two classes: phi = z_y - z_other
    logits = np.zeros((7, len(evidence.labels), 2), dtype=np.float32)
    logits[:, np.arange(len(evidence.labels)), evidence.labels] = grid[:, None]
    swept = LogitEvidence(
        example_id=evidence.example_id,
        labels=evidence.labels,
        target_logits=logits,
        reference_logits=evidence.reference_logits,
        keep=evidence.keep,
    )
    scores = lira_online(swept, config=LiraOnlineConfig(variance="fixed"), seed=0)
    assert np.abs(np.diff(scores, n=2, axis=0)).max() < 1e-9
    assert np.abs(np.diff(scores, axis=0)).max() > 0.01


def overshooting(
    *, beyond: float, spread_in: float, spread_out: float, num: int = 200, models: int = 8, seed: int = 0
) -> tuple[Evidence, np.ndarray]:
    """Signals 3 higher with an example than without it, in every reference; the audited model, which learnt more, puts
    its members ``beyond`` higher still. Returns evidence and who is a member."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=num)
    keep = rng.random((models, num)).argsort(axis=0) < models // 2
    member = np.arange(num) % 2 == 0
    noise = rng.normal(size=(models + 1, num))
    inside = np.vstack([keep, member])
    signal = centre + np.where(inside, 3 + spread_in * noise, spread_out * noise)
    signal[-1] += np.where(member, beyond, 0.0)
    reading = Reading.of(
        loss=-signal, signal=signal, log_likelihood=-np.logaddexp(0, -signal), quality=np.ones_like(signal)
    ).values
    evidence = Evidence(example_id=np.arange(num), target=reading[-1:], reference=reading[:-1], keep=keep)
    return evidence, member


@pytest.mark.parametrize(("spread_in", "spread_out"), [(0.3, 1.0), (1.0, 0.3), (0.5, 0.5)])
@pytest.mark.parametrize("beyond", [0.0, 5.0, 30.0])
def test_a_model_that_is_surer_than_its_references_gives_its_members_away(
    beyond: float, spread_in: float, spread_out: float
) -> None:
    evidence, member = overshooting(beyond=beyond, spread_in=spread_in, spread_out=spread_out)
    scores = lira_online(evidence, config=LiraOnlineConfig(), seed=0)[0]
    assert auc(scores[member], scores[~member]) > 0.98


def test_as_published_the_ratio_of_unequal_spreads_turns_over_beyond_the_centres() -> None:
    """What the pooled form is kept from: the surest members would be called the surest non-members."""
    evidence, member = overshooting(beyond=5.0, spread_in=0.3, spread_out=1.0)
    keep, signal = evidence.keep, evidence.target_signal[0]
    published = log_ratio(signal, evidence.reference_signal[0], keep, ~keep, evidence.left_out, variance="pooled")[0]
    assert auc(published[member], published[~member]) < 0.1


@given(st.integers(0, 2**31 - 1), st.floats(0.05, 5), st.floats(0.05, 5), st.sampled_from([5, 8, 40]), st.floats(-2, 4))
def test_with_pooled_spreads_the_score_never_falls_on_the_way_from_out_to_in_and_beyond(
    seed: int, spread_in: float, spread_out: float, models: int, gap: float
) -> None:
    """Swept from one far tail to the other it only rises where IN lies above OUT, and only falls where it lies below;
    between the centres it is the published ratio."""
    rng = np.random.default_rng(seed)
    keep = rng.random((models, 6)).argsort(axis=0) < models // 2
    reference = rng.normal(size=6) + np.where(keep, gap + spread_in * rng.normal(size=keep.shape), 0.0)
    reference += np.where(keep, 0.0, spread_out * rng.normal(size=keep.shape))
    target = np.linspace(-50, 50, 401)[:, None] * np.ones(6)
    nobody = np.full(len(target), -1)
    found, published = (
        log_ratio(target, reference, keep, ~keep, nobody, variance="pooled", monotone=m) for m in (True, False)
    )
    a, b = (np.array([np.median(reference[side[:, n], n]) for n in range(6)]) for side in (keep, ~keep))
    rise = np.diff(found, axis=0) * np.sign(a - b)
    assert (rise >= -1e-9 * np.abs(found).max()).all()
    between = (target >= np.minimum(a, b)) & (target <= np.maximum(a, b))
    np.testing.assert_array_equal(found[between], published[between])


def test_own_row_of_the_references_is_not_used(planted) -> None:
    """Changing what the ensemble says about a target's own membership changes nothing for that target."""
    evidence = planted(7)
    keep = evidence.keep.copy()
    keep[0] = ~keep[0]
    flipped = LogitEvidence(**{**{f: getattr(evidence, f) for f in evidence.__dataclass_fields__}, "keep": keep})
    for variance in ("pooled", "per_example", "fixed"):
        config = LiraOnlineConfig(variance=variance)
        before, after = (lira_online(e, config=config, seed=0) for e in (evidence, flipped))
        np.testing.assert_allclose(before[0], after[0], rtol=1e-9)
        assert not np.allclose(before[1], after[1])


def test_auto_pools_up_to_64_references(planted) -> None:
    few, many = (
        planted(8, models=67, examples=12, self_targets=False),
        planted(8, models=68, examples=12, self_targets=False),
    )
    for evidence, variance in ((few, "pooled"), (many, "per_example")):
        auto, named = (lira_online(evidence, config=LiraOnlineConfig(variance=v), seed=0) for v in ("auto", variance))
        assert np.array_equal(auto, named)


def test_too_few_references_are_refused_by_number(planted) -> None:
    evidence = planted(9, models=4)
    with pytest.raises(ConfigError, match="at least 4 reference models besides the audited one, and there are 3"):
        lira_online(evidence, config=LiraOnlineConfig(), seed=0)
    bare = LogitEvidence(example_id=evidence.example_id, labels=evidence.labels, target_logits=evidence.target_logits)
    with pytest.raises(ConfigError, match="there are 0"):
        lira_offline(bare, config=LiraOfflineConfig(), seed=0)
