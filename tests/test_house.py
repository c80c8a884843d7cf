"""Rules of the house, checked on the source: layers, style, types, and what may stand where."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "contracts",
    "stats",
    "tasks",
    "sources",
    "recipes",
    "explain",
    "scoring",
    "curation",
    "unlearning",
    "attacks",
    "studies",
    "warehouse",
    "reports",
    "assets",
    "pipelines",
    "palimpsest",
    "reproductions",
)
LIBRARIES = (
    "contracts",
    "stats",
    "tasks",
    "sources",
    "recipes",
    "explain",
    "scoring",
    "curation",
    "unlearning",
    "attacks",
    "studies",
    "warehouse",
    "reports",
)
IMPORT_CHILD = ROOT / "recipes" / "import_checkpoint_child.py"  # a program of its own: the guarded way in for .pt files
GIVEN_AWAY = ROOT / "reports" / "templates" / "check_evidence.py"  # a program of its own, for outsiders
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
SQL = re.compile(
    r"\s*(SELECT\b.*\bFROM\b|SELECT\s+\*|INSERT\s+INTO\b|DELETE\s+FROM\b|UPDATE\s+\w+\s+SET\b|MERGE\s+INTO\b"
    r"|(CREATE|DROP|ALTER)\s+(OR\s+REPLACE\s+)?(TABLE|VIEW|SCHEMA|SEQUENCE)\b|ATTACH\s+'|COPY\s+(FROM\s+DATABASE|\w+\s+TO)\b)",
    re.IGNORECASE | re.DOTALL,
)


def files(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def dotted(node: ast.expr) -> str:
    """As it is written."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ast.unparse(node)


@cache
def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called ("torch.load")."""
    return [(dotted(node.func), node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


def texts(path: Path) -> Iterator[ast.Constant]:
    """String constants and pieces of f-strings, docstrings left out."""
    docs = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docs.add(id(first.value))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node


def tool(*command: str, cwd: Path = ROOT) -> None:
    """Run a tool of this environment; show what it says when it fails."""
    done = subprocess.run([*command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.promise("G2")
def test_imports_point_one_way():
    tool(str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache")


def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything in the packages."""
    found = {}
    for path in files(*PACKAGES):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(body: list[ast.stmt], known: dict[str, Path]) -> set[str]:
    """Modules of ours that these statements import, under an ``if`` (TYPE_CHECKING) and in a ``try`` too, not in
    functions."""
    found = set()
    for node in body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else str(node.module) for name in names}
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            inside = [*node.body, *getattr(node, "orelse", ()), *getattr(node, "finalbody", ())]
            inside += [statement for handler in getattr(node, "handlers", ()) for statement in handler.body]
            found |= imported(inside, known)
    return found & known.keys()


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph as a path whose last name is its first; none: an empty list."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_no_file_imports_in_a_circle_not_even_for_its_types():
    known = modules()
    graph = {name: imported(tree(path).body, known) - {name} for name, path in known.items()}
    assert not circle(graph), " -> ".join(circle(graph))


def test_a_circle_is_found_and_types_count():
    known = {"a": Path(), "b": Path(), "c.d": Path()}
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from c import d\ndef f():\n    import a\n"
    assert imported(ast.parse(typed).body, known) == {"c.d"}
    assert imported(ast.parse("try:\n    import a\nexcept ImportError:\n    import b").body, known) == {"a", "b"}
    assert circle({"a": {"b"}, "b": {"c.d"}, "c.d": {"b"}}) == ["b", "c.d", "b"]
    assert circle({"a": {"b", "c.d"}, "b": {"c.d"}, "c.d": set()}) == []


def test_ruff_finds_nothing():
    tool(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_would_change_no_format():
    tool(sys.executable, "-m", "ruff", "format", "--check", ".")


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "benchmarks"])
def test_every_folder_says_what_belongs_in_it(folder):
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8").lower()
    assert text.startswith("# ") and "belongs here" in text.replace("*", "")
    assert re.search(r"does(n't| not)\b", text), "what does not belong"
    assert all(f"\n{step}. " in text for step in (1, 2, 3)), "how to add one, in three steps"


@pytest.mark.parametrize("path", files(*PACKAGES, "benchmarks"), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_opens_with_its_purpose(path):
    assert ast.get_docstring(tree(path)), "no docstring"


@pytest.mark.promise("G2")
def test_sql_stands_in_the_warehouse_only():
    """Statements, not words of advice: a text that begins like a statement."""
    found = [
        where(path, node)
        for path in files(*(package for package in PACKAGES if package != "warehouse"))
        for node in texts(path)
        if SQL.match(str(node.value))
    ]
    assert not found, found


@pytest.mark.parametrize(
    ("text", "is_sql"),
    [
        ("SELECT a FROM b", True),
        ("select * from t", True),
        ("\n  INSERT INTO t VALUES (?)", True),
        ("DELETE FROM x", True),
        ("CREATE OR REPLACE VIEW v AS", True),
        ("DROP TABLE x", True),
        ("ATTACH 'file' AS a", True),
        ("COPY FROM DATABASE a TO b", True),
        ("palimpsest sql 'SELECT * FROM scores.latest'", False),
        ("selected by the predicate", False),
        ("update the subject", False),
        ("create a table", False),
        ("Select examples by SQL", False),
    ],
)
def test_what_counts_as_sql(text, is_sql):
    assert bool(SQL.match(text)) == is_sql


def test_nothing_unpickles():
    found = []
    for path in files(*PACKAGES, "benchmarks"):
        if path == IMPORT_CHILD:  # knows the name of pickle's error, and nothing else of it
            used = {ast.unparse(n) for n in ast.walk(tree(path)) if isinstance(n, ast.Attribute)}
            assert {name for name in used if name.startswith("pickle.")} <= {"pickle.UnpicklingError"}
            continue
        for node in ast.walk(tree(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [where(path, node) for name in names if name.split(".")[0] in PICKLES]
        for name, call in calls(path):
            options = {k.arg: ast.unparse(k.value) for k in call.keywords if k.arg == "allow_pickle"}
            if name.endswith(("read_pickle", "to_pickle")) or name in ("torch.save", "yaml.load", "yaml.unsafe_load"):
                found.append(where(path, call))
            if name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
                found.append(where(path, call))
            if options.get("allow_pickle") == "True":
                found.append(where(path, call))
    assert not found, found


def test_torch_load_stands_in_the_import_child_only_and_weights_only():
    found = [
        (path, call) for path in files(*PACKAGES, "benchmarks") for name, call in calls(path) if name == "torch.load"
    ]
    assert [path for path, _ in found] == [IMPORT_CHILD], [where(*f) for f in found]
    options = {k.arg: ast.unparse(k.value) for k in found[0][1].keywords}
    assert options["weights_only"] == "True"


def test_libraries_do_not_print_nor_look_at_the_clock_of_the_machine():
    found = [
        where(path, call)
        for path in files(*LIBRARIES)
        if path not in (IMPORT_CHILD, GIVEN_AWAY)
        for name, call in calls(path)
        if name in ("print", "breakpoint", "input", "sys.stdout.write", "sys.stderr.write", "os.system", "eval", "exec")
    ]
    pure = ("sources", "recipes", "scoring", "curation", "unlearning", "attacks", "reports")
    found += [
        where(path, call)
        for path in files(*pure)
        if path != GIVEN_AWAY
        for name, call in calls(path)
        if name in ("datetime.now", "datetime.utcnow", "date.today", "time.time", "np.random.seed", "torch.manual_seed")
    ]
    assert not found, found


def test_no_bare_except_and_no_star_import():
    found = [
        where(path, node)
        for path in files(*PACKAGES)
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.ExceptHandler) and node.type is None)
        or (isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names))
    ]
    assert not found, found


def test_versions_are_pinned_for_everything_that_is_declared():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines) and pins["torch"] == "2.13.0"
    assert not [line for line in lines if "+" in line or " " in line]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=!~; \[]", text)[0] for text in declared}

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    assert {plain(n) for n in names} <= {plain(n) for n in pins}


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "Makefile",
        "constraints.txt",
        "dagster.yaml",
        ".pre-commit-config.yaml",
        ".ci/run",
        "docs/adr/0001-warehouse.md",
    ],
)
def test_the_house_has_its_papers(name):
    assert (ROOT / name).stat().st_size > 100


def test_the_continuous_check_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    tool("bash", "-n", str(ROOT / ".ci" / "run"))


def test_make_help_lists_every_target():
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    targets = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    assert set(targets[1].split()) == {line.split()[1] for line in done.stdout.splitlines()}


@pytest.mark.promise("G3")
def test_the_network_is_blocked_here_and_in_child_processes(network_guard):
    import socket

    for attempt in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.getaddrinfo("example.org", 80),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
    ):
        with pytest.raises(network_guard.NetworkBlocked):
            attempt()
    assert len(network_guard.attempts) == 3
    network_guard.attempts.clear()
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode != 0 and "NetworkBlocked" in child.stderr


def test_the_loopback_stays_open(network_guard):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        assert server.accept()
    assert not network_guard.attempts
    assert network_guard.is_local("localhost") and network_guard.is_local("::1") and network_guard.is_local(None)
    assert not network_guard.is_local("10.0.0.1") and not network_guard.is_local("example.org")


@pytest.mark.promise("G3")
def test_nothing_is_told_to_anybody():
    assert os.environ["DAGSTER_DISABLE_TELEMETRY"] == os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false" and os.environ["MPLBACKEND"] == "Agg"


def test_the_formatter_formats_everything() -> None:
    """A line that has to be longer wants a name for its middle."""
    marks = ("# fmt: " + "skip", "# fmt: " + "off")
    everywhere = [path for folder in (*PACKAGES, "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in everywhere if any(mark in path.read_text(encoding="utf-8") for mark in marks)]


def test_a_method_is_named_by_its_paper_not_by_a_number():
    """A reproduction's registration is the one place that also knows a number."""
    number = re.compile(r"\bcards?[ _-]*(no\.? *)?\d", re.IGNORECASE)
    texts = [path for folder in (*PACKAGES, "tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*")]
    texts += [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    kinds = {".py", ".md", ".sql", ".yaml", ".toml", ".j2", ".ipynb", ".json", ""}
    found = [path.name for path in texts if number.search(path.name)]
    for path in texts:
        if path.is_file() and path.suffix in kinds:
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if number.search(line)]
    assert not found, found


NOT_TASKS = tuple(folder for folder in PACKAGES if folder != "tasks")
# Decides which task raw labels are of, before there is one; asks people for it.
NAMES_TASKS = {"sources/labels.py", "pipelines/cli/init.py"}


@cache
def task_names() -> frozenset[str]:
    """The names of the tasks: the word ``name`` of every declaration in ``tasks/``."""
    return frozenset(
        keyword.value.value
        for path in files("tasks")
        for called, node in calls(path)
        if called == "TaskSpec"
        for keyword in node.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    )


def compares_tasks(path: Path) -> list[str]:
    """Where a task is compared by its name: ``x.task == ...``, ``x.task.name in ...``, ``task != "regression"``, match
    cases."""
    names, found = task_names(), []

    def speaks(node: ast.AST) -> bool:
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            return any(speaks(one) for one in node.elts)
        return isinstance(node, ast.Constant) and node.value in names

    def is_task(node: ast.expr) -> bool:
        text = dotted(node)
        return bool(re.search(r"(^|\.)task(\.name|\.spec\.name)?$", text)) or (
            text.startswith(("str(", "type(")) and "task" in text
        )

    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            literal = any(speaks(side) for side in sides)
            of_objects = all(is_task(side) for side in sides)  # one task is another: no name is spoken
            if literal or (any(is_task(side) for side in sides) and not of_objects and not _is_none(sides)):
                found.append(where(path, node))
        elif isinstance(node, ast.MatchValue) and speaks(node.value):
            found.append(where(path, node))
        elif isinstance(node, ast.Call) and dotted(node.func) == "isinstance" and len(node.args) == 2:
            kinds = ast.unparse(node.args[1])
            if re.search(r"\b(Classification|Regression|Ranking|Language|Segmentation|Nodes)\b", kinds):
                found.append(where(path, node))
    return found


def _is_none(sides: list[ast.expr]) -> bool:
    return any(isinstance(side, ast.Constant) and side.value is None for side in sides)


def test_no_task_is_compared_by_its_name_outside_its_folder():
    """What a method asks of a task is a view (``task.gives(...)``), so that it runs on tasks that nobody here knows."""
    assert {"classification", "regression", "ranking", "language"} <= task_names()
    found = [
        place
        for path in files(*NOT_TASKS)
        if str(path.relative_to(ROOT)) not in NAMES_TASKS
        for place in compares_tasks(path)
    ]
    assert not found, found


@pytest.mark.parametrize(
    ("text", "compares"),
    [
        ('if data.task == "classification": pass', True),
        ("if data.task.name != kind: pass", True),
        ('if task in ("regression", "ranking"): pass', True),
        ("x = 1 if str(data.task) == name else 0", True),
        ('match kind:\n    case "ranking": pass', True),
        ("if isinstance(data.task, Regression): pass", True),
        ('make(task="classification")', False),
        ("if retain.task != forget.task: pass", False),
        ("if data.task is None: pass", False),
        ('if data.task.gives("classes"): pass', False),
        ("if isinstance(data.task, OutputTask): pass", False),
    ],
)
def test_what_counts_as_a_comparison_of_tasks(tmp_path, monkeypatch, text, compares):
    path = tmp_path / "example.py"
    path.write_text(text + "\n", encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "where", lambda path, node: "here")
    assert bool(compares_tasks(path)) is compares
