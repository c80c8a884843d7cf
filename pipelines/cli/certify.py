"""``palimpsest certify``: a signed statement of what the audit of a forget request found, and its check."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipelines.cli.terminal import console, state_to_read, state_to_write

if TYPE_CHECKING:
    from contracts.certificates import Certificate
    from warehouse import Warehouse


def certify(
    subject: Annotated[str, typer.Argument(help="the audited subject")],
    request_id: Annotated[str, typer.Argument(help="the forget request")],
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="how long it may be relied on")] = 90,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="a folder, made if it is missing, that the file and the public key go to"),
    ] = None,
    new_key: Annotated[
        bool,
        typer.Option(
            "--new-key",
            help="sign with another key from now on: the one before was lost, may be known to others, or "
            "PALIMPSEST_SIGNING_KEY names its successor",
        ),
    ] = False,
) -> None:
    """Issue another certificate of an audited request, signed with this state folder's key.

    Every audit of a request issues one by itself; this gives a new date, and copies it for somebody.
    """
    from assets.certificates import certify as issue
    from contracts.errors import ConfigError
    from pipelines.subjects import load_subject
    from warehouse import Warehouse, fsio, signing

    home = state_to_write()
    if to is not None and to.exists() and not to.is_dir():
        raise ConfigError(f"--to {to} is no folder")
    plan, w = load_subject(subject, home), Warehouse.open(home)
    made = issue(plan, w, request_id, days=days, renew=new_key)
    said = made.certificate
    file, public = home / made.file.path, signing.public_file(home)
    if to is not None:
        fsio.make_folder(to)
        file = to / f"{subject}-{request_id}-{said.serial}.dsse.json"
        file.write_bytes(w.artifacts.load_bytes(made.file.name))
        (to / public.name).write_bytes(public.read_bytes())
        public = to / public.name
    _say(f"Certificate {said.serial} of request {request_id}: {said.verdict}, good until {said.expires_at[:10]}")
    _say(f"File: {file}")
    _say(f"Public key, to be given by another way than the file: {public}")
    _say(f"Whoever has both checks it with: palimpsest verify {file} --key {public}")


def evidence(
    subject: Annotated[str, typer.Argument(help="the audited subject")],
    request_id: Annotated[str, typer.Argument(help="the forget request")],
    to: Annotated[Path, typer.Option("--to", help="a new or empty folder")],
) -> None:
    """Everything that shows what became of a forget request, as a folder that an outsider checks on their own."""
    from pipelines.evidence import evidence as write
    from warehouse import Warehouse, signing

    w = Warehouse.existing(state_to_read())
    names = write(w, subject, request_id, to)
    _say(f"{to}: {', '.join(names)}")
    _say(f"Public key, to be given by another way than the folder: {signing.public_file(w.home)}")
    _say(f"Whoever has both checks it with: python {to / 'check_evidence.py'} --key PUBLIC_KEY")


def check(data: bytes, keys: list[Path], what: str, w: Warehouse | None, *, now: datetime | None = None) -> bool:
    """Say what a signed certificate states, and whether it may be relied on.

    Args:
        data: the envelope. ``keys``: files of public keys; none: those of the state folder ``w``.
        what: the file, for messages.
        w: the state folder that it is about; None where there is none, or it is not to be asked.
        now: the time; None: of this clock.

    Raises:
        InvalidInput: no key to check it with, or a file that is none.
    """
    from contracts.certificates import PAYLOAD, read_statement
    from contracts.errors import IntegrityError, InvalidInput
    from warehouse import signing

    files = keys or (signing.public_files(w.home) if w is not None else [])
    if not files or not all(file.is_file() for file in files):
        missing = next((str(file) for file in files if not file.is_file()), "none was named")
        raise InvalidInput(f"{what} is checked with a public key: --key FILE ({missing})")
    trusted = [signing.key_of(file.read_bytes(), where=str(file)) for file in files]
    now = now or datetime.now(UTC)
    try:
        said, artifacts = read_statement(signing.opened(data, trusted, payload_type=PAYLOAD))
    except IntegrityError as error:
        return _refused([str(error)])
    _shown(said, artifacts)
    problems = [f"it expired at {said.expires_at}"] if said.expired(now) else []
    if said.from_the_future(now):
        problems.append(f"it was issued at {said.issued_at}, which is still to come: a clock is wrong")
    if w is not None:
        problems += against_state(said, artifacts, w)
    if problems:
        return _refused(problems)
    console.print(
        f"[bold green]GENUINE[/]  {escape(what)} is as it was signed"
        + (", and the state folder holds what it names." if w is not None else "."),
        soft_wrap=True,
        highlight=False,
    )
    return True


def against_state(said: Certificate, artifacts: dict[str, str], w: Warehouse) -> list[str]:
    """What a state folder has against a certificate: sentences."""
    from contracts import schema
    from contracts.errors import IntegrityError, NotReady
    from warehouse import Head

    rows = w.read(schema.CERTIFICATES, subject=said.subject, partition={"request_id": said.request_id})
    problems = []
    if said.serial not in rows["serial"].to_list():
        problems.append(f"this state folder has issued no certificate {said.serial} of request {said.request_id}")
    elif (last := int(rows["serial"].max())) > said.serial:  # type: ignore[arg-type]
        problems.append(f"certificate {last} of the request has taken its place")
    if not w.ledger.verify(anchors=[Head.parse(said.ledger_head)]).ok:
        problems.append(f"the ledger does not contain the head that it names, {said.ledger_head}")
    named = {**artifacts, f"{said.subject}/request_reports/{said.request_id}/audit.json": said.digests["report"]}
    for name, sha in named.items():
        try:
            stored = w.artifacts.sha256(name)
        except (IntegrityError, NotReady) as error:
            problems.append(str(error))
            continue
        if stored != sha:
            problems.append(f"{name} is another one now: it names {sha[:16]}..., stored is {stored[:16]}...")
    return problems


def _shown(said: Certificate, artifacts: dict[str, str]) -> None:
    _say(f"Certificate {said.serial} of request {said.request_id} of {said.subject}, by {said.issuer}")
    _say(f"States: {said.verdict}; {said.num_examples:,} examples, {said.claim} by {said.method}")
    for finding in said.findings:
        _say(f"  {finding.verdict}: {finding.what}: {finding.sentence}")
    for attack in said.attacks:
        _say(
            f"  attack {attack.attack}, seed {attack.seed}: AUC {attack.auc:.3f} ({attack.auc_lo:.3f} to "
            f"{attack.auc_hi:.3f}), {attack.n_pos:,} removed against {attack.n_neg:,} unseen"
        )
    _say(f"Issued {said.issued_at}, good until {said.expires_at}, ledger {said.ledger_head}")
    for name, sha in artifacts.items():
        _say(f"About {name}, SHA-256 {sha}")


def _refused(problems: list[str]) -> bool:
    for problem in problems:
        _say(f"But: {problem}")
    console.print("[bold red]NOT TO BE RELIED ON[/]", highlight=False)
    return False


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
