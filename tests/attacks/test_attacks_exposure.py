"""The exposure table against loops over models and examples; the analysis on planted ensembles; its verdicts."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from scipy.stats import fisher_exact

from attacks.membership import exposure_table, report_over_targets
from attacks.membership.exposure import smallest_p_value, trace_p_values
from attacks.membership.exposure_audit import ExposureConfig, every_model_a_target, exposure, judge_exposure
from contracts.errors import ConfigError, DataError, InvalidInput, NotApplicable, UnknownName
from contracts.methods import analysis, attack
from contracts.subject import Thresholds
from contracts.verdicts import Verdict
from recipes.ensemble import ReferenceEnsemble
from sources.example_set import ExampleSet
from stats import benjamini_hochberg, clopper_pearson

JUDGED = Thresholds(max_target_auc=0.6)


def above_by_hand(scores: np.ndarray, member: np.ndarray, t: int, n: int, cap: float) -> bool:
    """Fewer than the allowed number of non-members of the model, the example itself aside, score as much."""
    others = [scores[t, i] for i in range(scores.shape[1]) if not member[t, i] and i != n]
    return sum(s >= scores[t, n] for s in others) <= math.floor(cap * len(others) + 1e-9)


@pytest.mark.parametrize("cap", [0.02, 0.1])
def test_the_table_equals_loops_over_models_and_examples(cap: float) -> None:
    rng = np.random.default_rng(0)
    member = rng.random((10, 120)).argsort(axis=0) < 5
    scores = rng.normal(size=member.shape).round(1)  # with ties
    scores[:, 7] += 5 * member[:, 7]
    ids = np.arange(1000, 1120)
    trace = np.where(np.arange(120) % 2 == 0, 0.0, 0.7)
    table = exposure_table(scores, member, ids, trace=trace, fpr_cap=cap)
    assert sorted(table["example_id"]) == ids.tolist() and table["example_id"][0] == 1007
    for row in table.iter_rows(named=True):
        n = row["example_id"] - 1000
        above = np.array([above_by_hand(scores, member, t, n, cap) for t in range(10)])
        inside = member[:, n]
        assert (row["found"], row["times_member"]) == (above[inside].sum(), 5)
        assert (row["false"], row["times_out"]) == (above[~inside].sum(), 5)
        assert row["exposure"] == row["found"] / 5 and row["false_alarms"] == row["false"] / 5
        low, high = clopper_pearson(row["found"], 5)
        assert (row["exposure_lo"], row["exposure_hi"]) == (float(low), float(high))
        counts = [[row["found"], 5 - row["found"]], [row["false"], 5 - row["false"]]]
        fisher = fisher_exact(counts, alternative="greater").pvalue
        assert row["p_value"] == pytest.approx(max(fisher, trace[n]))
    order = table.select("exposure_lo", "false_alarms", "example_id")
    assert order.equals(order.sort("exposure_lo", "false_alarms", "example_id", descending=[True, False, False]))


def test_undefined_scores_count_neither_way_and_examples_without_both_sides_have_no_row() -> None:
    rng = np.random.default_rng(1)
    member = rng.random((8, 60)).argsort(axis=0) < 4
    member[:, 5] = False
    scores = rng.normal(size=member.shape)
    scores[member[:, 3], 3] = np.nan
    scores[0, 4] = np.nan
    table = exposure_table(scores, member, np.arange(60), trace=np.zeros(60), fpr_cap=0.1)
    assert set(range(60)) - set(table["example_id"]) == {3, 5}
    row = table.row(by_predicate=pl.col("example_id") == 4, named=True)
    assert row["times_member"] + row["times_out"] == 7
    with pytest.raises(InvalidInput, match="raise it"):
        exposure_table(scores, member, np.arange(60), trace=np.zeros(60), fpr_cap=0.001)
    with pytest.raises(InvalidInput, match="do not fit"):
        exposure_table(scores, member, np.arange(60), trace=np.zeros(59))


def test_trace_p_values_equal_all_the_ways_to_draw_the_members() -> None:
    rng = np.random.default_rng(2)
    phi = rng.normal(size=(8, 20))
    member = rng.random((8, 20)).argsort(axis=0) < 4
    phi[:, 0] += 9 * member[:, 0]
    ranks = phi.argsort(axis=0).argsort(axis=0)
    for n, p in enumerate(trace_p_values(phi, member)):
        sums = [ranks[list(chosen), n].sum() for chosen in combinations(range(8), 4)]
        assert p == pytest.approx(np.mean(np.array(sums) >= ranks[member[:, n], n].sum()))
    assert trace_p_values(phi, member)[0] == pytest.approx(smallest_p_value(8)) == pytest.approx(1 / 70)
    for wrong in (np.ones((8, 20), dtype=bool), rng.random((8, 20)) < 0.5, member[:, :3]):
        with pytest.raises(InvalidInput):
            trace_p_values(phi, wrong)


def planted(
    seed: int, *, models: int = 64, pool: int = 1000, points: int = 100, exposed: int = 0, gain: float = 8.0
) -> tuple[ExampleSet, ReferenceEnsemble]:
    """An ensemble in which only the first ``exposed`` ids left a trace: wrong when out, right when in, by ``gain``.

    Ids are shuffled; a tenth of the pool is test. The others are easy or hard for all models alike.
    """
    rng = np.random.default_rng(seed)
    num = pool + points
    ids = rng.permutation(num).astype(np.int64)
    keep = np.zeros((models, num), dtype=bool)
    in_pool = np.arange(num) < pool
    keep[:, in_pool] = rng.random((models, pool)).argsort(axis=0) < models // 2
    labels = rng.integers(3, size=num)
    logits = rng.normal(0, 0.3, size=(models, num, 3))
    traced = ids < exposed
    logits[:, np.arange(num), labels] += np.where(traced, -gain / 2, rng.normal(2, 2, num)) + gain * keep * traced
    in_train = in_pool & (traced | (rng.random(num) < 0.9))
    data = ExampleSet(
        name="planted",
        task="classification",
        x=rng.normal(size=(num, 2)).astype(np.float32),
        y=labels,
        example_id=ids,
        split=np.where(in_train, "train", "test").astype("<U5"),
        owner=np.full(num, ""),
        content_hash=np.full(num, "", "<U64"),
        class_names=("a", "b", "c"),
        center=np.zeros(2, np.float32),
        scale=np.ones(2, np.float32),
    )
    ensemble = ReferenceEnsemble.of_logits(
        example_id=ids,
        pool=in_pool,
        labels=labels,
        keep=keep,
        logits=logits.astype(np.float32),
        config_digest="planted",
    )
    return data, ensemble


def run(world: tuple[ExampleSet, ReferenceEnsemble], **config: object) -> dict[str, pl.DataFrame]:
    return exposure(world[0], config=ExposureConfig.from_mapping(config), seed=0, ensemble=world[1])


@pytest.fixture(scope="module")
def found() -> tuple[tuple[ExampleSet, ReferenceEnsemble], dict[str, pl.DataFrame]]:
    world = planted(3, pool=400, exposed=4)
    return world, run(world)


def test_the_exposed_are_named_and_nobody_else(found) -> None:
    (data, _), tables = found
    rows, summary = tables["exposure"], tables["exposure_summary"]
    train = data.example_id[data.split == "train"]
    for (_, cap), part in rows.group_by("attack", "fpr_cap"):
        assert set(part["example_id"]) == set(train.tolist())
        assert set(part.filter("exposed")["example_id"]) == {0, 1, 2, 3}
        assert set(part.head(4)["example_id"]) == {0, 1, 2, 3}
        assert part["false_alarms"].mean() == pytest.approx(cap, abs=0.4 * cap + 0.003)
    assert set(rows["attack"]) == {"lira_online", "rmia_online"} and set(rows["fpr_cap"]) == {0.01, 0.05}
    assert (summary["num_exposed"].drop_nulls() == 4).all()
    assert (summary["exposure_max"].drop_nulls() > 0.9).all()


def test_the_adjustment_is_over_examples_attacks_and_caps(found) -> None:
    rows = found[1]["exposure"]
    for _, part in rows.group_by("attack", "fpr_cap"):  # two attacks, two caps that the data carries
        expected = np.minimum(1, 4 * benjamini_hochberg(part["p_value"].to_numpy()))
        assert part["p_adjusted"].to_list() == pytest.approx(expected.tolist())
    assert (rows["exposed"] == (rows["p_adjusted"] <= 0.05)).all()


def test_share_is_how_many_are_at_least_as_exposed(found) -> None:
    for _, part in found[1]["exposure"].group_by("attack", "fpr_cap"):
        value = part["exposure"].to_numpy()
        assert part["share"].to_list() == pytest.approx([(value >= v).mean() for v in value])


def test_the_summary_gives_the_average_and_the_tail(found) -> None:
    (_, ensemble), tables = found
    evidence = every_model_a_target(found[0][0], ensemble)
    keep = evidence.keep
    methods = {name: attack.get(name) for name in ("lira_online", "rmia_online")}
    scores = {name: method(evidence, config=method.spec.config(), seed=0) for name, method in methods.items()}
    for row in tables["exposure_summary"].iter_rows(named=True):
        assert row["num_models"] == 64 and row["num_negatives"] == (~keep).sum(axis=1).min()
        assert row["reliable"] == (row["fpr_cap"] * row["num_negatives"] >= 10)
        assert row["shown"] == (row["fpr_cap"] == 0.05)  # 0.05 * 180 is less than ten: the largest
        if row["fpr_cap"] == 0.001:
            assert row["tpr"] is row["num_exposed"] is row["exposure_max"] is None
            continue
        mine = tables["exposure"].filter(attack=row["attack"], fpr_cap=row["fpr_cap"])["exposure"].sort()
        assert row["exposure_mean"] == pytest.approx(mine.mean())
        assert row["exposure_p99"] == mine[math.ceil(0.99 * (len(mine) - 1))] and row["exposure_max"] == mine[-1]
        assert row["tpr_lo"] <= row["tpr"] <= row["tpr_hi"] and row["auc_lo"] <= row["auc"] <= row["auc_hi"]
        report = report_over_targets(scores[row["attack"]], keep, fpr_caps=(row["fpr_cap"],), seed=0)
        area, tpr = report.select("value", "low", "high").rows()
        assert (row["auc"], row["auc_lo"], row["auc_hi"]) == area and (row["tpr"], row["tpr_lo"], row["tpr_hi"]) == tpr


def test_output_follows_ids_not_rows(found) -> None:
    (data, ensemble), tables = found
    order = np.random.default_rng(0).permutation(len(data.example_id))
    moved = dataclasses.replace(
        ensemble,
        example_id=ensemble.example_id[order],
        pool=ensemble.pool[order],
        labels=ensemble.labels[order],
        keep=ensemble.keep[:, order],
        reading=ensemble.reading[:, order],
    )
    again = run((data.subset(np.sort(data.example_id)), moved))
    for name, frame in tables.items():
        assert frame.equals(again[name])


def changed(world: tuple[ExampleSet, ReferenceEnsemble], **fields: np.ndarray) -> tuple[ExampleSet, ReferenceEnsemble]:
    return dataclasses.replace(world[0], **fields), world[1]


def test_what_does_not_fit_is_refused_naming_the_examples(found) -> None:
    world, _ = found
    data = world[0]
    y = data.y.copy()
    y[2] = (y[2] + 1) % 3
    with pytest.raises(DataError) as error:
        run(changed(world, y=y))
    assert error.value.example_ids == (int(data.example_id[2]),)
    ids = data.example_id.copy()
    ids[1] = ids[0]
    with pytest.raises(DataError, match="twice"):
        run(changed(world, example_id=ids))
    with pytest.raises(DataError, match="no training example"):
        run(changed(world, split=np.full(len(data.y), "test")))
    with pytest.raises(NotApplicable):
        run(changed(world, task="regression", y=data.y.astype(float)), attacks=["entropy"])
    with pytest.raises(NotApplicable, match="not kept"):
        run((data, dataclasses.replace(world[1], logits=None)), attacks=["entropy"])
    with pytest.raises(UnknownName, match="lira_online"):
        run(world, attacks=["no-such-attack"])
    for wrong in ({"attacks": []}, {"attacks": ["loss", "loss"]}, {"fpr_caps": []}, {"fpr_caps": [0.05, 0.01]}):
        with pytest.raises(ConfigError):
            ExposureConfig.from_mapping(wrong)


def test_verdicts_name_the_exposed_whatever_the_average(found) -> None:
    shown = judge_exposure(found[1], Thresholds())  # the plan does not judge the audited model
    assert len(shown) == 2 and not any(f.judged for _, f in shown)
    verdicts = judge_exposure(found[1], JUDGED)
    assert [(who, f.what) for who, f in verdicts] == [
        ("target", "exposure/lira_online"),
        ("target", "exposure/rmia_online"),
    ]
    for _, finding in verdicts:
        assert finding.judged and finding.verdict is Verdict.FAIL and finding.value == 4 and finding.threshold == 0
        assert "4 of" in finding.sentence and "of 32 models trained with it" in finding.sentence


def test_nobody_exposed_passes_only_when_somebody_could_have_been_named() -> None:
    enough = judge_exposure(run(planted(5)), JUDGED)
    assert {f.verdict for _, f in enough} == {Verdict.PASS}
    assert all("None of" in f.sentence and "would have been named" in f.sentence for _, f in enough)
    few_models = judge_exposure(run(planted(6, models=12)), JUDGED)
    assert {f.verdict for _, f in few_models} == {Verdict.INCONCLUSIVE}
    assert all("Too few models" in f.sentence for _, f in few_models)
    few_people = judge_exposure(run(planted(7, pool=60)), JUDGED)
    assert {f.verdict for _, f in few_people} == {Verdict.INCONCLUSIVE}
    assert all("needed 200" in f.sentence for _, f in few_people)


def test_no_cap_that_the_data_carries_is_inconclusive() -> None:
    tables = run(planted(8, pool=60), fpr_caps=[0.001])
    assert tables["exposure"].is_empty() and tables["exposure_summary"]["tpr"].null_count() == 2
    assert {f.verdict for _, f in judge_exposure(tables, JUDGED)} == {Verdict.INCONCLUSIVE}


def test_an_analysis_that_does_not_apply_is_not_judged(found) -> None:
    empty = {name: frame.clear() for name, frame in found[1].items()}
    assert judge_exposure(empty, JUDGED) == []


def test_it_is_registered_with_its_judge() -> None:
    spec = analysis.get("exposure").spec
    assert spec.judge is judge_exposure
    assert [t.full_name for t in spec.tables] == ["audits.exposure_summary", "audits.exposure"]


@pytest.mark.parametrize("name", ["lira_offline", "loss", "reference", "shadow_model"])
def test_any_registered_attack_will_do(found, name: str) -> None:
    tables = run(found[0], attacks=[name], fpr_caps=[0.05])
    assert set(tables["exposure"]["attack"]) == {name}
    assert set(tables["exposure"].filter("exposed")["example_id"]) <= {0, 1, 2, 3}
