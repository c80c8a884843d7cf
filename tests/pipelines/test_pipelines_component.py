"""The component's fields are those of the plan: one declaration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from contracts.errors import ConfigError
from contracts.subject import Subject
from pipelines.components import AuditedModel
from pipelines.components.audited_model import MODEL
from pipelines.subjects import BUILT_IN, COMPONENT, attributes_of, load_subject, write_subject


def test_every_field_of_the_plan_is_one_of_the_component():
    ours = {MODEL if field.name == "model" else field.name for field in dataclasses.fields(Subject)}
    assert set(AuditedModel.model_fields) == ours
    for field in dataclasses.fields(Subject):
        found = AuditedModel.model_fields[MODEL if field.name == "model" else field.name]
        assert (found.description or "") == field.metadata["doc"]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        assert found.is_required() == required, field.name


@pytest.mark.parametrize("path", sorted(BUILT_IN.glob("*/defs.yaml")), ids=lambda path: path.parent.name)
def test_a_plan_is_the_same_through_the_component(path: Path):
    attributes = attributes_of(path)
    resolved = AuditedModel.resolve_from_dict(attributes).model_dump()
    resolved["model"] = resolved.pop(MODEL)
    assert Subject.from_mapping(resolved) == Subject.from_mapping(attributes)


@pytest.mark.parametrize("change", [{"scores": "el2n"}, {"seed": "three"}, {"no_such_field": 1}, {"unlearning": ["x"]}])
def test_what_yaml_cannot_say_is_refused(change):
    with pytest.raises((ValidationError, ConfigError, ValueError)):
        AuditedModel.resolve_from_dict({**attributes_of(BUILT_IN / "digits" / "defs.yaml"), **change})


def test_a_plan_of_a_later_version_is_refused_with_its_file(tmp_path: Path):
    path = tmp_path / "subjects" / "mine" / "defs.yaml"
    path.parent.mkdir(parents=True)
    attributes = {"schema_version": 2, "subject": "mine", "source": "sklearn", "model": "mlp", "recipe": "supervised"}
    path.write_text(yaml.safe_dump({"type": COMPONENT, "attributes": attributes}))
    with pytest.raises(ConfigError, match=r"mine/defs\.yaml: the plan has schema_version 2, .*0\.2 or later reads it"):
        load_subject("mine", tmp_path)


def test_a_written_plan_says_its_version(tmp_path: Path):
    plan = load_subject("digits", tmp_path)
    path = write_subject(dataclasses.replace(plan, subject="mine"), tmp_path, comment="a test")
    assert yaml.safe_load(path.read_text())["attributes"]["schema_version"] == 1
    assert load_subject("mine", tmp_path).subject == "mine"
