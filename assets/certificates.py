"""Stage 8 of a forget request: its certificate, a signed statement of what the audit of the removal found.

    issued    after every audit of the request whose report says something new, and by ``palimpsest certify``
    says      verdict and findings as they counted, attacks with intervals and numbers, distance to retraining, digests,
              the ledger's head, until when; of a person only how many examples were theirs
    serial    1, 2, ... of a request: a later one takes the place of all before it

A certificate is not a pass: it states what was found, "inconclusive" and "fail" too. It expires, since attacks improve.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from importlib import metadata
from typing import Any

import polars as pl

from assets.stage import Output, Run, Stage
from assets.unlearning import Scope
from contracts import schema
from contracts.certificates import PAYLOAD, AttackResult, Certificate, JudgedFinding, statement
from contracts.digests import digest
from contracts.errors import NotReady
from contracts.methods import unlearner
from contracts.subject import Subject
from contracts.verdicts import OF_FINDINGS, Verdict, overall
from warehouse import Artifact, Warehouse, empty, signing

DAYS = 90  # a certificate is good for
POWER = "power"  # the finding of a certificate that its report says less than the others together
_NUMBERS = ("value", "low", "high", "threshold")


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate, its signed file, its row of ``certificates.issued``, and the files of those before it."""

    certificate: Certificate
    file: Artifact
    row: pl.DataFrame
    earlier: tuple[str, ...]

    @property
    def partition(self) -> dict[str, Any]:
        """Of its row."""
        return {"request_id": self.certificate.request_id, "serial": self.certificate.serial}


def stage(subject: Subject, scope: Scope, findings: Stage, report: Stage) -> Stage:
    """``[subject, request_certificates, certificate]``: the signed statement of a forget request."""
    return Stage(
        subject=subject,
        path=(f"{scope.prefix}certificates", "certificate"),
        doc="What the audit of a forget request found, signed: for whoever has the public key, without this state.",
        config={"days": DAYS},
        deps=(findings, report),
        tables=(schema.CERTIFICATES,),
        kinds=frozenset({"json"}),
        per_request=True,
        work=lambda run: _issue(run),
    )


def _issue(run: Run) -> Output:
    assert run.request is not None
    made = issue(run.subject, run.warehouse, run.request)
    said = made.certificate
    return Output(
        tables=[(schema.CERTIFICATES, made.row, made.partition)],
        volatile=[*map(run.warehouse.artifacts.describe, made.earlier), made.file],  # earlier ones stay on record
        metadata={
            "verdict": said.verdict,
            "serial": said.serial,
            "expires": said.expires_at[:10],
            "file": str(run.workspace.home / made.file.path),
            "public key": str(signing.public_file(run.workspace.home)),
        },
    )


def certify(subject: Subject, w: Warehouse, request_id: str, *, days: int = DAYS, renew: bool = False) -> Issued:
    """Issue another certificate of a request that has been audited: the same findings, a new date.

    Args:
        renew: sign with another key from now on.

    Raises:
        NotReady: it has not been audited.
        IntegrityError: the signing key is gone or damaged.
    """
    made = issue(subject, w, request_id, days=days, renew=renew)
    said = made.certificate
    with w.transaction() as t:
        row = t.replace(
            schema.CERTIFICATES,
            made.row,
            partition=made.partition,
            subject=said.subject,
            run_id=f"certify-{said.serial}",
            config_digest=digest({"days": days}),
        )
    w.complete(made.file.name.removesuffix(".dsse.json"), f"certify-{said.serial}", outputs=[row, made.file])
    w.publish()
    return made


def issue(subject: Subject, w: Warehouse, request_id: str, *, days: int = DAYS, renew: bool = False) -> Issued:
    """Sign what stands in the tables about a request, and store the file; its row is the caller's to write.

    Raises:
        NotReady, IntegrityError: as :func:`certify`.
    """
    name = subject.subject
    report = f"{name}/request_reports/{request_id}/audit.json"
    with w.reading():
        entry, erased = w.requests.get(request_id), w.erasures.record(request_id)
        findings = w.read(
            schema.FINDINGS, subject=name, partition={"stage": f"{name}/request_audits/{request_id}/findings"}
        ).filter("judged")
        audited = w.last_complete(f"{name}/request_reports/{request_id}/audit")
        earlier = w.read(schema.CERTIFICATES, subject=name, partition={"request_id": request_id})
        head = w.ledger.head()
    if audited is None:
        raise NotReady(
            f"request {request_id} has not been audited, so there is nothing to certify: palimpsest request run {name} "
            f"{request_id}"
        )
    facts = w.artifacts.load_json(report)
    judged = judged_findings(findings, told=facts["verdict"], why=facts["sentence"])
    method = str(facts["decides"])
    now = datetime.now(UTC).replace(microsecond=0)
    serial = int(earlier["serial"].max() or 0) + 1
    models = f"{name}/request_unlearning/{request_id}/{method}/result"
    chosen = f"{name}/request_curation/{request_id}/split/result"
    certificate = Certificate(
        subject=name,
        request_id=request_id,
        serial=serial,
        selector=entry.request.selector,
        num_examples=entry.num_examples or 0,
        num_beside=len(w.artifacts.load(chosen)[0].get("beside", ())),
        method=method,
        exact=unlearner.get(method).spec.exact,
        verdict=overall(Verdict(f.verdict) for f in judged).value,
        findings=judged,
        attacks=_attacks(w, name, f"{request_id}/{method}"),
        **_gap(w, name, request_id, method),
        digests={
            **{what: facts["audited"]["Digests"][what] for what in ("configuration", "data")},
            "report": w.artifacts.sha256(report),
            "set": w.artifacts.sha256(chosen),
            **({"erasure": sha256(erased.encode()).hexdigest()} if erased else {}),
        },
        ledger_head=f"{head.seq}:{head.hash}",
        issued_at=now.isoformat(),
        expires_at=(now + timedelta(days=days)).isoformat(),
        issuer=f"palimpsest-audit {metadata.version('palimpsest-audit')}",
    )
    signer = w.signer(renew=renew)
    said = statement(certificate, {models: w.artifacts.sha256(models)})
    file = w.artifacts.save_bytes(
        f"{name}/request_certificates/{request_id}/{serial}.dsse.json",
        signing.sign(said, signer, payload_type=PAYLOAD),
    )
    row = {
        "request_id": request_id,
        "serial": serial,
        "method": method,
        "verdict": certificate.verdict,
        "artifact": file.name,
        "report_sha256": certificate.digests["report"],
        "sha256": file.sha256,
        "key_id": signer.public_key.keyid,
        "issued_at": now,
        "expires_at": now + timedelta(days=days),
    }
    return Issued(
        certificate=certificate,
        file=file,
        row=pl.DataFrame([row], schema=empty(schema.CERTIFICATES).schema),
        earlier=tuple(earlier["artifact"]),
    )


def judged_findings(findings: pl.DataFrame, *, told: str, why: str) -> tuple[JudgedFinding, ...]:
    """What counted, and :data:`POWER` where the report says less than its findings together, as of an audit in which no
    attack caught the untouched model: a certificate never says more than the report that it names.

    Args:
        findings: the judged rows of ``audits.findings``.
        told, why: verdict and sentence of the report.
    """
    found = tuple(
        JudgedFinding(**{k: row[k] for k in ("what", "kind", "verdict", "sentence", *_NUMBERS)})
        for row in findings.sort("what").iter_rows(named=True)
    )
    if told == overall(Verdict(f.verdict) for f in found).value or Verdict(told) not in OF_FINDINGS:
        return found
    return (*found, JudgedFinding(what=POWER, verdict=told, sentence=why))


def _attacks(w: Warehouse, subject: str, audited: str) -> tuple[AttackResult, ...]:
    """Every attack on every model of the method in use, at its smallest false-positive rate that says something."""
    rows = w.read(schema.ATTACK_REPORTS, subject=subject, partition={"audited": audited})
    first = rows.sort("attack", "seed", pl.col("tpr").is_null(), "fpr_cap").unique(
        ["attack", "seed"], keep="first", maintain_order=True
    )
    known = {f for f in AttackResult.__dataclass_fields__}
    return tuple(AttackResult(**{k: v for k, v in row.items() if k in known}) for row in first.iter_rows(named=True))


def _gap(w: Warehouse, subject: str, request_id: str, method: str) -> dict[str, Any]:
    """The average gap to retraining of the worst seed, with its interval; nothing where none is defined."""
    rows = w.read(schema.UNLEARNING_METRICS, subject=subject, partition={"split": request_id, "method": method})
    gaps = rows.filter(pl.col("metric") == "avg_gap").sort("value", descending=True)
    if not gaps.height:
        return {}
    row = gaps.row(0, named=True)
    return {"avg_gap": row["value"], "avg_gap_lo": row["low"], "avg_gap_hi": row["high"]}
