"""One number of a method, chosen on a validation forget set by a stated budget.

    grid    as many values as the budget, evenly in the logarithm, over the range that the method's paper searched
            (``contracts.params.param(search=...)``); without one, a tenth to ten times the plan's ``lr``
    world   start: the model retrained without the judged set; to forget: the validation set; reference: retraining
            without both. The judged set takes no part: nothing that is tried is trained on it or looks at it
    choice  the least avg_gap; of equal ones the smallest value; the plan's configuration where no try has one

A choice by one run a value is itself noisy; the judged runs have other seeds and another set, so they are not flattered
by it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from contracts.params import Config

LR = "lr"


def grid_of(config: Config, budget: int) -> tuple[str, list[float]]:
    """The field that is tuned and the values that are tried, ascending; ("", []) where the method has none.

    Args:
        config: the plan's configuration of the method.
        budget: values, >= 1.

    Raises:
        ConfigError: a declared range outside the field's own.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    declared = next((name for name, f in fields.items() if f.metadata.get("search")), "")
    name = declared or (LR if LR in fields else "")
    if not name:
        return "", []
    if declared:
        low, high = fields[name].metadata["search"]
    else:
        planned = float(getattr(config, name))
        if planned <= 0:
            return "", []
        low, high = planned / 10, min(planned * 10, fields[name].metadata.get("le") or math.inf)
    values = [math.sqrt(low * high)] if budget == 1 else np.geomspace(low, high, budget).tolist()
    values = sorted({float(f"{v:.6g}") for v in values})
    for value in values:
        dataclasses.replace(config, **{name: value})  # outside its range: refused here, before any work
    return name, values


Try = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def tune(config: Config, *, budget: int, attempt: Try) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Try every value of the grid.

    Args:
        config: the plan's configuration of the method.
        budget: runs.
        attempt: fields in place of the plan's -> a row with ``avg_gap`` (None when undefined), ``status``, ``why``.

    Returns:
        The chosen field and value, or nothing, and a row a try (one with the reason where there is nothing to tune).
    """
    field, values = grid_of(config, budget)
    if not values:
        why = "no field with a range to search, and no lr above 0"
        return {}, [{"place": 0, "field": "", "status": "not_applicable", "why": why, "chosen": False}]
    rows = [{"place": k, "field": field, "value": v, **attempt({field: v})} for k, v in enumerate(values)]
    found = [row for row in rows if row.get("avg_gap") is not None]
    best = min(found, key=lambda row: (row["avg_gap"], row["value"])) if found else None
    for row in rows:
        row["chosen"] = row is best
    return ({field: best["value"]} if best else {}), rows
