"""`archive user`, `group` and `role`: who may come, and what each may do besides seeing images."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from archive.cli.main import Group
from archive.cli.session import Session, password_from
from archive.cli.when import WHEN


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    for command in (user, group, role):
        archive.add_command(command)


@click.group("user", cls=Group)
def user() -> None:
    """People and programs that sign in. A user sees no image before a grant says so: archive grant add."""


@user.command("add")
@click.argument("name")
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="What the user may do; may be given several times.")
@click.option("--password-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="The password is its first line; else it is asked for.")
@click.option("--full-name", default="", metavar="TEXT")
@click.option("--email", default="", metavar="ADDRESS")
@click.pass_obj
def user_add(session: Session, name: str, roles: tuple[str, ...], password_file: Path | None, full_name: str, email: str) -> None:
    """Add user NAME."""
    password = password_from(password_file, f"Password of {name}")
    made = session.node.accounts.add_user(session.subject, name, roles=roles, password=password, full_name=full_name, email=email)
    session.answer(made, f"user {name} added (id {made['id']}); what {name} sees is up to grants: archive grant add --to {name} …")


@user.command("list")
@click.pass_obj
def user_list(session: Session) -> None:
    """List users."""
    session.rows(session.node.accounts.list_users(session.subject), "id", "name", "full_name", "enabled", "roles", "created_at")


@user.command("show")
@click.argument("name")
@click.pass_obj
def user_show(session: Session, name: str) -> None:
    """Show a user with roles, groups, grants and tokens."""
    session.answer(session.node.accounts.show_user(session.subject, name))


@user.command("disable")
@click.argument("name")
@click.pass_obj
def user_disable(session: Session, name: str) -> None:
    """Let a user in no more; sessions and tokens end at once."""
    session.answer(session.node.accounts.disable_user(session.subject, name), f"{name} is disabled")


@user.command("enable")
@click.argument("name")
@click.pass_obj
def user_enable(session: Session, name: str) -> None:
    """Let a user in again."""
    session.answer(session.node.accounts.enable_user(session.subject, name), f"{name} is enabled")


@user.command("reset-password")
@click.argument("name")
@click.option("--password-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="The new password; without it one is drawn and shown once.")
@click.pass_obj
def user_reset_password(session: Session, name: str, password_file: Path | None) -> None:
    """Set a user's password, to be changed at the next sign-in; sessions end at once."""
    chosen = password_from(password_file, "") if password_file is not None else None
    made = session.node.accounts.reset_password(session.subject, name, chosen)
    drawn = f"the new password of {name} is {made['password']}\n" if "password" in made else ""
    session.answer(made, f"{drawn}{name} signs in with it once, then chooses another")


@user.command("reset-mfa")
@click.argument("name")
@click.pass_obj
def user_reset_mfa(session: Session, name: str) -> None:
    """Take a user's second factors and recovery codes away, for a lost phone; sessions end at once."""
    made = session.node.accounts.reset_mfa(session.subject, name)
    session.answer(made, f"{name} signs in with the password alone, and sets up a new second factor under Account")


@user.command("sessions")
@click.argument("name")
@click.pass_obj
def user_sessions(session: Session, name: str) -> None:
    """List where a user is signed in."""
    session.rows(session.node.sessions.of(session.subject, name), "id", "device", "address", "created_at", "last_seen_at", "until")


@user.command("end-sessions")
@click.argument("name")
@click.option("--session", "number", type=int, metavar="ID", help="This one alone.")
@click.pass_obj
def user_end_sessions(session: Session, name: str, number: int | None) -> None:
    """Sign a user out everywhere, or of one session."""
    ended = session.node.sessions.end_of(session.subject, name, number)
    session.answer({"ended": [one["id"] for one in ended]}, f"{len(ended)} sessions of {name} ended")


@user.command("remove")
@click.argument("name")
@click.pass_obj
def user_remove(session: Session, name: str) -> None:
    """Remove a user; what it did stays in the ledger."""
    session.answer(session.node.accounts.remove_user(session.subject, name), f"{name} is removed")


@click.group("group", cls=Group)
def group() -> None:
    """Groups hold grants for all their members."""


@group.command("add")
@click.argument("name")
@click.pass_obj
def group_add(session: Session, name: str) -> None:
    """Add group NAME."""
    made = session.node.accounts.add_group(session.subject, name)
    session.answer(made, f"group {name} added (id {made['id']})")


@group.command("list")
@click.pass_obj
def group_list(session: Session) -> None:
    """List groups with their members."""
    session.rows(session.node.accounts.list_groups(session.subject), "id", "name", "enabled", "members")


@group.command("join")
@click.argument("group_name", metavar="GROUP")
@click.argument("name", metavar="USER")
@click.option("--until", type=WHEN, metavar="WHEN", help="When the membership ends.")
@click.pass_obj
def group_join(session: Session, group_name: str, name: str, until: datetime | None) -> None:
    """Put USER into GROUP."""
    made = session.node.accounts.join_group(session.subject, group_name, name, until=until)
    session.answer(made, f"{name} is in {group_name}")


@group.command("leave")
@click.argument("group_name", metavar="GROUP")
@click.argument("name", metavar="USER")
@click.pass_obj
def group_leave(session: Session, group_name: str, name: str) -> None:
    """Take USER out of GROUP."""
    session.answer(session.node.accounts.leave_group(session.subject, group_name, name), f"{name} is not in {group_name} any more")


@group.command("remove")
@click.argument("name")
@click.pass_obj
def group_remove(session: Session, name: str) -> None:
    """Remove a group; what it gave its members ends."""
    session.answer(session.node.accounts.remove_group(session.subject, name), f"{name} is removed")


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
