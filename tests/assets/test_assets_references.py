"""Names in plans and configurations: typed by their field, refused as the plan loads when they stand for nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from assets import subject_stages
from assets.references import check_references
from contracts.errors import UnknownName
from contracts.methods import REGISTRIES, AnalysisSpec, MethodSpec, ScoreSpec, analysis, unlearner
from contracts.params import Config, Ref, param, references
from contracts.schema import EXAMPLES
from contracts.subject import Subject

BASE: dict[str, Any] = {
    "subject": "mine",
    "source": "sklearn",
    "model": "mlp",
    "recipe": {"name": "supervised", "config": {"epochs": 2}},
    "scores": ["el2n", "near_duplicates"],
    "splits": [{"name": "random", "method": "random_fraction"}],
    "unlearning": {"methods": ["finetune"]},
    "attacks": ["loss"],
}
NESTED = {"lower": "unlearner", "unlearner": "finetunes"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inside(Config):
    ordered_by: str = param("el2n", ref="score")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Odd(Config):
    score: str = param("none of ours", doc="not a reference")
    ends: tuple[Inside, ...] = param((Inside(), Inside(ordered_by="near_duplicates")))


def plan(**fields: Any) -> Subject:
    return Subject.from_mapping({**BASE, **fields})


@pytest.mark.parametrize(
    ("fields", "path", "name"),
    [
        ({"source": "sklearm"}, "source", "sklearm"),
        ({"recipe": "supervized"}, "recipe", "supervized"),
        ({"scores": ["el2n", "el3n"]}, "scores[1]", "el3n"),
        ({"attacks": ["loss", "lost"]}, "attacks[1]", "lost"),
        ({"analyses": ["exposures"]}, "analyses[0]", "exposures"),
        ({"unlearning": {"methods": ["finetunes"]}}, "unlearning.methods[0]", "finetunes"),
        (
            {"splits": [*BASE["splits"], {"name": "hard", "method": "top_scores"}]},
            "splits[1].method",
            "top_scores",
        ),
        (
            {
                "splits": [
                    *BASE["splits"],
                    {"name": "hard", "method": "top_score", "config": {"score": "grand", "count": 9}},
                ]
            },
            "splits[1].config.score",
            "grand",
        ),
        (
            {"splits": [{"name": "closed", "method": "closure", "config": {"split": "random"}}, *BASE["splits"]]},
            "splits[0].config.split",
            "random",
        ),
        (
            {"analyses": [{"name": "pruning_curve", "config": {"score": "forgetting"}}]},
            "analyses[0].config.score",
            "forgetting",
        ),
        (
            {"analyses": [{"name": "exposure", "config": {"attacks": ["rmia_online", "lirra"]}}]},
            "analyses[0].config.attacks[1]",
            "lirra",
        ),
        (
            {"analyses": [{"name": "leaderboard", "config": {"search": NESTED}}]},
            "analyses[0].config.search.unlearner",
            "finetunes",
        ),
        ({"analyses": ["pool_laws"]}, "analyses[0] reads", "quality_pools"),
        (
            {"analyses": [{"name": "recourse_audit", "config": {"splits": ["random", "rendom"]}}]},
            "analyses[0].config.splits[1]",
            "rendom",
        ),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused_with_its_path(fields, path, name):
    with pytest.raises(UnknownName) as caught:
        subject_stages(plan(**fields))
    assert (caught.value.where, caught.value.name) == (path, name) and str(caught.value).startswith(f"{path}: unknown ")


def test_spelt_alike_comes_first():
    with pytest.raises(UnknownName, match=r"unknown score 'el3n' \(near: el2n"):
        subject_stages(plan(scores=["el3n"]))


def test_a_whole_plan_passes():
    check_references(
        plan(analyses=["quality_pools", "pool_laws", {"name": "pruning_curve", "config": {"score": "el2n"}}])
    )


def test_the_field_may_have_any_name(monkeypatch):
    """What a field names is its type, not what it is called; a field of the right name without it refers to nothing."""

    spec = AnalysisSpec(name="odd", doc="Odd.", config=Odd, needs=("scores",), tables=(EXAMPLES,))
    monkeypatch.setitem(analysis._methods, "odd", type(analysis.get("exposure"))(spec, lambda data: {}))
    stage = next(s for s in subject_stages(plan(analyses=["odd"])) if s.path[1] == "odd")
    assert {dep.path for dep in stage.deps} == {("data", "examples"), ("scores", "el2n"), ("scores", "near_duplicates")}
    with pytest.raises(UnknownName) as caught:
        subject_stages(plan(scores=["el2n"], analyses=["odd"]))
    assert caught.value.where == "analyses[0].config.ends[1].ordered_by"


@pytest.mark.parametrize(
    "spec", [m.spec for r in REGISTRIES if r.kind != "task" for m in r], ids=lambda spec: spec.name
)
def test_a_method_needs_what_its_configuration_names(spec: MethodSpec):
    """The stage of a score that is named, and the callable that reads it, go together."""
    kinds = {kind for field in _fields(spec.config) if (kind := field)}
    for kind, need in (("score", "scores"), ("split", "splits")):
        assert (kind in kinds) == (need in spec.needs), f"{spec.name} refers to {sorted(kinds)}, and needs {spec.needs}"
    if isinstance(spec, ScoreSpec):
        assert "split" not in kinds  # scores come before splits


def _fields(config: type[Config]) -> list[str]:
    found = []
    for field in dataclasses.fields(config):
        ref = field.metadata.get("ref")
        found += [ref.kind] if isinstance(ref, Ref) else []
        if isinstance(field.default, Config):
            found += _fields(type(field.default))
    return found


def test_references_of_a_plan_are_its_typed_fields():
    found = {(r.path, r.kind) for r in references(plan())}
    assert ("splits[0].method", "curator") in found and ("unlearning.decides", "unlearner") in found
    assert ("unlearning.split", "split") in found and ("source", "source") in found


def test_an_unlearner_that_runs_another_is_made_anew_with_it(monkeypatch):
    """Its result is that of both; a misspelt name is refused as the plan loads, with its place."""

    def stage(**chosen: Any) -> Any:
        method = {"name": "saliency_masked", "config": {"unlearner": "gradient_ascent"}}
        stages = subject_stages(plan(unlearning={"methods": [method, "finetune"]}, **chosen))
        return {s.path[1]: s.config_digest for s in stages if s.path[0] == "unlearning"}

    before, inner = stage(), unlearner.get("gradient_ascent")
    newer = dataclasses.replace(inner.spec, version=inner.spec.version + 1)
    monkeypatch.setitem(unlearner._methods, "gradient_ascent", dataclasses.replace(inner, spec=newer))
    after = stage()
    assert after["saliency_masked"] != before["saliency_masked"] and after["finetune"] == before["finetune"]
    with pytest.raises(UnknownName) as caught:
        subject_stages(
            plan(unlearning={"methods": [{"name": "prune_then_unlearn", "config": {"unlearner": "finetunes"}}]})
        )
    assert caught.value.where == "unlearning.methods[0].config.unlearner"
