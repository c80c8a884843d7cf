"""What a forget request does to the curated sets that know an example, or an owner's examples, by what each declares.

    drop      its row leaves the set; the rest stays
    rebuild   the set is chosen anew: the example decided, by its rank or by what it covers, who else is in it
    remake    what was made from it and others is made anew

The declaration is the method's (``after_erasure``); a request itself is executed by ``palimpsest request run``.
"""

from __future__ import annotations

import polars as pl

from contracts.methods import AFTER_ERASURE, curator, maker

UNKNOWN = "unknown"
_SCHEMA = {
    "subject": pl.String,
    "set": pl.String,
    "method": pl.String,
    "roles": pl.String,
    "made": pl.Int64,
    "effect": pl.String,
    "what": pl.String,
}


def declared(method: str) -> tuple[str, str]:
    """(word, what it means) of a curator or maker; "unknown" where it is not installed here."""
    for registry in (curator, maker):
        if method in registry.names():
            word = registry.get(method).spec.after_erasure  # type: ignore[attr-defined]
            return word, AFTER_ERASURE[word]
    return UNKNOWN, f"its method {method} is not installed here: rebuild it where it is"


def effects(found: pl.DataFrame) -> pl.DataFrame:
    """(subject, set, method, roles, made, effect, what), a row a set, by subject and name.

    Args:
        found: as of ``Warehouse.curated``.
    """
    rows = []
    for (subject, name, method), group in found.group_by("subject", "dataset_id", "method", maintain_order=True):
        word, what = declared(str(method))
        used = group.filter(pl.col("role") != "unused")
        if not used.height:
            word, what = "none", "nothing was made from it"
        roles = ", ".join(f"{role}: {n}" for role, n in group.select("role", "num_examples").iter_rows())
        rows.append((subject, name, method, roles, int(group["num_made"].max() or 0), word, what))  # type: ignore[arg-type]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row").sort("subject", "set")
