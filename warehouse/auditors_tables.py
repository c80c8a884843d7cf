"""The tables behind the auditors' door (``warehouse.auditors``), and their page, docs/auditors.md."""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA = "auditors"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownColumn:
    """A column: its type in DuckDB, and what it holds."""

    name: str
    type: str
    doc: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A table of groups, or of facts that are about nobody."""

    name: str
    doc: str
    columns: tuple[ShownColumn, ...]


def _table(name: str, doc: str, *columns: tuple[str, str, str]) -> Shown:
    return Shown(name=name, doc=doc, columns=tuple(ShownColumn(name=n, type=t, doc=d) for n, t, d in columns))


_SUBJECT = ("subject", "VARCHAR", "the audited subject")
_SEED = ("seed", "BIGINT", "seed of the audited model")
_REQUEST = ("request", "VARCHAR", "token of the forget request")
_VERDICT = ("verdict", "VARCHAR", "pass, fail, inconclusive or broken")
_PLACE = (
    ("level", "VARCHAR", "split: of a whole split; class: of a class in a split"),
    ("split", "VARCHAR", "train or test"),
    ("class", "VARCHAR", "class; null of a whole split"),
)
_FIGURES = (
    ("mean", "DOUBLE", "mean, to three digits"),
    ("p25", "DOUBLE", "first quartile; null where fewer than k people lie on a side of it"),
    ("p50", "DOUBLE", "median; null as p25"),
    ("p75", "DOUBLE", "third quartile; null as p25"),
    ("p95", "DOUBLE", "95th percentile; null as p25"),
)


def _interval(name: str, doc: str) -> tuple[tuple[str, str, str], ...]:
    return (name, "DOUBLE", doc), (f"{name}_lo", "DOUBLE", "lower bound"), (f"{name}_hi", "DOUBLE", "upper bound")


TABLES: tuple[Shown, ...] = (
    _table(
        "groups",
        "How many examples and people there are: in all, by split, by split and class, and by how many examples their "
        "owner has. Groups of fewer than k people are not here, nor what they could be subtracted from.",
        _SUBJECT,
        ("level", "VARCHAR", "all, split, class (in a split) or band (of owners, in all)"),
        ("split", "VARCHAR", "train or test; null of levels all and band"),
        ("class", "VARCHAR", "class; null of other levels"),
        ("band", "VARCHAR", "examples that the owner has: 1, 2-9, 10-99, 100 and more; nobody's; null of other levels"),
        ("num_examples", "BIGINT", "examples in the group"),
        (
            "num_people",
            "BIGINT",
            "distinct owners, rounded down to a multiple of k; an example without an owner counts as one",
        ),
        ("complete", "BOOLEAN", "false: parts of this group are hidden"),
    ),
    _table(
        "scores",
        "Scores by split and class. A group of fewer than k different values, or in which 1 to k - 1 people have no "
        "value, is not here.",
        _SUBJECT,
        ("score", "VARCHAR", "the score"),
        *_PLACE,
        *_FIGURES,
    ),
    _table(
        "exposure",
        "Attack scores of the audited model by split and class; larger = more likely a member. Hidden as in scores.",
        _SUBJECT,
        ("attack", "VARCHAR", "the attack"),
        _SEED,
        *_PLACE,
        *_FIGURES,
    ),
    _table(
        "attacks",
        "What attacks find of the audited model, and of sets of the plan that were removed from it; nothing of forget "
        "requests.",
        _SUBJECT,
        ("audited", "VARCHAR", "target, or <set>/<method>"),
        ("attack", "VARCHAR", "the attack"),
        _SEED,
        *_interval("auc", "area under the ROC curve"),
        ("fpr_cap", "DOUBLE", "largest tolerated false-positive rate"),
        *_interval("tpr", "true-positive rate at that cap"),
        *_interval("fpr", "false-positive rate reached"),
        ("reliable", "BOOLEAN", "the cap times the number of non-members is 10 or more"),
    ),
    _table(
        "findings",
        "Every verdict. Figures where they have an interval and are about nothing small; none of forget requests.",
        _SUBJECT,
        ("request", "VARCHAR", "token of the forget request whose audit found it; null of the subject's own audit"),
        ("about", "VARCHAR", "target, <set>/<method>, shadow/<method>; empty of anything else, and of requests"),
        ("what", "VARCHAR", "what was judged"),
        ("method", "VARCHAR", "removal method that it is about; empty for none"),
        ("kind", "VARCHAR", "attack, quality, distance, result, coverage, concept, protection; empty where not said"),
        _VERDICT,
        ("judged", "BOOLEAN", "it counts"),
        ("value", "DOUBLE", "figure; null where it is not shown"),
        ("low", "DOUBLE", "lower bound"),
        ("high", "DOUBLE", "upper bound"),
        ("threshold", "DOUBLE", "threshold of the plan"),
    ),
    _table(
        "requests",
        "Forget requests by token: where each stands, and what its last certificate says.",
        _SUBJECT,
        _REQUEST,
        ("selector", "VARCHAR", "ids, owner, class, where, score, neighbourhood, edge or concept"),
        ("state", "VARCHAR", "where it stands"),
        ("received", "DATE", "day of receipt (UTC)"),
        ("due", "DATE", "day on which it is due, extensions included"),
        ("closed", "DATE", "day on which it was closed; null while it is not"),
        ("method", "VARCHAR", "removal method of the last certificate; null without one"),
        ("verdict", "VARCHAR", "what the last certificate states; null without one"),
    ),
    _table(
        "request_events",
        "Every change of state of a request, in order.",
        _SUBJECT,
        _REQUEST,
        ("seq", "BIGINT", "order within the request"),
        ("state", "VARCHAR", "state entered"),
        ("day", "DATE", "when (UTC)"),
    ),
    _table(
        "certificates",
        "Certificates of forget requests; whoever was given the signed file finds its row by sha256.",
        _SUBJECT,
        _REQUEST,
        ("serial", "BIGINT", "of this request's certificates, from 1"),
        ("method", "VARCHAR", "removal method in use"),
        _VERDICT,
        ("issued", "DATE", "day of issue (UTC)"),
        ("expires", "DATE", "until when it may be relied on"),
        ("sha256", "VARCHAR", "of the signed file"),
        ("report_sha256", "VARCHAR", "of the report that it is about"),
        ("key_id", "VARCHAR", "of the key that signed it"),
    ),
    _table(
        "methods",
        "Which methods were used on a subject, and how they ended.",
        _SUBJECT,
        ("kind", "VARCHAR", "training, score, attack, curation, unlearning, removal for requests"),
        ("name", "VARCHAR", "the method"),
        ("outcome", "VARCHAR", "gates met or not; model trained; ok, diverged or refused; accepted or not; empty"),
    ),
    _table(
        "ledger",
        "The head of the ledger in this snapshot: what certificates and anchors of a later day must continue.",
        ("seq", "BIGINT", "number of the last entry"),
        ("hash", "VARCHAR", "its hash"),
    ),
)


def page() -> str:
    """docs/auditors.md."""
    return "\n".join([_HEAD, *map(_section, TABLES)])


def _section(spec: Shown) -> str:
    rows = "\n".join(f"| `{c.name}` | {c.type} | {_cell(c.doc)} |" for c in spec.columns)
    return f"## {SCHEMA}.{spec.name}\n\n{spec.doc}\n\n| column | type | what it holds |\n|---|---|---|\n{rows}\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


_HEAD = """\
# The auditors' door

`palimpsest sql` shows every row of the published snapshot: it is for colleagues. Outsiders get

    palimpsest sql --auditor                                             # lists the tables below
    palimpsest sql --auditor "SELECT * FROM requests ORDER BY due"
    palimpsest sql --auditor "SELECT class, mean, p95 FROM scores WHERE score = 'el2n' AND split = 'train'" -f csv

Free SQL, but over these tables of groups only: no row of an example, an owner or a person is behind this door. A
group is shown when k people or more are in it (`auditors: {k: 10}` in `operations.yaml`, 5 at least), when nothing
smaller can be had by subtracting it from others, and when no larger shown group holds only a few people more. A person
is an owner; an example that is nobody's counts as one. There is no option for k: whoever could ask with two values of
it would see what lies between them.

To let somebody in from outside without a copy of the state folder, give their SSH key this command and nothing else:

    command="palimpsest sql --auditor -f csv -- \\"$SSH_ORIGINAL_COMMAND\\"",restrict ssh-ed25519 AAAA...

A request is named by a token, which `palimpsest request show` prints as well. What k people do not protect from stands
in [SECURITY.md](../SECURITY.md).

```sql
-- requests that were closed late, or are open past their day
SELECT * FROM requests WHERE coalesce(closed, current_date) > due;
-- certificates that have run out and were not renewed
SELECT * FROM certificates QUALIFY row_number() OVER (PARTITION BY subject, request ORDER BY serial DESC) = 1
    AND expires < current_date;
-- which classes are more exposed than the whole training split
SELECT c.subject, c.attack, c.seed, c.class, c.mean, s.mean AS of_split
FROM exposure c JOIN exposure s USING (subject, attack, seed, split)
WHERE c.level = 'class' AND s.level = 'split' AND c.mean > s.mean AND split = 'train' ORDER BY c.mean DESC;
-- what failed
SELECT subject, request, about, what, kind FROM findings WHERE judged AND verdict = 'fail';
```

The tables are in the schema `auditors`; their names need no schema before them. This page is made from their
declaration (`warehouse/auditors_tables.py`).
"""
