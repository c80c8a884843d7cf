"""Alerts: one short message when something needs a person, by webhook and by mail, as ``operations.yaml`` says.

    kinds   run_failed    a run of an audit or of a forget request ended in an error
            verdict       an audit failed, or broke
            drift         the values of a score moved between two audits
            certificate   one expires soon, or has expired
            request       a forget request is due soon, or was
            late          an audit is made up for that was due while nothing ran
            reaped        a run or a job had died, or was left behind, and was ended
            anchor        the ledger's head could not be noted

An alert names the subject, the kind and what is counted. It never holds content, ids or owners of examples, nor the
text of an error, which may quote them: whoever gets it looks at the state folder. One that cannot be delivered changes
nothing else; it is said.
"""

from __future__ import annotations

import json
import os
import smtplib
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.message import EmailMessage

from contracts.errors import ConfigError
from contracts.operations import Alerts, Mail

KINDS = ("run_failed", "verdict", "drift", "certificate", "request", "late", "reaped", "anchor")
FORMAT = "palimpsest-alert/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """One message: what happened, to which subject, in a sentence."""

    kind: str
    subject: str
    sentence: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"alert of kind {self.kind!r}; there are {', '.join(KINDS)}")


def send(alerts: Iterable[Alert], config: Alerts, *, now: datetime) -> list[str]:
    """Deliver alerts wherever the configuration says; a sentence for each delivery that failed."""
    problems = []
    for alert in alerts:
        for what, deliver in (("webhook", _post if config.webhook else None), ("mail", _mail if config.mail else None)):
            if deliver is None:
                continue
            try:
                deliver(alert, config, now)
            except (OSError, smtplib.SMTPException, ConfigError, ValueError) as error:
                # not its text: a server's answer, or an address with a secret in it
                problems.append(f"alerts.{what} did not take an alert ({alert.kind}): {_reason(error)}")
    return problems


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return type(error).__name__


def _post(alert: Alert, config: Alerts, now: datetime) -> None:
    body = {"format": FORMAT, **asdict(alert), "at": now.astimezone(UTC).isoformat(timespec="seconds")}
    ask = urllib.request.Request(
        config.webhook, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(ask, timeout=config.timeout_s) as answer:
        answer.read(1)


def _mail(alert: Alert, config: Alerts, now: datetime) -> None:
    mail = config.mail
    assert mail is not None
    message = EmailMessage()
    message["From"], message["To"] = mail.sender, ", ".join(mail.to)
    message["Subject"] = f"[palimpsest] {alert.subject or 'state folder'}: {alert.kind.replace('_', ' ')}"
    message["Date"] = now.astimezone(UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    message.set_content(alert.sentence + "\n")
    context = ssl.create_default_context()
    server: smtplib.SMTP
    if mail.security == "tls":
        server = smtplib.SMTP_SSL(mail.host, mail.port, timeout=config.timeout_s, context=context)
    else:
        server = smtplib.SMTP(mail.host, mail.port, timeout=config.timeout_s)
    with server:
        if mail.security == "starttls":
            server.starttls(context=context)
        if mail.user:
            server.login(mail.user, _password(mail))
        server.send_message(message)


def _password(mail: Mail) -> str:
    """Raises: ConfigError: the environment variable is not set."""
    found = os.environ.get(mail.password_env)
    if not found:
        raise ConfigError(f"the password of alerts.mail.user is taken from ${mail.password_env}, which is not set")
    return found
