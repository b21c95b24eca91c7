"""`archive key`: list and rotate keys, add and remove the ways to open the keyring."""

from __future__ import annotations

from pathlib import Path

import click

from archive.cli import output
from archive.cli.main import Group
from archive.cli.session import Session


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(key)


@click.group("key", cls=Group)
def key() -> None:
    """The archive's keys; no command shows a secret."""


@key.command("list")
@click.pass_obj
def list_(session: Session) -> None:
    """List keys: purpose, state, times."""
    session.rows(session.node.keys.list(session.subject)["keys"], "id", "purpose", "state", "created_at", "not_after")


@key.command("rotate")
@click.option("--datastore", default="clinical", show_default=True)
@click.pass_obj
def rotate(session: Session, datastore: str) -> None:
    """Give a datastore a new key-encryption key; no image is touched.

    A serving archive takes the new keyring first: its workers are drained and started again one by one.
    """
    from archive.serve import state

    node = session.node
    with output.progress(quiet=session.as_json) as track:
        done = node.keys.rotate(
            session.subject, datastore, reload=lambda: state.reload_keyring(session.config, node.keyring.generation),
            progress=lambda count: track("data keys wrapped anew", count),
        )
    session.answer(done, f"{done['rewrapped']} data keys wrapped anew, {done['destroyed']} old key-encryption keys destroyed")


@key.group("slot", cls=Group)
def slot() -> None:
    """The ways to open the keyring: key files and recovery kits."""


@slot.command("list")
@click.pass_obj
def slot_list(session: Session) -> None:
    """List slots."""
    session.rows(session.node.keys.list(session.subject)["slots"], "id", "kind", "label", "created_at")


@slot.command("add")
@click.option("--key-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="A key file; made when absent.")
@click.option("--recovery-kit", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write a new recovery kit here; keep it away from this machine.")
@click.option("--label", default="", metavar="TEXT", help="To tell slots apart.")
@click.pass_obj
def slot_add(session: Session, key_file: Path | None, recovery_kit: Path | None, label: str) -> None:
    """Add a key file or a recovery kit."""
    made = session.node.keys.slot_add(session.subject, key_file=key_file, recovery_kit=recovery_kit, label=label)
    session.answer({"id": made}, f"slot {made} opens the keyring with {key_file or recovery_kit}")


@slot.command("remove")
@click.argument("slot_id", metavar="ID")
@click.pass_obj
def slot_remove(session: Session, slot_id: str) -> None:
    """Remove a slot; its file opens nothing any more."""
    session.node.keys.slot_remove(session.subject, slot_id)
    session.answer({"id": slot_id, "removed": True}, f"slot {slot_id} removed")
