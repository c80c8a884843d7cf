"""The metrics on logits made by hand, and the gaps and spreads on tables made by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch
from language_data import build, make_texts
from sklearn.svm import SVC
from torch import nn

from contracts.errors import DataError, Diverged, InvalidInput, NotApplicable, NotReady
from contracts.schema import METRICS as STORED
from recipes.predict import read
from sources.example_set import ExampleSet
from tasks.base import Reading
from unlearning.metrics import METRICS, _called_non_member, _merged, add_gaps, evaluate, measure, summarise


class Table(nn.Module):
    """A 'model' whose logits are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def spoken(logits: np.ndarray, labels, *, first_id: int, split: str = "train") -> ExampleSet:
    """Examples on which ``Table`` outputs exactly ``logits``."""
    logits = np.asarray(logits, np.float32)
    n, k = logits.shape
    return ExampleSet(
        name="spoken",
        task="classification",
        x=logits,
        y=np.asarray(labels, np.int64),
        example_id=np.arange(first_id, first_id + n, dtype=np.int64),
        split=np.full(n, split, "<U5"),
        owner=np.full(n, "", "<U1"),
        content_hash=np.full(n, "0" * 64),
        class_names=tuple(str(i) for i in range(k)),
        center=np.zeros(k, np.float32),
        scale=np.ones(k, np.float32),
    )


def confident(labels, level, num_classes: int = 3) -> np.ndarray:
    """Logits that give each label the probability softmax(level, 0, ..., 0)."""
    out = np.zeros((len(labels), num_classes))
    out[np.arange(len(labels)), labels] = level
    return out


def test_accuracies_and_efficacy_by_hand():
    y = np.arange(30) % 3
    kept = confident(y, 8.0)
    unsure = confident(y, 0.5)
    unsure[:6] = confident((y[:6] + 1) % 3, 2.0)  # six wrong test answers
    asked = np.concatenate([confident(y[:6], 8.0), confident(y[:3], 0.5), confident((y[:1] + 1) % 3, 8.0)])
    figures = evaluate(
        Table(),
        retain=spoken(kept, y, first_id=0),
        forget=spoken(asked, np.r_[y[:6], y[:3], y[:1]], first_id=100),
        test=spoken(unsure, y, first_id=200, split="test"),
        seed=0,
    )
    assert set(figures) == set(METRICS)
    assert figures["ra"] == 100.0
    assert figures["ta"] == pytest.approx(100 * 24 / 30)
    assert figures["ua"] == pytest.approx(100 * 1 / 10)
    # members all sit at p = 0.9987, outsiders below 0.5: of the ten asked, four look like outsiders
    assert figures["mia_efficacy"] == pytest.approx(40.0)
    # one of the ten is wrong, and wrong answers only occur among outsiders
    assert figures["mia_correctness"] == pytest.approx(10.0)
    # the confidently wrong one has the entropy of a member, but not the modified entropy
    assert figures["mia_entropy"] == pytest.approx(30.0)
    assert figures["mia_m_entropy"] == pytest.approx(40.0)


def test_the_attack_is_the_published_svm():
    rng = np.random.default_rng(0)
    members, outsiders, asked = (np.round(rng.beta(a, 2, (n, 1)), 2) for a, n in ((6, 200), (3, 200), (4, 90)))
    plain = SVC(C=3, kernel="rbf", gamma="auto").fit(np.r_[members, outsiders], np.r_[np.ones(200), np.zeros(200)])
    expected = 100 * float(np.mean(plain.predict(asked) == 0))
    assert 100 * _called_non_member(members, outsiders, asked).mean() == pytest.approx(expected)
    assert 0 < expected < 100


def test_features_that_say_nothing_give_a_defined_figure():
    same = np.full((20, 1), 0.5)
    assert 100 * _called_non_member(same, same, same[:7]).mean() in (0.0, 100.0)


@pytest.mark.parametrize("width", [1.0, 1e-4], ids=["spread", "all within 1e-4 of 1"])
def test_merging_neighbours_hardly_moves_the_figure(width):
    rng = np.random.default_rng(1)
    members, outsiders, asked = (1 - width * rng.beta(1, b, (n, 1)) for b, n in ((6, 3000), (3, 3000), (4, 1000)))
    merged = _merged(members, outsiders, groups=500)
    assert len(np.unique(np.concatenate(merged))) <= 1500 < len(np.unique(members))
    assert np.abs(merged[0] - members).max() <= 1e-3
    assert np.mean(merged[0]) + np.mean(merged[1]) == pytest.approx(np.mean(members) + np.mean(outsiders))
    exact = 100 * _called_non_member(members, outsiders, asked).mean()
    assert 2 < exact < 98
    assert 100 * _called_non_member(*merged, asked).mean() == pytest.approx(exact, abs=1.0)


def test_a_forgotten_class_leaves_the_test_set():
    y = np.arange(24) % 2  # classes 0 and 1 are kept
    forget = spoken(confident([2] * 8, 5.0), [2] * 8, first_id=100)
    wrong = confident((np.full(12, 2) + 1) % 3, 5.0)
    tested = np.concatenate([confident(y, 4.0), wrong])
    test = spoken(tested, np.r_[y, np.full(12, 2)], first_id=200, split="test")
    figures = evaluate(Table(), retain=spoken(confident(y, 5.0), y, first_id=0), forget=forget, test=test, seed=0)
    assert figures["ta"] == 100.0  # the twelve wrong answers are all on the forgotten class
    assert figures["ua"] == 0.0


def test_the_draw_does_not_depend_on_the_order_of_the_rows(world):
    shuffled = {k: d.subset(np.random.default_rng(3).permutation(d.example_id)) for k, d in world.sets.items()}
    test = world.test.subset(world.test.example_id[::-1])
    for cap in (None, 20):
        first = evaluate(world.model, **world.sets, test=world.test, seed=4, svc_cap=cap)
        assert evaluate(world.model, **shuffled, test=test, seed=4, svc_cap=cap) == pytest.approx(first)


def test_retraining_looks_like_the_test_set(world):
    """MIA-efficacy of retraining is the share of test examples called non-member, within sampling."""
    fresh = world.train(world.retain, 1)
    as_forget = dataclasses.replace(world.test, split=np.full(len(world.test), "train", "<U5"))
    retrained = evaluate(fresh, **world.sets, test=world.test, seed=0)["mia_efficacy"]
    reference = evaluate(fresh, retain=world.retain, forget=as_forget, test=world.test, seed=0)["mia_efficacy"]
    n = world.forget.num_examples
    p = reference / 100
    assert abs(retrained - reference) <= 100 * 5 * math.sqrt(max(p * (1 - p), 1 / n) / n)


def test_only_the_figures_that_are_asked_for_are_fitted(world):
    whole = evaluate(world.model, **world.sets, test=world.test, seed=4)
    few = evaluate(world.model, **world.sets, test=world.test, seed=4, metrics=("ua", "mia_entropy"))
    assert few["mia_entropy"] == whole["mia_entropy"] and few["ua"] == whole["ua"]
    assert few["mia_efficacy"] is None and few["mia_prob"] is None


def test_what_is_known_of_a_model_is_not_read_again():
    """Of texts the readings that are given are the figures; with another model's the figures are that model's."""
    data, model, other = make_texts(40), build(0), build(1)
    train, test = data.part("train"), data.part("test")
    sets = {"retain": train.take(np.arange(6, len(train))), "forget": train.take(np.arange(6)), "test": test}
    asked: list[int] = []

    def known_of(whose: nn.Module) -> Callable[[ExampleSet], Reading]:
        reading = read(whose, data).values

        def known(some: ExampleSet) -> Reading:
            asked.append(len(some))
            return Reading(reading[data.positions(some.example_id)])

        return known

    alone = [measure(one, **sets, seed=3) for one in (model, other)]
    assert alone[0][0]["ra"] != alone[1][0]["ra"]
    for whose, (figures, called) in zip((model, other), alone, strict=True):
        found, outside = measure(model, **sets, seed=3, known=known_of(whose))
        assert found == pytest.approx(figures, abs=1e-6) and np.array_equal(outside, called)
    assert sorted(asked) == sorted(2 * [len(part) for part in sets.values()])


def test_what_cannot_be_measured_is_refused(world):
    given_ = dict(world.sets, test=world.test, seed=0)
    with pytest.raises(InvalidInput, match="svc_cap = 1"):
        evaluate(world.model, **given_, svc_cap=1)
    with pytest.raises(DataError, match="retain set is empty"):
        evaluate(world.model, **given_ | {"retain": world.retain.subset([])})
    only_a = world.retain.subset(world.retain.example_id[world.retain.y == 0])
    without_a = world.test.subset(world.test.example_id[world.test.y != 0])
    with pytest.raises(DataError, match="no example of a retained class"):
        evaluate(world.model, **given_ | {"retain": only_a, "test": without_a})
    bad = dataclasses.replace(world.test, y=np.full_like(world.test.y, -1))
    with pytest.raises(DataError, match="outside"):
        evaluate(world.model, **given_ | {"test": bad})
    real = dataclasses.replace(world.forget, task="regression", class_names=(), y=world.forget.y.astype(float))
    with pytest.raises(NotApplicable, match="regression"):
        evaluate(world.model, **given_ | {"forget": real})


def test_a_model_of_nan_is_diverged_and_never_reaches_the_svm(world):
    broken = nn.Linear(6, 4)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(Diverged, match="not finite"):
        evaluate(broken, **world.sets, test=world.test, seed=0)


def test_nothing_forgotten_has_no_unlearning_accuracy(world):
    nobody = world.forget.subset([])
    figures = evaluate(world.model, retain=world.retain, forget=nobody, test=world.test, seed=0)
    assert figures["ua"] is None and figures["mia_efficacy"] is None
    assert figures["ra"] > 50 and figures["ta"] > 50


def run(method: str, seed: int, figure: float | None, **more: object) -> dict[str, object]:
    return {
        "split": "random",
        "method": method,
        "seed": seed,
        "num_forget": 10,
        "num_retain": 90,
        "ua": figure,
        "ra": 90.0,
        "ta": 80.0,
        "mia_efficacy": figure,
        "wall_s": 1.0 + seed,
    } | more


def test_gaps_are_taken_within_a_seed():
    rows = pl.DataFrame(
        [run("finetune", 1, 6.0), run("retrain", 0, 5.0), run("finetune", 0, 3.0, ra=100.0), run("retrain", 1, 8.0)]
    )
    out = add_gaps(rows)
    assert out.select("method", "seed").rows() == rows.select("method", "seed").rows()
    assert out["gap_ua"].to_list() == [2.0, 0.0, 2.0, 0.0]
    assert out["gap_ra"].to_list() == [0.0, 0.0, 10.0, 0.0]
    assert out["avg_gap"].to_list() == [1.0, 0.0, 3.5, 0.0]
    assert {c for c in out.columns if "gap" in c} <= set(STORED)
    assert add_gaps(out).equals(out)


def test_a_diverged_run_has_no_gap():
    nothing = dict.fromkeys(("ua", "ra", "ta", "mia_efficacy"))
    rows = pl.DataFrame([run("retrain", 0, 5.0), run("gradient_ascent", 0, None, **nothing)], infer_schema_length=None)
    out = add_gaps(rows)
    assert out["avg_gap"].to_list() == [0.0, None]
    all_null = add_gaps(pl.DataFrame([run("retrain", 0, None, **nothing)]))
    assert all_null["avg_gap"].to_list() == [None] and all_null["ua"].dtype == pl.Float64
    assert add_gaps(pl.DataFrame([run("retrain", 0, float("nan"))]))["avg_gap"].to_list() == [None]


def test_gaps_that_would_mislead_are_refused():
    with pytest.raises(NotReady, match="split random seed 1"):
        add_gaps(pl.DataFrame([run("retrain", 0, 5.0), run("finetune", 1, 5.0)]))
    with pytest.raises(DataError, match="two retrainings"):
        add_gaps(pl.DataFrame([run("retrain", 0, 5.0), run("retrain", 0, 6.0)]))
    with pytest.raises(DataError, match="another num_forget"):
        add_gaps(pl.DataFrame([run("retrain", 0, 5.0), run("finetune", 0, 5.0, num_forget=11)]))


def test_spread_over_seeds():
    nothing = dict.fromkeys(("ua", "ra", "ta", "mia_efficacy"))
    rows = pl.DataFrame(
        [run("retrain", s, f) for s, f in enumerate((5.0, 7.0, 9.0))] + [run("finetune", 0, None, **nothing)],
        infer_schema_length=None,
    )
    out = summarise(rows)
    picked = {(m, k): v for _, m, k, *v in out.rows()}
    assert picked["retrain", "ua"] == [7.0, 2.0, 3, 3]
    assert picked["retrain", "wall_s"] == [2.0, 1.0, 3, 3]
    assert picked["finetune", "ua"] == [None, None, 0, 1]
    assert picked["finetune", "wall_s"] == [1.0, None, 1, 1]
