from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from scipy import stats

from contracts import leaderboard
from contracts.errors import ConfigError, UnknownName
from contracts.schema import (
    ARTIFACTS,
    ATTACK_REPORTS,
    ATTACK_SCORES,
    CHECKPOINTS,
    COLUMNS,
    EDGES,
    EXAMPLES,
    FINDINGS,
    INTERVALS,
    LINEAGE_MEMBERS,
    LINEAGE_SETS,
    MEMBERS,
    METRICS,
    REGISTER,
    REQUEST_EVENTS,
    TABLES,
    UNLEARNING_METRICS,
    UNLEARNING_RUNS,
    UNSEEN,
)
from contracts.tables import TableSpec
from warehouse import Warehouse, ddl, queries, views

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
EL2N = [0.1, 0.9, 0.5, 0.3, 0.7, 0.2]
MEMORIZATION = [(0.9, 0.4), (0.8, 0.01), (0.1, 0.01), (0.6, 0.05), (0.0, 0.0), (0.7, 0.0)]

Ask = Callable[..., list[dict[str, Any]]]


def insert(
    con: duckdb.DuckDBPyConnection, spec: TableSpec, rows: list[dict[str, Any]], subject: str = "digits"
) -> None:
    common = {"subject": subject, "run_id": "r", "config_digest": "c"}
    for row in rows:
        whole = common | row
        columns = ", ".join(map(ddl.quoted, whole))
        con.execute(
            f"INSERT INTO {ddl.table(spec)} ({columns}) VALUES ({', '.join('?' * len(whole))})", list(whole.values())
        )


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """Six digits and one glass of wine, whose answers are known."""
    c = duckdb.connect()
    c.execute("SET TimeZone = 'UTC'")
    for schema in sorted({s.schema for s in TABLES}):
        c.execute(f"CREATE SCHEMA {ddl.quoted(schema)}")
    for spec in TABLES:
        c.execute(ddl.create_table(spec))
    c.execute(
        "CREATE SCHEMA ledger; CREATE TABLE ledger.entries (seq BIGINT, prev_hash VARCHAR, hash VARCHAR, kind VARCHAR, "
        "body JSON)"
    )
    c.execute(
        "CREATE TABLE scores.latest (subject VARCHAR, score VARCHAR, example_id BIGINT, value DOUBLE, stderr DOUBLE, "
        "higher_means VARCHAR, run_id VARCHAR, calls VARCHAR, is_called BOOLEAN)"
    )
    c.execute(views.AGREEMENT)
    views.lay_out_wide(c)
    for i, (v, (m, se)) in enumerate(zip(EL2N, MEMORIZATION, strict=True)):
        c.execute(
            "INSERT INTO scores.latest VALUES ('digits', 'el2n', ?, ?, NULL, 'harder', 'r', 'hard', NULL)", [i, v]
        )
        c.execute(
            "INSERT INTO scores.latest VALUES ('digits', 'memorization', ?, ?, ?, 'memorised', 'r', 'memorised', ?)",
            [i, m, se, m > 0.65],
        )
    c.execute("INSERT INTO scores.latest VALUES ('wine', 'el2n', 0, 5.0, NULL, 'harder', 'r', 'hard', NULL)")

    hashes, labels = ["a", "b", "a", "c", "b", "d"], [0, 1, 1, 0, 1, 0]
    insert(
        c,
        EXAMPLES,
        [
            {
                "example_id": i,
                "split": "train" if i < 4 else "test",
                "label": k,
                "label_name": f"digit {k}",
                "target": None,
                "owner": "",
                "content_hash": h,
            }
            for i, (k, h) in enumerate(zip(labels, hashes, strict=True))
        ],
    )
    insert(
        c,
        EXAMPLES,
        [
            {
                "example_id": 0,
                "split": "train",
                "label": None,
                "label_name": "",
                "target": 1.5,
                "owner": "",
                "content_hash": "a",
            }
        ],
        "wine",
    )
    insert(c, COLUMNS, [{"example_id": i, "name": "step", "value": str(i // 3 * 10)} for i in range(6)])
    insert(
        c,
        MEMBERS,
        [
            {"dataset_id": d, "example_id": i, "role": "forget" if i in forget else "retain", "reason": "chosen"}
            for d, forget in (("random", {0, 1}), ("r-1", {2}))
            for i in range(4)
        ],
    )
    insert(
        c,
        ATTACK_REPORTS,
        [
            {
                "audited": "target",
                "attack": attack,
                "seed": 0,
                "n_pos": 4,
                "n_neg": 1000,
                "fpr_cap": cap,
                "reliable": cap * 1000 >= 10,
                "tpr": tpr,
            }
            | {
                k: 0.5
                for k in ("auc", "auc_lo", "auc_hi", "balanced_acc", "tpr_lo", "tpr_hi", "fpr", "fpr_lo", "fpr_hi")
            }
            for attack, tpr in (("loss", 0.1), ("rmia", 0.3))
            for cap in (0.001, 0.01, 0.05)
        ],
    )
    insert(
        c,
        UNSEEN,
        [
            {"attack": a, "num_models": 16, "n_train": 2, "n_test": 1, "auc": v, "auc_lo": v - 0.1, "auc_hi": v + 0.1}
            | {"p_value": 0.5}
            for a, v in (("loss", 0.45), ("rmia", 0.75))
        ],
    )
    # loss separates example 0 from all three others; rmia puts example 1 on top and 0 in their middle.
    for attack, values in {"loss": [9, 5, 1, 7, 5, 2], "rmia": [5, 9, 1, 8, 5, 2]}.items():
        insert(
            c,
            ATTACK_SCORES,
            [
                {
                    "audited": "target",
                    "attack": attack,
                    "seed": 0,
                    "example_id": i,
                    "score": float(v),
                    "is_member": i < 2,
                    "n_in": 8,
                    "n_out": 8,
                }
                for i, v in enumerate(values)
                if i != 2
            ],
        )
    runs = (
        ("retrain", 0, 5.0, 0.0, "ok"),
        ("retrain", 1, 7.0, 0.0, "ok"),
        ("finetune", 0, 1.0, 4.0, "ok"),
        ("finetune", 1, 3.0, 6.0, "ok"),
        ("gradient_ascent", 0, 90.0, 2.0, "diverged"),
        ("broken", 0, None, None, "diverged"),
    )
    board = {"why": "", "num_runs": 3, "num_diverged": 0, "tuned": "", "groups": ""}
    insert(
        c,
        leaderboard.SUMMARY,
        [
            {**board, "forget_set": kind, "method": m, "status": status, "rank": rank, **more}
            for kind, m, status, rank, more in (
                ("worst_case", "none", "ok", 2, {"groups": "b", "avg_gap": 9.0}),
                ("worst_case", "ascent", "diverged", None, {"why": "loss nan"}),
                ("worst_case", "retrain", "ok", None, {"avg_gap": 0.0}),
                (
                    "worst_case",
                    "salient",
                    "ok",
                    1,
                    {"groups": "a", "klom_forget": 1.0, "klom_forget_floor": 0.6, "rte": 0.25, "pareto": True},
                ),
                ("worst_case", "flat", "not_applicable", None, {"why": "no tokens"}),
                ("random", "none", "ok", 1, {"groups": "a"}),
            )
        ],
    )
    insert(
        c,
        leaderboard.EXAMPLES,
        [
            {
                "forget_set": "random",
                "method": m,
                "example_id": i,
                "part": part,
                "label": label,
                "answer": answer,
                "signal": signal,
            }
            for m, i, part, label, answer, signal in (
                ("none", 0, "forget", 0, 0, 4.0),
                ("none", 1, "forget", 0, 0, 3.0),
                ("none", 4, "test", 1, 1, 1.0),
                ("retrain", 0, "forget", 0, 0, 3.0),
                ("retrain", 1, "forget", 0, 1, -2.0),
                ("retrain", 4, "test", 1, 1, 1.5),
            )
        ],
    )
    insert(
        c,
        UNLEARNING_RUNS,
        [
            {
                "split": "random",
                "method": m,
                "seed": seed,
                "num_forget": 2,
                "num_retain": 2,
                "wall_s": 1.0,
                "rte": 0.5,
                "status": status,
                "kind": "random",
                "reason": "" if status == "ok" else "why",
            }
            for m, seed, _, _, status in runs
        ],
    )
    insert(
        c,
        UNLEARNING_METRICS,
        [
            {"split": "random", "method": m, "seed": seed, "metric": metric, "value": value}
            | {"low": value / 2 if bounded else None, "high": 2 * value if bounded else None}
            for m, seed, ua, gap, _ in runs
            for metric, value, bounded in (
                ("ua", ua, False),
                ("ra", 99.0, False),
                ("ta", 95.0, False),
                ("mia_efficacy", 10.0, False),
                ("avg_gap", gap, True),
            )
            if value is not None
        ],
    )
    insert(
        c,
        FINDINGS,
        [
            {
                "stage": "digits/audits/findings",
                "kind": "attack",
                "about": "target",
                "method": "",
                "what": f"w{i}",
                "verdict": v,
                "sentence": "s",
                "judged": True,
            }
            for i, v in enumerate(("pass", "inconclusive", "fail", "broken"))
        ],
    )
    insert(
        c,
        FINDINGS,
        [
            {
                "stage": "digits/audits/findings",
                "kind": "attack",
                "about": "random/none",
                "method": "none",
                "what": "w0",
                "verdict": "fail",
                "sentence": "s",
                "judged": False,
            }
        ],
    )
    insert(
        c,
        REGISTER,
        [
            {
                "request_id": r,
                "state": state,
                "selector": "ids",
                "request": "{}",
                "legal_basis": "Art. 17",
                "received_at": NOW - timedelta(days=20),
                "due_at": NOW + timedelta(days=days),
                "num_examples": 1,
            }
            for r, state, days in (
                ("r-1", "scoped", 10),
                ("r-2", "received", -1.5),
                ("r-3", "closed", 1),
                ("r-4", "refused", 1),
                ("r-5", "on_hold", 3),
            )
        ],
    )
    insert(
        c,
        REQUEST_EVENTS,
        [
            {"request_id": "r-1", "seq": i, "state": s, "note": f"n{i}", "at": NOW + timedelta(hours=h)}
            for i, (s, h) in enumerate((("received", 0), ("verified", 12), ("scoped", 13.5)))
        ],
    )
    insert(
        c,
        ARTIFACTS,
        [
            {
                "artifact_id": f"a{i}",
                "asset": asset,
                "kind": "safetensors",
                "location": f"artifacts/a{i}",
                "sha256": "s",
                "size_bytes": size,
                "key": "k",
                "created_at": NOW,
            }
            for i, (asset, size) in enumerate(
                (("digits/models/target", 100), ("digits/models/ensemble", 300), ("digits/scores/el2n", 0))
            )
        ],
    )
    insert(
        c,
        EDGES,
        [
            {"child": child, "parent": parent}
            for child, parent in (
                ("digits/models/target", "digits/data/examples"),
                ("digits/models/ensemble", "digits/data/examples"),
                ("digits/audits/rmia", "digits/models/target"),
                ("digits/audits/rmia", "digits/models/ensemble"),
                ("digits/reports/audit", "digits/audits/rmia"),
            )
        ],
    )
    insert(
        c,
        LINEAGE_SETS,
        [
            {"set_id": s, "first_id": first, "last_id": last}
            for s, first, last in (("half", 0, 1), ("half", 3, 3), ("all", 0, 5))
        ],
    )
    insert(
        c,
        LINEAGE_MEMBERS,
        [
            {"asset": "digits/models/target", "set_id": "half"},
            {"asset": "digits/models/ensemble", "set_id": "all"},
        ],
    )
    insert(
        c,
        CHECKPOINTS,
        [
            {
                "artifact_id": f"a{i}",
                "role": role,
                "recipe": "supervised",
                "seed": 0,
                "epochs": 30,
                "num_parameters": 10,
                "train_loss": 0.1,
                "train_quality": 1.0,
                "test_quality": 0.75,
                "retains": "",
                "wall_s": 1.0,
            }
            for i, role in enumerate(("target", "early"))
        ],
    )
    previous = "0" * 64
    for seq, (kind, body) in enumerate(
        (
            (
                "replace",
                '{"table": "audits.findings", "subject": "digits", "partition": {"stage": "digits/audits/findings"}, '
                '"rows": 3, "config_digest": "c1", "run_id": "r1", "digest": "d1", "at": "t1"}',
            ),
            (
                "replace",
                '{"table": "scores.el2n", "subject": "digits", "partition": {}, "rows": 9, "config_digest": "c1", '
                '"run_id": "r1", "digest": "d2", "at": "t1"}',
            ),
            ("stage", '{"asset": "digits/audits/findings", "key": "k", "at": "t1"}'),
            (
                "replace",
                '{"table": "audits.findings", "subject": "digits", "partition": {"stage": "digits/audits/findings"}, '
                '"rows": 5, "config_digest": "c2", "run_id": "r2", "digest": "d3", "at": "t2"}',
            ),
        ),
        start=1,
    ):
        current = f"hash{seq}"
        c.execute(
            "INSERT INTO ledger.entries VALUES (?, ?, ?, ?, ?)",
            [seq, previous if seq != 4 else "forged", current, kind, body],
        )
        previous = current
    yield c
    c.close()


@pytest.fixture
def ask(con: duckdb.DuckDBPyConnection) -> Ask:
    def run(name: str, **values: Any) -> list[dict[str, Any]]:
        query = queries.get(name)
        assert set(values) <= set(query.params)
        return con.sql(query.sql, params={**query.params, **values} or None).pl().to_dicts()

    return run


def column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [r[name] for r in rows]


def test_there_are_twenty_eight_and_each_says_what_it_answers() -> None:
    assert len(queries.names()) == 28
    for name in queries.names():
        query = queries.get(name)
        assert query.summary.endswith(".")
        assert set(query.help) == set(query.params)
        assert queries.text(name) == query.sql
        assert all(v is None or isinstance(v, (str, int, float)) for v in query.params.values())
    with pytest.raises(UnknownName, match="hardest"):
        queries.get("hardst")


@pytest.mark.parametrize("name", queries.names())
def test_every_query_answers_with_its_defaults_through_the_read_only_door(
    name: str, empty: Warehouse, ask: Ask
) -> None:
    query = queries.get(name)
    found = empty.query(query.sql, dict(query.params))
    assert found.height == 0 or name == "ledger-tail", "an empty warehouse has a ledger that says so, and nothing else"
    assert ask(name), "the sample database has an answer to every question"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    w = Warehouse.open(tmp_path_factory.mktemp("home"))
    w.publish()
    return w


def test_hardest(ask: Ask) -> None:
    rows = ask("hardest", subject="digits", limit=3)
    assert column(rows, "example_id") == [1, 4, 2]
    assert column(rows, "label_name") == ["digit 1", "digit 1", "digit 1"]
    assert column(rows, "percentile") == pytest.approx([100, 80, 60])
    assert ask("hardest", limit=1)[0]["subject"] == "wine"
    assert column(ask("hardest", subject="digits", score="memorization", limit=1), "example_id") == [0]


def test_most_memorised_is_sorted_by_the_lower_end(ask: Ask) -> None:
    rows = ask("most-memorised")
    assert column(rows, "example_id")[:4] == [1, 5, 3, 0]  # 0.9 +- 0.4 is less certain than 0.6 +- 0.05
    assert rows[0]["at_least"] == pytest.approx(0.8 - 1.96 * 0.01)
    assert column(rows, "is_called") == [True, True, False, True, False, False]


def test_noisiest(ask: Ask) -> None:
    rows = ask("noisiest")
    place = {
        s: (stats.rankdata(v) - 1) / 5 for s, v in (("el2n", EL2N), ("memorization", [m for m, _ in MEMORIZATION]))
    }
    spread = np.abs(place["el2n"] - place["memorization"])
    apart = {i: v for i, v in enumerate(spread) if v > 0}
    assert column(rows, "spread") == pytest.approx(sorted(apart.values(), reverse=True))
    assert {r["example_id"]: r["spread"] for r in rows} == pytest.approx(apart)
    first = next(r for r in rows if r["example_id"] == 0)
    assert (first["highest"], first["lowest"], first["spread"]) == ("memorization", "el2n", 1.0)
    assert "wine" not in column(rows, "subject"), "one score cannot disagree with itself"


def test_agreement_puts_first_what_is_called_most_kinds_of_things(ask: Ask) -> None:
    rows = ask("agreement", subject="digits")
    assert [(r["example_id"], r["says"], r["high"]) for r in rows] == [
        (1, ["hard", "memorised"], ["el2n", "memorization"]),
        (0, ["memorised"], ["memorization"]),
        (5, ["memorised"], ["memorization"]),
    ]
    assert [r["example_id"] for r in ask("agreement", subject="digits", at_least=2)] == [1]


def test_score_agreement_is_spearman_with_ties(con: duckdb.DuckDBPyConnection, ask: Ask) -> None:
    (row,) = ask("score-agreement", subject="digits", top=0.5)
    memorization = [m for m, _ in MEMORIZATION]
    assert (row["score"], row["other"], row["num_examples"]) == ("el2n", "memorization", 6)
    assert row["rank_correlation"] == pytest.approx(stats.spearmanr(EL2N, memorization).statistic)
    assert row["top_overlap"] == pytest.approx(1 / 3)  # {1, 4, 2} and {0, 1, 5}
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 40), rng.integers(0, 5, 40)
    con.begin()
    for name, values in (("a", a), ("b", b)):
        con.executemany(
            "INSERT INTO scores.latest VALUES ('tied', ?, ?, ?, NULL, '', 'r', '', NULL)",
            [[name, i, float(v)] for i, v in enumerate(values)],
        )
    (row,) = ask("score-agreement", subject="tied")
    con.rollback()
    assert row["rank_correlation"] == pytest.approx(stats.spearmanr(a, b).statistic)


def test_forgotten_and_memorised(ask: Ask) -> None:
    sure = {r["split"]: r for r in ask("forgotten-and-memorised", at_least=0.5)}
    assert (sure["random"]["high_in_all"], sure["random"]["high_in_it"]) == (2, 1), "0.9 +- 0.4 may be 0.1"
    both = {r["split"]: r for r in ask("forgotten-and-memorised", at_least=0.5, z=0)}
    assert (both["random"]["forget_set"], both["random"]["high_in_all"], both["random"]["high_in_it"]) == (2, 3, 2)
    assert both["random"]["expected_by_chance"] == pytest.approx(1.5)
    assert both["random"]["ratio"] == pytest.approx(2 / 1.5)
    assert both["r-1"]["ratio"] == 0
    assert ask("forgotten-and-memorised", at_least=2.0, split="r-1")[0]["ratio"] is None


def test_balances(ask: Ask) -> None:
    rows = ask("class-balance")
    assert [(r["split"], r["label"], r["num_examples"], r["share"]) for r in rows] == [
        ("train", 0, 2, 0.5),
        ("train", 1, 2, 0.5),
        ("test", 0, 1, 0.5),
        ("test", 1, 1, 0.5),
    ]
    rows = ask("split-balance", dataset="r-1")
    assert [(r["role"], r["label"], r["num_examples"], r["share_of_class"]) for r in rows] == [
        ("forget", 1, 1, 0.5),
        ("retain", 0, 2, 1.0),
        ("retain", 1, 1, 0.5),
    ]


def test_attacks_at_the_lowest_reliable_rate(ask: Ask) -> None:
    assert [(r["attack"], r["fpr_cap"], r["tpr"]) for r in ask("attacks-low-fpr")] == [
        ("rmia", 0.01, 0.3),
        ("loss", 0.01, 0.1),
    ]
    assert ask("attacks-low-fpr", audited="random/retrain") == []


def test_peers_are_those_whom_models_that_saw_neither_cannot_tell_apart(ask: Ask) -> None:
    rows = ask("peers")
    assert [(r["attack"], r["unseen_auc"], r["differ"], r["target_auc"]) for r in rows] == [
        ("rmia", 0.75, True, 0.5),
        ("loss", 0.45, False, 0.5),
    ]
    assert ask("peers", subject="nobody") == []


def test_most_exposed_counts_the_non_members_that_look_as_much_like_members(ask: Ask) -> None:
    rows = {r["example_id"]: r for r in ask("most-exposed")}
    assert list(rows) == [0, 1] or list(rows) == [1, 0]
    # others: loss 7, 5, 2 and rmia 8, 5, 2; ties count against the attack
    p = {0: {"loss": 1 / 4, "rmia": 3 / 4}, 1: {"loss": 3 / 4, "rmia": 1 / 4}}
    for i, by_attack in p.items():
        assert rows[i]["mean_log10_p"] == pytest.approx(np.mean([math.log10(v) for v in by_attack.values()]))
        assert rows[i]["least_p"] == pytest.approx(0.25)
        assert rows[i]["strongest"] == min(by_attack, key=by_attack.__getitem__)


def test_unlearning_table(ask: Ask) -> None:
    rows = ask("unlearning-table")
    assert column(rows, "method") == ["retrain", "gradient_ascent", "finetune", "broken"]
    finetune = rows[2]
    assert (finetune["seeds"], finetune["avg_gap"], finetune["ua"]) == (2, 5.0, 2.0)
    assert finetune["avg_gap_sd"] == pytest.approx(math.sqrt(2))
    assert rows[1]["avg_gap_sd"] is None, "one seed has no spread"
    assert (finetune["avg_gap_lo"], finetune["avg_gap_hi"]) == (2.0, 12.0), "the outermost of the seeds"
    assert column(rows, "failed") == [0, 1, 0, 1]


def test_closest_to_retraining(ask: Ask) -> None:
    rows = ask("closest-to-retraining")
    assert column(rows, "method") == ["salient", "none", "ascent"], "by rank, those without one last"
    assert column(rows, "groups") == ["a", "b", ""] and column(rows, "status") == ["ok", "ok", "diverged"]
    assert rows[0]["klom_excess"] == pytest.approx(0.4) and rows[0]["rte"] == 0.25 and rows[0]["pareto"]
    assert column(ask("closest-to-retraining", forget_set="random"), "method") == ["none"]
    assert ask("closest-to-retraining", subject="wine") == []


def test_compare_methods(ask: Ask) -> None:
    rows = ask("compare-methods")
    assert [(r["part"], r["answer"], r["other_answer"], r["num"]) for r in rows] == [
        ("forget", 0, 0, 1),
        ("forget", 0, 1, 1),
        ("test", 1, 1, 1),
    ]
    assert (rows[1]["num_right"], rows[1]["other_right"]) == (1, 0)
    assert column(rows, "signal_change") == pytest.approx([-1.0, -5.0, 0.5])
    same = ask("compare-methods", method="retrain", part="test")
    assert [(r["answer"], r["other_answer"], r["num"], r["signal_change"]) for r in same] == [(1, 1, 1, 0.0)]
    assert ask("compare-methods", forget_set="class") == []


def test_findings(ask: Ask) -> None:
    assert column(ask("findings"), "verdict") == ["fail", "broken", "inconclusive", "pass", "fail"]
    assert column(ask("findings"), "judged") == [True] * 4 + [False], "what counts comes first"
    assert column(ask("findings", verdict="inconclusive"), "what") == ["w1"]


def test_audit_trend(ask: Ask) -> None:
    rows = ask("audit-trend")
    assert [(r["seq"], r["run_id"], r["num_rows"], r["change"], r["new_configuration"]) for r in rows] == [
        (4, "r2", 5, 2, True),
        (1, "r1", 3, None, True),
    ]
    assert column(ask("audit-trend", table="scores.el2n"), "digest") == ["d2"]
    assert ask("audit-trend", subject="wine") == []


def test_open_requests_and_their_days_left(ask: Ask) -> None:
    rows = ask("open-requests", now="2026-11-24 12:00:00+00")
    assert [(r["request_id"], r["days_left"], r["overdue"]) for r in rows] == [
        ("r-2", -1.5, True),
        ("r-5", 3.0, False),
        ("r-1", 10.0, False),
    ]
    assert column(ask("open-requests"), "request_id") == ["r-2", "r-5", "r-1"]


def test_request_history(ask: Ask) -> None:
    rows = ask("request-history", request="r-1")
    assert [(r["state"], r["hours"]) for r in rows] == [("received", 12.0), ("verified", 1.5), ("scoped", None)]
    assert ask("request-history", request="r-2") == []


def test_ledger_tail_says_where_the_chain_is_broken(ask: Ask) -> None:
    rows = ask("ledger-tail", limit=3)
    assert column(rows, "seq") == [4, 3, 2]
    assert column(rows, "follows") == [False, True, True]
    assert column(rows, "about") == ["audits.findings", "digits/audits/findings", "scores.el2n"]
    assert column(ask("ledger-tail"), "follows")[-1] is True, "the first follows from 64 zeros"
    assert column(ask("ledger-tail", kind="stage"), "seq") == [3]


def test_a_score_by_step_is_that_of_the_examples_of_each_step(ask: Ask) -> None:
    rows = ask("score-by-step", score="el2n")
    shown = [(r["step"], r["split"], r["num_examples"], r["mean"], r["median"]) for r in rows]
    assert shown[0] == ("0", "train", 3, pytest.approx(0.5), 0.5)
    assert shown[1:] == [("10", "train", 1, 0.3, 0.3), ("10", "test", 2, pytest.approx(0.45), pytest.approx(0.45))]
    assert rows[0]["stderr"] == pytest.approx(np.std(EL2N[:3], ddof=1) / math.sqrt(3))
    assert ask("score-by-step", column="domain") == []


def test_recipes_against_audits_show_each_attack_once_at_the_lowest_reliable_rate(ask: Ask) -> None:
    rows = ask("recipe-audit-matrix")
    assert [(r["recipe"], r["attack"], r["fpr_cap"], r["tpr"], r["test_quality"]) for r in rows] == [
        ("supervised", "loss", 0.01, 0.1, 0.75),
        ("supervised", "rmia", 0.01, 0.3, 0.75),
    ]
    assert [r["attack"] for r in ask("recipe-audit-matrix", attack="rmia")] == ["rmia"]
    assert ask("recipe-audit-matrix", subject="wine") == []


def test_artefacts_checkpoints_and_lineage(ask: Ask) -> None:
    rows = ask("largest-artefacts")
    assert [(r["artifact_id"], r["share"]) for r in rows] == [("a1", 0.75), ("a0", 0.25)]
    rows = ask("checkpoints")
    assert [(r["role"], r["gap"], r["size_bytes"]) for r in rows] == [("early", 0.25, 300), ("target", 0.25, 100)]
    rows = ask("lineage", asset="digits/models/target")
    assert [(r["relation"], r["asset"], r["steps"]) for r in rows] == [
        ("made from", "digits/data/examples", 1),
        ("used by", "digits/audits/rmia", 1),
        ("used by", "digits/reports/audit", 2),
    ]
    assert column([r for r in ask("lineage") if r["relation"] == "made from"], "steps") == [1, 2, 2, 3]


def test_lineage_ends_on_a_circle(con: duckdb.DuckDBPyConnection, ask: Ask) -> None:
    con.begin()
    insert(con, EDGES, [{"child": "digits/data/examples", "parent": "digits/reports/audit"}])
    rows = ask("lineage")
    con.rollback()
    assert len(rows) == 10


def test_what_an_example_touched(ask: Ask) -> None:
    rows = ask("touched", example_id=2, subject="digits")
    assert {(r["place"], r["what"], r["detail"]) for r in rows} == {
        ("data.examples", "train split", "digit 1"),
        ("data.columns", "step", "0"),
        ("scores.el2n", "score", "0.5"),
        ("scores.memorization", "score", "0.1"),
        ("curation.members", "random: retain", "chosen"),
        ("curation.members", "r-1: forget", "chosen"),
        ("lineage", "digits/models/ensemble", "made from it"),
        ("lineage", "digits/audits/rmia", "made from what was made from it"),
        ("lineage", "digits/reports/audit", "made from what was made from it"),
    }
    assert {r["subject"] for r in ask("touched", example_id=0)} == {"digits", "wine"}


def test_duplicates(ask: Ask) -> None:
    rows = ask("duplicates")
    assert [(r["content_hash"], r["labels_differ"], r["in_train_and_test"], r["first_ids"]) for r in rows] == [
        ("a", True, False, [0, 2]),
        ("b", False, True, [1, 4]),
    ]


def test_models_in_the_dark(ask: Ask) -> None:
    rows = ask("models-in-the-dark")
    assert [(r["request_id"], r["asset"], r["num_examples"]) for r in rows] == [("r-1", "digits/models/ensemble", 1)]


@pytest.mark.promise("B6")
def test_hostile_values_are_data(ask: Ask) -> None:
    for name in queries.names():
        for parameter, default in queries.get(name).params.items():
            if default is None and parameter not in ("now",):
                assert ask(name, **{parameter: "x' OR '1'='1; DROP TABLE data.examples; --"}) == []


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("SELECT 1", "what it answers"),
        ("-- Answers.\n", "one SELECT"),
        ("-- Answers.\nSELECT $a", r"\$a must be both"),
        ("-- Answers.\n-- $a = 1: what\nSELECT 1", r"\$a must be both"),
        ("-- Answers.\n-- $a = one: what\nSELECT $a", "not JSON"),
        ("-- Answers.\n-- $a = 1: what\n-- and more\nSELECT $a", "among the parameters"),
    ],
)
def test_files_that_do_not_explain_themselves_are_refused(source: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        queries.parse("q", source)


def test_a_file_is_read_as_written() -> None:
    made = queries.parse("q", '-- What\n-- it is.\n-- $a = "x: y": the a\n-- $b = null: the b\n\nSELECT $a, $b;\n')
    assert (made.summary, made.sql, dict(made.params)) == ("What it is.", "SELECT $a, $b", {"a": "x: y", "b": None})
    assert dict(made.help) == {"a": "the a", "b": "the b"}


def test_the_cookbook_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "sql-cookbook.md").read_text(encoding="utf-8") == queries.cookbook()


def test_a_row_a_run_holds_what_the_long_table_says(con: duckdb.DuckDBPyConnection) -> None:
    wide = con.sql("SELECT * FROM unlearning.wide ORDER BY method, seed").pl()
    runs = con.sql("SELECT * FROM unlearning.runs ORDER BY method, seed").pl()
    assert wide.select(runs.columns).equals(runs), "every run once, also one without any figure"
    said = con.sql("SELECT method, seed, metric, value, low, high FROM unlearning.metrics").pl()
    long = {(m, s, k): (v, lo, hi) for m, s, k, v, lo, hi in said.rows()}
    nothing = (None, None, None)
    for row in wide.iter_rows(named=True):
        for metric in METRICS:
            value, low, high = long.get((row["method"], row["seed"], metric), nothing)
            assert row[metric] == value
            if metric in INTERVALS:
                assert (row[f"{metric}_lo"], row[f"{metric}_hi"]) == (low, high)


def test_the_wide_view_is_found_outdated_and_laid_out_anew(w: Warehouse) -> None:
    with w.transaction() as t:
        t.con.execute("CREATE OR REPLACE VIEW unlearning.wide AS SELECT 1 AS x")
    with w.reading() as c:
        assert views.outdated(c) == ["unlearning.wide"]
    again = Warehouse.open(w.home)
    with again.reading() as c:
        assert views.outdated(c) == []
    assert "unlearning.wide" in again.ledger.entries(kind="view")["body"][-1]
