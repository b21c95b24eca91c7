"""`archive commitments`: what peers asked the archive to answer for, and whether they were told."""

from __future__ import annotations

from pathlib import Path

import click

from archive.cli import output
from archive.cli.main import Group
from archive.cli.session import Session


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(commitments)


@click.group("commitments", cls=Group)
def commitments() -> None:
    """Storage commitment: transactions, their state, their receipts."""


@commitments.command("list")
@click.option("--peer", default="", metavar="NAME", help="Only those of this peer.")
@click.option("--state", default="", type=click.Choice(["", "checking", "waiting", "reported", "failed", "replaced"]), metavar="STATE",
              help="checking, waiting (for its report to be taken), reported or failed.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.pass_obj
def list_(session: Session, peer: str, state: str, limit: int) -> None:
    """List transactions, the newest first."""
    session.rows(session.node.commitments.list(session.subject, peer_name=peer, state=state, limit=limit),
                 "id", "transaction_uid", "peer", "state", "n_references", "n_failed", "created_at", "reported_at", "attempts", "reason")


@commitments.command("receipt")
@click.argument("transaction_uid", metavar="TRANSACTION_UID")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write it here instead of printing it.")
@click.pass_obj
def receipt(session: Session, transaction_uid: str, to: Path | None) -> None:
    """Give the receipt of a transaction: results, seals of the studies, and the proof that the ledger holds them."""
    found = session.node.commitments.receipt(session.subject, transaction_uid)
    text = output.to_json(found)
    if to is None:
        print(text)
        return
    to.write_text(text, encoding="utf-8")
    session.answer({"file": str(to)}, f"receipt written to {to}; its proof is what 'archive ledger prove {found['event']}' gives")
