"""The stages of a subject, in order: data, models, scores, curation, analyses, unlearning, audits, reports; then per
request."""

from __future__ import annotations

from collections.abc import Mapping

from assets import (
    acceptance,
    analyses,
    audits,
    certificates,
    curation,
    data,
    models,
    needs,
    read_closely,
    reports,
    requests,
    scores,
    unlearning,
    verdicts,
)
from assets.recipe_match import recipe_match
from assets.references import check_references
from assets.stage import Stage
from assets.unlearning import Scope
from contracts.subject import Subject

COMPARISON, RETRAININGS = "comparison", "retrainings"  # stages beside the jobs, which go by their method


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
    if (before := read_closely.base(subject, examples)) is not None:
        upstream["base"] = before
    scored = scores.scores(subject, upstream)
    splits = curation.splits(subject, upstream, scored)
    made = curation.datasets(subject, upstream, scored, splits)
    analysed = analyses.analyses(subject, upstream, scored, splits | made)
    later = [*scored.values(), *splits.values(), *made.values(), *analysed.values()]
    match = recipe_match(subject, upstream)
    later += [match] if match else []
    if subject.unlearning is None:
        tokens = read_closely.tokens(subject, upstream, None, {})
        found = audits.attacks(subject, upstream, None, {}, tokens)
        later += [tokens] if tokens else []
        findings = verdicts.findings(subject, None, scored, found, None, {}, analysed, match)
        later += [*found.values(), findings]
        later.append(reports.audit_report(subject, upstream, None, scored, analysed, findings, None, datasets=made))
    else:
        scope = Scope.of_plan(subject, splits)
        of_plan = _unlearned(subject, upstream, scope)
        decided = acceptance.stages(subject, upstream, splits, of_plan)
        accepted = decided[-1] if decided else None
        later += [*of_plan.values(), *decided]
        later += _audited(subject, upstream, scope, of_plan, scored, analysed, match, accepted, made)
        split = requests.scope_of_request(subject, upstream, scored)
        scope = Scope(split, per_request=True)
        removed = _unlearned(subject, upstream, scope)
        later += [split, *removed.values()]
        later += _audited(subject, upstream, scope, removed, {}, analysed, match, accepted)
    read = {dep for stage in later for dep in stage.deps}
    return [stage for name, stage in upstream.items() if stage in read or name in ("examples", "target")] + later


def _unlearned(subject: Subject, upstream: Mapping[str, Stage], scope: Scope) -> dict[str, Stage]:
    """Unlearning for the subject's own split or for a forget request: the jobs by method, "comparison", and
    "retrainings" and "against_retraining" where the set is not random."""
    jobs = unlearning.jobs(subject, upstream, scope)
    found = {**jobs, COMPARISON: unlearning.comparison(subject, scope, jobs)}
    if (again := unlearning.retrainings(subject, upstream, scope)) is not None:
        found[RETRAININGS] = again
        found[audits.AGAINST_RETRAINING] = audits.against_retraining(subject, scope, jobs, again)
    return found


def _audited(
    subject: Subject,
    upstream: Mapping[str, Stage],
    scope: Scope,
    removed: Mapping[str, Stage],
    scored: Mapping[str, Stage],
    analysed: Mapping[str, Stage],
    match: Stage | None,
    accepted: Stage | None,
    datasets: Mapping[str, Stage] | None = None,
) -> list[Stage]:
    """The audits of what was unlearned, and their report.

    Args:
        removed: of :func:`_unlearned`.
        accepted: which methods forget requests may use; None where the plan does not ask.
        datasets: data sets that the plan makes, for its report.
    """
    others = (COMPARISON, RETRAININGS, audits.AGAINST_RETRAINING)
    jobs, comparison = {name: job for name, job in removed.items() if name not in others}, removed[COMPARISON]
    tokens = read_closely.tokens(subject, upstream, scope, jobs)
    made = audits.attacks(subject, upstream, scope, jobs, tokens)
    made[audits.U_MIA] = audits.u_mia(subject, upstream, scope, jobs)
    found = made | {name: removed[name] for name in (audits.AGAINST_RETRAINING,) if name in removed}
    findings = verdicts.findings(subject, scope, scored, found, comparison, jobs, analysed, match, accepted)
    shown = {} if scope.per_request else analysed
    report = reports.audit_report(subject, upstream, scope, scored, shown, findings, comparison, accepted, datasets)
    signed = [certificates.stage(subject, scope, findings, report)] if scope.per_request else []
    return [*([tokens] if tokens else []), *made.values(), findings, report, *signed]
