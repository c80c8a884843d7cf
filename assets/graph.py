"""The stages of a subject, in order: data, models, scores, curation, analyses, unlearning, audits, reports; then per
request."""

from __future__ import annotations

from collections.abc import Mapping

from assets import analyses, audits, curation, data, models, needs, reports, requests, scores, unlearning
from assets.recipe_match import recipe_match
from assets.references import check_references
from assets.stage import Stage
from assets.unlearning import Scope
from contracts.subject import Subject


def subject_stages(subject: Subject) -> list[Stage]:
    """Every stage of one subject; upstream stages come first. Models that nothing listed in the plan reads are left
    out.

    Raises:
        UnknownName: the subject, or a method's configuration, names what is not registered, or not listed before it.
        ConfigError: a method's configuration is outside its range.
        NotApplicable: a method needs what cannot be given to it where it runs.
    """
    check_references(subject)
    needs.refuse_unavailable(subject)
    examples = data.examples(subject)
    upstream = {"examples": examples, "target": models.target(subject, examples)}
    if not subject.outputs_only:
        upstream["early"] = models.early(subject, examples)
    if read := needs.read_of_references(subject):
        upstream["ensemble"] = models.ensemble(subject, examples, outputs="outputs" in read)
    scored = scores.scores(subject, upstream)
    splits = curation.splits(subject, upstream, scored)
    made = curation.datasets(subject, upstream, scored, splits)
    analysed = analyses.analyses(subject, upstream, scored, splits | made)
    later = [*scored.values(), *splits.values(), *made.values(), *analysed.values()]
    match = recipe_match(subject, upstream)
    later += [match] if match else []
    if subject.unlearning is None:
        found = audits.attacks(subject, upstream, None, {})
        findings = audits.findings(subject, None, scored, found, None, {}, analysed, match)
        later += [*found.values(), findings]
        later.append(reports.audit_report(subject, upstream, None, scored, analysed, findings, None))
    else:
        later += _forgetting(subject, upstream, Scope.of_plan(subject, splits), scored, analysed, match)
        split = requests.scope_of_request(subject, upstream, scored)
        later += [split, *_forgetting(subject, upstream, Scope(split, per_request=True), {}, analysed, match)]
    read = {dep for stage in later for dep in stage.deps}
    return [stage for name, stage in upstream.items() if stage in read or name in ("examples", "target")] + later


def _forgetting(
    subject: Subject,
    upstream: Mapping[str, Stage],
    scope: Scope,
    scored: Mapping[str, Stage],
    analysed: Mapping[str, Stage],
    match: Stage | None,
) -> list[Stage]:
    """Unlearning, its audits and its report, for the subject's own split or for a forget request."""
    jobs = unlearning.jobs(subject, upstream, scope)
    comparison = unlearning.comparison(subject, scope, jobs)
    again = unlearning.retrainings(subject, upstream, scope)
    found = audits.attacks(subject, upstream, scope, jobs)
    found[audits.U_MIA] = audits.u_mia(subject, upstream, scope, jobs)
    if again is not None:
        found[audits.AGAINST_RETRAINING] = audits.against_retraining(subject, scope, jobs, again)
    findings = audits.findings(subject, scope, scored, found, comparison, jobs, analysed, match)
    shown = {} if scope.per_request else analysed
    report = reports.audit_report(subject, upstream, scope, scored, shown, findings, comparison)
    return [*jobs.values(), comparison, *([again] if again else []), *found.values(), findings, report]
