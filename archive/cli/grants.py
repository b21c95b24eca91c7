"""`archive grant` and `archive explain`: who sees what, from when until when, and why."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from archive.cli import failures, output
from archive.cli.main import Command, Group
from archive.cli.session import Session
from archive.cli.when import WHEN
from archive.errors import InvalidRequest

if TYPE_CHECKING:
    from archive.access.grants import Target


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
@click.option("--delegable", type=click.IntRange(0, 100), default=0, metavar="N", help="May be passed on so many times.")
@click.option("--reason", default="", metavar="TEXT")
@click.pass_obj
def add(
    session: Session, to: str, role: str, everything: bool, patient: str | None, study: str | None, series: str | None, expected: bool,
    issuer: str | None, datastore: str, since: datetime | None, until: datetime | None, modality: str, deny: bool, delegable: int,
    reason: str,
) -> None:
    """Give (or with --deny refuse) a subject what a role may do, on everything, a patient, a study or a series."""
    target = _target(everything, patient, study, series, issuer, expected=expected)
    made = session.node.accounts.add_grant(
        session.subject, to=to, role=role, target=target, datastore=datastore, since=since, until=until, modality=modality,
        deny=deny, reason=reason, delegable=delegable,
    )
    session.answer(made, f"grant {made['id']}: {to} {'is denied' if deny else 'has'} {role} on {target.level}")


@grant.command("delegate")
@click.option("--as", "user", required=True, metavar="USER", help="Whose grant is passed on.")
@click.option("--to", required=True, metavar="SUBJECT", help="A user or group, by name or id.")
@click.option("--everything", is_flag=True, help="All that grant covers, when it covers the whole datastore.")
@click.option("--patient", metavar="ID", help="This patient.")
@click.option("--study", metavar="UID", help="This study.")
@click.option("--series", metavar="UID", help="This series.")
@click.option("--issuer", metavar="TEXT", help="With --patient: who issued the ID, when several patients have it.")
@click.option("--permission", "permissions", multiple=True, metavar="P", help="Default search, metadata and pixels.")
@click.option("--datastore", default="clinical", show_default=True)
@click.option("--until", type=WHEN, metavar="WHEN", help="Default 7 days, and never longer than the grant it comes from.")
@click.option("--delegable", type=click.IntRange(0, 100), default=0, metavar="N", help="May be passed on so many times more.")
@click.option("--from-grant", "parent", type=int, metavar="ID", help="Which grant; default the one that lasts longest.")
@click.option("--reason", default="", metavar="TEXT")
@click.pass_obj
def delegate(
    session: Session, /, user: str, to: str, everything: bool, patient: str | None, study: str | None, series: str | None,
    issuer: str | None, delegable: int, permissions: tuple[str, ...], **terms: Any,
) -> None:
    """Pass on a part of what USER may, to end with it at the latest."""
    from archive.services.console import acting_as

    target = _target(everything, patient, study, series, issuer, expected=False)
    made = session.node.delegation.delegate(
        acting_as(session.node.core, session.subject, user), to=to, target=target, permissions=permissions, depth=delegable, **terms
    )
    what = f"{output.text(made['permissions'])} on {target.level} until {output.text(made['until'])}"
    session.answer(made, f"grant {made['id']}: {to} has {what}")


def _target(
    everything: bool, patient: str | None, study: str | None, series: str | None, issuer: str | None, *, expected: bool
) -> Target:
    """Return the one target that is named.

    Raises:
        InvalidRequest.
    """
    from archive.access.grants import Target

    given = [("patient", patient), ("study", study), ("series", series)]
    targets = [Target("everything")] if everything else []
    targets += [Target(level, value, issuer=issuer, expected=expected) for level, value in given if value]  # type: ignore[arg-type]
    if len(targets) != 1:
        message = "name one of --everything, --patient, --study and --series"
        raise InvalidRequest(message, remedy="archive grant add --to NAME --role ROLE --study UID")
    return targets[0]


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
    """End a grant at once, and all that was passed on from it."""
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
        f"  grant {one['grant']}: {one['effect']} {one['role'] or one['kind']} on {one['level']} to {one['subject']}, {one['state']}, "
        f"from {output.text(one['from'])} until {output.text(one['until'])}"
        for one in found["because"]
    ]
    if not found["because"]:
        lines.append("  no grant covers it")
    lines += [f"  treatment: {one['what']} ({one['study_instance_uid'] or 'this patient'})" for one in found.get("treatment", [])]
    return "\n".join(lines)
