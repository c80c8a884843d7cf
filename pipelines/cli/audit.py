"""``palimpsest audit``: the whole graph of a subject in this process, recorded in Dagster's own storage."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.errors import JobFailed
from contracts.subject import Subject
from pipelines.cli.terminal import COLOURS, console, errors, live_progress, summary_table
from pipelines.home import dagster_home, state_home

if TYPE_CHECKING:
    from assets import Workspace

TRY = (
    "palimpsest sql --named agreement --param subject={subject}",
    "palimpsest sql \"SELECT audited, what, verdict, value, low, high FROM audits.findings WHERE subject = '{subject}'\"",
)
EXIT = {"pass": 0, "fail": 1, "inconclusive": 1, "broken": 2}


def audit(
    subject: Annotated[
        str, typer.Argument(help="a subject of pipelines/defs, or one made by 'palimpsest init'")
    ] = "digits",
    quick: Annotated[
        bool, typer.Option("--quick", help="fewer seeds and reference models: a first look, not evidence")
    ] = False,
) -> None:
    """Audit a subject: train, score, split, unlearn, attack, record, report. Exit 0 pass, 1 not shown to pass, 2 error."""
    from pipelines.subjects import load_subject

    home = state_home()
    plan = load_subject(subject, home)
    if quick:
        plan = quick_plan(plan)
    started = time.perf_counter()
    workspace, records = run_subject(plan, home, job="audit")
    finish(workspace, plan, f"{plan.subject}/reports/audit", records, time.perf_counter() - started)


def quick_plan(plan: Subject) -> Subject:
    """A smaller plan of the same subject: 16 reference models, 3 early models, 1 unlearning seed."""
    unlearning = dataclasses.replace(plan.unlearning, seeds=1) if plan.unlearning else None
    return dataclasses.replace(
        plan,
        early=dataclasses.replace(plan.early, seeds=min(plan.early.seeds, 3)),
        ensemble=dataclasses.replace(plan.ensemble, num_models=min(plan.ensemble.num_models, 16)),
        unlearning=unlearning,
    )


def run_subject(
    plan: Subject, home: Path, *, job: str, request: str | None = None
) -> tuple[Workspace, list[dict[str, Any]]]:
    """Run one of the subject's jobs in this process and return the workspace and each stage's state.

    Raises:
        JobFailed: a stage failed; the message is the stage's own error.
    """
    with live_progress(f"{plan.subject}: loading") as progress:
        progress(0, 0, f"{plan.subject}: loading the libraries")
        warnings.filterwarnings("ignore", module=r"dagster\..*")
        dagster_home()
        import dagster as dg

        from assets import Workspace
        from pipelines.build import audit_job_name, request_job_name, request_partitions, subject_definitions
        from pipelines.launchers import PipesLauncher
        from pipelines.reaper import reap, run_tags

        logging.getLogger("dagster").setLevel(logging.CRITICAL)
        workspace = Workspace(home, launcher=PipesLauncher(), progress=progress)
        hardcoded = dg.ResourceDefinition.hardcoded_resource(workspace)
        definitions = dg.Definitions.merge(
            subject_definitions(plan),
            dg.Definitions(resources={"workspace": hardcoded}, executor=dg.in_process_executor),
        )
        name = (audit_job_name if job == "audit" else request_job_name)(plan.subject)
        with dg.DagsterInstance.get() as instance:
            reap(instance, note=lambda text: errors.print(f"  {text}"))
            if request:
                instance.add_dynamic_partitions(request_partitions(plan.subject).name, [request])
            result = definitions.resolve_job_def(name).execute_in_process(
                instance=instance,
                partition_key=request,
                raise_on_error=False,
                tags={**run_tags(), **({"palimpsest/forget_request": request} if request else {})},
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            if not result.success:
                raise JobFailed(_first_failure(result))
            return workspace, _states(result)


def _states(result: Any) -> list[dict[str, Any]]:
    out = []
    for event in result.get_asset_materialization_events():
        materialization = event.materialization
        state = materialization.metadata["state"].value
        out.append({"asset": "/".join(materialization.asset_key.path), "state": state})
    return out


def _first_failure(result: Any) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            cause = error.cause or error
            return f"{event.step_key}: {cause.message.strip()}"
    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed and evaluation.severity.value == "ERROR":
            problems = evaluation.metadata.get("problems")
            return f"{'/'.join(evaluation.asset_key.path)}: check {evaluation.check_name} failed: {problems.value if problems else ''}"
    return "the run failed; open the Dagster UI for its events: make ui"


def finish(workspace: Workspace, plan: Subject, asset: str, records: list[dict[str, Any]], wall_s: float) -> None:
    """Print the summary, where the report is and what to try next; exit with the verdict's status."""
    from assets.reports import judgement_of

    store = workspace.warehouse.artifacts
    page = store.describe(f"{asset}.html")
    judgement, rows = judgement_of(json.loads(store.load_bytes(f"{asset}.json")))
    console.print()
    console.print(summary_table(rows, title=f"Audit of {plan.title or plan.subject}"))
    verdict = judgement.verdict.value
    console.print(f"[bold {COLOURS[verdict]}]{verdict.upper()}[/]  {judgement.sentence}")
    done = sum(r["state"].startswith("computed") for r in records)
    console.print(
        f"{len(records)} stages in {wall_s:.1f} s: {done} computed, {len(records) - done} unchanged"
        + (" (nothing was recomputed)" if not done else "")
    )
    console.print(f"Report: {workspace.home / page.path}", soft_wrap=True)
    console.print("Try:")
    for line in TRY:
        console.print("  " + line.format(subject=plan.subject), soft_wrap=True, markup=False, highlight=False)
    raise typer.Exit(EXIT[verdict])
