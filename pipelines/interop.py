"""To cleanlab and back: predictions out of fold for its methods, and what it finds as a score of a subject's plan."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from contracts.errors import ConfigError, DataError, NotApplicable, NotReady
from contracts.subject import Subject
from tasks.base import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from cleanlab import Datalab

    from assets import Stage, Workspace


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What models say of examples that they were not trained on: the mean over the reference models without each
    example.

    Attributes:
        example_id: (N,) int64, ascending.
        labels: (N,) int64, the given class indexes.
        pred_probs: (N, K) float64, rows sum to 1.
        class_names: K names.
    """

    example_id: np.ndarray
    labels: np.ndarray
    pred_probs: np.ndarray
    class_names: tuple[str, ...]

    def datalab(self) -> Datalab:
        """A ``cleanlab.Datalab`` of these labels; its issues are in the order of ``example_id``.

        Look for issues of labels with one job: ``find_issues(pred_probs=..., issue_types={"label":
        {"clean_learning_kwargs": {"find_label_issues_kwargs": {"n_jobs": 1}}}})``. cleanlab forks others, which beside
        the threads of polars may wait for ever.

        Raises:
            ConfigError: the package ``datasets``, which Datalab needs, is not installed; says how.
        """
        optional("datasets", "cleanlab.Datalab")
        from cleanlab import Datalab

        return Datalab({"label": self.labels, "example_id": self.example_id}, label_name="label", verbosity=0)


def optional(package: str, what: str) -> Any:
    """The module of an optional package.

    Raises:
        ConfigError: it is not installed; one sentence with the command that brings it.
    """
    from importlib import import_module

    from pipelines.home import install_command

    try:
        return import_module(package)
    except ModuleNotFoundError:
        raise ConfigError(
            f"{what} needs the package {package}, which is not installed: {install_command('.[notebook]')}"
        ) from None


def out_of_fold(plan: Subject, workspace: Workspace) -> OutOfFold:
    """The stored reference models' predictions on the examples of their pool, both splits.

    Raises:
        NotApplicable: not classification, or nothing in the plan has reference models trained.
        NotReady: they have not been trained, or not as the plan now says.
    """
    from assets.models import load_ensemble
    from assets.stage import Run
    from scoring.label_quality import out_of_fold as predictions

    stage = _stage(plan, ("models", "ensemble"))
    if stage is None:
        raise NotApplicable(f"no score or attack of {plan.subject}'s plan has reference models trained")
    run = Run(stage, workspace, "", None, None)
    if workspace.warehouse.last_complete(run.asset) is None:
        raise NotReady(
            f"{plan.subject}'s reference models have not been trained yet; run: palimpsest audit {plan.subject}"
        )
    ensemble = load_ensemble(run, stage)
    if ensemble.logits is None:
        raise NotReady(
            f"{plan.subject}'s reference models keep no predictions, for no score of the plan reads them: list "
            f"label_quality, and run: palimpsest audit {plan.subject}"
        )
    data = workspace.examples(plan)
    return OutOfFold(*predictions(data, ensemble), class_names=data.class_names)


def import_issues(
    plan: Subject, workspace: Workspace, issues: Any, example_id: Sequence[int] | np.ndarray | None
) -> Path:
    """Store cleanlab's label issues as the score ``cleanlab_issues`` and add it to the plan; the file that now lists
    it.

    Args:
        issues: a pandas or polars frame with a row an example, as of ``Datalab.get_issues("label")`` or
            ``CleanLearning.find_label_issues``; see ``scoring.cleanlab_issues.read_issues``.
        example_id: of each row; None where the frame has them in a column, or an index, of that name.

    Raises:
        DataError: the frame does not say which example a row is about, or is not what cleanlab makes.
        NotReady: the subject's examples are not on record yet.
    """
    from assets import imported, materialize
    from pipelines.subjects import import_score, load_subject
    from scoring.cleanlab_issues import NAME, read_issues

    data = workspace.examples(plan)
    require(data, "cleanlab's issues", "classes")
    rows = read_issues(_with_ids(issues, example_id), data)
    if workspace.warehouse.last_complete(f"{plan.subject}/data/examples") is None:
        raise NotReady(f"the examples of {plan.subject} are not on record yet; run: palimpsest audit {plan.subject}")
    made = {"by": f"cleanlab {metadata.version('cleanlab')}", "at": datetime.now(UTC).isoformat(timespec="seconds")}
    digest = imported.keep(workspace.warehouse, f"{plan.subject}/scores/{NAME}", rows, data, made)
    listed = import_score(plan.subject, NAME, {"imported": digest}, workspace.home)
    stage = _stage(load_subject(plan.subject, workspace.home), ("scores", NAME))
    assert stage is not None
    materialize(stage, workspace, run_id=f"import-{digest[:12]}", request=None, context=None)
    workspace.warehouse.publish()
    return listed


def _stage(plan: Subject, path: tuple[str, str]) -> Stage | None:
    from assets import subject_stages

    return next((stage for stage in subject_stages(plan) if stage.path == path), None)


def _with_ids(issues: Any, example_id: Sequence[int] | np.ndarray | None) -> pl.DataFrame:
    """The frame with a column ``example_id``: identity is never the place in a table."""
    if not isinstance(issues, pl.DataFrame):
        if not hasattr(issues, "reset_index"):
            raise DataError(
                f"the issues are a {type(issues).__name__}; give the pandas or polars frame that cleanlab makes"
            )
        issues = pl.from_pandas(issues.reset_index() if issues.index.name == "example_id" else issues)
    if example_id is not None:
        if len(example_id) != issues.height:
            raise DataError(f"{len(example_id)} example ids were given for {issues.height} issues")
        return issues.with_columns(pl.Series("example_id", example_id))
    if "example_id" not in issues.columns:
        raise DataError(
            "the issues do not say which example a row is about: give example_id=, in the order of what cleanlab was "
            "given"
        )
    return issues
