"""`archive key rekey`: studies sealed anew under new keys."""

from __future__ import annotations

from dataclasses import asdict

import click

from archive.cli.keys import key
from archive.cli.main import Command
from archive.cli.purge import duration_of
from archive.cli.session import Session
from archive.errors import InvalidRequest


def attach(_archive: click.Group) -> None:
    """Add the command of this file to `archive key`."""
    key.add_command(rekey)


@click.command("rekey", cls=Command)
@click.argument("study", metavar="[STUDY_UID]", required=False)
@click.option("--all-older-than", metavar="TIME", help="Every study whose key is older: 365d.")
@click.option("--reason", default="re-keyed", show_default=True, metavar="TEXT", help="Why; it goes into the ledger.")
@click.option("--datastore", default="clinical", show_default=True)
@click.pass_obj
def rekey(session: Session, study: str | None, all_older_than: str | None, reason: str, datastore: str) -> None:
    """Seal a study anew under a new key, and destroy the old key and the old records; its images are as they were."""
    node = session.node
    if (study is None) == (all_older_than is None):
        message = "name a study, or --all-older-than"
        raise InvalidRequest(message, remedy="for example: archive key rekey 1.2.840.… or --all-older-than 365d")
    if study is not None:
        done = node.rekey.study(session.subject, study, reason=reason, datastore=datastore)
    else:
        assert all_older_than is not None
        done = node.rekey.older_than(session.subject, node.core.clock() - duration_of(all_older_than), reason=reason)
    line = f"{done.instances} instances of {done.studies} studies sealed anew, {done.keys} old keys destroyed"
    if done.left:
        line += f"\n{done.left} studies stay under their keys: something of them is deleted, waits, or was let in by a decision"
    session.answer(asdict(done), line)
