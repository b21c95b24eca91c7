"""`archive rebuild-index`: the index made again from what is sealed."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

import click

from archive.cli import failures, output
from archive.cli.main import Command
from archive.cli.session import Session, operator
from archive.errors import DatabaseUnavailable


def attach(archive: click.Group) -> None:
    """Add the command of this file."""
    archive.add_command(rebuild_index)


@click.command("rebuild-index", cls=Command)
@click.pass_obj
def rebuild_index(session: Session) -> int:
    """Make the index again from the sealed records; one that is lost or damaged with ledger and users beside it. Stop the archive first."""
    from archive.node import open_node
    from archive.serve.state import RunLock, without_others
    from archive.services import lost
    from archive.services.clock import utc_now
    from archive.services.rebuild import Rebuild

    config = session.config
    with contextlib.ExitStack() as leaving:
        leaving.callback(RunLock(config).release)  # never under a serving archive
        leaving.enter_context(without_others(config))  # nor beside a command, which may write what is about the numbers there were
        keyring = session.keyring()
        standing = lost.prepare(config, keyring, at=utc_now())
        if standing.damaged is not None:
            leaving.callback(standing.damaged.close)
        node = open_node(config, keyring=keyring, role="serve")
        leaving.callback(node.close)
        if not standing.lost and (why := node.oversight.rolled_back()):
            raise DatabaseUnavailable(why, remedy="run 'archive doctor'; acknowledge the rollback first, or restore the newest copy")
        with output.progress(quiet=session.as_json) as track:
            report = Rebuild(node.core).run(lost=standing.lost, damaged=standing.damaged, operator=operator(), progress=track)
        if not node.oversight.rolled_back():
            node.upkeep.checkpoint()
    if standing.aside is not None:
        report.notes.append(f"the damaged index is kept as {standing.aside}; remove it once all is well")
    counts = f"{report.instances} instances, {report.held} waiting, {report.changes} changes of state"
    lines = [f"{counts}; {report.adopted} younger than the ledger", *report.notes]
    lines += [f"PROBLEM: {one}" for one in report.problems]
    lines.append("next: archive verify")
    session.answer({"ok": report.ok, **asdict(report)}, "\n".join(lines))
    return failures.DONE if report.ok else failures.FAILED
