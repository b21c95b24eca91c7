"""`archive key drill`: does everything open that should?"""

from __future__ import annotations

from pathlib import Path

import click

from archive.cli import failures
from archive.cli.keys import key
from archive.cli.main import Command
from archive.cli.session import Session

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


def attach(_archive: click.Group) -> None:
    """Add the command of this file to `archive key`."""
    key.add_command(drill)


@click.command("drill", cls=Command)
@click.option("--key-file", "key_files", type=_FILE, multiple=True, metavar="FILE", help="Beside the configured one; may be given again.")
@click.option("--recovery-kit", "kits", type=_FILE, multiple=True, metavar="FILE", help="The kit, typed or copied; may be given again.")
@click.option("--studies", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N", help="How many keys of studies.")
@click.pass_obj
def drill(session: Session, key_files: tuple[Path, ...], kits: tuple[Path, ...], studies: int) -> int:
    """Try every slot, a sample of studies' keys with a record of each, and the keyring of the last backup; the result is recorded."""
    from archive.services.key_drill import Ways

    session.changes_keys = True
    node = session.node

    def passphrase() -> str | None:
        from archive.cli import unlock

        return None if session.passphrase_file == unlock.STDIN else unlock.offered(session.passphrase_file)

    ways = Ways(key_files=(node.config.key_file, *key_files), recovery_kits=kits, passphrase=passphrase)
    done = node.key_drill.run(session.subject, ways, sample=studies)
    lines = [f"{one.state:<10}  {one.what}{f': {one.detail}' if one.detail else ''}" for one in done.tried]
    lines.append("everything that was tried opens" if done.ok else "PROBLEM: something does not open; make another way in, and a backup")
    tried = [{"what": one.what, "state": one.state, "detail": one.detail} for one in done.tried]
    session.answer({"ok": done.ok, "at": done.at.isoformat(), "studies": done.studies, "tried": tried}, "\n".join(lines))
    return failures.DONE if done.ok else failures.FAILED
