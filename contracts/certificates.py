"""What is stated about one request x method x model, ready to be signed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from contracts.errors import ConfigError
from contracts.params import Config, param
from contracts.verdicts import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackResult(Config):
    """One attack behind a certificate, with the interval of its figure."""

    attack: str = param(doc="registered attack", ref="attack")
    n_pos: int = param(ge=0)
    n_neg: int = param(ge=0)
    auc: float = param(ge=0, le=1)
    auc_lo: float = param(ge=0, le=1)
    auc_hi: float = param(ge=0, le=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate(Config):
    """A dated statement. ``digests`` name the model, the data and the configuration it speaks about."""

    subject: str = param()
    request_id: str = param()
    method: str = param()
    verdict: str = param(choices=tuple(v.value for v in Verdict))
    attacks: tuple[AttackResult, ...] = param()
    avg_gap: float | None = param(None, ge=0, le=100, unit="points")
    digests: dict[str, str] = param()
    ledger_head: str = param()
    issued_at: str = param(doc="ISO 8601, UTC")
    expires_at: str = param(doc="ISO 8601, UTC")

    def check(self) -> None:
        if datetime.fromisoformat(self.expires_at) <= datetime.fromisoformat(self.issued_at):
            raise ConfigError(
                f"certificate for {self.request_id} expires at {self.expires_at}, not after {self.issued_at}"
            )
        if self.verdict == Verdict.PASS and not self.attacks:
            raise ConfigError(f"certificate for {self.request_id}: no attack was run, so it cannot pass")
