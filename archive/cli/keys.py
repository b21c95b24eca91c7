"""`archive key`: list and rotate keys, add and remove the ways to open the keyring."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from archive.cli import failures, output
from archive.cli.main import Group
from archive.cli.session import WITH_KIT, Session
from archive.errors import ArchiveError, InvalidRequest

_FILE = click.Path(path_type=Path, dir_okay=False)
_KEY_FILE = click.option("--key-file", type=_FILE, metavar="FILE", help="A key file; made when absent.")
_RECOVERY_KIT = click.option("--recovery-kit", type=_FILE, metavar="FILE",
                             help="Write a new recovery kit here; keep it away from this machine.")
_PASSPHRASE = click.option("--passphrase", is_flag=True, help="A passphrase, asked for twice; at least 15 characters.")
_NEW = click.option("--new-passphrase-file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), metavar="FILE",
                    help="The first line of this file is the new passphrase; - reads standard input.")
_LABEL = click.option("--label", default="", metavar="TEXT", help="To tell slots apart.")


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
@click.argument("which", type=click.Choice(["kek", "signing", "log", "pepper", "index"]), default="kek",
                metavar="[kek|signing|log|pepper|index]")
@click.option("--datastore", default="clinical", show_default=True, help="Whose key-encryption key.")
@click.pass_obj
def rotate(session: Session, which: str, datastore: str) -> int:
    """Put a new key in the place of one: a datastore's key-encryption key, or what signs, checkpoints, names or encrypts the index.

    No image is touched. A serving archive takes the new keyring first: its workers are drained and started again one by one. The
    index is encrypted anew while the archive is stopped.
    """
    from archive.serve import state

    session.changes_keys = True
    if which == "index":
        _rotate_index(session)
        return failures.DONE
    node = session.node

    def reload() -> None:
        state.reload_keyring(session.config, node.keyring.generation)

    if which != "kek":
        done = node.keys.replace(session.subject, which, reload=reload)
        lines = [f"{one['purpose']}: {one['old']} gave its place to {one['new']}" for one in done["keys"]]
        if which == "pepper":
            lines.append("tokens and recovery codes that were given out still count, until they end or are used")
        else:
            lines.append(f"announced by both keys in event {done['event']}; who checks proofs elsewhere may take "
                         "'archive ledger keys' again, or goes on with the old ones")
        session.answer(done, "\n".join(lines) if done["keys"] else "a rotation that was cut short is finished")
        return failures.DONE
    with output.progress(quiet=session.as_json) as track:
        made = node.keys.rotate(
            session.subject, datastore, reload=reload, progress=lambda count: track("data keys wrapped anew", count),
        )
    lines = [f"{made['rewrapped']} data keys wrapped anew, {made['destroyed']} old key-encryption keys destroyed"]
    lines += [f"{one['code']}  {one['detail']}" for one in made["findings"]]
    if made["findings"]:
        lines.append("the old key-encryption keys stay while these do not open: 'archive verify' names what is sealed under them; "
                     "put the keystore back from a backup, or purge those studies, and restart the archive")
    session.answer(made, "\n".join(lines))
    return failures.FAILED if made["findings"] else failures.DONE


def _rotate_index(session: Session) -> None:
    from archive.serve.state import RunLock
    from archive.services import index_key
    from archive.services.clock import utc_now

    config = session.config
    index_key.require_embedded(config)
    lock = RunLock(config)  # never under a serving archive
    try:
        keyring = session.opened()  # asked for once; the archive is opened with it, before and after
        fresh = session.node.keys.announce_index(session.subject)
        session.close()
        try:
            index_key.replace(config, keyring, at=utc_now())
        except ArchiveError:
            with suppress(ArchiveError):  # else the next start does it
                index_key.settle(config, keyring, at=utc_now())
                session.node.keys.compare()
            raise
        session.node.keys.compare()
    finally:
        lock.release()
    session.answer({"key": fresh}, "the index is encrypted under a new key; the old one is destroyed")


@key.group("slot", cls=Group)
def slot() -> None:
    """The ways to open the keyring: key files, recovery kits and passphrases."""


@slot.command("list")
@click.pass_obj
def slot_list(session: Session) -> None:
    """List slots."""
    session.changes_keys = True
    session.rows(session.node.keys.list(session.subject)["slots"], "id", "kind", "label", "created_at")


@slot.command("add")
@_KEY_FILE
@_RECOVERY_KIT
@_PASSPHRASE
@_NEW
@WITH_KIT
@_LABEL
@click.pass_obj
def slot_add(session: Session, /, with_kit: Path | None, **given: Any) -> None:
    """Add a key file, a recovery kit or a passphrase."""
    session.changes_keys, session.recovery_kit = True, with_kit
    what, add = _wanted(session, **given)
    made = add()
    session.answer({"id": made}, f"slot {made} opens the keyring with {what}")


@slot.command("replace")
@click.argument("slot_id", metavar="ID")
@_KEY_FILE
@_RECOVERY_KIT
@_PASSPHRASE
@_NEW
@WITH_KIT
@_LABEL
@click.pass_obj
def slot_replace(session: Session, /, slot_id: str, with_kit: Path | None, **given: Any) -> None:
    """Add a slot in the place of another, at once: what opened that opens nothing any more."""
    session.changes_keys, session.recovery_kit = True, with_kit
    what, add = _wanted(session, **given)
    made = add(instead=slot_id)
    session.answer({"id": made, "replaced": slot_id}, f"slot {made} opens the keyring with {what}; slot {slot_id} is removed")


@slot.command("remove")
@click.argument("slot_id", metavar="ID")
@click.pass_obj
def slot_remove(session: Session, slot_id: str) -> None:
    """Remove a slot; what opened it opens nothing any more."""
    session.changes_keys = True
    session.node.keys.slot_remove(session.subject, slot_id)
    session.answer({"id": slot_id, "removed": True}, f"slot {slot_id} removed")


def _wanted(
    session: Session, *, key_file: Path | None, recovery_kit: Path | None, passphrase: bool, new_passphrase_file: Path | None, label: str
) -> tuple[str, Any]:
    """Return what the new slot opens with, and what adds it; a passphrase is asked for once the keyring is open."""
    from archive.cli.unlock import chosen

    passphrase = passphrase or new_passphrase_file is not None
    if [key_file is not None, recovery_kit is not None, passphrase].count(True) != 1:
        message = "name either a key file, a recovery kit or a passphrase"
        raise InvalidRequest(message)
    keys, subject = session.node.keys, session.subject
    add = partial(keys.slot_add, subject, key_file=key_file, recovery_kit=recovery_kit, label=label)
    if passphrase:
        add = partial(add, passphrase=chosen(new_passphrase_file))
    return str(key_file or recovery_kit or "a passphrase"), add
