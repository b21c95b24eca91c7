"""`archive policy`: who may do what as one text, that can be tested before it applies."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from archive.cli import failures
from archive.cli.main import Group
from archive.cli.session import Session
from archive.errors import InvalidRequest

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(policy)


@click.group("policy", cls=Group)
def policy() -> None:
    """Roles, groups, assignments and grants as text, with the decisions that are expected of them."""


@policy.command("export")
@click.option("--to", "path", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it there.")
@click.pass_obj
def export(session: Session, path: Path | None) -> None:
    """Write the policy that counts now."""
    text = session.node.policy.export(session.subject)
    if path is not None:
        path.write_text(text, encoding="utf-8")
    if session.as_json or path is not None:
        session.answer({"policy": text} if path is None else {"file": str(path)}, f"written to {path}")
    else:
        print(text, end="")


@policy.command("test")
@click.argument("path", type=FILE, metavar="FILE")
@click.pass_obj
def test(session: Session, path: Path) -> int:
    """Say what the policy in FILE would change and which of its expectations would not hold; exit 1 when one does not."""
    found = session.node.policy.test(session.subject, path.read_text(encoding="utf-8"))
    session.answer({"ok": not found["failed"], **found}, told(found))
    return failures.FAILED if found["failed"] else failures.DONE


@policy.command("apply")
@click.argument("path", type=FILE, metavar="FILE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--reason", default="", metavar="TEXT", help="Why; it goes into the ledger.")
@click.pass_obj
def apply(session: Session, path: Path, yes: bool, reason: str) -> int:
    """Make the archive as the policy in FILE says: all of it or nothing, and nothing when an expectation would not hold."""
    text, node = path.read_text(encoding="utf-8"), session.node
    found = node.policy.test(session.subject, text)
    if found["failed"] or not found["changes"]:
        session.answer({"ok": not found["failed"], **found}, told(found))
        return failures.FAILED if found["failed"] else failures.DONE
    if not yes:
        if session.as_json or not sys.stdin.isatty():
            message = "the policy changes something, and there is nobody to ask"
            raise InvalidRequest(message, remedy="look at it with 'archive policy test', then give --yes")
        print(told(found))
        click.confirm("Apply this?", abort=True)
    done = node.policy.apply(session.subject, text, reason=reason, difference=found["difference"])
    session.answer({"ok": True, **done}, (told(done) + "\n" if yes else "") + f"applied: {len(done['changes'])} changes")
    return failures.DONE


def told(found: Mapping[str, Any]) -> str:
    """Return for people what a policy comes to."""
    lines = list(found["changes"]) or ["nothing changes"]
    for one in found["effects"]:
        on = f" on {one['series']} series" if one["series"] else ""
        lines.append(f"  {one['subject']} {one['change'].upper()} {', '.join(one['permissions'])}{on}")
    for one in found["failed"]:
        what = f"{one['level']} {one['object']}".strip() or "the archive"
        lines.append(
            f"NOT AS EXPECTED: number {one['number']}: {one['subject']}, {', '.join(one['permissions'])} on {what}: "
            f"{one['expected']} was expected, it is {one['found']}"
        )
    held = found["expectations"] - len(found["failed"])
    return "\n".join([*lines, f"{held} of {found['expectations']} expectations hold"] if found["expectations"] else lines)
