"""`archive verify`: is everything that was stored still here, whole and ours?"""

from __future__ import annotations

import re

import click

from archive.cli import failures, output
from archive.cli.main import Command
from archive.cli.session import Session
from archive.errors import InvalidRequest, NotFound

SHOWN = 100


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(verify)


@click.command("verify", cls=Command)
@click.option("--quick", "mode", flag_value="quick", help="Files, rows and ledger agree.")
@click.option("--keyless", "mode", flag_value="keyless", help="Closed segments are what the ledger says, without opening one.")
@click.option("--full", "mode", flag_value="full", help="Read, decrypt and hash every byte.")
@click.option("--study", metavar="UID", help="Only this study.")
@click.option("--subset", default="100%", show_default=True, metavar="PART", help="A random part of the records: 5% or 1/20.")
@click.pass_obj
def verify(session: Session, mode: str | None, study: str | None, subset: str) -> int:
    """Check what is stored; without an option every record's header and signed statement. Findings: docs/format.md, V-codes."""
    part = part_of(subset)
    with output.progress(quiet=session.as_json) as track:
        report = session.node.verify.run(
            session.subject, mode or "standard", study_instance_uid=study, subset=part,
            progress=lambda done, total: track("records checked", done, total),
        )
    if study is not None and report.ok and not report.checked and part == 1 and mode != "keyless":
        message = "there is nothing of that study here"
        raise NotFound(message, remedy="check the UID")
    findings = [{"code": one.code, "sop_instance_uid": one.sop_instance_uid, "detail": one.detail} for one in report.findings]
    lines = [f"{one['code']}  {one['detail']}  {one['sop_instance_uid']}".rstrip() for one in findings[:SHOWN]]
    if len(findings) > SHOWN:
        lines.append(f"… and {len(findings) - SHOWN} more; --json gives all")
    verdict = "everything holds" if report.ok else f"{len(findings)} findings; docs/format.md says what each code means and what to do"
    lines.append(f"{report.checked} checked ({report.mode}): {verdict}")
    session.answer({"ok": report.ok, "mode": report.mode, "checked": report.checked, "findings": findings}, "\n".join(lines))
    return failures.DONE if report.ok else failures.FAILED


def part_of(text: str) -> float:
    """Return the part of 1 that 5% or 1/20 means.

    Raises:
        InvalidRequest.
    """
    percent, ratio = re.fullmatch(r"(\d+(?:\.\d+)?)%", text), re.fullmatch(r"(\d+)/(\d+)", text)
    part = float(percent[1]) / 100 if percent else 0.0
    if ratio and int(ratio[2]):
        part = int(ratio[1]) / int(ratio[2])
    if not 0 < part <= 1:
        message = "--subset takes a part of everything"
        raise InvalidRequest(message, remedy="write it as 5% or 1/20")
    return part
