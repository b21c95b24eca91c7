"""`archive backup` and `archive restore`: a copy that is known to open, and the way back."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from archive.cli import failures, output
from archive.cli.main import Command, Group
from archive.cli.session import Session, operator
from archive.errors import ConfigurationError
from archive.keys import private_files

FOLDER = click.Path(path_type=Path, file_okay=False)
KEY_FILE = click.option("--key-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
                        help="The archive's key file, where the backup holds none.")
SHOWN = 100


def attach(archive: click.Group) -> None:
    """Add the commands of this file."""
    archive.add_command(backup)
    archive.add_command(restore)


@click.group("backup", cls=Group, default="run", subcommand_metavar="DIR [--with-keys] | drill [DIR]")
def backup() -> None:
    """Copy the archive into a folder on another disk, while it serves; what the folder has of an earlier backup is not copied again.

    A folder called drill is written ./drill.
    """


@backup.command("run", hidden=True)
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--with-keys", is_flag=True, help="Also the key file: whoever has the backup can then open it.")
@click.pass_obj
def run(session: Session, folder: Path, with_keys: bool) -> int:
    """Make a backup in DIR, or bring the one there up to date."""
    from archive.services.backup import Backup

    node = session.node
    with output.progress(quiet=session.as_json) as track:
        made = Backup(node.core).run(session.subject, folder, keys=with_keys, progress=track)
    lines = [f"{made.files} files, {made.bytes / 2**20:.1f} MiB in {made.folder}; {made.copied_bytes / 2**20:.1f} MiB were copied now"]
    if with_keys:
        lines.append("WARNING: the key file is in it: whoever has this folder can open every image. Keep it under lock and key.")
    else:
        lines.append("The key file is not in it: keep it, or a recovery kit, elsewhere.")
        lines.append("To restore: archive restore DIR --key-file FILE, or --recovery-kit FILE.")
        if not any(slot["kind"] == "recovery" for slot in node.keyring.slots()):
            lines.append("WARNING: there is no recovery kit, so without the key file this backup opens for nobody.")
            lines.append("  what to do: archive key slot add --recovery-kit FILE, then make the backup again")
    lines += [f"PROBLEM: {one}" for one in made.problems]
    lines.append("next: archive backup drill")
    session.answer({"ok": made.ok, **asdict(made)}, "\n".join(lines))
    return failures.DONE if made.ok else failures.FAILED


@backup.command("drill")
@click.argument("folder", type=FOLDER, metavar="[DIR]", required=False)
@click.option("--full", is_flag=True, help="Read, decrypt and hash every byte.")
@KEY_FILE
@click.pass_obj
def drill(session: Session, folder: Path | None, full: bool, key_file: Path | None) -> int:
    """Restore the last backup, or that in DIR, into a temporary folder, verify it there, remove it, and record how it went."""
    from archive.services.drill import Drill

    node = session.node
    with output.progress(quiet=session.as_json) as track:
        found = Drill(node.core).run(session.subject, folder, _way(session, full=full, key_file=key_file, recovery_kit=None, track=track))
    return _answer(session, found, f"the backup of {found.made_at:%Y-%m-%d %H:%M} UTC can be restored")


@click.command("restore", cls=Command)
@click.argument("folder", type=FOLDER, metavar="DIR")
@click.option("--to", type=FOLDER, metavar="FOLDER", help="Put configuration and storage into this folder, in place of --config.")
@click.option("--full", is_flag=True, help="Then read, decrypt and hash every byte.")
@KEY_FILE
@click.option("--recovery-kit", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="Open the backup's keyring with this kit, and make a new key file where there is none.")
@click.pass_obj
def restore(
    session: Session, folder: Path, to: Path | None, full: bool, key_file: Path | None, recovery_kit: Path | None
) -> int:
    """Put the backup in DIR onto a machine that holds no archive, checking every file; an archive that is there is never touched."""
    from archive.services import manifest
    from archive.services import restore as services

    if to is not None:
        session.config_path = to / "config.toml"
    kept = manifest.current(folder) / "config.toml"
    written = not session.config_path.exists()
    if written:
        if not kept.exists():
            message = f"there is no configuration at {session.config_path}, and the backup holds none"
            raise ConfigurationError(message, remedy="write one (config.example.toml), then give the command again")
        private_files.make_directory(session.config_path.parent)
        private_files.write(session.config_path, kept.read_bytes(), mode=0o644, replace=False)
    try:
        with output.progress(quiet=session.as_json) as track:
            way = _way(session, full=full, key_file=key_file, recovery_kit=recovery_kit, track=track)
            found = services.restore(folder, session.config, way)
    except BaseException:
        if written:
            session.config_path.unlink(missing_ok=True)
        raise
    if written:
        found.notes.append(f"the backup's configuration is now {session.config_path}: look at its addresses and paths")
    if recovery_kit is not None:
        found.notes.append(f"a key file opens it from now on, made where there was none: {session.config.key_file}")
    serve = "archive serve" if to is None else f"archive --config {shlex.quote(str(session.config_path))} serve"
    return _answer(session, found, f"restored to {found.storage} as of {found.made_at:%Y-%m-%d %H:%M} UTC; next: {serve}")


def _way(
    session: Session, *, full: bool, key_file: Path | None, recovery_kit: Path | None, track: output.Tracker
) -> Any:
    from archive.cli.unlock import offered
    from archive.node import open_node
    from archive.services.clock import utc_now
    from archive.services.restore import Way

    return Way(
        opening=lambda config, keyring: open_node(config, keyring=keyring, role="serve"), clock=utc_now, mode="full" if full else "quick",
        key_file=key_file, recovery_kit=recovery_kit, passphrase=partial(offered, session.passphrase_file),
        operator=operator(), progress=track,
    )


def _answer(session: Session, found: Any, done: str) -> int:
    counts = f"{found.files} files, {found.bytes / 2**20:.1f} MiB; {found.checked} records checked"
    lines = [f"{counts}; {found.adopted} were younger than the index", *found.notes]
    lines += [f"{one['code']}  {one['detail']}" for one in found.findings[:SHOWN]]
    lines.append(done if found.ok else f"{len(found.findings)} findings; docs/format.md says what each code means")
    session.answer({"ok": found.ok, **asdict(found)}, "\n".join(lines))
    return failures.DONE if found.ok else failures.FAILED
