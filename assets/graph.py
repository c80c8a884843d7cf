"""The stages of a subject, in order: data, models, scores, curation, unlearning, audits, reports; then the same per request."""

from __future__ import annotations

from assets import audits, curation, data, models, reports, requests, scores, unlearning
from assets.stage import Stage
from assets.unlearning import Scope
from contracts.subject import Subject


def subject_stages(subject: Subject) -> list[Stage]:
    """Every stage of one subject; upstream stages come first.

    Raises:
        UnknownName: the subject names a method that is not registered.
        ConfigError: a method's configuration is outside its range.
    """
    examples = data.examples(subject)
    upstream = {
        "examples": examples,
        "target": models.target(subject, examples),
        "early": models.early(subject, examples),
        "ensemble": models.ensemble(subject, examples),
    }
    scored = scores.scores(subject, upstream)
    splits = curation.splits(subject, upstream, scored)
    stages = [*upstream.values(), *scored.values(), *splits.values()]
    if subject.unlearning is None:
        found = audits.attacks(subject, upstream, None, {})
        findings = audits.findings(subject, None, scored, found, None)
        report = reports.audit_report(subject, upstream, None, scored, findings, None)
        return [*stages, *found.values(), findings, report]
    stages += _forgetting(subject, upstream, scored, Scope(splits[subject.unlearning.split], per_request=False))
    split = requests.scope_of_request(subject, upstream, scored)
    return [*stages, split, *_forgetting(subject, upstream, scored, Scope(split, per_request=True))]


def _forgetting(subject: Subject, upstream: dict[str, Stage], scored: dict[str, Stage], scope: Scope) -> list[Stage]:
    """Unlearning, its audits and its report, for the subject's own split or for a forget request."""
    jobs = unlearning.jobs(subject, upstream, scope)
    comparison = unlearning.comparison(subject, scope, jobs)
    found = audits.attacks(subject, upstream, scope, jobs)
    found[audits.U_MIA] = audits.u_mia(subject, upstream, scope, jobs)
    judged = {} if scope.per_request else scored
    findings = audits.findings(subject, scope, judged, found, comparison)
    report = reports.audit_report(subject, upstream, scope, judged, findings, comparison)
    return [*jobs.values(), comparison, *found.values(), findings, report]
