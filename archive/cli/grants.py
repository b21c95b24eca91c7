"""`archive grant` and `archive explain`: who sees what, from when until when, and why."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from archive.cli import failures, output
from archive.cli.main import Command, Group
from archive.cli.session import Session
from archive.cli.when import WHEN
from archive.errors import InvalidRequest


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(grant)
    archive.add_command(explain)


@click.group("grant", cls=Group)
def grant() -> None:
    """Grants say who sees what. A denial always wins, whatever grants there are."""


@grant.command("add")
@click.option("--to", required=True, metavar="SUBJECT", help="A user, group or peer, by name or id.")
@click.option("--role", required=True, metavar="ROLE", help="Whose permissions on images the grant gives.")
@click.option("--everything", is_flag=True, help="On the whole datastore.")
@click.option("--patient", metavar="ID", help="On this patient.")
@click.option("--study", metavar="UID", help="On this study.")
@click.option("--series", metavar="UID", help="On this series.")
@click.option("--expected", is_flag=True, help="With --patient: one who has no images here yet.")
@click.option("--issuer", metavar="TEXT", help="With --patient: who issued the ID, when several patients have it.")
@click.option("--datastore", default="clinical", show_default=True)
@click.option("--from", "since", type=WHEN, metavar="WHEN", help="Counts from then; default now.")
@click.option("--until", type=WHEN, metavar="WHEN", help="Ends then; default never.")
@click.option("--modality", default="", metavar="M", help="Only series of this modality.")
@click.option("--deny", is_flag=True, help="Hide it instead.")
@click.option("--reason", default="", metavar="TEXT")
@click.pass_obj
def add(
    session: Session, to: str, role: str, everything: bool, patient: str | None, study: str | None, series: str | None, expected: bool,
    issuer: str | None, datastore: str, since: datetime | None, until: datetime | None, modality: str, deny: bool, reason: str,
) -> None:
    """Give (or with --deny refuse) a subject what a role may do, on everything, a patient, a study or a series."""
    from archive.access.grants import Target

    given = [("patient", patient), ("study", study), ("series", series)]
    targets = [Target("everything")] if everything else []
    targets += [Target(level, value, issuer=issuer, expected=expected) for level, value in given if value]  # type: ignore[arg-type]
    if len(targets) != 1:
        message = "name one of --everything, --patient, --study and --series"
        raise InvalidRequest(message, remedy="archive grant add --to NAME --role ROLE --study UID")
    made = session.node.accounts.add_grant(
        session.subject, to=to, role=role, target=targets[0], datastore=datastore, since=since, until=until, modality=modality,
        deny=deny, reason=reason,
    )
    session.answer(made, f"grant {made['id']}: {to} {'is denied' if deny else 'has'} {role} on {targets[0].level}")


@grant.command("list")
@click.option("--to", metavar="SUBJECT", help="Only of this one.")
@click.option("--all", "ended", is_flag=True, help="Also expired and revoked ones.")
@click.pass_obj
def list_(session: Session, to: str | None, ended: bool) -> None:
    """List grants that count now or later, newest first."""
    found = session.node.accounts.list_grants(session.subject, to=to, ended=ended)
    session.rows(found, "id", "state", "effect", "subject", "role", "level", "object", "from", "until", "reason")


@grant.command("revoke")
@click.argument("number", type=int, metavar="ID")
@click.option("--reason", default="", metavar="TEXT")
@click.pass_obj
def revoke(session: Session, number: int, reason: str) -> None:
    """End a grant at once."""
    session.answer(session.node.accounts.revoke_grant(session.subject, number, reason=reason), f"grant {number} is revoked")


@click.command("explain", cls=Command)
@click.argument("subject", metavar="SUBJECT")
@click.argument("uid", metavar="UID")
@click.option("--datastore", default="clinical", show_default=True)
@click.pass_obj
def explain(session: Session, subject: str, uid: str, datastore: str) -> int:
    """Tell whether SUBJECT sees the study or series UID, and because of which grants."""
    found = session.node.accounts.explain(session.subject, subject, uid, datastore=datastore)
    session.answer(found, _explained(found, uid))
    return failures.DONE


def _explained(found: dict[str, Any], uid: str) -> str:
    """Return the answer in words."""
    if not found.get("known"):
        return f"there is no study or series {uid} in this datastore"
    lines = [f"{found['subject']} {'sees' if found['allowed'] else 'does not see'} this {found['level']}"]
    if found["allowed"]:
        lines.append(f"  and may: {output.text(found['permissions'])}")
    if not found["enabled"]:
        lines.append(f"  {found['subject']} is disabled")
    lines += [
        f"  grant {one['grant']}: {one['effect']} {one['role']} on {one['level']} to {one['subject']}, {one['state']}, "
        f"from {output.text(one['from'])} until {output.text(one['until'])}"
        for one in found["because"]
    ]
    if not found["because"]:
        lines.append("  no grant covers it")
    return "\n".join(lines)
