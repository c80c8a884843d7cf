"""A certificate: what is stated about one forget request, by one method, of one model, ready to be signed.

It is an in-toto Statement v1: a subject with its digest (the models that were unlearned), the type of what is said
about it, and a predicate, which is :class:`Certificate`. ``warehouse.signing`` puts it into a signed envelope.

It says what was found and at which sizes, never whose data it is: no id, no owner, no content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from contracts.digests import plain
from contracts.errors import ConfigError, IntegrityError
from contracts.params import Config, param
from contracts.verdicts import OF_FINDINGS, Verdict, overall

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:palimpsest:unlearning-certificate:v1"
PAYLOAD = "application/vnd.in-toto+json"
CLAIMS = ("removed from weights", "in service")
_VERDICTS = tuple(v.value for v in OF_FINDINGS)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackResult(Config):
    """One attack on one unlearned model, with the interval of its figure; true-positive rate at a false-positive rate
    of at most ``fpr_cap`` where there were enough non-members to say one."""

    attack: str = param(doc="registered attack")
    seed: int = param()
    n_pos: int = param(ge=0)
    n_neg: int = param(ge=0)
    auc: float = param(ge=0, le=1)
    auc_lo: float = param(ge=0, le=1)
    auc_hi: float = param(ge=0, le=1)
    fpr_cap: float | None = param(None, ge=0, le=1)
    tpr: float | None = param(None, ge=0, le=1)
    tpr_lo: float | None = param(None, ge=0, le=1)
    tpr_hi: float | None = param(None, ge=0, le=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedFinding(Config):
    """One finding that counted, as ``audits.findings`` has it."""

    what: str = param()
    kind: str = param("")
    verdict: str = param(choices=_VERDICTS)
    sentence: str = param()
    value: float | None = param(None)
    low: float | None = param(None)
    high: float | None = param(None)
    threshold: float | None = param(None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate(Config):
    """A dated statement.

    A pass is a claim about the attacks and sizes that are named, and no more; anything else is certified as it was
    found. ``digests`` name the data, the configuration, the set and the report that it speaks about.
    """

    subject: str = param(doc="the audited subject")
    request_id: str = param()
    serial: int = param(ge=1, doc="of this request's certificates; a later one takes the place of all before it")
    selector: str = param(doc="how the request named its examples: ids, owner, class, where or score")
    num_examples: int = param(ge=0, doc="training examples that it named")
    num_beside: int = param(
        0, ge=0, doc="others that were removed with them, for the other requests of its batch", added=True
    )
    method: str = param(doc="the removal method in use")
    exact: bool = param(doc="the method is retraining without the examples")
    claim: str = param(CLAIMS[0], choices=CLAIMS, doc="what is claimed: of the weights, or of the service around them")
    verdict: str = param(choices=_VERDICTS)
    findings: tuple[JudgedFinding, ...] = param()
    attacks: tuple[AttackResult, ...] = param(())
    avg_gap: float | None = param(None, ge=0, le=100, unit="points", doc="to retraining; of the worst seed")
    avg_gap_lo: float | None = param(None, ge=0, le=100, unit="points")
    avg_gap_hi: float | None = param(None, ge=0, le=100, unit="points")
    digests: dict[str, str] = param()
    ledger_head: str = param(doc="SEQ:HASH, the ledger's last entry when it was issued")
    issued_at: str = param(doc="ISO 8601, UTC")
    expires_at: str = param(doc="ISO 8601, UTC")
    issuer: str = param("", doc="the program and its version")

    def check(self) -> None:
        issued, expires = (self._time(name) for name in ("issued_at", "expires_at"))
        if expires <= issued:
            raise ConfigError(
                f"certificate for {self.request_id} expires at {self.expires_at}, not after {self.issued_at}"
            )
        if self.verdict == Verdict.PASS and not self.findings:
            raise ConfigError(f"certificate for {self.request_id}: nothing was judged, so it cannot pass")
        found = overall(Verdict(f.verdict) for f in self.findings)
        if self.findings and found.value != self.verdict:
            raise ConfigError(
                f"certificate for {self.request_id} says {self.verdict}, and its findings together {found.value}"
            )

    def _time(self, name: str) -> datetime:
        try:
            at = datetime.fromisoformat(getattr(self, name))
        except ValueError:
            raise ConfigError(f"certificate: {name} = {getattr(self, name)!r} is no time in ISO 8601") from None
        if at.tzinfo is None:
            raise ConfigError(f"certificate: {name} = {getattr(self, name)!r} names no time zone; UTC is needed")
        return at.astimezone(UTC)

    def expired(self, now: datetime) -> bool:
        """Whether it is too old at ``now`` (with a time zone)."""
        return now >= self._time("expires_at")

    def from_the_future(self, now: datetime) -> bool:
        """Whether it was issued after ``now``: some clock is wrong."""
        return now < self._time("issued_at")


def statement(certificate: Certificate, artifacts: Mapping[str, str]) -> dict[str, Any]:
    """The in-toto Statement.

    Args:
        artifacts: name -> SHA-256 of what it is about.
    """
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha}} for name, sha in sorted(artifacts.items())],
        "predicateType": PREDICATE,
        "predicate": plain(certificate),
    }


def read_statement(found: Any) -> tuple[Certificate, dict[str, str]]:
    """The certificate of a statement, and name -> SHA-256 of what it is about.

    Raises:
        IntegrityError: it is no statement, of another type, or its certificate is not one.
    """
    try:
        if found["_type"] != STATEMENT:
            raise IntegrityError(f"it is of type {found['_type']!r}, not an in-toto Statement v1 ({STATEMENT})")
        if found["predicateType"] != PREDICATE:
            raise IntegrityError(f"it states a {found['predicateType']!r}, not an unlearning certificate ({PREDICATE})")
        artifacts = {str(one["name"]): str(one["digest"]["sha256"]) for one in found["subject"]}
        return Certificate.from_mapping(found["predicate"]), artifacts
    except (KeyError, TypeError, IndexError) as error:
        raise IntegrityError(f"it is no statement: {type(error).__name__} {error}") from error
    except ConfigError as error:
        raise IntegrityError(f"its certificate is not one: {error}") from error
