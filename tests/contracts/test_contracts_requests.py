"""Requests, certificates, jobs, subjects and verdicts: the rules that are data."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from contracts.certificates import STATEMENT, AttackResult, Certificate, read_statement, statement
from contracts.errors import ConfigError, IllegalName, IntegrityError, StateError
from contracts.jobs import UnlearnJob
from contracts.requests import OPEN, TRANSITIONS, ForgetRequest, RequestState, next_state
from contracts.schema import TABLES
from contracts.subject import Choice, Subject
from contracts.tables import COMMON
from contracts.verdicts import OF_FINDINGS, Verdict, overall

REQUEST = {
    "request_id": "r1",
    "subject": "digits",
    "selector": "ids",
    "ids": [1, 2],
    "received_at": "2026-01-01T00:00:00+00:00",
    "due_at": "2026-02-01T00:00:00+00:00",
}


@pytest.mark.parametrize(("a", "b"), list(itertools.product(RequestState, RequestState)))
def test_every_change_of_state_is_allowed_or_refused(a, b):
    if b in TRANSITIONS[a]:
        assert next_state(a, b) is b
    else:
        with pytest.raises(StateError, match=f"{a.value} cannot become {b.value}"):
            next_state(a, b)


def test_the_states_form_a_road_that_ends():
    assert set(TRANSITIONS) == set(RequestState)
    assert set(RequestState) - set(OPEN) == {RequestState.CLOSED, RequestState.REFUSED, RequestState.WITHDRAWN}
    for state in OPEN:
        assert RequestState.WITHDRAWN in TRANSITIONS[state], "the person may always think better of it"
    road = ["received", "verified", "scoped", "executed", "audited", "closed"]
    for a, b in itertools.pairwise(map(RequestState, road)):
        assert next_state(a, b) is b
    for state in RequestState:  # nothing is closed without an audit
        if RequestState.CLOSED in TRANSITIONS[state]:
            assert state is RequestState.AUDITED


@pytest.mark.parametrize(
    ("selector", "given"),
    [
        ("ids", {"ids": [3]}),
        ("owner", {"owner": "t"}),
        ("class", {"class_name": "7"}),
        ("where", {"where": "label = 3"}),
        ("score", {"score": "el2n", "fraction": 0.1}),
        ("score", {"score": "el2n", "count": 7, "end": "lowest"}),
    ],
)
def test_each_selector_takes_its_own_value_and_no_other(selector, given):
    base = {k: v for k, v in REQUEST.items() if k != "ids"}
    assert ForgetRequest.from_mapping({**base, "selector": selector, **given}).selector == selector
    with pytest.raises(ConfigError, match="given: nothing"):
        ForgetRequest.from_mapping({**base, "selector": selector})
    other = {"owner": "t"} if selector != "owner" else {"ids": [1]}
    with pytest.raises(ConfigError, match="needs its own value and no other"):
        ForgetRequest.from_mapping({**base, "selector": selector, **given, **other})


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"ids": [1, 1]}, ConfigError, "listed twice"),
        ({"ids": [-1]}, ConfigError, ">= 0"),
        ({"ids": [2**63]}, ConfigError, "ids"),
        ({"request_id": "R/1"}, IllegalName, "request id"),
        ({"subject": "../x"}, IllegalName, "subject"),
        ({"selector": "all"}, ConfigError, "'ids', 'owner'"),
        ({"count": 3}, ConfigError, "no other selector any"),
        ({"ids": [], "selector": "score", "score": "el2n"}, ConfigError, "selector score needs one of them"),
        (
            {"ids": [], "selector": "score", "score": "el2n", "fraction": 0.1, "count": 3},
            ConfigError,
            "selector score needs one of them",
        ),
    ],
)
def test_bad_requests_are_refused(change, error, says):
    with pytest.raises(error, match=says):
        ForgetRequest.from_mapping(REQUEST | change)


FINDING = {"what": "gap", "kind": "distance", "verdict": "pass", "sentence": "As close as asked.", "value": 1.0}
CERTIFICATE = {
    "subject": "digits",
    "request_id": "r1",
    "serial": 1,
    "selector": "owner",
    "num_examples": 10,
    "method": "finetune",
    "exact": False,
    "verdict": "pass",
    "findings": [FINDING],
    "attacks": [{"attack": "lira", "seed": 0, "n_pos": 10, "n_neg": 10, "auc": 0.5, "auc_lo": 0.4, "auc_hi": 0.6}],
    "digests": {},
    "ledger_head": "0:00",
    "issued_at": "2026-01-01T00:00:00+00:00",
    "expires_at": "2026-02-01T00:00:00+00:00",
}


def test_certificates():
    made = Certificate.from_mapping(CERTIFICATE)
    assert made.attacks[0] == AttackResult(**CERTIFICATE["attacks"][0])
    read, artifacts = read_statement(statement(made, {"b": "2", "a": "1"}))
    assert read == made and artifacts == {"a": "1", "b": "2"}
    at = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=days) for days in (-1, 0, 30, 31)]
    assert [made.expired(now) for now in at] == [False, False, False, True]
    assert [made.from_the_future(now) for now in at] == [True, False, False, False]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"expires_at": CERTIFICATE["issued_at"]}, "not after"),
        ({"expires_at": "2026-02-01"}, "no time zone"),
        ({"expires_at": "soon"}, "no time in ISO 8601"),
        ({"findings": []}, "nothing was judged"),
        ({"findings": [FINDING | {"verdict": "fail"}]}, "its findings together fail"),
        ({"verdict": "inconclusive"}, "its findings together pass"),
        ({"serial": 0}, "serial"),
        ({"claim": "forgotten for ever"}, "removed from weights"),
        ({"attacks": [CERTIFICATE["attacks"][0] | {"auc_hi": 1.1}]}, r"auc_hi = 1\.1"),
    ],
)
def test_a_certificate_says_what_was_found(change, says):
    with pytest.raises(ConfigError, match=says):
        Certificate.from_mapping(CERTIFICATE | change)
    told = statement(Certificate.from_mapping(CERTIFICATE), {"a": "1"})
    with pytest.raises(IntegrityError, match=says):
        read_statement(told | {"predicate": told["predicate"] | change})


@pytest.mark.parametrize(
    "found", [None, [], {}, {"_type": "x"}, {"_type": STATEMENT, "predicateType": "x"}, {"_type": STATEMENT}]
)
def test_what_is_no_statement(found):
    with pytest.raises(IntegrityError):
        read_statement(found)


def test_a_job_is_known_by_everything_in_it():
    values = {
        "subject": {"subject": "digits"},
        "code": "c",
        "data_version": "d",
        "method": "finetune",
        "seeds": [0, 1],
        "target": "t",
        "target_sha256": "s",
        "members": "m",
        "members_sha256": "s",
        "output": "o",
    }
    job = UnlearnJob.from_mapping(values)
    assert job.job_id == UnlearnJob.from_mapping(dict(reversed(values.items()))).job_id
    for change in (
        {"seeds": [1, 0]},
        {"data_version": "e"},
        {"code": "d"},
        {"method": {"name": "finetune", "config": {"lr": 0.1}}},
    ):
        assert UnlearnJob.from_mapping(values | change).job_id != job.job_id


SUBJECT = {
    "subject": "digits",
    "source": "sklearn",
    "model": "mlp",
    "recipe": "supervised",
    "splits": [{"name": "random", "method": "random_fraction"}],
    "unlearning": {"methods": ["finetune"]},
}


def test_a_subject_reads_bare_names():
    subject = Subject.from_mapping(SUBJECT)
    assert subject.source == Choice(name="sklearn", config={})
    assert subject.unlearning is not None and subject.unlearning.split == "random"
    assert (
        subject.digest()
        == Subject.from_mapping(SUBJECT).digest()
        != Subject.from_mapping(SUBJECT | {"seed": 1}).digest()
    )


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"subject": "Digits"}, IllegalName, "subject"),
        ({"scores": ["el2n", "el2n"]}, ConfigError, "score el2n is listed twice"),
        ({"splits": []}, ConfigError, "'random' is not among its splits"),
        ({"ensemble": {"num_models": 7}}, ConfigError, "must be even"),
        ({"thresholds": {"alpha": 0.5}}, ConfigError, "> 0 and < 0.5"),
        ({"seed": 2**31}, ConfigError, "seed"),
        ({"colour": "red"}, ConfigError, "no field colour"),
        ({"splits": [{"name": "A", "method": "m"}]}, IllegalName, "split"),
    ],
)
def test_bad_subjects_are_refused(change, error, says):
    with pytest.raises(error, match=says):
        Subject.from_mapping(SUBJECT | change)


@pytest.mark.parametrize("verdicts", [c for n in range(4) for c in itertools.product(OF_FINDINGS, repeat=n)])
def test_the_worst_verdict_wins(verdicts):
    worst = [v for v in (Verdict.FAIL, Verdict.BROKEN, Verdict.INCONCLUSIVE, Verdict.PASS) if v in verdicts]
    assert overall(verdicts) is (worst[0] if worst else Verdict.INCONCLUSIVE)
    assert (overall(verdicts) is Verdict.PASS) == (set(verdicts) == {Verdict.PASS})


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.full_name)
def test_every_table_is_documented(table):
    assert table.doc.endswith(".") and table.key
    for column in table.columns:
        assert column.doc, column.name
        assert not (column.name in table.key and column.nullable), column.name
        assert column.dtype == "str" or not column.choices
    assert not {c.name for c in table.columns} & {c.name for c in COMMON}


def test_table_names_are_unique():
    assert len({t.full_name for t in TABLES}) == len(TABLES)
