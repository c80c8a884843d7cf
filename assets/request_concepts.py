"""Forget requests that name a concept in place of rows: what a subject lacks to honour one, said before any work is
done."""

from __future__ import annotations

from contracts.errors import NotApplicable
from contracts.methods import unlearner
from contracts.requests import ForgetRequest
from contracts.subject import Subject


def lacking(subject: Subject) -> str:
    """What keeps a subject's plan from honouring a request that names a concept, as a sentence; "" where nothing
    does."""
    able = [method.spec.name for method in unlearner if method.spec.concepts]
    there = f"registered ones that do: {', '.join(able) or 'none'}"
    if subject.unlearning is None:
        return f"the plan of {subject.subject} has no unlearning, and needs a method that takes concepts ({there})"
    listed = [choice.name for choice in subject.unlearning.methods]
    if not set(listed) & set(able):
        named = ", ".join(listed) or "none beside the controls"
        return f"none of the unlearning methods of {subject.subject} takes concepts (listed: {named}; {there})"
    if subject.unlearning.decides not in able:
        return f"the method in use of {subject.subject}, {subject.unlearning.decides}, takes no concepts ({there})"
    return ""


def refuse_concept(request: ForgetRequest, subject: Subject) -> None:
    """Nothing, for a request that names rows.

    Raises:
        NotApplicable: it names a concept, which the stages of rows cannot remove; says what the plan lacks.
    """
    if request.concept is None:
        return
    why = lacking(subject) or (
        "the stages of a forget request remove rows: a method that takes concepts has to be run on the concept by its "
        "own job"
    )
    raise NotApplicable(
        f"request {request.request_id} asks to forget the concept {request.concept.name!r}: {why}. Nothing was run, "
        "and the request stands as it was"
    )
