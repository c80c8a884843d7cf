"""The report's page: facts arranged for the template ``templates/audit.html.j2``, which does the escaping.

Nothing is decided here: verdicts come from the findings, figures from the frames. Charts are drawn once; the page
turns their lightness round for dark readers. Jinja runs with autoescape on and undefined names as errors.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jinja2
import polars as pl

from contracts.verdicts import ATTACK, INFORMATION, TARGET, Verdict, overall
from reports import plots, summary
from reports.contents import AnalysisSection, AuditReport, Examples
from reports.series import Curve, Histogram

_THIN = "\u202f"
_MARKS = {Verdict.PASS: "✓", Verdict.FAIL: "✗", Verdict.INCONCLUSIVE: "?", Verdict.BROKEN: "!", Verdict.NOT_JUDGED: "–"}
_METRICS = {  # metric, or column of unlearning.runs -> heading, shorter heading
    "avg_gap": ("Average gap", "Average gap"),
    "ua": ("Unlearning acc. %", "Unlearning acc."),
    "ra": ("Retain acc. %", "Retain acc."),
    "ta": ("Test acc. %", "Test acc."),
    "loss_forget": ("Loss, forgotten", "Loss forg."),
    "loss_retain": ("Loss, kept", "Loss kept"),
    "mae_forget": ("Error, forgotten", "Error forg."),
    "mae_retain": ("Error, kept", "Error kept"),
    "w1": ("W1 to retraining", "W1"),
    "ain": ("Anamnesis index", "AIN"),
    "mia_efficacy": ("Membership eff. %", "Membership eff."),
    "wall_s": ("Seconds", "Seconds"),
}
_REASONED = (Verdict.FAIL, Verdict.BROKEN, Verdict.INCONCLUSIVE)
_SHOWN_COLUMNS = 8
_SHOWN_CLASSES = 12
_SHOWN_ITEMS = 40
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def render(report: AuditReport, *, digest: str) -> str:
    """The whole page. ``digest``: SHA-256 of the JSON beside it."""
    judgement = report.judgement
    attack_names = _attack_names(report)
    rocs = {
        audited: _roc(audited, curves, report.attacks, attack_names)
        for audited, curves in report.curves.items()
        if curves
    }
    table = report.matrix if report.matrix and len(report.matrix.rows) > 1 else None
    return template("audit.html.j2").render(
        report=report,
        judgement=judgement,
        mark=_MARKS,
        glance=_glance(report, attack_names, rocs.get(TARGET)),
        removed=_removed(report),
        findings=[(row, _span(row)) for row in report.rows],
        scores=[
            {"section": s, "chart": _histogram(s.name, s.unit, s.histogram), "groups": [_group(e) for e in s.examples]}
            for s in report.scores
        ],
        groups=[_group(e) for e in report.groups],
        analyses=[_analysis(a) for a in report.analyses if not a.audit],
        audits=[_analysis(a) for a in report.analyses if a.audit],
        datasets=[_analysis(d) for d in report.datasets],
        unlearning=_unlearning(report),
        attacks=_attacks(report.attacks),
        rocs=list(rocs.values()),
        questions=open_questions(report),
        matrix=table,
        matrix_reasons=[(r.subject, c) for r in table.rows for c in r.cells if c.verdict in _REASONED] if table else [],
        digest=digest,
    )


def _attack_names(report: AuditReport) -> list[str]:
    """Every attack of the report in one order: it decides the colour that an attack has in all pictures."""
    of_curves = [name for curves in report.curves.values() for name in curves]
    return list(dict.fromkeys([*of_curves, *(_attack_name(row) for row in report.rows if _is_area(row))]))


def _attack_name(row: summary.Row) -> str:
    return row.what.removeprefix("attack/")


def _is_area(row: summary.Row) -> bool:
    """An attack's figure with an interval, on the scale of an area under the ROC curve: half is guessing."""
    return row.kind == ATTACK and None not in (row.value, row.low, row.high) and 0.5 <= (row.threshold or 0) <= 1


def _glance(report: AuditReport, attack_names: Sequence[str], roc: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The pictures of the first screen, each with a line under it."""
    found = [
        (
            _attacked(report, attack_names),
            "Every model under every attack, with intervals; 0.5 is guessing, dashed what is tolerated.",
        ),
        (_gap_and_time(report), "Gap to retraining against the time it took; dashed what is tolerated."),
        (roc["chart"] if roc else None, "The audited model: members found against others accused."),
    ]
    return [{"chart": chart, "caption": caption} for chart, caption in found if chart is not None]


def _attacked(report: AuditReport, attack_names: Sequence[str]) -> dict[str, str] | None:
    splits = set() if report.unlearning is None else set(report.unlearning["split"])
    rows = [r for r in report.rows if _is_area(r) and (r.about == TARGET or r.about.rpartition("/")[0] in splits)]
    rows.sort(key=lambda r: (r.about != TARGET, r.method != report.decides, r.control))
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in rows:
        name = "audited model" if row.about == TARGET else row.method if len(splits) == 1 else row.about
        groups.setdefault(name, {})[_attack_name(row)] = (row.value, row.low, row.high)  # type: ignore[assignment]
    if not groups:
        return None
    limits = {float(r.threshold) for r in rows if r.threshold is not None}
    png = plots.intervals_png(
        groups, xlabel="area under the ROC curve", order=attack_names, limits=sorted(limits | {1 - t for t in limits})
    )
    said = (
        f"{name}: " + ", ".join(f"{a} {summary.number(v[0])}" for a, v in group.items())
        for name, group in groups.items()
    )
    return _chart(png, f"Area under the ROC curve of every attack. {'; '.join(said)}.")


def _gap_and_time(report: AuditReport) -> dict[str, str] | None:
    runs = report.runs
    if runs is None:
        return None
    means = [pl.col(c).mean() for c in ("wall_s", "avg_gap", "avg_gap_lo", "avg_gap_hi")]
    known = runs.filter(pl.col("avg_gap").is_finite()).group_by("method", maintain_order=True).agg(means)
    points = {
        str(name): (took, gap, gap if low is None else min(low, gap), gap if high is None else max(high, gap))
        for name, took, gap, low, high in known.drop_nulls(["wall_s", "avg_gap"]).iter_rows()
    }
    if len(points) < 2:
        return None
    png = plots.against_time_png(points, ylabel="average gap (points)", limit=report.max_gap)
    said = ", ".join(f"{name} {summary.number(p[1])} points in {summary.number(p[0])} s" for name, p in points.items())
    return _chart(png, f"Average gap to retraining against time: {said}.")


def _removed(report: AuditReport) -> dict[str, Any] | None:
    """What was taken out, in a sentence, and a few of the examples."""
    removed = report.removed
    if removed is None:
        return None
    share = percent(round(removed.num / max(removed.num_train, 1), 3))
    by_class = sorted(removed.classes.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{name} ({count(num)})" for name, num in by_class[:_SHOWN_CLASSES])
    more = f" and {len(by_class) - _SHOWN_CLASSES} more" if len(by_class) > _SHOWN_CLASSES else ""
    return {
        "sentence": f"{count(removed.num)} of {count(removed.num_train)} training examples ({share}), {removed.how}.",
        "classes": f"By class: {listed}{more}." if listed else "",
        "group": None if removed.examples is None else _group(removed.examples),
    }


def _analysis(section: AnalysisSection) -> dict[str, Any]:
    return {
        "section": section,
        "charts": [_chart(png, f"{title}.") for title, png in section.charts],
        "groups": [_group(e) for e in section.examples],
        "head": _head(section.table),
    }


def open_questions(report: AuditReport) -> list[tuple[str, str]]:
    """What the audit could not decide: (what, why), from findings, controls, attacks, scores and the notes."""
    asked: list[tuple[str, str]] = []
    for row in report.rows:
        if row.verdict in (Verdict.INCONCLUSIVE, Verdict.BROKEN):
            asked.append((_named(row.about, row.what), row.sentence))
    for split in report.judgement.powerless:
        asked.append((split, "No attack caught the untouched model here, so the audit had no power on this split."))
    asked += _weak_rates(report.attacks)
    asked += [(a.name, a.reason) for a in (*report.analyses, *report.datasets) if a.reason]
    for section in report.scores:
        if not section.passed:
            asked.append((section.name, section.reason or "Its run did not meet the score's own conditions."))
        if section.histogram.missing:
            asked.append((section.name, f"{count(section.histogram.missing)} examples have no finite value."))
    return asked + [("", note) for note in report.notes]


def count(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{round(value):,}".replace(",", _THIN)


def percent(share: float) -> str:
    """A share as a percentage with as few decimals as it needs.

    >>> percent(0.001)
    '0.1\\u202f%'
    """
    return f"{share * 100:g}{_THIN}%"


def text(value: Any) -> str:
    """A fact's value as people read it: thousands apart (but not in lists: those are ids), nothing as a dash."""
    if value is None or value == "":
        return "\u2014"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", "\u2212")
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {text(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        more = f", … {count(len(value))} in all" if len(value) > _SHOWN_ITEMS else ""
        return ", ".join(str(v) if isinstance(v, int) else text(v) for v in value[:_SHOWN_ITEMS]) + more or "\u2014"
    return str(value)


def day(moment: Any) -> str:
    """A time for people: "24 November 2026, 06:30 UTC"; what is not an ISO 8601 time stays as it is."""
    try:
        at = moment if isinstance(moment, datetime) else datetime.fromisoformat(str(moment))
    except ValueError:
        return str(moment)
    if at.tzinfo is not None:
        at = at.astimezone(UTC)
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year}, {at:%H:%M} UTC"


@functools.cache
def template(name: str) -> jinja2.Template:
    """A template of this folder, with what all pages share."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(text=text, count=count, percent=percent, number=summary.number, day=day)
    return environment.get_template(name)


def _weak_rates(attacks: pl.DataFrame | None) -> list[tuple[str, str]]:
    """The true-positive rates that too few non-members carry, told once for all attacks of the same counts."""
    if attacks is None:
        return []
    reasons: dict[tuple[tuple[float, ...], int], dict[str, list[str]]] = {}
    for (audited, attack), group in attacks.filter(~pl.col("reliable")).group_by(
        "audited", "attack", maintain_order=True
    ):
        reason = tuple(group["fpr_cap"].sort().to_list()), int(group["n_neg"][0])
        reasons.setdefault(reason, {}).setdefault(str(audited), []).append(str(attack))
    told = []
    for (caps, n_neg), who in reasons.items():
        needed = " and ".join(f"{count(10 / cap)} for {percent(cap)}" for cap in caps if cap > 0)
        names = "; ".join(f"{audited} ({', '.join(found)})" for audited, found in who.items())
        told.append(
            (
                f"Members found at ≤ {', '.join(percent(cap) for cap in caps)}",
                f"{count(n_neg)} non-members were tested; a rate that low needs {needed}. This concerns {names}.",
            )
        )
    return told


def _named(audited: str, what: str) -> str:
    return f"{audited} · {what}" if audited else what


def _span(row: summary.Row) -> dict[str, float] | None:
    """Where low, high, value and threshold lie on a line from 0 to 100; None without an interval."""
    known = {"low": row.low, "high": row.high, "value": row.value, "threshold": row.threshold}
    values = {k: v for k, v in known.items() if v is not None and v == v}
    if not {"low", "high"} <= set(values):
        return None
    left, right = min(0.0, *values.values()), max(values.values())
    if left == 0 and right <= 1:
        right = 1.0
    return {k: 100 * (v - left) / ((right - left) or 1.0) for k, v in values.items()}


def _image(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _chart(png: bytes, alt: str) -> dict[str, str]:
    return {"png": _image(png), "alt": alt}


def _histogram(name: str, unit: str, data: Histogram) -> dict[str, str]:
    label = f"{name} ({unit})" if unit else name
    marks = ", ".join(f"{percent(q)} quantile {summary.number(v)}" for q, v in data.quantiles)
    alt = f"Histogram of {name} over {count(int(data.counts.sum()))} examples{': ' + marks if marks else ''}."
    return _chart(plots.histogram_png(data, xlabel=label), alt)


def _head(frame: pl.DataFrame | None) -> dict[str, Any] | None:
    if frame is None or frame.is_empty():
        return None
    return _cells(frame)


def _cells(frame: pl.DataFrame) -> dict[str, Any]:
    """The first columns that hold anything, as text, and how many more there are."""
    full = [name for name in frame.columns if frame[name].null_count() < frame.height]
    shown = frame.select(full[:_SHOWN_COLUMNS])
    rows = [[text(v) for v in row] for row in shown.iter_rows()]
    return {"columns": shown.columns, "rows": rows, "more": len(full) - shown.width}


def _group(examples: Examples) -> dict[str, Any]:
    n = len(examples.example_id)
    images: list[str | None] = [None] * n
    if examples.images is not None:
        images = [_image(plots.example_png(x)) for x in examples.images]
    notes = examples.note or [""] * n
    cards = [
        {"id": int(i), "value": summary.number(float(v)), "label": str(label), "note": str(note), "image": image}
        for i, v, label, note, image in zip(
            examples.example_id, examples.value, examples.label, notes, images, strict=True
        )
    ]
    table = None if examples.rows is None else _cells(examples.rows)
    return {"heading": examples.heading, "cards": cards, "table": table, "pictures": examples.images is not None}


def _unlearning(report: AuditReport) -> list[dict[str, Any]]:
    """One table a split: mean and standard deviation over seeds, retraining first, then by average gap."""
    frame = report.runs
    if frame is None:
        return []
    findings = report.findings
    assert isinstance(findings, pl.DataFrame)
    of_methods = findings.filter((pl.col("method") != "") & (pl.col("kind") != INFORMATION))
    verdicts: dict[str, Verdict] = {
        str(about): overall(Verdict(v) for v in group["verdict"])
        for (about,), group in of_methods.group_by("about", maintain_order=True)
    }
    tables = []
    for (split,), part in frame.group_by("split", maintain_order=True):
        methods = []
        for (method,), group in part.group_by("method", maintain_order=True):
            cells = {m: _spread(group[m]) for m in _METRICS}
            audited = f"{split}/{method}"
            methods.append(
                {
                    "method": method,
                    "seeds": group["seed"].n_unique(),
                    "failed": group.filter(pl.col("status") != "ok").height,
                    "cells": cells,
                    "verdict": verdicts.get(audited),
                    "control": method in report.controls,
                    "order": (method != "retrain", cells["avg_gap"][0] is None, cells["avg_gap"][0] or 0.0, method),
                    "gaps": group["avg_gap"].drop_nulls().to_list(),
                    "spread": _spread(group["retrain_spread"])[0],
                }
            )
        methods.sort(key=lambda m: m["order"])
        columns = [
            (m, *heads) for m, heads in _METRICS.items() if any(row["cells"][m][0] is not None for row in methods)
        ]
        chart = None
        if any(m["gaps"] for m in methods if m["method"] != "retrain"):
            alt = "Average gap to retraining: " + ", ".join(
                f"{m['method']} {summary.number(m['cells']['avg_gap'][0]) or 'unknown'}"
                for m in methods
                if m["method"] != "retrain"
            )
            gaps = {m["method"]: m["gaps"] for m in methods if m["method"] != "retrain"}
            drawn = plots.dots_png(
                gaps, xlabel="average gap to retraining (points)", threshold=report.max_gap, threshold_label="allowed"
            )
            chart = _chart(drawn, alt)
        tables.append(
            {
                "split": split,
                "methods": methods,
                "columns": columns,
                "judged": any(m["verdict"] for m in methods),
                "chart": chart,
                "num_forget": part["num_forget"][0],
                "num_retain": part["num_retain"][0],
            }
        )
    return tables


def _spread(values: pl.Series) -> tuple[float | None, float | None]:
    """Mean and standard deviation (ddof 1) of the known values; None where there are too few."""
    known = values.drop_nulls().drop_nans()
    mean = known.mean()
    std = known.std() if len(known) > 1 else None
    return (None if mean is None else float(mean), None if std is None else float(std))  # type: ignore[arg-type]


def _attacks(frame: pl.DataFrame | None) -> dict[str, Any] | None:
    """One row an audited model (seed) x attack, one column a false-positive cap."""
    if frame is None or frame.is_empty():
        return None
    caps = frame.drop_nulls("tpr")["fpr_cap"].unique().sort().to_list()
    rows = []
    for (audited, attack), models in frame.group_by("audited", "attack", maintain_order=True):
        seeds = models["seed"].unique().sort().to_list()
        for number, seed in enumerate(seeds, 1):
            group = models.filter(pl.col("seed") == seed)
            by_cap = {r["fpr_cap"]: r for r in group.iter_rows(named=True)}
            rows.append(
                {
                    "audited": audited,
                    "attack": attack,
                    "model": f"{number} of {len(seeds)}" if len(seeds) > 1 else "",
                    "first": group.row(0, named=True),
                    "caps": [by_cap.get(c) for c in caps],
                }
            )
    return {"caps": caps, "rows": rows, "unreliable": not frame["reliable"].all()}


def _roc(
    audited: str, curves: Mapping[str, Curve], attacks: pl.DataFrame | None, attack_names: Sequence[str]
) -> dict[str, Any]:
    intervals = None if attacks is None else attacks.filter(pl.col("audited") == audited)
    lines = {name: (c.fpr, c.tpr) for name, c in curves.items()}
    n_neg = max(c.n_neg for c in curves.values())
    chart = _chart(
        plots.roc_png(lines, n_neg=n_neg, intervals=intervals, order=attack_names),
        f"ROC curves on logarithmic axes for {audited}: {', '.join(curves)}.",
    )
    return {"audited": audited, "chart": chart}
