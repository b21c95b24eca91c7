"""`archive shred`: a study and its key are destroyed, and a receipt says so."""

from __future__ import annotations

from pathlib import Path

import click

from archive.cli import output
from archive.cli.main import Command
from archive.cli.session import Session
from archive.errors import InvalidRequest
from archive.keys import private_files


def attach(archive: click.Group) -> None:
    """Add the command of this file."""
    archive.add_command(shred)


@click.command("shred", cls=Command)
@click.argument("study", metavar="STUDY_UID")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it goes into the ledger and onto the receipt.")
@click.option("--datastore", default="clinical", show_default=True)
@click.option("--receipt", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the receipt with its proof here; 'archive ledger check-proof' checks it anywhere.")
@click.pass_obj
def shred(session: Session, study: str, reason: str, datastore: str, receipt: Path | None) -> None:
    """Destroy a study with its key, for good: every image of it, whatever was deleted before or waits. Studies on hold stay."""
    node = session.node
    if receipt is not None:
        _reserve(receipt)  # before anything is destroyed
    try:
        done = node.shred.run(session.subject, study, reason=reason, datastore=datastore)
    except BaseException:
        if receipt is not None:
            receipt.unlink(missing_ok=True)
        raise
    node.upkeep.checkpoint()
    lines = [
        f"study {done.study}: {done.instances} instances ({done.bytes} bytes) and {done.keys} keys destroyed {output.text(done.at)}",
        f"receipt: event {done.event}, signed; 'archive ledger prove {done.event}' proves it",
        "copies of the backup folder from before still hold the key: remove them as your rules say",
    ]
    answer = {
        "study": done.study, "at": done.at.isoformat(), "instances": done.instances, "bytes": done.bytes, "keys": done.keys,
        "event": done.event, "receipt": done.receipt,
    }
    if receipt is not None:
        private_files.write(receipt, node.oversight.prove(session.subject, str(done.event)).encode())
        lines.append(f"receipt and proof written to {receipt}; check it anywhere: archive ledger check-proof {receipt} --keys FILE")
        answer["file"] = str(receipt)
    session.answer(answer, "\n".join(lines))


def _reserve(path: Path) -> None:
    """Make the file of a receipt, empty.

    Raises:
        InvalidRequest: it is there already. OSError: it cannot be made.
    """
    try:
        path.open("x").close()
    except FileExistsError:
        message = f"{path} is there already"
        raise InvalidRequest(message, remedy="name a file that is not there yet") from None
