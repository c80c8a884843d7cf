"""From the readings of shadow runs to the rows of the audit: pure, one method after another on the same runs.

Shapes: R runs, N targets and C canaries side by side; readings (R, N + C, 4), state (R, N + C). U-LiRA, effects and
    collateral
damage rest on the signal, what is kept on the quality (accuracy for classes), the population figure on the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from attacks.membership.over_runs import auc_over_runs, mean_over_runs
from attacks.membership.shadow_runs import State, tolerated_mu
from attacks.membership.shadow_tables import CANARIES, EXAMPLES, U_LIRA
from attacks.membership.unlearning import (
    IN,
    OUT,
    UNLEARN,
    collateral,
    example_epsilon,
    removed_scores,
    u_lira,
)
from contracts.tables import TableSpec
from sources.frames import frame_of, schema_of
from stats import auc, benjamini_hochberg, clopper_pearson, holm
from tasks.base import Reading

Float = NDArray[np.float64]
Ids = NDArray[np.int64]

RETRAIN = "retrain"
TOLERATED_AUC = 0.6  # of one example, for the stored column; a verdict goes by the plan's own max_auc


@dataclass(eq=False)
class Recorded:
    """What one method left in the runs so far.

    Attributes:
        readings: (N + C, 4) after unlearning, one a run.
        area: (N,) relearning signal, NaN where the state is IN.
        steps: steps to relearn the removed and the never-seen examples.
        failures: why the method gave up, one a run in which it did.
        refused: what it gave back in some run is not a model of the plan.
    """

    readings: list[Float] = field(default_factory=list)
    area: list[Float] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refused: bool = False

    def failed(self, why: str, *, refused: bool = False) -> None:
        self.failures.append(why)
        self.refused |= refused

    @property
    def status(self) -> str:
        return "refused" if self.refused else "diverged" if self.failures else "ok"


def tables_of(
    recorded: Mapping[str, Recorded],
    before: Float,
    state: State,
    *,
    target_ids: Ids,
    canary_ids: Ids,
    wrong: NDArray[Any],
    num_train: int,
    repeats: int,
    steps: int,
    delta: float,
    alpha: float,
    seed: int,
) -> dict[str, pl.DataFrame]:
    """The three tables of ``shadow_tables``; methods in the order given, examples worst first.

    Args:
        recorded: of every method, ``retrain`` among them: the others' collateral damage is compared with its.
        before: (R, N + C, 4) readings of the trained models.
        state: of the N targets, then the C canaries.
        wrong: (C,) the targets that the canaries were given: classes, items or numbers.
        num_train: examples that a run trains on, mean.
    """
    num = len(target_ids)
    first = Reading(before)[:num]
    after = {name: Reading(np.stack(r.readings)) for name, r in recorded.items() if not r.failures}
    rows, examples, canaries = [], [], []
    for name, record in recorded.items():
        row: dict[str, Any] = {
            "method": name,
            "status": record.status,
            "num_diverged": len(record.failures),
            "reason": record.failures[0] if record.failures else "",
            "num_runs": len(state),
            "num_targets": num,
            "alpha": alpha,
            "num_canaries": len(canary_ids),
            "set_kind": "random",
            "num_train": num_train,
            "num_forget": round(float((state[:, :num] == UNLEARN).sum(axis=1).mean())),
        }
        if not record.failures:
            own, kept = after[name][:num], state[:, :num]
            effects = _effects(own.signal, kept, delta=delta, alpha=alpha)
            found = u_lira(own.signal, kept, alpha=alpha, seed=seed)
            examples.append(
                effects.with_columns(
                    example_id=target_ids, accuracy=found.example_accuracy, p_bh=benjamini_hochberg(effects["p_value"])
                )
                .sort("eps", "p_value", "example_id", descending=[True, False, False])
                .with_columns(method=pl.lit(name), rank=pl.int_range(1, num + 1))
            )
            row |= _u_lira_row(found) | _worst(effects, target_ids)
            row |= {"population_auc": _population_auc(own, kept)}
            row |= _kept(first, own, None if name == RETRAIN else after[RETRAIN][:num], kept, alpha=alpha)
            row |= _relearned(record, kept, alpha=alpha)
            if len(canary_ids):
                planted = _effects(after[name][num:].signal, state[:, num:], delta=delta, alpha=alpha)
                canaries.append(
                    planted.with_columns(
                        example_id=canary_ids,
                        label=wrong if wrong.dtype.kind == "i" else pl.lit(None, pl.Int64),
                        target=wrong if wrong.dtype.kind == "f" else pl.lit(None, pl.Float64),
                        repeats=pl.lit(repeats),
                        method=pl.lit(name),
                    )
                )
                exposed = int(planted["exposed"].sum())
                low, high = clopper_pearson(exposed, len(canary_ids), alpha=alpha)
                row |= {
                    "canaries_exposed": exposed,
                    "canaries_exposed_lo": float(low),
                    "canaries_exposed_hi": float(high),
                }
        rows.append(row)
    return {
        U_LIRA.name: frame_of(U_LIRA, rows),
        EXAMPLES.name: _stacked(EXAMPLES, examples),
        CANARIES.name: _stacked(CANARIES, canaries),
    }


def _stacked(table: TableSpec, parts: list[pl.DataFrame]) -> pl.DataFrame:
    """All parts in the columns as declared, NaN as null."""
    chosen = [pl.col(name).cast(dtype) for name, dtype in schema_of(table).items()]
    whole = pl.concat([frame_of(table, []), *(part.select(chosen) for part in parts)])
    return whole.with_columns(pl.col(pl.Float64).fill_nan(None))


def _effects(signal: Float, state: State, *, delta: float, alpha: float) -> pl.DataFrame:
    """mu, eps, eps_low, p_value, p_holm and exposed of every column; bounds that hold for all columns together."""
    effects = example_epsilon(signal, state, delta=delta, alpha=alpha / signal.shape[1])
    adjusted = holm(effects["p_value"])
    beyond = effects["mu"].to_numpy() > tolerated_mu(TOLERATED_AUC)
    return effects.with_columns(p_holm=adjusted, exposed=(adjusted <= alpha) & beyond)


def _u_lira_row(found: Any) -> dict[str, Any]:
    return {
        "auc": found.auc,
        "auc_lo": found.auc_low,
        "auc_hi": found.auc_high,
        "accuracy": found.accuracy,
        "tpr_at_1": found.tpr_at_1,
        "tpr_at_1_lo": found.tpr_at_1_low,
        "tpr_at_1_hi": found.tpr_at_1_high,
    }


def _worst(effects: pl.DataFrame, ids: Ids) -> dict[str, Any]:
    """Worst case beside the mean."""
    eps = effects["eps"].to_numpy()
    worst = np.lexsort((ids, -eps, effects["p_value"].to_numpy()))[0]
    return {
        "eps_mean": eps.mean(),
        "eps_p99": np.quantile(eps, 0.99),
        "eps_max": eps.max(),
        "eps_low_max": effects["eps_low"].max(),
        "worst_example": int(ids[worst]),
        "num_exposed": int(effects["exposed"].sum()),
    }


def _population_auc(after: Reading, state: State) -> float:
    """Mean over runs of the AUC of "a lower loss = removed", one threshold for all examples."""
    return float(np.mean([auc(f[s == UNLEARN], f[s == OUT]) for f, s in zip(-after.loss, state, strict=True)]))


def _kept(before: Reading, after: Reading, retrained: Reading | None, state: State, *, alpha: float) -> dict[str, Any]:
    """Retained targets: leakage after against before, and against retraining; quality."""
    change = collateral(before.signal, after.signal, state, alpha=alpha)
    kept = state == IN
    row = {
        "kept_auc_before": change.auc_before,
        "kept_auc_after": change.auc_after,
        "kept_change": change.change,
        "kept_change_lo": change.low,
        "kept_change_hi": change.high,
        "kept_p_value": change.p_value,
        "kept_acc_before": float(before.quality[kept].mean()),
        "kept_acc_after": float(after.quality[kept].mean()),
    }
    if retrained is not None:
        excess = collateral(retrained.signal, after.signal, state, alpha=alpha)
        row |= {
            "kept_excess": excess.change,
            "kept_excess_lo": excess.low,
            "kept_excess_hi": excess.high,
            "kept_excess_p_value": excess.p_value,
        }
        lost = retrained.quality - after.quality
        for what, group in (("kept", IN), ("new", OUT)):
            value, low, high = mean_over_runs(lost, state == group, alpha=alpha)
            row |= {f"{what}_acc_lost": value, f"{what}_acc_lost_lo": low, f"{what}_acc_lost_hi": high}
    return row


def _relearned(record: Recorded, state: State, *, alpha: float) -> dict[str, Any]:
    found = auc_over_runs(removed_scores(np.stack(record.area), state), state == UNLEARN)
    low, high = found.interval(alpha)
    removed, unseen = np.array(record.steps, dtype=np.float64).mean(axis=0)
    return {
        "relearn_auc": found.value,
        "relearn_auc_lo": low,
        "relearn_auc_hi": high,
        "relearn_steps": removed,
        "relearn_steps_unseen": unseen,
        "anamnesis": removed / unseen if unseen > 0 else None,
    }
