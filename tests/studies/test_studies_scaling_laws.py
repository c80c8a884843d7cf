"""The laws against a plain loop and the paper's figures; the fit against planted laws, brute force and Nelder-Mead."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from contracts.errors import InvalidInput, NotApplicable
from studies.scaling_fit import OFFICIAL_GRID, Grid, PoolCurve, fit_pool_laws, scale_free_grid
from studies.scaling_laws import PoolLaw, best_pool, mixture_error

FORMS = [("effective_utility", "paper"), ("effective_utility", "official"), ("effective_data", "paper")]
POOLS = ((-0.18, 3.0), (-0.155, 3.5), (-0.14, 4.5), (-0.125, 5.0))
N = 12_800_000


def paper_laws(objective="effective_utility", compat="paper"):
    return [PoolLaw(a=0.022, b=b, tau=t, d=0.1, objective=objective, compat=compat) for b, t in POOLS]


def naive(laws, n, pool_size):
    """The definitions, pass by pass."""
    num, whole = len(laws), len(laws) * pool_size
    value, seen, effective = None, 0.0, 0.0
    irreducible = laws[0].d
    for k in range(math.ceil(n / whole)):
        until = min((k + 1) * whole, n)
        deltas = [0.5 ** (k / (num * law.tau)) for law in laws]
        if laws[0].objective == "effective_utility":
            exponent, before, after = sum(law.b * x for law, x in zip(laws, deltas, strict=True)) / num, seen, until
        else:
            exponent = sum(law.b * x for law, x in zip(laws, deltas, strict=True)) / sum(deltas)
            before = effective
            effective += (until - seen) * sum(deltas) / num
            after = effective
        if k == 0:
            value = (laws[0].a * after / 1e5) ** exponent
            if laws[0].compat == "official" and laws[0].objective == "effective_utility":
                value, irreducible = value + irreducible, 0.0
        else:
            value *= (after / before) ** exponent
        seen = until
    return value + irreducible


law_values = st.tuples(st.floats(-0.9, -0.01), st.floats(0.2, 60.0))


@given(
    pools=st.lists(law_values, min_size=1, max_size=4),
    n=st.floats(0.05, 40.0),
    form=st.sampled_from(FORMS),
    d=st.floats(0, 0.3),
)
def test_vectorised_equals_the_loop(pools, n, form, d):
    laws = [PoolLaw(a=50.0, b=b, tau=t, d=d, objective=form[0], compat=form[1]) for b, t in pools]
    n = np.array([n * 1000.0, 1000.0, 2500.0])
    found = mixture_error(laws, n, pool_size=1000)
    np.testing.assert_allclose(found, [naive(laws, v, 1000) for v in n], rtol=1e-10)


def test_the_example_where_paper_and_code_differ():
    law = {"a": 0.022, "b": -0.131, "tau": 3.0, "d": 0.1}
    assert float(PoolLaw(**law).error(10 * N, pool_size=N)) == pytest.approx(0.8469, abs=5e-5)
    assert float(PoolLaw(**law, compat="official").error(10 * N, pool_size=N)) == pytest.approx(0.8325, abs=5e-5)


def test_the_table_of_mixtures():
    plan = best_pool(paper_laws(), [32e6, 64e6, 128e6, 640e6, 6.4e9], pool_size=N)
    assert plan.num_pools.tolist() == [2, 2, 3, 4, 4] and plan.order.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(plan.errors.min(1), [0.8239, 0.7545, 0.7001, 0.6065, 0.5697], atol=1e-4)


@given(pool=law_values, form=st.sampled_from(FORMS), n=st.floats(0.1, 50.0), copies=st.integers(2, 5))
def test_copies_of_a_pool_are_one_large_pool_with_a_longer_half_life(pool, form, n, copies):
    given_law = {"a": 30.0, "b": pool[0], "d": 0.05, "objective": form[0], "compat": form[1]}
    mixture = mixture_error([PoolLaw(tau=pool[1], **given_law)] * copies, n * 1000, pool_size=1000)
    single = PoolLaw(tau=copies * pool[1], **given_law).error(n * 1000, pool_size=copies * 1000)
    assert float(mixture) == pytest.approx(float(single), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_one_pass_and_endless_half_life_are_plain_power_laws(form):
    n = np.array([100.0, 900.0, 1000.0])
    law = PoolLaw(a=40.0, b=-0.3, tau=2.0, d=0.1, objective=form[0], compat=form[1])
    np.testing.assert_allclose(law.error(n, pool_size=1000), (40.0 * n / 1e5) ** -0.3 + 0.1, rtol=1e-13)
    if form[1] == "paper":
        endless = PoolLaw(a=40.0, b=-0.3, tau=math.inf, d=0.1, objective=form[0])
        n = np.array([500.0, 1500.0, 20_000.0])
        np.testing.assert_allclose(endless.error(n, pool_size=1000), (40.0 * n / 1e5) ** -0.3 + 0.1, rtol=1e-12)


@given(pool=law_values, form=st.sampled_from(FORMS))
def test_never_rises_and_has_no_step_between_passes(pool, form):
    law = PoolLaw(a=90.0, b=pool[0], tau=pool[1], d=0.02, objective=form[0], compat=form[1])
    errors = law.error(np.linspace(10, 30_000, 500), pool_size=1000)
    assert (np.diff(errors) <= 1e-12).all()
    ends = 1000.0 * np.arange(1, 20)
    np.testing.assert_allclose(
        law.error(ends * (1 + 1e-10), pool_size=1000), law.error(ends, pool_size=1000), rtol=1e-8
    )


def test_a_short_half_life_far_out_is_no_division_by_zero():
    laws = [PoolLaw(a=90.0, b=b, tau=0.05, d=0.0, objective="effective_data") for b in (-0.2, -0.4)]
    assert np.isfinite(mixture_error(laws, [1e3, 1e6], pool_size=100)).all()


def test_what_is_refused():
    laws = paper_laws()
    with pytest.raises(NotApplicable, match="not equal"):
        mixture_error(laws[:2], 1e6, pool_size=N, weights=(0.7, 0.3))
    assert mixture_error(laws[:2], 1e6, pool_size=N, weights=(0.5, 0.5)) > 0
    other = PoolLaw(a=0.03, b=-0.1, tau=3.0, d=0.1)
    with pytest.raises(InvalidInput, match="comparable"):
        mixture_error([laws[0], other], 1e6, pool_size=N)
    with pytest.raises(InvalidInput, match="comparable"):
        best_pool([], [1e6], pool_size=N)
    for n in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidInput, match="samples seen"):
            laws[0].error(n, pool_size=N)
    with pytest.raises(InvalidInput, match="pool_size"):
        laws[0].error(1.0, pool_size=0)
    with pytest.raises(InvalidInput, match="passes over"):
        laws[0].error(1e9, pool_size=1)
    for field, value in (("a", 0.0), ("b", 0.0), ("tau", 0.0), ("d", -0.1)):
        with pytest.raises(InvalidInput, match=field):
            PoolLaw(**{"a": 1.0, "b": -0.1, "tau": 1.0, "d": 0.0, field: value})
    with pytest.raises(InvalidInput, match="objective"):
        PoolLaw(a=1.0, b=-0.1, tau=1.0, d=0.0, objective="other")


# ---- the fit -----------------------------------------------------------------------------------------------------


def curves_of(laws, *, passes=(2, 4, 6, 8, 10), noise=0.0, seed=0, seeds=1, size=N):
    rng = np.random.default_rng(seed)
    n = size * np.asarray(passes, np.float64)
    return [
        PoolCurve(f"p{i}", size, n, law.error(n, pool_size=size) + noise * rng.normal(size=(seeds, len(n))))
        for i, law in enumerate(laws)
    ]


ON_GRID = Grid(a=(0.018, 0.02, 0.022, 0.025), d=(0.06, 0.08, 0.1, 0.12))


def grid_laws(objective, compat):
    """b and tau are points of the default grid."""
    b, tau = ON_GRID.b, ON_GRID.tau
    return [
        PoolLaw(a=0.022, b=b[i], tau=tau[j], d=0.1, objective=objective, compat=compat)
        for i, j in ((35, 22), (25, 44), (19, 66))
    ]


@pytest.mark.parametrize(("objective", "compat"), FORMS)
def test_laws_on_the_grid_are_recovered_exactly(objective, compat):
    laws = grid_laws(objective, compat)
    fits = fit_pool_laws(
        curves_of(laws), objective=objective, compat=compat, grid=ON_GRID, refine=False, bootstrap=0
    ).fits
    for fit, law in zip(fits, laws, strict=True):
        assert (fit.law.a, fit.law.b, fit.law.d) == pytest.approx((law.a, law.b, law.d), rel=1e-12)
        assert fit.law.tau == pytest.approx(law.tau, rel=1e-12) and fit.sse < 1e-25


@pytest.mark.parametrize(("objective", "compat"), FORMS)
def test_laws_off_the_grid_are_recovered_by_the_refinement(objective, compat):
    laws = [
        PoolLaw(a=0.0214, b=b, tau=t, d=0.083, objective=objective, compat=compat)
        for b, t in ((-0.1813, 2.97), (-0.1291, 5.31), (-0.1007, 7.77))
    ]
    curves = curves_of(laws, passes=(1, 2.5, 4, 7, 12))
    for grid in (OFFICIAL_GRID, None):
        fits = fit_pool_laws(curves, objective=objective, compat=compat, grid=grid, bootstrap=0).fits
        for fit, law in zip(fits, laws, strict=True):
            for name in ("a", "b", "tau", "d"):
                assert getattr(fit.law, name) == pytest.approx(getattr(law, name), rel=1e-4), name


def test_the_grid_is_enumerated_whole():
    """Its best point is that of a loop over every (a, d, b, tau), for curves that no point fits."""
    grid = Grid(a=(0.5, 2.0, 9.0), d=(0.0, 0.1, 0.9), b=(-0.1, -0.3, -0.7), tau=(0.5, 3.0))
    rng = np.random.default_rng(3)
    n = np.array([0.5, 2.5, 6.0, 7.5]) * 1e5
    curves = [PoolCurve(f"p{i}", 1e5, n[i:], np.sort(rng.uniform(0.2, 0.9, 4 - i))[::-1]) for i in range(2)]
    for objective, compat in FORMS:
        best = math.inf
        for a in grid.a:
            for d in grid.d[:2]:  # 0.9 is above the least error
                total = sum(
                    min(
                        sum(
                            (naive([PoolLaw(a=a, b=b, tau=t, d=d, objective=objective, compat=compat)], v, 1e5) - e)
                            ** 2
                            for v, e in zip(c.samples_seen, c.mean, strict=True)
                        )
                        for b in grid.b
                        for t in grid.tau
                    )
                    for c in curves
                )
                best = min(best, total)
        fits = fit_pool_laws(curves, objective=objective, compat=compat, grid=grid, refine=False, bootstrap=0)
        assert sum(f.sse for f in fits.fits) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("objective", "compat"), FORMS)
def test_a_long_nelder_mead_search_finds_nothing_better(seed, objective, compat):
    laws = [
        PoolLaw(a=20.0, b=b, tau=t, d=0.05, objective=objective, compat=compat) for b, t in ((-0.4, 3.0), (-0.3, 6.0))
    ]
    curves = curves_of(laws, passes=(1, 2, 4, 8, 16, 32), noise=0.004, seed=seed, size=10_000)
    fits = fit_pool_laws(curves, objective=objective, compat=compat, bootstrap=0)
    found = sum(f.sse for f in fits.fits)
    least = min(c.mean.min() for c in curves)

    def cost(theta):
        log_a, d, *rest = theta
        if not 0 <= d < least or max(np.abs(rest)) > 9 or abs(log_a) > 30:
            return 1e9
        total = 0.0
        for (u, v), curve in zip(np.reshape(rest, (-1, 2)), curves, strict=True):
            law = PoolLaw(a=math.exp(log_a), b=-math.exp(u), tau=math.exp(v), d=d, objective=objective, compat=compat)
            miss = law.error(curve.samples_seen, pool_size=curve.pool_size) - curve.mean
            total += float(miss @ miss)
        return total

    fitted = [math.log(fits.laws[0].a), fits.laws[0].d]
    planted = [math.log(20.0), 0.05]
    for law, true in zip(fits.laws, laws, strict=True):
        fitted += [math.log(-law.b), math.log(law.tau)]
        planted += [math.log(-true.b), math.log(true.tau)]
    options = {"maxfev": 600, "xatol": 1e-9, "fatol": 1e-15, "adaptive": True}
    for start in (fitted, planted):
        assert minimize(cost, start, method="Nelder-Mead", options=options).fun >= found * (1 - 1e-6)


def test_known_shared_parameters_are_held():
    grid = Grid(a=(0.022,), d=(0.1,))
    laws = [PoolLaw(a=0.022, b=b, tau=t, d=0.1) for b, t in ((-0.18, 3.0), (-0.13, 5.0), (-0.10, 7.0))]
    fits = fit_pool_laws(curves_of(laws, noise=0.002, seed=5), grid=grid, bootstrap=100)
    for fit, law in zip(fits.fits, laws, strict=True):
        assert (fit.law.a, fit.law.d) == (pytest.approx(0.022), 0.1)
        assert abs(fit.law.b - law.b) <= 0.01
        assert fit.b_lo <= fit.law.b <= fit.b_hi < 0 and 0 < fit.tau_lo <= fit.law.tau <= fit.tau_hi


def test_a_single_tau_is_held():
    """So the law without decay can be fitted: tau far beyond the passes."""
    laws = [PoolLaw(a=0.2, b=b, tau=1e4, d=0.05) for b in (-0.3, -0.2)]
    grid = Grid(a=(0.1, 0.3), d=(0.0, 0.1), tau=(1e4,))
    for fit, law in zip(fit_pool_laws(curves_of(laws), grid=grid, bootstrap=0).fits, laws, strict=True):
        assert fit.law.tau == pytest.approx(1e4, rel=1e-12)
        assert (fit.law.a, fit.law.b, fit.law.d) == pytest.approx((law.a, law.b, law.d), rel=1e-4)


def test_the_interval_shows_that_a_small_utility_leaves_tau_open():
    laws = [PoolLaw(a=0.2, b=b, tau=5.0, d=0.05) for b in (-0.18, -0.02)]
    strong, weak = fit_pool_laws(curves_of(laws, noise=0.002, seed=1), grid=Grid(a=(0.2,), d=(0.05,)), seed=2).fits
    assert math.log(weak.tau_hi / weak.tau_lo) > 3 * math.log(strong.tau_hi / strong.tau_lo)


def test_the_bootstrap_interval_covers_what_it_claims():
    """90% intervals of b and tau with a and d known, 150 of each: 0.82 to 0.97 (narrower noise in the bootstrap gives
    under a half)."""
    grid = Grid(a=(20.0,), d=(0.05,))
    laws = [PoolLaw(a=20.0, b=b, tau=t, d=0.05) for b, t in ((-0.4, 3.0), (-0.3, 6.0), (-0.25, 5.0))]
    hit = []
    for seed in range(50):
        curves = curves_of(laws, passes=(1, 2, 4, 8, 16, 32), noise=0.003, seed=seed, size=10_000)
        for fit, law in zip(fit_pool_laws(curves, grid=grid, bootstrap=80, seed=seed).fits, laws, strict=True):
            hit.append((fit.b_lo <= law.b <= fit.b_hi, fit.tau_lo <= law.tau <= fit.tau_hi))
    covered = np.mean(hit, axis=0)
    assert ((covered >= 0.82) & (covered <= 0.97)).all(), covered


@pytest.mark.stat
def test_the_bootstrap_interval_covers():
    """90% intervals of b and tau over 200 data sets, a and d fitted too: at least 80% (small-sample bootstrap)."""
    laws = [PoolLaw(a=20.0, b=b, tau=t, d=0.05) for b, t in ((-0.4, 3.0), (-0.3, 6.0), (-0.25, 5.0))]
    hit = []
    for seed in range(200):
        curves = curves_of(laws, passes=(1, 2, 4, 8, 16, 32), noise=0.003, seed=seed, size=10_000)
        for fit, law in zip(fit_pool_laws(curves, seed=seed).fits, laws, strict=True):
            hit.append((fit.b_lo <= law.b <= fit.b_hi, fit.tau_lo <= law.tau <= fit.tau_hi))
    assert (np.mean(hit, axis=0) >= 0.8).all(), np.mean(hit, axis=0)


def test_same_seed_same_bits_and_no_global_randomness():
    curves = curves_of(paper_laws(), noise=0.002)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second, other = (fit_pool_laws(curves, seed=s, bootstrap=30) for s in (1, 1, 2))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    ends = [[(f.b_lo, f.b_hi, f.tau_lo, f.tau_hi) for f in fits.fits] for fits in (first, second, other)]
    assert ends[0] == ends[1] != ends[2] and first.laws == second.laws == other.laws


def test_pools_of_unequal_size_and_length_share_a_and_d():
    law = {"a": 2000.0, "d": 0.07}
    sizes, lengths = (1000, 4000, 2500), ((1, 2, 5, 9, 16), (0.5, 3, 6, 10), (1, 4, 8, 12, 20, 30))
    true = [(-0.5, 3.0), (-0.35, 6.0), (-0.42, 2.0)]
    curves = []
    for i, (size, passes, (b, t)) in enumerate(zip(sizes, lengths, true, strict=True)):
        n = size * np.array(passes, np.float64)
        curves.append(PoolCurve(f"p{i}", size, n, PoolLaw(b=b, tau=t, **law).error(n, pool_size=size)))
    fits = fit_pool_laws(curves, bootstrap=0)
    assert len({(f.law.a, f.law.d) for f in fits.fits}) == 1
    for fit, (b, t) in zip(fits.fits, true, strict=True):
        assert (fit.law.b, fit.law.tau) == pytest.approx((b, t), rel=1e-3)


def test_a_curve_that_rises_is_refused_and_has_no_influence():
    good = curves_of([PoolLaw(a=2000.0, b=-0.4, tau=3.0, d=0.05)], passes=(1, 2, 4, 8, 16), size=1000)
    n = good[0].samples_seen
    spread = np.array([[0.01], [-0.01]])
    rising = PoolCurve("bad", 1000, n, np.array([0.5, 0.4, 0.3, 0.35, 0.4]) + spread)
    slightly = PoolCurve("ok", 1000, n, np.array([0.5, 0.4, 0.35, 0.302, 0.305]) + spread)
    unknown = PoolCurve("one", 1000, n, np.array([0.5, 0.4, 0.3, 0.35, 0.4]))
    fits = fit_pool_laws([*good, rising], bootstrap=0)
    assert list(fits.refused) == ["bad"] and "cannot rise" in fits.refused["bad"]
    assert fits.laws == fit_pool_laws(good, bootstrap=0).laws
    assert not fit_pool_laws([slightly, unknown], bootstrap=0).refused
    assert math.isnan(unknown.rise) and slightly.rise == pytest.approx(0.003 / math.sqrt(2) / slightly.stderr)
    assert fit_pool_laws([rising]).fits == ()


def test_d_stays_below_the_least_error():
    """On a flat curve d would run into the error itself, where the logarithm of the rest explodes."""
    n = 1000 * np.array([1.0, 2, 4, 8])
    fits = fit_pool_laws([PoolCurve("flat", 1000, n, np.array([0.2, 0.2, 0.2, 0.2]))], bootstrap=20)
    assert fits.laws[0].d < 0.2 and np.isfinite(fits.fits[0].residuals).all() and fits.fits[0].sse < 1e-6
    with pytest.raises(InvalidInput, match="below the least error"):
        fit_pool_laws([PoolCurve("p", 1000, n, np.array([0.05, 0.04, 0.03, 0.01]))], grid=OFFICIAL_GRID)


def test_no_degrees_of_freedom_no_interval():
    curves = curves_of(paper_laws()[:1], passes=(1, 2, 4))
    fit = fit_pool_laws(curves).fits[0]
    assert all(math.isnan(v) for v in (fit.b_lo, fit.b_hi, fit.tau_lo, fit.tau_hi))


def test_curves_and_grids_out_of_range_are_refused():
    n = np.array([1.0, 2.0, 3.0])
    for seen, errors, what in (
        (n[:2], [0.3, 0.2], "J >= 3"),
        (n[::-1], [0.3, 0.2, 0.1], "increasing"),
        (n, [0.3, 0.2, 1.2], r"\[0, 1\]"),
        (n, [0.3, math.nan, 0.2], r"\[0, 1\]"),
        (n, [0.3, 0.2], "needed"),
    ):
        with pytest.raises(InvalidInput, match=what):
            PoolCurve("p", 1.0, seen, np.array(errors))
    curve = PoolCurve("p", 1.0, n, np.array([0.3, 0.2, 0.1]))
    with pytest.raises(InvalidInput, match="one curve a pool"):
        fit_pool_laws([curve, curve])
    with pytest.raises(InvalidInput, match="one curve a pool"):
        fit_pool_laws([])
    with pytest.raises(InvalidInput, match="bootstrap"):
        fit_pool_laws([curve], bootstrap=-1)
    with pytest.raises(InvalidInput, match="compat"):
        fit_pool_laws([curve], compat="mine")
    for field, value in (("a", (0.0,)), ("b", (0.1,)), ("tau", ()), ("d", (-1.0,))):
        with pytest.raises(InvalidInput, match=f"Grid.{field}"):
            Grid(**{"a": (1.0,), "d": (0.0,), field: value})
    assert scale_free_grid([curve]).a[0] * curve.samples_seen[0] / 1e5 == pytest.approx(1.0)
