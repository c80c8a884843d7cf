"""Whether models that were given could be the stated recipe's: the audited one, or the reference models; and what the
findings that rest on it say where they could not.

Of given reference models one is compared, drawn by the plan's seed: training as many again as were given is what the
plan is spared. Of adapters beside a model that another recipe trained the plan itself says it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from assets import models, needs
from assets.stage import APPLIES, Output, Run, Stage
from assets.unlearning import RETRAIN
from contracts import schema
from contracts.digests import derive_seed
from contracts.methods import analysis, attack
from contracts.subject import GIVEN, Subject
from contracts.verdicts import COVERAGE, RESULT, Finding, Verdict
from recipes.plan import trainer
from recipes.policies import of_another_recipe
from tasks.base import Reading
from warehouse import empty

RECIPE_MATCH, REFERENCES = "recipe_match", "references"  # of given models; what its finding is about


def recipe_match(subject: Subject, upstream: Mapping[str, Stage]) -> Stage | None:
    """``[subject, audits, recipe_match]``: a given model, or one of given reference models, beside models of the stated
    recipe; None where all were trained here."""
    references = _given_references(subject, upstream)
    if not subject.model.checkpoint and not references:
        return None
    what = "the given model" if subject.model.checkpoint else "the given reference models"
    return Stage(
        subject=subject,
        path=("audits", RECIPE_MATCH),
        doc=f"Could the stated recipe have made {what}? It beside {subject.model.alike} models of the recipe "
        "on the same rows, other seeds, on examples that none of them was trained on. Attacks with reference models "
        "rest on it.",
        config={
            **models.training(subject),
            "alike": subject.model.alike,
            "alpha": subject.thresholds.alpha,
            **({"references": True} if references else {}),
        },
        deps=(upstream["examples"], upstream["target"], *([upstream["ensemble"]] if references else [])),
        tables=(schema.RECIPE_MATCH,),
        warnings=(APPLIES,),
        kinds=frozenset({"torch", "duckdb"}),
        trains=True,
        work=lambda run: _match(run, upstream),
    )


def _given_references(subject: Subject, upstream: Mapping[str, Stage]) -> bool:
    return subject.ensemble.policy.name == GIVEN and "ensemble" in upstream


class _Compared(NamedTuple):
    """A given model: its readings of the rows ``unseen``, on which no model was trained, and the ``rows`` it saw."""

    own: Reading
    unseen: np.ndarray
    rows: np.ndarray


def _match(run: Run, upstream: Mapping[str, Stage]) -> Output:
    from attacks.recipe_match import FEWEST
    from attacks.recipe_match import recipe_match as compare
    from recipes.predict import read

    data, subject = run.data, run.subject
    given = list(_to_compare(run, upstream))
    fewest = min(len(one.unseen) for one in given)
    why = (
        f"{fewest} unseen examples are too few to compare the given model with its recipe; {FEWEST} are needed."
        if fewest < FEWEST
        else ""
    )
    if why:
        return Output(tables=[(schema.RECIPE_MATCH, empty(schema.RECIPE_MATCH), {})], warnings={APPLIES: why})
    num = subject.model.alike
    seeds = [derive_seed(subject.seed, "alike", r) % 2**31 for r in range(num)]
    results = []
    for one in given:
        trained = trainer(subject, data).many(data, members=[one.rows] * num, seeds=seeds, progress=run.progress)
        examples = data.take(one.unseen)
        theirs = Reading(np.stack([read(model, examples).values for model in trained]))
        results.append(compare(one.own, theirs, alpha=subject.thresholds.alpha))
    # The worse of two counts, at the level of two tests.
    worst = min(results, key=lambda result: result.p_value)
    found = {**dataclasses.asdict(worst), "p_value": min(1.0, len(results) * worst.p_value)}
    return Output(
        tables=[(schema.RECIPE_MATCH, pl.DataFrame([found]), {})],
        members=data.example_id[np.unique(np.concatenate([one.rows for one in given]))],
        metadata=found,
        warnings={APPLIES: ""},
    )


def _to_compare(run: Run, upstream: Mapping[str, Stage]) -> Iterator[_Compared]:
    """The audited model if it was given, and one of given reference models, drawn by the plan's seed."""
    data, subject = run.data, run.subject
    if subject.model.checkpoint:
        unseen = np.flatnonzero(data.split == "test")
        own = Reading(run.load(upstream["target"], models.READINGS)[0]["reading"])[unseen]
        yield _Compared(own, unseen, np.flatnonzero(data.split == "train"))
    if _given_references(subject, upstream):
        from recipes.given import given_set

        ensemble = models.load_ensemble(run, upstream["ensemble"])
        drawn = derive_seed(subject.seed, "compared") % ensemble.num_models
        unseen = data.positions(ensemble.example_id[~ensemble.pool])
        saw = np.flatnonzero(given_set(data, ensemble=subject.ensemble).seen[drawn])
        yield _Compared(Reading(ensemble.reading[drawn][~ensemble.pool]), unseen, saw)


def judge_match(run: Run, match: Stage | None) -> Finding | None:
    """What a given model, or the reference models, are beside the stated recipe; None for those that were trained here
    by it, or where nothing can be compared."""
    from attacks.recipe_match import RecipeMatch, judge_recipe

    if run.subject.outputs_only:
        return None
    judged = bool(run.subject.attacks)
    if match is None:
        other = of_another_recipe(run.subject) if needs.read_of_references(run.subject) else ""
        return Finding(what="recipe", kind=COVERAGE, verdict=_OPEN, sentence=other, judged=judged) if other else None
    if why := run.why_not(match):
        return Finding(what="recipe", kind=COVERAGE, verdict=_OPEN, sentence=why, judged=judged)
    row = run.read(schema.RECIPE_MATCH).row(0, named=True)
    references = any(dep.path == ("models", "ensemble") for dep in match.deps)
    who = "The given reference model" if references else "The given model"
    return judge_recipe(
        RecipeMatch(**row),
        what="recipe",
        thresholds=run.subject.thresholds,
        quality=run.data.task.spec.quality,
        who="One of the given models" if references and run.subject.model.checkpoint else who,
    )


_OPEN = Verdict.INCONCLUSIVE


def measured_otherwise(run: Run, finding: Finding, by: str, *, alone: str) -> Finding:
    """A finding of an audit whose models were not all made by the stated recipe, as far as it rests on that.

    Args:
        by: the analysis that found it, if one did.
        alone: the test of a removal that looks at no other models.
    """
    from attacks.recipe_match import on_another_recipe

    if run.subject.model.checkpoint:
        return on_another_recipe(finding) if _rests_on_references(finding, alone) else finding
    name = finding.what.removeprefix("attack/")
    if name != finding.what:
        reads = name in attack and attack.get(name).spec.references > 0
    else:
        reads = by in analysis and not {"ensemble", "ensemble_outputs"}.isdisjoint(analysis.get(by).spec.needs)
    why = "the reference models are not of the recipe that made the audited model"
    return on_another_recipe(finding, why=why) if reads else finding


def _rests_on_references(finding: Finding, alone: str) -> bool:
    """Whether a finding about a given model says something only where the stated recipe made it."""
    name = finding.what.removeprefix("attack/")
    if finding.method == RETRAIN or name == alone or finding.kind == RESULT:
        return False
    return not (name != finding.what and name in attack and not attack.get(name).spec.references)
