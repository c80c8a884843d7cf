"""Counterfactuals and deletions against closed forms, brute force over subsets, autograd, scipy and scikit-learn."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logistic_world import world
from scipy.optimize import linprog, minimize
from sklearn.linear_model import LogisticRegression

from contracts.errors import ConfigError, DataError, InvalidInput, UnknownName
from explain.counterfactuals import (
    INFLUENCES,
    Actions,
    CchvaeConfig,
    LogisticModel,
    RoarConfig,
    SoftplusMLPConfig,
    SolverConfig,
    SurrogateConfig,
    cchvae,
    cost,
    fit_logistic,
    fit_softplus_mlps,
    gradients,
    hessian,
    influence_at,
    influence_matrix,
    leave_out,
    linear,
    local_surrogates,
    nearest_valid,
    newton_step,
    nonlinear_counterfactuals,
    retrain,
    roar,
    rocerf,
    solve,
    surrogate_influence,
    wachter_counterfactual,
    with_one,
    worst_deletion,
    worst_logit,
    worst_shifted_logit,
)
from sources.loading import load


def autograd_loss(model: LogisticModel):
    x, y, penalty = (torch.from_numpy(v) for v in (model.x, model.y, model.penalty))

    def loss(w: torch.Tensor) -> torch.Tensor:
        f = x @ w
        return (torch.nn.functional.softplus(f) - y * f).mean() + 0.5 * (penalty * w**2).sum() / len(y)

    return loss


# --- the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_the_fit_is_scikit_learns(c):
    model, _ = world(c=c)
    theirs = LogisticRegression(C=c, tol=1e-12, max_iter=10_000).fit(model.x[:, :-1], model.y)
    np.testing.assert_allclose(model.weights, [*theirs.coef_[0], theirs.intercept_[0]], rtol=1e-5, atol=1e-6)


def test_retraining_without_a_set_is_a_fit_to_what_is_left():
    model, _ = world()
    removed = np.random.default_rng(1).random((7, len(model.y))) < 0.2
    for mask, weights in zip(removed, retrain(model, removed), strict=True):
        alone = fit_logistic(model.x[~mask, :-1], model.y[~mask], model.example_id[~mask], c=model.c)
        np.testing.assert_allclose(weights, alone.weights, atol=1e-8)


def test_many_sets_at_once_are_the_same_as_one_by_one(monkeypatch):
    model, _ = world()
    removed = np.random.default_rng(1).random((9, len(model.y))) < 0.3
    together = retrain(model, removed)
    monkeypatch.setattr("explain.counterfactuals.logistic._BLOCK", 100)
    np.testing.assert_allclose(retrain(model, removed), together, atol=1e-10)


def test_the_order_of_the_rows_does_not_matter():
    model, _ = world()
    order = np.random.default_rng(2).permutation(len(model.y))
    other = fit_logistic(model.x[order, :-1], model.y[order], model.example_id[order], c=model.c)
    assert np.array_equal(model.weights, other.weights) and np.array_equal(model.example_id, other.example_id)


def test_a_separable_set_is_fitted_and_the_intercept_is_not_penalised():
    x = np.array([[5.0], [6.0], [7.0], [8.0]])
    model = fit_logistic(x, np.array([0, 0, 1, 1]), np.arange(4), c=1e4)
    assert ((model.logits(x) >= 0) == [False, False, True, True]).all()
    moved = fit_logistic(x + 100, np.array([0, 0, 1, 1]), np.arange(4), c=1e4)
    np.testing.assert_allclose(moved.weights[0], model.weights[0], rtol=1e-4)


def test_what_cannot_be_fitted_is_refused_naming_the_examples():
    x, y, ids = np.ones((4, 2)), np.array([0, 1, 0, 1]), np.array([3, 5, 7, 9])
    with pytest.raises(DataError, match="one class"):
        fit_logistic(x, np.ones(4), ids, c=1.0)
    with pytest.raises(DataError) as error:
        fit_logistic(np.where(np.arange(4)[:, None] == 2, np.nan, x), y, ids, c=1.0)
    assert error.value.example_ids == (7,)
    with pytest.raises(DataError) as error:
        fit_logistic(x, y, np.array([3, 5, 5, 9]), c=1.0)
    assert error.value.example_ids == (5,)
    with pytest.raises(DataError) as error:
        fit_logistic(x, np.array([0, 1, 2, 1]), ids, c=1.0)
    assert error.value.example_ids == (7,)
    for c in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidInput, match="c ="):
            fit_logistic(x, y, ids, c=c)
    model = fit_logistic(x, y, ids, c=1.0)
    with pytest.raises(DataError, match="one class"):
        retrain(model, np.array([[True, False, True, False]]))
    with pytest.raises(InvalidInput, match="mask"):
        retrain(model, np.zeros((1, 3), bool))
    with pytest.raises(DataError) as error:
        model.removed(np.array([3, 4]))
    assert error.value.example_ids == (4,)
    assert model.removed(np.array([9, 3])).tolist() == [True, False, False, True]


# --- influence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.05, 10.0])
def test_the_hessian_and_the_gradients_are_autograds(c):
    model, _ = world(c=c)
    w = torch.from_numpy(model.weights)
    exact = torch.autograd.functional.hessian(autograd_loss(model), w).numpy()
    np.testing.assert_allclose(hessian(model), exact, atol=1e-12)
    np.testing.assert_allclose(hessian(model, damping=0.01), exact + 0.01 * np.eye(len(w)), atol=1e-12)
    # At the minimum the examples' gradients and the regulariser's cancel.
    np.testing.assert_allclose(gradients(model).sum(axis=0) + model.penalty * model.weights, 0, atol=1e-6)


def test_removal_adds_what_the_example_held_back():
    """The sign: without a positive example the logit of its neighbourhood falls, by the influence and by retraining."""
    model, _ = world(c=0.1)
    point = model.x[model.y == 1][:1, :-1]
    row = int(np.flatnonzero(model.y == 1)[0])
    removed = np.zeros((1, len(model.y)), bool)
    removed[0, row] = True
    shift = influence_matrix(model, point)[0, row]
    true = float((retrain(model, removed)[0] - model.weights) @ with_one(point)[0])
    assert shift < 0 and true < 0
    assert abs(shift / true - 1) < 0.1
    assert abs(shift) < abs(true)  # first order underestimates


def test_the_three_ways_of_leaving_out_come_closer_to_retraining():
    model, _ = world(c=1.0)
    rng = np.random.default_rng(0)
    removed = rng.random((20, len(model.y))).argsort(axis=1) < 6
    true = retrain(model, removed)
    error = {i: np.abs(leave_out(model, removed, influence=i) - true).mean() for i in INFLUENCES}
    assert error["retrain"] == 0 and error["newton"] < 0.5 * error["first"]
    whole = np.tile(model.weights, (20, 1))
    np.testing.assert_allclose(
        leave_out(model, removed, influence="newton"), newton_step(model, whole, removed), atol=1e-8
    )
    for influence in ("first", "newton"):
        np.testing.assert_allclose(
            leave_out(model, removed, influence=influence, weights=whole),
            leave_out(model, removed, influence=influence),
            atol=1e-10,
        )
    with pytest.raises(InvalidInput, match="surrogates"):
        leave_out(model, removed, influence="retrain", weights=whole)
    with pytest.raises(InvalidInput, match="influence"):
        leave_out(model, removed, influence="second")


def test_the_influence_of_the_model_as_it_is_is_the_influence():
    model, x = world()
    nothing = np.zeros((1, len(model.y)), bool)
    np.testing.assert_allclose(
        influence_at(model, model.weights[None], nothing, with_one(x)[None])[0], influence_matrix(model, x), atol=1e-10
    )


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_the_worst_logit_is_that_of_the_worst_of_all_subsets(k):
    model, x = world(seed=3, n=12)
    shifts = influence_matrix(model, x)
    sets = [list(s) for size in range(k + 1) for s in combinations(range(12), size)]
    brute = model.logits(x) + np.min([shifts[:, s].sum(axis=1) for s in sets], axis=0)
    value, removed = worst_logit(model, x, k=k)
    np.testing.assert_allclose(value, brute, atol=1e-12)
    assert (removed.sum(axis=1) <= k).all()
    # It is the logit of the first-order model without that set.
    np.testing.assert_allclose((leave_out(model, removed) * with_one(x)).sum(axis=1), value, atol=1e-10)


def test_only_harmful_deletions_are_made():
    model, x = world(n=20)
    _, removed = worst_logit(model, x, k=19)
    assert np.array_equal(removed, influence_matrix(model, x) < 0)
    for k in (-1, 20):
        with pytest.raises(InvalidInput, match="k ="):
            worst_logit(model, x, k=k)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(0, 15))
def test_the_worst_logit_falls_with_k_and_is_concave(seed, k):
    model, x = world(seed=seed % 7, n=24)
    rng = np.random.default_rng(seed)
    a, b, t = rng.normal(size=(3, *x.shape)) * 3
    t = rng.random((len(x), 1))
    at = [worst_logit(model, p, k=k)[0] for p in (t * a + (1 - t) * b, a, b)]
    assert (at[0] >= t[:, 0] * at[1] + (1 - t[:, 0]) * at[2] - 1e-9).all()
    assert (worst_logit(model, x, k=k + 1)[0] <= worst_logit(model, x, k=k)[0] + 1e-12).all()


def test_each_search_is_worse_for_the_explanation_and_none_beats_brute_force():
    model, x = world(seed=5, n=14, c=1.0, q=6)
    x_cf = wachter_counterfactual(model, x).x
    k, points = 3, with_one(x_cf)
    sets = [s for s in combinations(range(14), k) if len(set(np.delete(model.y, s))) == 2]
    masks = np.zeros((len(sets), 14), bool)
    for mask, s in zip(masks, sets, strict=True):
        mask[list(s)] = True
    brute = (points @ retrain(model, masks).T).min(axis=1)
    found = {}
    for search in ("one_shot", "adaptive", "exchange"):
        removed = worst_deletion(model, x_cf, k=k, search=search)
        assert (removed.sum(axis=1) <= k).all()
        found[search] = (retrain(model, removed) * points).sum(axis=1)
        assert (found[search] >= brute - 1e-8).all()
    assert (found["exchange"] <= found["adaptive"] + 1e-9).all()
    np.testing.assert_allclose(found["exchange"], brute, atol=0.05 * np.abs(brute).max())
    with pytest.raises(InvalidInput, match="search"):
        worst_deletion(model, x_cf, k=1, search="all")


# --- nearest points -----------------------------------------------------------------------------------------------


def test_one_cut_is_the_closed_form():
    model, x = world()
    v, f = model.weights[:-1], model.logits(x)
    two = wachter_counterfactual(model, x, margin=1e-3)
    np.testing.assert_allclose(two.x, x + ((1e-3 - f) / (v @ v))[:, None] * v, atol=1e-10)
    one = wachter_counterfactual(model, x, margin=1e-3, norm=1)
    np.testing.assert_allclose(cost(x, one.x, norm=1), (1e-3 - f) / np.abs(v).max(), rtol=1e-6)
    assert ((one.x != x).sum(axis=1) == 1).all()
    np.testing.assert_allclose(model.logits(two.x), 1e-3, atol=1e-9)
    accepted = two.x + 0.1 * v
    assert np.array_equal(wachter_counterfactual(model, accepted).x, accepted)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), m=st.integers(1, 6))
def test_several_cuts_are_the_quadratic_and_the_linear_program(seed, m):
    rng = np.random.default_rng(seed)
    x, base = rng.normal(size=(3, 4)), rng.normal(size=(3, 1, 5))
    cuts = base + 0.4 * rng.normal(size=(3, m, 5))  # alike, as the models after deletions are
    for norm in (2, 1):
        got, found = nearest_valid(cuts, x, margin=0.01, norm=norm)
        for q in range(3):
            slope, wanted = cuts[q, :, :-1], 0.01 - cuts[q] @ np.append(x[q], 1)
            if norm == 2:
                ref = minimize(
                    lambda z: z @ z,
                    np.zeros(4),
                    jac=lambda z: 2 * z,
                    method="SLSQP",
                    constraints={
                        "type": "ineq",
                        "fun": lambda z, s=slope, w=wanted: s @ z - w,
                        "jac": lambda z, s=slope: s,
                    },
                    options={"ftol": 1e-14, "maxiter": 500},
                )
                feasible = ref.success and (slope @ ref.x - wanted).min() > -1e-6
                best = np.sqrt(ref.fun) if feasible else None
            else:
                ref = linprog(np.ones(8), A_ub=-np.hstack([slope, -slope]), b_ub=-wanted)
                best = ref.fun if ref.status == 0 else None
            if best is not None and best < 1e3:
                assert found[q]
                np.testing.assert_allclose(cost(x[q], got[q], norm=norm), best, rtol=1e-4, atol=1e-6)
            if found[q]:
                assert (slope @ (got[q] - x[q]) >= wanted - 1e-6).all()


def test_opposed_cuts_are_reported_as_not_found():
    cuts = np.array([[[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]])
    for norm in (1, 2):
        got, found = nearest_valid(cuts, np.zeros((1, 2)), margin=0.1, norm=norm)
        assert not found[0] and np.array_equal(got, np.zeros((1, 2)))
    with pytest.raises(InvalidInput, match="norm"):
        nearest_valid(cuts, np.zeros((1, 2)), margin=0.1, norm=3)


@pytest.mark.parametrize("norm", [1, 2])
def test_immutable_features_stay_and_whole_numbers_are_whole(norm):
    model, x = world(q=12)
    actions = Actions(np.array([False, True, True, True]), np.array([0.0, 0.5, 0.0, 0.0]), np.array([0, 0.25, 0, 0]))
    x[:, 1] = 0.25 + 0.5 * np.round((x[:, 1] - 0.25) / 0.5)
    for made in (
        wachter_counterfactual(model, x, norm=norm, actions=actions),
        rocerf(model, x, k=4, norm=norm, actions=actions),
        cchvae(
            model.logits, x, train=model.x[:, :-1], seed=0, norm=norm, actions=actions, config=CchvaeConfig(epochs=30)
        ),
    ):
        moved = made.x[made.found]
        assert made.found.any() and (model.logits(moved) >= 0).all()
        assert np.array_equal(moved[:, 0], x[made.found, 0])
        places = (moved[:, 1] - 0.25) / 0.5
        np.testing.assert_allclose(places, np.round(places), atol=1e-9)
    robust = rocerf(model, x, k=4, norm=norm, actions=actions)
    assert (worst_logit(model, robust.x[robust.found], k=4)[0] >= 0).all()
    nothing = dataclasses.replace(actions, free=np.zeros(4, bool))
    stuck = rocerf(model, x, k=4, norm=norm, actions=nothing)
    assert not stuck.found.any() and np.array_equal(stuck.x, x)


def test_actions_are_named_by_feature_on_the_raw_scale():
    data = load("sklearn", {"dataset": "breast_cancer"})
    names = data.feature_names
    actions = Actions.of(data, immutable=names[:1], integer=names[3:4])
    assert not actions.free[0] and actions.free[1:].all()
    whole = (np.array([900.0, 901.0]) - data.center[3]) * data.scale[3]
    places = (whole - actions.origin[3]) / actions.step[3]
    np.testing.assert_allclose(places, np.round(places), atol=1e-3)
    np.testing.assert_allclose(np.diff(places), 1, atol=1e-3)
    with pytest.raises(UnknownName, match="no such"):
        Actions.of(data, immutable=["no such"])


# --- robust counterfactuals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [1, 2])
def test_no_deletions_give_the_plain_counterfactual(norm):
    model, x = world()
    plain = wachter_counterfactual(model, x, norm=norm)
    for mode in ("cutting_plane", "one_shot"):
        np.testing.assert_allclose(rocerf(model, x, k=0, norm=norm, mode=mode).x, plain.x, atol=1e-9)


@pytest.mark.parametrize("k", [1, 5])
def test_the_cutting_plane_ends_at_the_optimum_of_the_linearised_problem(k):
    model, x = world(q=3)
    made = rocerf(model, x, k=k)
    assert made.found.all() and (worst_logit(model, made.x, k=k)[0] >= 1e-3 - 1e-5).all()
    for q in range(len(x)):

        def room(z, q=q):
            return worst_logit(model, (x[q] + z)[None], k=k)[0] - 1e-3

        start = 1.2 * (made.x[q] - x[q])
        best = min(
            minimize(
                lambda z: z @ z,
                start + noise,
                jac=lambda z: 2 * z,
                method="SLSQP",
                options={"ftol": 1e-12, "maxiter": 300},
                constraints={"type": "ineq", "fun": room},
            ).fun
            for noise in np.random.default_rng(0).normal(size=(2, 4)) * 0.1
        )
        np.testing.assert_allclose(cost(x[q], made.x[q], norm=2), np.sqrt(best), rtol=2e-3)


def test_cost_grows_with_k_and_one_shot_misses_its_bound():
    model, x = world(q=20)
    costs = [cost(x, rocerf(model, x, k=k).x, norm=2) for k in (0, 1, 2, 4, 8)]
    assert (np.diff(costs, axis=0) >= -1e-9).all() and (costs[-1] > costs[0]).all()
    shares = {
        mode: (worst_logit(model, rocerf(model, x, k=6, mode=mode).x, k=6)[0] >= 0).mean()
        for mode in ("one_shot", "cutting_plane")
    }
    assert shares["cutting_plane"] == 1.0 and shares["one_shot"] < 1.0


def test_retrained_cuts_survive_every_subset_on_a_small_set():
    """Exhaustive truth: all sets of at most three of fourteen, really retrained."""
    model, x = world(seed=5, n=14, c=0.5, q=6)
    sets = [s for size in (1, 2, 3) for s in combinations(range(14), size)]
    masks = np.zeros((len(sets), 14), bool)
    for mask, s in zip(masks, sets, strict=True):
        mask[list(s)] = True
    weights = retrain(model, masks)

    def survives(x_cf: np.ndarray) -> float:
        return float((with_one(x_cf) @ weights.T >= 0).all(axis=1).mean())

    made = rocerf(model, x, k=3, influence="retrain", search="exchange", margin=0.05)
    assert made.found.all() and survives(made.x) == 1.0
    assert survives(wachter_counterfactual(model, x).x) == 0.0
    assert survives(rocerf(model, x, k=3).x) < 1.0  # first order does not


def test_what_rocerf_does_not_take():
    model, x = world()
    for wrong in ({"mode": "both"}, {"margin": 0.0}, {"norm": 0}, {"k": -1}, {"max_cuts": 0}, {"influence": "second"}):
        with pytest.raises(InvalidInput):
            rocerf(model, x, **{"k": 2, **wrong})
    with pytest.raises(DataError, match="finite"):
        rocerf(model, np.full_like(x, np.nan), k=1)
    with pytest.raises(InvalidInput, match="surrogates"):
        rocerf(model, x, k=1, search="exchange", surrogates=np.tile(model.weights, (len(x), 1)))
    few = rocerf(model, x, k=10, max_cuts=1)
    assert not few.found.all() and np.array_equal(few.x[~few.found], x[~few.found])


def test_no_queries_give_no_explanations():
    model, x = world()
    for norm in (1, 2):
        assert rocerf(model, x[:0], k=2, norm=norm).x.shape == (0, 4)


# --- other explanations -------------------------------------------------------------------------------------------


def test_adam_agrees_with_the_closed_form():
    model, x = world(q=5)
    closed = cost(x, wachter_counterfactual(model, x).x, norm=2)
    made = solve(linear(model), x, target=1e-3, config=SolverConfig(iterations=20_000))
    assert made.found.all() and (model.logits(made.x) >= 1e-3).all()
    np.testing.assert_allclose(cost(x, made.x, norm=2), closed, rtol=1e-2)
    held = Actions(np.array([False, True, True, True]), np.zeros(4), np.zeros(4))
    closed = cost(x, wachter_counterfactual(model, x, actions=held).x, norm=2)
    made = solve(linear(model), x, target=1e-3, config=SolverConfig(iterations=20_000), actions=held)
    assert np.array_equal(made.x[:, 0], x[:, 0])
    np.testing.assert_allclose(cost(x, made.x, norm=2), closed, rtol=1e-2)


def test_a_query_of_the_solver_does_not_depend_on_the_others():
    model, x = world(q=4)
    config = SolverConfig(iterations=2_000)
    together = solve(linear(model), x, config=config).x
    np.testing.assert_allclose(solve(linear(model), x[2:3], config=config).x, together[2:3], atol=1e-9)


def test_roars_inner_maximum_is_the_linear_program_over_the_box():
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=5), rng.normal(size=(6, 4))
    for point, worst in zip(with_one(x), worst_shifted_logit(weights, x, delta_max=0.3), strict=True):
        assert abs(linprog(point, bounds=[(w - 0.3, w + 0.3) for w in weights]).fun - worst) < 1e-9


def test_roar_holds_under_its_shifts_and_pays_for_it():
    model, x = world(c=1.0)
    rejected = model.x[model.logits(model.x[:, :-1]) < 0, :-1]
    made = roar(model, x, validation=rejected, config=RoarConfig(delta_max=0.1))
    assert (worst_shifted_logit(model.weights, made.x, delta_max=0.1) >= 0).mean() > 0.8
    assert (cost(x, made.x, norm=2) >= cost(x, wachter_counterfactual(model, x).x, norm=2) - 1e-3).all()
    with pytest.raises(ConfigError, match="delta_max"):
        RoarConfig(delta_max=-1.0)


def test_cchvae_finds_valid_points_that_look_like_data(rng_left_alone):
    model, x = world(n=200, q=6)
    train = model.x[:, :-1]
    with rng_left_alone():
        made = cchvae(model.logits, x, train=train, seed=0, config=CchvaeConfig(epochs=60, latent=3))
    assert made.found.all() and (model.logits(made.x) >= 1e-3).all()
    again = cchvae(model.logits, x[::-1], train=train, seed=0, config=CchvaeConfig(epochs=60, latent=3))
    np.testing.assert_allclose(again.x[::-1], made.x, atol=1e-5)
    near = np.linalg.norm(train[:, None] - made.x, axis=2).min(axis=0)
    assert near.mean() < np.linalg.norm(train[:, None] - 3 * x, axis=2).min(axis=0).mean()
    never = cchvae(
        lambda p: -np.ones(len(p)), x[:1], train=train, seed=0, config=CchvaeConfig(epochs=1, max_radius=0.1)
    )
    assert not never.found.any() and np.array_equal(never.x, x[:1])


# --- models that are not linear -----------------------------------------------------------------------------------


def test_the_surrogate_of_a_linear_model_is_the_model():
    model, x = world(c=1.0)
    weights, variance = local_surrogates(model.logits, x, seed=0, config=SurrogateConfig(draws=2000))
    np.testing.assert_allclose(weights, np.tile(model.weights, (len(x), 1)), rtol=0.02, atol=0.02)
    assert (variance >= 0.1).all()
    published = SurrogateConfig(draws=4000, labels="hard", kernel_width=1.0)
    hard, _ = local_surrogates(model.logits, x[:3], seed=0, config=published)
    direction = hard[:, :-1] / np.linalg.norm(hard[:, :-1], axis=1, keepdims=True)
    assert (direction @ model.weights[:-1] / np.linalg.norm(model.weights[:-1]) > 0.7).all()
    none, variance = local_surrogates(
        lambda p: -np.ones(len(p)), x[:1], seed=0, config=SurrogateConfig(draws=10, max_variance=0.2)
    )
    assert np.isnan(none).all() and np.isnan(variance).all()
    with pytest.raises(DataError, match="finite"):
        local_surrogates(lambda p: np.full(len(p), np.nan), x, seed=0)


def test_by_surrogates_a_linear_model_gets_its_own_counterfactuals():
    model, x = world(c=1.0)
    config = SurrogateConfig(draws=3000)
    made = nonlinear_counterfactuals(model.logits, model, x, k=0, seed=0, config=config)
    assert made.found.all()
    np.testing.assert_allclose(cost(x, made.x, norm=2), cost(x, wachter_counterfactual(model, x).x, norm=2), rtol=0.05)
    robust = nonlinear_counterfactuals(model.logits, model, x, k=5, seed=0, config=config)
    assert (cost(x, robust.x, norm=2)[robust.found] > cost(x, made.x, norm=2)[robust.found]).all()
    a = surrogate_influence(model.logits, model, made.x, seed=0, damping=0.0, config=config)
    own = influence_matrix(dataclasses.replace(model, c=np.inf), made.x)
    assert np.corrcoef(a.ravel(), own.ravel())[0, 1] > 0.99
    with pytest.raises(InvalidInput, match="rounds"):
        nonlinear_counterfactuals(model.logits, model, x, k=0, seed=0, rounds=0)


def test_a_network_of_many_is_the_network_alone_and_a_deleted_example_does_not_count(rng_left_alone):
    model, x = world()
    inputs, config = model.x[:, :-1], SoftplusMLPConfig(epochs=5, lr=0.1)
    removed = np.random.default_rng(0).random((3, len(model.y))) < 0.2
    with rng_left_alone():
        together = fit_softplus_mlps(inputs, model.y, removed, seed=1, config=config).logits(x)
    for row, mask in enumerate(removed):
        alone = fit_softplus_mlps(inputs, model.y, mask[None], seed=1, config=config).logits(x)
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)
    garbage = np.where(removed[0][:, None], 50.0, inputs)
    np.testing.assert_allclose(
        fit_softplus_mlps(garbage, model.y, removed[:1], seed=1, config=config).logits(x)[0], together[0], atol=1e-5
    )
    assert not np.allclose(together[0], together[1], atol=1e-4)


def test_the_network_is_the_formula():
    model, x = world()
    nets = fit_softplus_mlps(
        model.x[:, :-1], model.y, np.zeros((1, 60), bool), seed=1, config=SoftplusMLPConfig(epochs=2)
    )
    h = x
    for w, b in nets.layers[:-1]:
        h = np.log1p(np.exp(h @ w[0].numpy() + b[0].numpy())) - np.log(2)
    w, b = nets.layers[-1]
    np.testing.assert_allclose(nets.logits(x)[0], (h @ w[0].numpy() + b[0].numpy())[:, 0], atol=1e-5)
    assert [tuple(w.shape[1:]) for w, _ in nets.layers] == [(4, 8), (8, 8), (8, 1)]
