"""The leaderboard on made-up unlearners with planted metrics and planted laws of margins."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import t as student
from torch import nn

from contracts.errors import ConfigError, DataError, Diverged, InvalidInput, NotApplicable, NotTheModel
from contracts.leaderboard import METRICS, PARTS, TABLES
from contracts.methods import unlearner
from contracts.params import Config, param
from explain.similarity import cka_of_layers
from recipes.predict import predict_logits, read
from scoring.worst_case_forget import WorstCaseForgetConfig
from stats.klom import binned_kl, klom
from stats.pairwise import all_pairs
from studies.leaderboard.leaderboard import LeaderboardConfig, leaderboard
from studies.leaderboard.tuning import grid_of, tune

SEARCH = WorstCaseForgetConfig(fraction=0.2, upper_steps=2, lower_epochs=1)
GAPS = {"none": 25.0, "good": 1.0, "fair": 4.0, "bad": 30.0, "stacked": 2.0}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Knob(Config):
    lr: float = param(0.01, gt=0, le=1, search=(0.001, 0.1))


@pytest.fixture
def both_splits(examples):
    """37 examples, of which 9 are for testing; every class is in both parts; three owners."""
    split = np.where(np.arange(37) % 4 == 0, "test", "train").astype("<U5")
    return dataclasses.replace(examples, split=split, owner=np.array(["ann", "bob", "cid"])[np.arange(37) % 3])


class Bench:
    """Trainings, unlearners and metrics that are made up. A model is a network that carries a note of how it was made;
    its metrics are planted, its answers are its own."""

    def __init__(self, build, data, *, stops: dict[str, Exception] | None = None, gaps=GAPS, shift=None) -> None:
        self.build, self.data, self.stops, self.gaps = build, data, stops or {}, gaps
        self.shift = shift or {}
        self.trained: list[list[np.ndarray]] = []
        self.calls: list[dict] = []
        self.stacks: list[int] = []
        self.now = 0.0

    def made(self, how: str, seed: int, **note) -> nn.Module:
        model = self.build(seed if how != "none" else 0)
        if how in self.shift:  # a law of margins of its own
            rng = np.random.default_rng([seed, len(how)])
            nn.init.zeros_(model[2].weight)
            with torch.no_grad():
                model[2].bias.copy_(torch.from_numpy(rng.normal(0, 1, 4) + self.shift[how] * np.arange(4)))
        model.note = {"how": how, "seed": seed, **note}
        return model

    def train_many(self, members, seeds, *, data):
        self.trained.append(list(members))
        assert all((np.diff(ids) > 0).all() for ids in members), "what is trained depends on the ids alone"
        whole = int((self.data.split == "train").sum())
        self.now += 3.0 * len(members)
        if "retrain" in self.stops and len(self.trained) > 1:
            raise self.stops["retrain"]
        return [
            self.made("none" if len(ids) == whole else "retrain", seed, ids=ids)
            for ids, seed in zip(members, seeds, strict=True)
        ]

    def config(self, name):
        return Knob() if name != "fixed" else Config()

    def refusal(self, name):
        return "" if name in (*self.gaps, "fixed") else f"unlearner {name} is not for these"

    def many(self, models, name, *, retain, forget, seeds, changed):
        if name != "stacked":
            return None
        self.stacks.append(len(models))
        made = []
        for model, kept, gone, seed in zip(models, retain, forget, seeds, strict=True):
            call = {"start": model, "name": name, "retain": kept, "forget": gone, "seed": seed, **changed}
            self.calls.append(call)
            made.append(self.made(name, seed, changed=dict(changed)))
        return [Diverged("the last of them"), *made[1:]] if "stack" in self.stops else made

    def __call__(self, model, name, *, retain, forget, seed, changed):
        self.calls.append({"start": model, "name": name, "retain": retain, "forget": forget, "seed": seed, **changed})
        self.now += {"good": 2.0, "fair": 1.0}.get(name, 4.0)
        if name in self.stops:
            raise self.stops[name]
        return self.made(name, seed, changed=dict(changed))

    def evaluate(self, model, *, retain, forget, test, seed, metrics):
        note = model.note
        assert not set(retain.example_id) & set(forget.example_id) and set(test.split) == {"test"}
        off = self.gaps.get(note["how"], 0.0)
        off *= abs(np.log10(note.get("changed", {}).get("lr", 0.01)) + 1.0)  # best at lr = 0.1
        noise = np.random.default_rng([seed, len(note["how"])]).normal(0, 0.1)
        base = {"ua": 40.0, "ra": 90.0, "ta": 80.0, "mia_efficacy": 50.0}
        return {m: v + (off + noise if note["how"] != "retrain" else 0.05 * (seed % 7)) for m, v in base.items()}

    def run(self, config, *, seed=3, data=None):
        data = self.data if data is None else data
        return leaderboard(
            data,
            config=config,
            seed=seed,
            model=self.build(0),
            train_many=self.train_many,
            unlearn_from=self,
            evaluate=self.evaluate,
            ensemble_if_any=None,
            clock=lambda: self.now,
        )


def config(**more) -> LeaderboardConfig:
    fields = {"methods": ("good", "bad"), "sets": ("random", "lowest_loss"), "search": SEARCH, "sample": 5}
    return LeaderboardConfig(**{**fields, **more})


def row(frame: pl.DataFrame, **where) -> dict:
    return frame.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in where.items()), named=True)


def test_every_run_has_an_original_and_a_retraining_of_its_own_and_one_set_a_kind(both_splits, mlp):
    bench = Bench(mlp, both_splits)
    out = bench.run(config())
    assert [len(m) for m in bench.trained] == [3, 1, 5], "originals; one retraining alone, by the clock; all the others"
    train = np.sort(both_splits.part("train").example_id)
    assert all((ids == train).all() for ids in bench.trained[0])
    runs = out["leaderboard_runs"]
    assert runs.height == 2 * 4 * 3 and set(runs["status"]) == {"ok"}
    sets = {}
    for call in bench.calls:
        own = runs.filter((pl.col("method") == call["name"]) & (pl.col("seed") == call["seed"]))
        assert own.height == 2 and call["start"].note["how"] == "none" and call["start"].note["seed"] == call["seed"]
        assert set(call["retain"].example_id) | set(call["forget"].example_id) == set(train)
        sets.setdefault(tuple(call["forget"].example_id), []).append(call["name"])
    assert sorted(map(len, sets.values())) == [6, 6], "one set a kind, for all methods and runs"
    for left in [ids for members in bench.trained[1:] for ids in members]:
        assert tuple(np.setdiff1d(train, left)) in sets, "a retraining lacks exactly the set"
    for (kind, run), part in runs.group_by("forget_set", "run"):
        yard = row(part, method="retrain")
        assert part["seed"].n_unique() == 1, "a method and its retraining share a seed"
        for one in part.iter_rows(named=True):
            gaps = [abs(one[m] - yard[m]) for m in METRICS]
            found = [one[g] for g in ("gap_ua", "gap_ra", "gap_ta", "gap_mia")]
            assert found == pytest.approx(gaps) and one["avg_gap"] == pytest.approx(np.mean(gaps)), (kind, run)


def test_the_board_is_arithmetic_over_the_runs(both_splits, mlp):
    out = Bench(mlp, both_splits).run(config(methods=("good", "fair", "bad"), seeds=5, alpha=0.1))
    board, runs = out["leaderboard"], out["leaderboard_runs"]
    assert board.columns == [c.name for c in TABLES[0].columns]
    assert board["method"].to_list() == ["retrain", "none", "good", "fair", "bad"] * 2
    for one in board.iter_rows(named=True):
        own = runs.filter((pl.col("forget_set") == one["forget_set"]) & (pl.col("method") == one["method"])).sort("run")
        gap = own["avg_gap"].to_numpy()
        assert one["num_runs"] == 5 and one["num_diverged"] == 0 and one["num_forget"] + one["num_retain"] == 27
        assert one["ua"] == pytest.approx(own["ua"].mean()) and one["ua_std"] == pytest.approx(own["ua"].std())
        half = student.isf(0.05, 4) * gap.std(ddof=1) / np.sqrt(5)
        assert one["avg_gap_high"] == pytest.approx(gap.mean() + half)
        assert one["avg_gap_low"] == pytest.approx(max(gap.mean() - half, 0))
        assert one["avg_gap_worst"] == gap.max()
        nothing = runs.filter((pl.col("forget_set") == one["forget_set"]) & (pl.col("method") == "none"))
        assert one["gap_ratio"] == pytest.approx(gap.mean() / nothing["avg_gap"].mean())
        usual = runs.filter((pl.col("forget_set") == "random") & (pl.col("method") == one["method"])).sort("run")
        excess = gap - usual["avg_gap"].to_numpy()
        assert one["excess"] == pytest.approx(excess.mean()) and one["excess_std"] == pytest.approx(excess.std(ddof=1))
        fresh = runs.filter((pl.col("forget_set") == one["forget_set"]) & (pl.col("method") == "retrain"))
        apart = [np.mean([abs(a[m] - b[m]) for m in METRICS]) for a, b in itertools.combinations(fresh.to_dicts(), 2)]
        assert one["gap_floor"] == pytest.approx(np.mean(apart))


def test_ranks_say_who_cannot_be_told_apart(both_splits, mlp):
    gaps = {"none": 25.0, "good": 1.0, "fair": 1.0, "bad": 25.0}
    out = Bench(mlp, both_splits, gaps=gaps).run(config(methods=("good", "fair", "bad"), sets=("random",), seeds=6))
    board = {one["method"]: one for one in out["leaderboard"].iter_rows(named=True)}
    runs = out["leaderboard_runs"]
    assert board["retrain"]["rank"] is None and board["retrain"]["groups"] == ""
    assert {board["good"]["groups"], board["fair"]["groups"]} == {"a"}
    assert {board["none"]["groups"], board["bad"]["groups"]} == {"b"}
    assert {m: board[m]["beats_none"] for m in board} == {
        "retrain": None,
        "none": None,
        "good": True,
        "fair": True,
        "bad": False,
    }
    luck = Bench(mlp, both_splits, gaps={"none": 25.0, "bad": 24.99}).run(config(methods=("bad",), sets=("random",)))
    lucky = row(luck["leaderboard"], method="bad")
    assert lucky["rank"] == 1 and lucky["beats_none"] is False, "a little closer by chance is no better"
    names = sorted(("none", "good", "fair", "bad"), key=lambda m: board[m]["rank"])
    assert [board[m]["rank"] for m in names] == [1, 2, 3, 4]
    assert [board[m]["avg_gap"] for m in names] == sorted(board[m]["avg_gap"] for m in names)
    values = np.stack([runs.filter(pl.col("method") == m).sort("run")["avg_gap"].to_numpy() for m in names], axis=1)
    exact = all_pairs(values, alpha=0.05, step=100 / (4 * board["none"]["num_forget"]))
    pairs = out["leaderboard_pairs"]
    assert pairs.height == 6
    for k, pair in enumerate(pairs.iter_rows(named=True)):
        assert (pair["method"], pair["other"]) == (names[exact.first[k]], names[exact.second[k]])
        assert pair["difference"] == pytest.approx(exact.difference[k]) and pair["p_holm"] == exact.p_holm[k]
        assert pair["told_apart"] == exact.apart[k] and pair["closer"] == (pair["method"] if exact.apart[k] else "")


@pytest.mark.parametrize(
    ("error", "status"),
    [(Diverged("on purpose"), "diverged"), (DataError("not finite"), "diverged"), (NotTheModel("other"), "refused")],
)
def test_a_method_that_stops_has_no_rank_and_the_others_are_kept(both_splits, mlp, error, status):
    out = Bench(mlp, both_splits, stops={"good": error}).run(config())
    lost = row(out["leaderboard"], method="good", forget_set="random")
    assert (lost["status"], lost["why"], lost["num_diverged"], lost["num_runs"]) == (status, str(error), 3, 3)
    assert lost["rank"] is None and lost["groups"] == "" and lost["avg_gap"] is None and lost["beats_none"] is None
    assert row(out["leaderboard"], method="bad", forget_set="random")["rank"] == 2
    assert not out["leaderboard_pairs"].filter((pl.col("method") == "good") | (pl.col("other") == "good")).height
    for name in ("leaderboard_klom", "leaderboard_examples", "leaderboard_classes", "leaderboard_layers"):
        assert "good" not in set(out[name]["method"]) and "bad" in set(out[name]["method"])


def test_one_run_that_diverges_takes_the_rank(both_splits, mlp):
    class Once(Bench):
        def __call__(self, model, name, **given):
            made = super().__call__(model, name, **given)
            if name == "good" and sum(c["name"] == "good" for c in self.calls) == 2:
                raise Diverged("in the second run")
            return made

    out = Once(mlp, both_splits).run(config(sets=("random",)))
    lost = row(out["leaderboard"], method="good")
    assert (lost["status"], lost["num_runs"], lost["num_diverged"], lost["rank"]) == ("diverged", 3, 1, None)
    assert out["leaderboard_runs"].filter(pl.col("method") == "good")["status"].to_list() == ["ok", "diverged", "ok"]


@pytest.mark.parametrize("error", [Diverged("on purpose"), NotApplicable("not here")])
def test_without_retraining_there_is_no_reference(both_splits, mlp, error):
    with pytest.raises(type(error)):
        Bench(mlp, both_splits, stops={"retrain": error}).run(config())


def test_what_does_not_apply_is_named_and_never_called(both_splits, mlp):
    bench = Bench(mlp, both_splits, stops={"good": NotApplicable("not for this set")})
    out = bench.run(config(methods=("stranger", "good", "bad"), sets=("random", "influence"), tuning_runs=1))
    board = out["leaderboard"]
    assert "stranger" not in {call["name"] for call in bench.calls}
    stranger = row(board, method="stranger", forget_set="random")
    assert stranger["status"] == "not_applicable" and "not for these" in stranger["why"] and stranger["num_runs"] == 0
    good = row(board, method="good", forget_set="random")
    assert (good["status"], good["why"], good["num_runs"]) == ("not_applicable", "not for this set", 0)
    assert sum(call["name"] == "good" for call in bench.calls) == 2, (
        "one run says it: that of tuning, one of the judged"
    )
    unfit = board.filter(pl.col("forget_set") == "influence")
    assert set(unfit["status"]) == {"not_applicable"} and unfit["num_forget"].null_count() == unfit.height == 5
    assert all("reference ensemble" in why or "not for these" in why for why in unfit["why"])
    assert set(board.filter(pl.col("method") == "bad")["status"]) == {"ok", "not_applicable"}


def test_nothing_is_trained_where_no_set_can_be_drawn(both_splits, mlp):
    bench = Bench(mlp, both_splits)
    with pytest.raises(NotApplicable, match="influence"):
        bench.run(config(sets=("influence",)))
    assert not bench.trained


# --- tuning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "class", "owner", "lowest_loss", "worst_case"])
def test_tuning_never_sees_the_judged_set(both_splits, mlp, kind):
    bench = Bench(mlp, both_splits)
    out = bench.run(config(sets=(kind,), tuning_runs=3))
    train = set(both_splits.part("train").example_id.tolist())
    tried = [call for call in bench.calls if call["start"].note["how"] == "retrain"]
    judged = [call for call in bench.calls if call["start"].note["how"] == "none"]
    assert len(tried) == 2 * 3 and len(judged) == 2 * 3
    [gone] = {tuple(call["forget"].example_id) for call in judged}
    [(kept, tuned_on)] = {(tuple(c["retain"].example_id), tuple(c["forget"].example_id)) for c in tried}
    assert not set(gone) & (set(kept) | set(tuned_on)) and set(kept) | set(tuned_on) | set(gone) == train
    assert not set(gone) & set(tried[0]["start"].note["ids"]), "the model that is tuned on never saw it either"
    assert any(set(ids) == set(kept) for members in bench.trained for ids in members), "compared with retraining"
    assert [len(m) for m in bench.trained] == [3, 1, 3]
    tries = out["leaderboard_tuning"].filter(pl.col("method") == "good")
    assert tries["value"].to_list() == pytest.approx([0.001, 0.01, 0.1]) and set(tries["field"]) == {"lr"}
    assert tries["chosen"].to_list() == [False, False, True], "the planted best"
    assert all(call["lr"] == 0.1 for call in judged)
    assert row(out["leaderboard"], method="good", forget_set=kind)["tuned"] == "lr=0.1"
    assert set(tries["num_forget"]) == {len(tuned_on)}


def test_without_a_budget_the_plan_decides(both_splits, mlp):
    bench = Bench(mlp, both_splits)
    out = bench.run(config())
    assert not out["leaderboard_tuning"].height and all("lr" not in call for call in bench.calls)
    assert set(out["leaderboard"]["tuned"]) == {""}


def test_a_validation_set_that_cannot_be_drawn_leaves_the_plan_and_says_why(both_splits, mlp):
    two = dataclasses.replace(both_splits, y=both_splits.y % 2)
    bench = Bench(mlp, two)
    out = bench.run(config(sets=("class",), tuning_runs=2))
    [said] = set(out["leaderboard_tuning"]["why"])
    assert "no validation set" in said and "two classes" in said
    assert all("lr" not in call for call in bench.calls) and len(bench.calls) == 6


def test_tries_that_stop_are_told_and_the_least_gap_of_the_rest_is_chosen():
    gaps = {0.001: 3.0, 0.01: None, 0.1: 3.0}

    def attempt(changed):
        return {"avg_gap": gaps[changed["lr"]], "status": "ok" if gaps[changed["lr"]] else "diverged", "why": ""}

    chosen, rows = tune(Knob(), budget=3, attempt=attempt)
    assert chosen == {"lr": 0.001} and [r["chosen"] for r in rows] == [True, False, False], "of equal ones the smallest"
    chosen, rows = tune(Knob(), budget=2, attempt=lambda _: {"avg_gap": None, "status": "diverged", "why": "all"})
    assert chosen == {} and len(rows) == 2 and not any(r["chosen"] for r in rows)
    chosen, [only] = tune(Config(), budget=2, attempt=attempt)
    assert chosen == {} and only["status"] == "not_applicable" and "lr" in only["why"]


def test_the_grid_is_what_the_paper_searched_or_a_decade_around_the_plan():
    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Plain(Config):
        lr: float = param(0.3, gt=0, le=1)

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Other(Config):
        lr: float = param(0.3, gt=0, le=1)
        alpha: float = param(10.0, gt=0, le=100, search=(1.0, 100.0))

    assert grid_of(Knob(), 1) == ("lr", [0.01])
    assert grid_of(Plain(), 3)[1] == pytest.approx([0.03, 0.173205, 1.0]), "cut to what is legal"
    assert grid_of(Other(), 3) == ("alpha", [1.0, 10.0, 100.0]), "what is declared comes first"
    assert grid_of(Config(), 3) == ("", [])

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Broken(Config):
        lr: float = param(0.3, gt=0, le=1, search=(0.1, 10.0))

    with pytest.raises(ConfigError, match="lr = 10"):
        grid_of(Broken(), 2)


# --- cost ---------------------------------------------------------------------------------------------------------


def test_time_is_that_of_the_clock_and_the_front_is_what_nothing_beats(both_splits, mlp):
    out = Bench(mlp, both_splits).run(config(methods=("good", "fair", "bad"), sets=("lowest_loss", "random")))
    runs = out["leaderboard_runs"].filter((pl.col("method") == "retrain") & pl.col("wall_s").is_not_null())
    assert runs.select("forget_set", "run").rows() == [("lowest_loss", 0)], "one is trained alone, on the first set"
    board = {one["method"]: one for one in out["leaderboard"].filter(pl.col("forget_set") == "random").to_dicts()}
    assert [board[m]["wall_s"] for m in ("retrain", "none", "good", "fair", "bad")] == [3.0, None, 2.0, 1.0, 4.0]
    assert [board[m]["rte"] for m in ("retrain", "good", "bad")] == pytest.approx([1.0, 2 / 3, 4 / 3])
    assert {m: board[m]["pareto"] for m in board} == {
        "retrain": None,
        "none": True,
        "good": True,
        "fair": True,
        "bad": False,
    }
    volatile = {c.name for c in TABLES[0].columns if c.volatile}
    assert volatile == {"wall_s", "rte", "pareto"}, "equal runs differ in nothing else"


def test_runs_are_made_together_where_a_method_allows_it_all_but_the_one_by_the_clock(both_splits, mlp):
    bench = Bench(mlp, both_splits)
    out = bench.run(config(methods=("stacked", "good"), seeds=36, sets=("random",)))
    assert bench.stacks == [32, 3], "so many at a time"
    runs = out["leaderboard_runs"].filter(pl.col("method") == "stacked").sort("run")
    assert runs["wall_s"].to_list() == [4.0] + [None] * 35 and set(runs["status"]) == {"ok"}
    own = [call for call in bench.calls if call["name"] == "stacked"]
    assert [call["seed"] for call in own] == runs["seed"].to_list()
    assert all(call["start"].note["seed"] == call["seed"] for call in own)
    assert len({tuple(call["forget"].example_id) for call in bench.calls}) == 1
    good = out["leaderboard_runs"].filter(pl.col("method") == "good")
    assert good["wall_s"].null_count() == 0, "one model at a time: every run by the clock"
    broken = Bench(mlp, both_splits, stops={"stack": Diverged("")}).run(config(methods=("stacked",), seeds=4))
    lost = row(broken["leaderboard"], method="stacked", forget_set="random")
    assert (lost["status"], lost["why"], lost["num_diverged"]) == ("diverged", "the last of them", 1)


# --- margins, answers, layers, embeddings --------------------------------------------------------------------------


def test_klom_tells_an_exact_method_from_one_that_leaves_a_trace(both_splits, mlp):
    shift = {"retrain": 0.0, "good": 0.0, "bad": 2.0}
    out = Bench(mlp, both_splits, shift=shift).run(config(sets=("random",), seeds=10))
    marks = out["leaderboard_klom"]
    assert set(marks["method"]) == {"none", "good", "bad"} and set(marks["part"]) == set(PARTS)
    good, bad = (marks.filter(pl.col("method") == m) for m in ("good", "bad"))
    assert not good["beyond_noise"].any() and bad["beyond_noise"].all()
    assert (good["normal_excess"].abs() < 0.7).all() and (bad["normal_excess"] > 2).all()
    assert (marks["num_runs"] == 10).all() and (marks["num_examples"] == 5).all()
    board = row(out["leaderboard"], method="bad")
    of_forget = row(marks, method="bad", part="forget")
    assert board["klom_forget"] == of_forget["half"] and board["klom_forget_floor"] == of_forget["floor"]


def test_klom_is_that_of_the_margins_of_the_same_runs(both_splits, mlp):
    bench = Bench(mlp, both_splits)
    out = bench.run(config(sets=("random",), seeds=4))
    found = out["leaderboard_examples"].filter(pl.col("method") == "good")
    seeds = out["leaderboard_runs"].filter(pl.col("method") == "good").sort("run")["seed"].to_list()
    for part in PARTS:
        own = found.filter(pl.col("part") == part)
        asked = both_splits.subset(own["example_id"].to_numpy())
        ours, theirs = (
            np.stack([read(bench.made(how, seed), asked).signal for seed in seeds]) for how in ("good", "retrain")
        )
        mark = row(out["leaderboard_klom"], method="good", part=part)
        assert mark["klom"] == pytest.approx(binned_kl(ours, theirs).mean())
        assert mark["klom_p95"] == pytest.approx(np.quantile(binned_kl(ours, theirs), 0.95))
        assert own["signal"].to_numpy() == pytest.approx(ours.mean(0))
        assert mark["half"] == pytest.approx(own["klom"].mean()) and mark["floor"] == pytest.approx(own["floor"].mean())
    few = Bench(mlp, both_splits).run(config(sets=("random",)))["leaderboard_klom"]
    assert few["half"].null_count() == few["normal_excess"].null_count() == few.height, "halves need two runs each"
    assert few["klom"].null_count() == 0
    assert klom(ours, theirs, seed=0).half.shape == (5,)


def test_any_two_methods_can_be_compared_from_the_rows(both_splits, mlp):
    bench = Bench(mlp, both_splits)
    out = bench.run(config(sets=("random",)))
    rows = out["leaderboard_examples"]
    seeds = out["leaderboard_runs"].filter(pl.col("method") == "good").sort("run")["seed"].to_list()
    for method in ("good", "retrain"):
        own = rows.filter(pl.col("method") == method)
        asked = both_splits.subset(own["example_id"].to_numpy())
        said = [predict_logits(bench.made(method, seed), asked).argmax(1) for seed in seeds]
        assert own["answer"].to_list() == said[0].tolist() and own["label"].to_list() == asked.y.tolist()
        assert own["quality"].to_numpy() == pytest.approx(np.mean([s == asked.y for s in said], axis=0))
    counts = rows.group_by("method", "part").len()
    assert set(counts["len"]) == {5} and counts.height == 4 * 3
    train = set(both_splits.part("train").example_id.tolist())
    for (part,), own in rows.group_by("part"):
        assert own["example_id"].n_unique() == 5 and (set(own["example_id"]) <= train) == (part != "test")
    pair = out["leaderboard_pairs"].row(0, named=True)
    a, b = (rows.filter((pl.col("method") == m) & (pl.col("part") == "test")) for m in (pair["method"], pair["other"]))
    runs = [
        np.stack([predict_logits(bench.made(m, s), both_splits.subset(a["example_id"])).argmax(1) for s in seeds])
        for m in (pair["method"], pair["other"])
    ]
    if "none" not in (pair["method"], pair["other"]):
        assert pair["same_test"] == pytest.approx((runs[0] == runs[1]).mean())
    assert a["example_id"].to_list() == b["example_id"].to_list()


def test_classes_and_layers_are_those_of_the_models(both_splits, mlp):
    bench = Bench(mlp, both_splits)
    out = bench.run(config(sets=("random",)))
    seeds = out["leaderboard_runs"].filter(pl.col("method") == "good").sort("run")["seed"].to_list()
    test = both_splits.part("test")
    for one in out["leaderboard_classes"].filter(pl.col("part") == "test").iter_rows(named=True):
        own = test.take(np.flatnonzero(test.y == one["label"]))
        accuracy = {
            m: 100 * np.mean([read(bench.made(m, seed), own).quality.mean() for seed in seeds])
            for m in (one["method"], "none", "retrain")
        }
        assert one["accuracy"] == pytest.approx(accuracy[one["method"]]) and one["num"] == len(own)
        assert one["change"] == pytest.approx(accuracy[one["method"]] - accuracy["none"])
        assert one["off"] == pytest.approx(accuracy[one["method"]] - accuracy["retrain"])
    shown = out["leaderboard_examples"].filter((pl.col("method") == "good") & (pl.col("part") == "test"))
    asked = both_splits.subset(shown["example_id"].to_numpy())
    yard = bench.made("retrain", seeds[0])
    for method, made in (("good", bench.made("good", seeds[0])), ("retrain", bench.made("retrain", seeds[1]))):
        own = out["leaderboard_layers"].filter(pl.col("method") == method)
        assert dict(zip(own["layer"], own["cka"], strict=True)) == pytest.approx(cka_of_layers(made, yard, asked))


def test_a_rotation_of_the_embedding_moves_no_point(both_splits, mlp):
    class Turned(Bench):
        def made(self, how, seed, **note):
            model = super().made("none", seed, **note)
            if how == "good":  # hidden units in another order: the same function
                with torch.no_grad():
                    order = torch.tensor([4, 2, 0, 3, 1])
                    model[0].weight.copy_(model[0].weight[order])
                    model[0].bias.copy_(model[0].bias[order])
                    model[2].weight.copy_(model[2].weight[:, order])
            model.note["how"] = how
            return model

    rows = Turned(mlp, both_splits).run(config(sets=("random",)))["leaderboard_examples"]
    one, other = (rows.filter(pl.col("method") == m) for m in ("none", "good"))
    for axis in ("x", "y"):
        assert other[axis].to_numpy() == pytest.approx(one[axis].to_numpy(), abs=1e-5)
    assert one["x"].std() >= one["y"].std() > 0


# --- promises -----------------------------------------------------------------------------------------------------


def test_same_seed_same_tables_whatever_the_order_of_the_rows(both_splits, mlp):
    mixed = both_splits.subset(np.random.default_rng(0).permutation(both_splits.example_id))
    few = config(methods=("good",), tuning_runs=1, sets=("random", "class", "owner"))
    one, two = (Bench(mlp, both_splits).run(few, seed=5, data=data) for data in (both_splits, mixed))
    for name, frame in one.items():
        assert frame.equals(two[name]), name
    same_set = config(methods=("good",), sets=("lowest_loss",), sample=3)
    drawn = [set(Bench(mlp, both_splits).run(same_set, seed=s)["leaderboard_examples"]["example_id"]) for s in range(3)]
    assert drawn[0] != drawn[1] != drawn[2], "the sample is drawn: it is not the first ids"


def test_a_number_to_predict_has_no_classes_and_no_answers(regression, mlp):
    split = np.where(np.arange(37) % 4 == 0, "test", "train").astype("<U5")
    data = dataclasses.replace(regression, split=split)

    def build(seed):
        model = mlp(seed)
        model[2] = nn.Linear(5, 1)
        return model

    out = Bench(build, data).run(config(sets=("random", "class", "owner")))
    board = out["leaderboard"]
    for kind, word in (("class", "classes"), ("owner", "owns")):
        own = board.filter(pl.col("forget_set") == kind)
        assert set(own["status"]) == {"not_applicable"} and all(word in why for why in own["why"])
    assert not out["leaderboard_classes"].height and out["leaderboard_examples"]["answer"].null_count() == 4 * 15
    assert out["leaderboard_pairs"]["same_test"].null_count() == 3 and out["leaderboard_klom"].height == 9


def test_refusals(both_splits, mlp):
    for bad in ({"seeds": 2}, {"sets": ()}, {"sets": ("random", "random")}, {"methods": ("good", "good")}):
        with pytest.raises(ConfigError):
            config(**bad)
    with pytest.raises(InvalidInput, match="test split"):
        Bench(mlp, both_splits).run(config(), data=both_splits.part("train"))


def test_without_names_every_registered_unlearner_is_there(both_splits, mlp):
    out = Bench(mlp, both_splits).run(config(methods=(), sets=("random",), sample=2))
    board = {one["method"]: one for one in out["leaderboard"].iter_rows(named=True)}
    assert {"retrain", "none", "finetune", "random_label", "flat"} <= set(board)
    assert board["flat"]["status"] == "not_applicable" and "flat" in board["flat"]["why"]


def test_what_methods_declare_to_be_searched_is_within_their_own_ranges():
    fields = {}
    for method in unlearner:
        name, values = grid_of(method.spec.config(), 3) if not _required(method.spec.config) else ("", [])
        fields[method.spec.name] = name
        assert bool(name) == bool(values) and values == sorted(values)
    assert fields["finetune"] == "lr" and fields["scrub"] == fields["selective_synaptic_dampening"] == "alpha"
    assert fields["retrain"] == fields["none"] == ""


def _required(config) -> bool:
    missing = dataclasses.MISSING
    return any(f.default is missing and f.default_factory is missing for f in dataclasses.fields(config))
