"""``palimpsest audit``: the whole graph of a subject in this process, recorded in Dagster's own storage."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.digests import digest
from contracts.errors import JobFailed
from contracts.subject import GIVEN, Subject
from pipelines.cli.terminal import (
    COLOURS,
    answers,
    console,
    errors,
    live_progress,
    not_on_path,
    state_to_write,
    summary,
)
from pipelines.home import dagster_home, foreign_dagster_home

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dagster import AssetMaterialization, DagsterInstance, Definitions, ExecuteInProcessResult

    from assets import Workspace
    from assets.current import Declaration

TRY = (
    "palimpsest sql --named agreement --param subject={subject}",
    "palimpsest sql \"SELECT about, what, verdict, value, low, high FROM audits.findings WHERE subject = '{subject}'\"",
)
EXIT = {"pass": 0, "not judged": 0, "fail": 1, "inconclusive": 1, "broken": 2}
PUBLISH_EVERY_S = 30.0  # people who read while an audit runs see what is at most about so old


def audit(
    subject: Annotated[
        str, typer.Argument(help="a subject of pipelines/defs, or one made by 'palimpsest init'")
    ] = "digits",
    quick: Annotated[
        bool, typer.Option("--quick", help="fewer seeds and reference models: a first look, not evidence")
    ] = False,
) -> None:
    """Audit a subject: train, score, split, unlearn, attack, record, report. Exit 0 pass (or nothing judged), 1 not
    shown to pass, 2 error."""
    from pipelines.subjects import load_subject

    home = state_to_write()
    plan = load_subject(subject, home)
    if quick:
        plan = quick_plan(plan)
    started = time.perf_counter()
    workspace, records = run_subject(plan, home, job="audit")
    finish(workspace, plan, f"{plan.subject}/reports/audit", records, time.perf_counter() - started)


def quick_plan(plan: Subject) -> Subject:
    """A smaller plan of the same subject: 16 reference models, 3 early models, 1 unlearning seed."""
    unlearning = dataclasses.replace(plan.unlearning, seeds=1) if plan.unlearning else None
    given = plan.ensemble.policy.name == GIVEN  # so many there are
    num_models = plan.ensemble.num_models if given else min(plan.ensemble.num_models, 16)
    return dataclasses.replace(
        plan,
        early=dataclasses.replace(plan.early, seeds=min(plan.early.seeds, 3)),
        ensemble=dataclasses.replace(plan.ensemble, num_models=num_models),
        unlearning=unlearning,
    )


def workspace_of(home: Path) -> Workspace:
    """What a command works in."""
    from assets.workspace import Workspace
    from pipelines.launchers import PipesLauncher

    return Workspace(home, launcher=PipesLauncher(), publish_every_s=PUBLISH_EVERY_S)


@dataclass(frozen=True, eq=False)
class Recording:
    """Where runs of this process are recorded.

    Attributes:
        home: the state folder.
        instance: Dagster's, its files open.
        definitions: of the plans that were run, by their digest and workspace.
    """

    home: Path
    instance: DagsterInstance
    definitions: dict[tuple[str, Workspace], Definitions] = field(default_factory=dict)


_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recording(home: Path) -> Iterator[Recording]:
    """This program's Dagster for the block; within such a block of the same state folder it is that one, so that many
    runs load and open once what each would."""
    if (outer := _recording.get()) is not None and outer.home == home:
        yield outer
        return
    warnings.filterwarnings("ignore", module=r"dagster\..*")
    if (other := foreign_dagster_home()) is not None:
        errors.print(f"  DAGSTER_HOME={other} is another Dagster's: it is left alone", highlight=False, markup=False)
    dagster_home()
    import dagster as dg

    from pipelines.observations import open_files

    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    with dg.DagsterInstance.get() as instance, open_files(instance):
        made = Recording(home, instance)
        token = _recording.set(made)
        try:
            yield made
        finally:
            _recording.reset(token)


def run_subject(
    plan: Subject,
    home: Path,
    *,
    job: str,
    request: str | None = None,
    workspace: Workspace | None = None,
    more: bool = False,
) -> tuple[Workspace, list[dict[str, Any]]]:
    """Bring one of the subject's jobs up to date in this process; return the workspace and each stage's state.

    Stages that are current are not launched, only recorded in Dagster as observed; the others, and with them everything
    downstream, are one run of the job. Where all are current there is no run, and no library of the methods is
    imported.

    Args:
        job: "audit", or "forget" with a ``request``.
        workspace: of ``home``, with the data it has read; a new one when not given.
        more: other runs follow at once, and then whoever asks for them publishes: until then the snapshot is brought
            up to date when it is due.

    Raises:
        JobFailed: a stage failed; the message is the stage's own error.
    """
    with live_progress(f"{plan.subject}: loading") as progress:
        progress(0, 0, f"looking what is current of {plan.subject}")
        from assets.current import UNCHANGED, current_stages, with_upstream
        from pipelines.build import request_partitions
        from pipelines.observations import observe, unknown_to
        from pipelines.outline import outline_of
        from pipelines.reaper import reap

        workspace = workspace or workspace_of(home)
        workspace.progress = progress
        outline = outline_of(plan, workspace)
        stages = [stage for stage in outline.stages if stage.per_request == (job != "audit")]
        current = current_stages(
            with_upstream(outline.stages, [stage.path for stage in stages]),
            workspace.warehouse,
            request=request,
            outside=lambda what: outline.outside(plan, workspace, what),
            note=lambda text: errors.print(f"  {text}", soft_wrap=True, highlight=False, markup=False),
        )
        with recording(home) as recorded:
            instance = recorded.instance
            reap(instance, note=lambda text: errors.print(f"  {text}"))
            if request:
                instance.add_dynamic_partitions(request_partitions(plan.subject).name, [request])
            kept = {stage: current[name] for stage in stages if (name := stage.asset(request)) in current}
            for stage in unknown_to(instance, kept, request=request):
                del kept[stage]  # a run puts them into this instance, and recomputes nothing
            observe(instance, kept, request=request)
            launched = [stage for stage in stages if stage not in kept]
            if launched and job == "audit":
                _announce(plan, workspace)
            if launched and plan.budget_min is not None:
                errors.print(f"  budget: {plan.budget_min:g} minutes on two cores", highlight=False)
            try:
                states = _launch(plan, workspace, recorded, job, request, launched) if launched else {}
            finally:
                if more:
                    workspace.publish()
                else:  # also when no stage had work to do: a snapshot that was removed comes back
                    workspace.warehouse.publish()
        states |= dict.fromkeys(kept, UNCHANGED)
        return workspace, [
            {"asset": "/".join((stage.subject, *stage.path)), "state": states[stage]} for stage in stages
        ]


def _announce(plan: Subject, workspace: Workspace) -> None:
    """What the sizes allow, before any work starts.

    Raises:
        ConfigError, DataError, NotApplicable: reference models that cannot be had as the plan's policy says.
    """
    from assets.expected import expectations, of_references

    data = workspace.examples(plan)
    for sentence in (*of_references(plan, data), *expectations(plan, data)):
        errors.print(f"  {sentence}", highlight=False, markup=False)


def _launch(
    plan: Subject,
    workspace: Workspace,
    recorded: Recording,
    job: str,
    request: str | None,
    stages: Sequence[Declaration],
) -> dict[Declaration, str]:
    """One run of the job over these stages alone, and the state of each.

    Raises:
        JobFailed: a stage failed; the message is the stage's own error.
        KeyboardInterrupt: somebody ended the run, which is on record as failed.
    """
    workspace.progress(0, 0, f"loading the libraries for {plan.subject}")
    if any(stage.path[0].endswith("unlearning") for stage in stages):
        workspace.launcher.prepare()
    import dagster as dg

    from pipelines.build import REQUEST_TAG, audit_job_name, request_job_name, subject_definitions
    from pipelines.observations import asset_key, filed_under
    from pipelines.operations.after_run import after_run
    from pipelines.reaper import run_tags

    instance, name = recorded.instance, (audit_job_name if job == "audit" else request_job_name)(plan.subject)
    known = (digest(plan), workspace)
    if known not in recorded.definitions:
        hardcoded = dg.ResourceDefinition.hardcoded_resource(workspace)
        recorded.definitions[known] = dg.Definitions.merge(
            subject_definitions(plan),
            dg.Definitions(resources={"workspace": hardcoded}, executor=dg.in_process_executor),
        )
    with filed_under(instance, name):
        result = (
            recorded.definitions[known]
            .resolve_job_def(name)
            .execute_in_process(
                instance=instance,
                partition_key=request,
                asset_selection=[asset_key(stage) for stage in stages],
                raise_on_error=False,
                tags={**run_tags(), **({REQUEST_TAG: request} if request else {})},
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
        )
    interrupted = _interrupted(result)
    for line in after_run(
        workspace.home,
        plan,
        instance=instance,
        run_id=result.run_id,
        succeeded=result.success,
        interrupted=interrupted,
        request=request,
    ):
        errors.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)
    if interrupted:
        raise KeyboardInterrupt
    if not result.success:
        raise JobFailed(_first_failure(result))
    made = {tuple(m.asset_key.path): m.metadata["state"].value for m in _materializations(result)}
    return {stage: str(made[stage.subject, *stage.path]) for stage in stages}


def _materializations(result: ExecuteInProcessResult) -> list[AssetMaterialization]:
    return [event.materialization for event in result.get_asset_materialization_events()]


def _interrupted(result: ExecuteInProcessResult) -> bool:
    """Whether somebody ended the run (Ctrl-C, SIGTERM): Dagster keeps the signal to itself, its step fails."""
    from dagster._core.execution.plan.objects import ErrorSource

    failed = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return any(data.error_source is ErrorSource.INTERRUPT for data in failed)


def _first_failure(result: Any) -> str:
    from pipelines.build import said_of

    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed and evaluation.blocking:
            problems = evaluation.metadata.get("problems")
            return (
                f"{'/'.join(evaluation.asset_key.path)}: check {evaluation.check_name} failed: "
                f"{problems.value if problems else ''}"
            )
    for event in result.all_events:
        if event.is_step_failure:
            return f"{event.step_key.replace('__', '/')}: {said_of(event)}"
    return "the run failed; open the Dagster UI for its events: make ui"


def finish(
    workspace: Workspace,
    plan: Subject,
    asset: str,
    records: list[dict[str, Any]],
    wall_s: float,
    *,
    undecided: Sequence[str] = (),
    then: Sequence[str] = (),
) -> None:
    """Print the summary, where the report is and what to try next; exit with the verdict's status.

    Args:
        undecided: commands to try as well when the verdict is inconclusive. ``then``: in any case.
    """
    from reports.summary import judgement_of

    store = workspace.warehouse.artifacts
    page = store.describe(f"{asset}.html")
    judgement, rows = judgement_of(json.loads(store.load_bytes(f"{asset}.json")))
    console.print()
    width = console.width if console.is_terminal else None
    for line in summary(rows, title=f"Audit of {plan.title or plan.subject}", width=width):
        console.print(line, soft_wrap=True, highlight=False)
    console.print()
    verdict = judgement.verdict.value
    for line in answers(judgement):
        console.print(line)
    console.print(f"[bold {COLOURS[verdict]}]{verdict.upper()}[/]  {judgement.sentence}")
    done = sum(r["state"].startswith("computed") for r in records)
    console.print(
        f"{len(records)} stages in {wall_s:.1f} s: {done} computed, {len(records) - done} unchanged"
        + (" (nothing was recomputed)" if not done else "")
    )
    if plan.budget_min is not None and wall_s > 60 * plan.budget_min:
        console.print(f"That is more than the plan's budget of {plan.budget_min:g} minutes.")
    console.print(f"Report: {workspace.home / page.path}", soft_wrap=True)
    console.print("Try:")
    if found := not_on_path():
        console.print(f"  {found}", soft_wrap=True, markup=False, highlight=False)
    for line in (*then, *(undecided if verdict == "inconclusive" else ()), *TRY):
        console.print("  " + line.format(subject=plan.subject), soft_wrap=True, markup=False, highlight=False)
    raise typer.Exit(EXIT[verdict])
