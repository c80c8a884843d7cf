"""How an installation is operated: ``operations.yaml`` in the state folder. Without that file everything here is off,
but for the pruning of event logs, the drift alarm and the auditors' door, whose defaults apply.

    anchors     where the ledger's head is noted outside the state folder
    alerts      who is told when something needs a person
    drift       when the values of a score count as moved between two audits
    pruning     how long the event logs of Dagster are kept whole
    auditors    the smallest group that an outsider is shown

It is about a state folder and not about a subject, so it is no part of any plan and of no result's digest.
"""

from __future__ import annotations

from dataclasses import dataclass

from contracts.errors import ConfigError
from contracts.params import Config, param

FILE = "operations.yaml"


def _url(name: str, value: str) -> None:
    if value and not value.startswith(("http://", "https://")):
        raise ConfigError(f"{name} = {value[:100]!r} is no address: it begins with http:// or https://")


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchors(Config):
    """Where the ledger's head is noted after every run that changed it."""

    file: str = param(
        "", doc="a file outside the state folder that a line with the head is appended to; none when empty"
    )
    timestamp_url: str = param("", doc="an RFC 3161 time-stamping server (http or https) that signs the head; optional")
    timestamp_roots: str = param("", doc="PEM file with the root certificates of that server")
    timeout_s: float = param(15.0, gt=0, le=300, unit="s", doc="how long the server is waited for")

    def check(self) -> None:
        _url("anchors.timestamp_url", self.timestamp_url)
        if bool(self.timestamp_url) != bool(self.timestamp_roots):
            raise ConfigError(
                "anchors.timestamp_url and anchors.timestamp_roots go together: a token that cannot be checked is none"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Mail(Config):
    """An SMTP server and who gets the mail."""

    host: str = param(doc="of the SMTP server")
    port: int = param(587, ge=1, le=65_535)
    security: str = param("starttls", choices=("starttls", "tls", "none"), doc="none: for a server on this machine")
    sender: str = param(doc="address that mails come from")
    to: tuple[str, ...] = param(doc="addresses that mails go to")
    user: str = param("", doc="account at the server; none when empty")
    password_env: str = param("PALIMPSEST_SMTP_PASSWORD", doc="environment variable that holds its password")

    def check(self) -> None:
        if not self.to:
            raise ConfigError("alerts.mail.to names nobody")
        for address in (self.sender, *self.to):
            if "@" not in address or any(c.isspace() or c in "<>,;" for c in address):
                raise ConfigError(f"alerts.mail: {address!r} is no address: write name@host")


@dataclass(frozen=True, kw_only=True, slots=True)
class Alerts(Config):
    """Who is told. An alert says what happened to which subject, never the content or the owner of an example."""

    webhook: str = param("", doc="address (http or https) that gets each alert as JSON; none when empty")
    mail: Mail | None = param(None, doc="a mail an alert; null for none")
    timeout_s: float = param(15.0, gt=0, le=300, unit="s", doc="how long a server is waited for")
    warn_days: int = param(14, ge=1, le=365, unit="days", doc="a certificate that expires sooner is said")

    def check(self) -> None:
        _url("alerts.webhook", self.webhook)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift(Config):
    """When the values of a score have moved: see ``stats.drift``."""

    enabled: bool = param(True, doc="compare every score and exposure with those of the audit before")
    alpha: float = param(0.01, gt=0, lt=0.5, doc="chance of any false alarm, over all scores together (Holm)")
    min_distance: float = param(
        0.1, ge=0, lt=1, doc="smallest Kolmogorov-Smirnov distance of an alarm: smaller moves are found, and no alarm"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruning(Config):
    """How long Dagster's event logs are kept whole; materialisations, checks, failures and ends of runs always are."""

    enabled: bool = param(True, doc="prune at every upkeep")
    after_days: int = param(90, ge=1, le=3650, unit="days", doc="of runs that ended earlier, only evidence is kept")


@dataclass(frozen=True, kw_only=True, slots=True)
class Auditors(Config):
    """What ``palimpsest sql --auditor`` shows. Here and no option of the command: whoever may ask with two values of k
    sees what lies between them."""

    k: int = param(10, ge=5, le=100_000, doc="fewest people in a group that is shown")


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations(Config):
    """All of ``operations.yaml``."""

    anchors: Anchors = param(Anchors())
    alerts: Alerts = param(Alerts())
    drift: Drift = param(Drift())
    pruning: Pruning = param(Pruning())
    auditors: Auditors = param(Auditors())
