"""`archive role`: what each role may do, who has it, and what it asks of sign-ins."""

from __future__ import annotations

from datetime import datetime

import click

from archive.cli.main import Group
from archive.cli.session import Session
from archive.cli.when import WHEN


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(role)


@click.group("role", cls=Group)
def role() -> None:
    """Roles name permissions; grants and users refer to them."""


@role.command("list")
@click.pass_obj
def role_list(session: Session) -> None:
    """List roles."""
    session.rows(session.node.accounts.list_roles(session.subject), "id", "name", "builtin", "permissions")


@role.command("show")
@click.argument("name")
@click.pass_obj
def role_show(session: Session, name: str) -> None:
    """Show a role."""
    session.answer(session.node.accounts.show_role(session.subject, name))


@role.command("add")
@click.argument("name")
@click.option("--permission", "permissions", multiple=True, required=True, metavar="P", help="For example search, metadata, pixels.")
@click.pass_obj
def role_add(session: Session, name: str, permissions: tuple[str, ...]) -> None:
    """Add role NAME."""
    made = session.node.accounts.add_role(session.subject, name, permissions)
    session.answer(made, f"role {name} added (id {made['id']})")


@role.command("change")
@click.argument("name", metavar="ROLE")
@click.option("--add", multiple=True, metavar="P", help="A permission it holds from now on.")
@click.option("--remove", multiple=True, metavar="P", help="A permission it holds no more.")
@click.option("--reason", default="", metavar="TEXT", help="Why; it goes into the ledger.")
@click.pass_obj
def role_change(session: Session, name: str, add: tuple[str, ...], remove: tuple[str, ...], reason: str) -> None:
    """Change what ROLE holds, and every grant of it at once; roles that exist from the start never change."""
    made = session.node.accounts.change_role(session.subject, name, add=add, remove=remove, reason=reason)
    session.answer(made, f"role {made['name']} holds {', '.join(made['permissions'])}; {made['grants']} grants changed with it")


@role.command("remove")
@click.argument("name", metavar="ROLE")
@click.pass_obj
def role_remove(session: Session, name: str) -> None:
    """Remove a role of your own that nobody has."""
    made = session.node.accounts.remove_role(session.subject, name)
    session.answer(made, f"role {made['name']} is removed; its name is not given again")


@role.command("matrix")
@click.pass_obj
def role_matrix(session: Session) -> None:
    """Show every permission and the roles that hold it."""
    rows = session.node.accounts.matrix(session.subject)
    session.rows(rows, "permission", "kind", "administrative", "roles")


@role.command("sign-in")
@click.argument("name", metavar="ROLE")
@click.option("--second-factor/--no-second-factor", "second_factor", default=None, help="Whether the password alone is not enough.")
@click.option("--idle-minutes", type=click.IntRange(0, 525600), metavar="N", help="A session ends after this much quiet; 0: as configured.")
@click.option("--absolute-hours", type=click.IntRange(0, 8760), metavar="N", help="And after this in any case; 0: as configured.")
@click.pass_obj
def role_sign_in(
    session: Session, name: str, second_factor: bool | None, idle_minutes: int | None, absolute_hours: int | None
) -> None:
    """Set what ROLE asks of how its holders sign in."""
    made = session.node.accounts.role_signs_in(
        session.subject, name, second_factor=second_factor, idle_minutes=idle_minutes, absolute_hours=absolute_hours
    )
    session.answer(made, f"{name}: {'a second factor' if made['second_factor'] else 'the password alone'}")


@role.command("assign")
@click.argument("name", metavar="ROLE")
@click.option("--to", required=True, metavar="SUBJECT", help="A user, group or peer.")
@click.option("--from", "since", type=WHEN, metavar="WHEN", help="Counts from then; default now.")
@click.option("--until", type=WHEN, metavar="WHEN", help="Ends then; default never.")
@click.pass_obj
def role_assign(session: Session, name: str, to: str, since: datetime | None, until: datetime | None) -> None:
    """Let SUBJECT do what ROLE may do besides seeing images."""
    session.answer(session.node.accounts.assign_role(session.subject, to, name, since=since, until=until), f"{to} has the role {name}")


@role.command("withdraw")
@click.argument("name", metavar="ROLE")
@click.option("--from", "subject", required=True, metavar="SUBJECT", help="A user, group or peer.")
@click.pass_obj
def role_withdraw(session: Session, name: str, subject: str) -> None:
    """Take a role away again."""
    session.answer(session.node.accounts.withdraw_role(session.subject, subject, name), f"{subject} has the role {name} no more")
