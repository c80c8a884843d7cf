"""The tutorial: its code calls what there is, its stored outputs are those of a whole run, and it runs."""

from __future__ import annotations

import ast
import base64
import inspect
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import palimpsest
from palimpsest import results
from pipelines import interop

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "tutorial.ipynb"
README = re.search(r"## In Python\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


def code(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_every_call_is_one_that_there_is(notebook: nbformat.NotebookNode) -> None:
    """Names, arguments, and what is asked of the objects that come back."""
    assert README is not None
    for text in (code(notebook), README[1]):
        tree, called, made = ast.parse(text), set(), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (found := re.fullmatch(r"palimpsest\.(\w+)", ast.unparse(node.func))):
                assert found[1] in palimpsest.__all__
                signature = inspect.signature(getattr(palimpsest, found[1]))
                signature.bind(*[None] * len(node.args), **{word.arg or "": None for word in node.keywords})
                called.add(found[1])
                kind = str(signature.return_annotation).partition(" | ")[0]
                made[ast.unparse(node)] = getattr(results, kind, None) or getattr(interop, kind, None)
        assert {"init", "audit", "scores", "query", "export", "request"} <= called
        variables = {
            ast.unparse(node.targets[0]): made[ast.unparse(node.value)]
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and made.get(ast.unparse(node.value))
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (kind := variables.get(ast.unparse(node.value))):
                assert node.attr in {*dir(kind), *kind.__dataclass_fields__}, ast.unparse(node)


def test_the_stored_outputs_are_of_one_whole_run_and_small(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1 and len(base64.b64decode(pictures[0])) < 30_000
    assert FILE.stat().st_size < 200_000
    shown = FILE.read_text(encoding="utf-8")
    assert "INCONCLUSIVE" in shown and "wrong labels in training found" in shown
    assert not re.findall(r"/(?:home|root|work|tmp)/[\w./-]+", shown), "a path of somebody's machine"


@pytest.mark.journey
@pytest.mark.filterwarnings("default")  # of the notebook's own machinery
def test_it_runs_from_the_first_cell_to_the_last(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    run = NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(str(output) for cell in run.cells for output in cell.get("outputs", ()))
    found = re.search(r"(\d) of the (\d) wrong labels in training found", said)
    assert found and int(found[1]) >= int(found[2]) - 1 >= 2
    assert (tmp_path / "memorization.parquet").is_file()
    page = tmp_path / "wine-state" / "artifacts" / "wine" / "request_reports" / "first" / "audit.html"
    assert page.is_file() and "request_reports/first" in said
