"""`archive status` and `archive doctor`: what runs, what is wrong and how to mend it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from archive.cli import failures, output
from archive.cli.main import Command
from archive.cli.session import Session
from archive.errors import ArchiveError

if TYPE_CHECKING:
    from archive.config import Config
    from archive.services.witness_state import Agreement


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(status)
    archive.add_command(doctor)


@click.command("status", cls=Command)
@click.pass_obj
def status(session: Session) -> int:
    """Tell what runs and where it listens."""
    from archive.serve import state

    config = session.config
    warnings = _warnings(config)
    found = state.read_status(config)
    if found is None:
        serving = state.is_serving(config)
        nowhere = dict.fromkeys(("http", "dimse_tls", "dimse_plain"))
        answer: dict[str, Any] = {"ready": False, **nowhere, "processes": [], "warnings": warnings}
        message = "the archive is starting or stopping" if serving else "the archive is not running; start it with 'archive serve'"
        session.answer(answer, message)
        return failures.FAILED
    witnesses = _witnesses(config)
    answer = {
        "name": config.archive.name, "ae_title": config.dimse.ae_title, **state.as_json(found), "warnings": warnings,
        "witnesses": [asdict(one) for one in witnesses],
    }
    lines = [
        f"{'ready' if found.ready else 'starting'} since {output.text(found.started_at)}",
        f"web             {found.http.public_url}",
        f"DICOM over TLS  {_address(found.dimse_tls)}", f"DICOM plain     {_address(found.dimse_plain)}",
        *([f"read-only       {found.read_only}"] if found.read_only else []),
        *(f"{one.role:<15} process {one.pid}, restarted {one.restarts} times" for one in found.processes),
        *(f"outside witness {one.name} agrees: {output.text(one.at)}, {one.size} events" for one in witnesses),
        *(f"warning         {one}" for one in warnings),
    ]
    session.answer(answer, "\n".join(lines))
    return failures.DONE if found.ready else failures.FAILED


def _warnings(config: Config) -> list[str]:
    """Return what is to be said of the last backup, from the file it leaves: nothing has to be opened for that."""
    from archive.services import last_backup
    from archive.services.clock import utc_now

    try:
        last = datetime.fromisoformat((config.run_dir / last_backup.STAMP).read_text(encoding="ascii").strip()).isoformat()
    except (OSError, ValueError):
        last = None
    found = last_backup.check(last, utc_now(), config.backup.warn_days)
    return [f"{found.detail}; {found.remedy}"] if found.state != "ok" else []


def _witnesses(config: Config) -> list[Agreement]:
    if not config.witness.known:
        return []
    from archive.services.witness_state import agreements

    return agreements(config)


def _address(address: Any) -> str:
    return f"{address.host}:{address.port}" if address is not None else "off"


@click.command("doctor", cls=Command)
@click.pass_obj
def doctor(session: Session) -> int:
    """Check configuration, keys, databases, certificates, space; say how to mend what is wrong."""
    try:
        checks = [asdict(check) for check in session.node.health.checks()]
    except ArchiveError as error:
        # What keeps the archive from opening is the first thing a doctor must be able to say.
        checks = [{"name": error.code, "state": "problem", "detail": error.message, "remedy": failures.remedy_of(error)}]
        status = failures.exit_status(error)
    else:
        status = failures.FAILED if any(check["state"] == "problem" for check in checks) else failures.DONE
    if session.as_json:
        print(output.to_json({"ok": status == failures.DONE, "checks": checks}))
        return status
    marks = {"ok": "ok      ", "warning": "warning ", "problem": "PROBLEM "}
    for check in checks:
        print(f"{marks[check['state']]} {check['name']}: {check['detail']}")
        if check["remedy"]:
            print(f"          what to do: {check['remedy']}")
    return status
