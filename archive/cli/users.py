"""`archive user` and `group`: who may come, and who belongs together."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from archive.cli.main import Group
from archive.cli.session import Session, password_from
from archive.cli.when import WHEN


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(user)
    archive.add_command(group)


@click.group("user", cls=Group)
def user() -> None:
    """People and programs that sign in. A user sees no image before a grant says so: archive grant add."""


@user.command("add")
@click.argument("name")
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="What the user may do; may be given several times.")
@click.option("--password-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="The password is its first line; else it is asked for.")
@click.option("--no-password", is_flag=True, help="It signs in with another system alone: archive user bind.")
@click.option("--full-name", default="", metavar="TEXT")
@click.option("--email", default="", metavar="ADDRESS")
@click.pass_obj
def user_add(
    session: Session, name: str, roles: tuple[str, ...], password_file: Path | None, no_password: bool, full_name: str, email: str
) -> None:
    """Add user NAME."""
    if no_password and password_file is not None:
        message = "--password-file and --no-password exclude each other"
        raise click.UsageError(message)
    password = None if no_password else password_from(password_file, f"Password of {name}")
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
