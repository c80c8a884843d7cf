"""Which stages a run would leave as they are, told from their declarations and the ledger: no method, no model is
loaded.

    key     = digest(asset, version, configuration, data versions of the inputs, request, digest of the data outside)
    current = everything upstream is current, the last completion was for this key, and its results are in place,
              undamaged byte for byte

The key is made here for the stages at work as well, so that what is told beforehand and what a run does cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.digests import digest
from warehouse import Warehouse

Path = tuple[str, str]
Record = dict[str, Any]
UNCHANGED = "unchanged: nothing was recomputed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """What a stage's key depends on besides its inputs, as plain data.

    Attributes:
        subject: name of the audited subject.
        path: (stage, name); the asset key is (subject, stage, name).
        version, config_digest: of the code and of the configuration.
        deps: paths of the stages it reads.
        per_request: partitioned by forget request.
        reads: what lies outside the warehouse and whose digest the key covers: "data", or the "model" or "references"
            that were given; or "".
        fresh_days: the asset is overdue after so many days.
    """

    subject: str
    path: Path
    version: int
    config_digest: str
    deps: tuple[Path, ...]
    per_request: bool
    reads: str
    fresh_days: int | None

    def asset(self, request: str | None) -> str:
        """The name in ledger, lineage and artifact store: ``digits/scores/el2n``, ``digits/requests/r1/finetune``."""
        stage, name = self.path
        return "/".join([self.subject, stage, *([str(request)] if self.per_request else []), name])

    def key(self, request: str | None, *, inputs: Mapping[str, str], scope: str, outside: str) -> str:
        """Digest of all that the result depends on.

        Args:
            inputs: asset -> data version of every stage in ``deps``.
            scope: digest of the forget request; "" without one.
            outside: digest of what it ``reads`` outside; not looked at where that is nothing.
        """
        return digest(
            {
                "asset": self.asset(request),
                "version": self.version,
                "config": self.config_digest,
                "inputs": inputs,
                "request": scope if self.per_request else "",
                "outside": outside if self.reads else "",
            }
        )


def scope_of(warehouse: Warehouse, request: str | None) -> str:
    """What the key of a stage covers of a forget request: what was asked, and with which others it is removed, not how
    far it has got."""
    if not request:
        return ""
    with warehouse.reading():
        asked, batch = warehouse.requests.get(request).request.digest(), warehouse.requests.batch(request).name
    return digest([asked, batch]) if batch else asked


def current_stages(
    stages: Sequence[Declaration],
    warehouse: Warehouse,
    *,
    request: str | None,
    outside: Callable[[str], str | None],
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, Record]:
    """Asset -> record of the last completion, of the stages that a run now would leave as they are.

    Args:
        stages: with everything upstream of each, upstream ones first.
        request: the forget request of the stages ``per_request``.
        outside: digest of the "data", or the given "model" or "references", as they are now; None when they cannot be
            read: then nothing that reads them is current. Asked at most once for each, and only for a stage that
            reads it.
        note: called with a sentence for every stage whose results are gone or damaged.
    """
    scope = scope_of(warehouse, request) if any(stage.per_request for stage in stages) else ""
    last = warehouse.completions(stage.asset(request) for stage in stages)
    names = {stage.path: stage.asset(request) for stage in stages}
    found: dict[str, Record] = {}
    asked: dict[str, str | None] = {"": ""}
    for stage in stages:
        name, inputs = names[stage.path], [names[path] for path in stage.deps]
        record, trouble = last.get(name, ({}, ""))
        if trouble:
            note(f"{name} is made anew: {trouble}")
        if not record or trouble or any(dep not in found for dep in inputs):
            continue
        if stage.reads not in asked:
            asked[stage.reads] = outside(stage.reads)
        now = asked[stage.reads]
        if now is None:
            continue
        versions = {dep: str(found[dep]["data_version"]) for dep in inputs}
        if record["key"] == stage.key(request, inputs=versions, scope=scope, outside=now):
            found[name] = record
    return found


def with_upstream(stages: Iterable[Declaration], wanted: Iterable[Path]) -> list[Declaration]:
    """The stages of these paths with everything upstream of them, in the order of ``stages`` (upstream ones first)."""
    needed = set(wanted)
    kept = []
    for stage in reversed(list(stages)):
        if stage.path in needed:
            needed.update(stage.deps)
            kept.append(stage)
    return kept[::-1]
