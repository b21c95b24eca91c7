"""`archive`: the top of the command line."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from archive import __version__
from archive.cli import failures
from archive.cli.session import Session
from archive.errors import ArchiveError, Unavailable


def _set_config(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(Session).config_path = value


def _set_json(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).as_json = True


def _set_passphrase_file(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(Session).passphrase_file = value


def everywhere() -> list[click.Parameter]:
    """Return the options every command takes, before or after its name."""
    return [
        click.Option(["--config"], type=click.Path(path_type=Path, dir_okay=False), callback=_set_config, expose_value=False,
                     metavar="FILE", help="The configuration; default $ARCHIVE_CONFIG, else ./config.toml."),
        click.Option(["--passphrase-file"], type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), expose_value=False,
                     callback=_set_passphrase_file, metavar="FILE",
                     help="Its first line opens the keyring; - reads standard input. Default: key file, systemd credential, terminal."),
        click.Option(["--json"], is_flag=True, callback=_set_json, expose_value=False, help="Answer in JSON for a program."),
    ]


class Command(click.Command):
    """A command that takes --config and --json."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Add the options every command takes."""
        super().__init__(*args, **kwargs)
        self.params += everywhere()


class Group(click.Group):
    """A group of such commands; `default` names the one that runs when the first word is none of them."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, default: str = "", **kwargs: Any) -> None:
        """Add the options every command takes."""
        super().__init__(*args, **kwargs)
        self.params += everywhere()
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let `archive import PATH` mean `archive import run PATH`."""
        if self.default and args and args[0] not in self.commands and args[0] != "--help":
            args = [self.default, *args]
        return super().parse_args(ctx, args)


COMMANDS = {
    "up": ("running",), "init": ("running",), "serve": ("running",), "db": ("running",),
    "status": ("state",), "doctor": ("state",),
    "user": ("users", "identities"), "group": ("users",), "role": ("roles",),
    "grant": ("grants",), "explain": ("grants",),
    "policy": ("policy",), "approval": ("approvals",), "rule": ("rules",), "review": ("reviews",),
    "peer": ("peers",), "token": ("tokens",),
    "share": ("shares",), "album": ("albums",), "request": ("requests",), "break-glass": ("break_glass",),
    "import": ("imports",), "worklist": ("worklist",), "mpps": ("mpps",), "commitments": ("commitments",), "forward": ("forward",),
    "delete": ("instances",), "reconcile": ("instances",), "hold": ("holds",), "purge": ("purge",), "shred": ("shred",),
    "verify": ("checks",),
    "ledger": ("ledger",), "audit": ("ledger", "collector"), "witness": ("witness",), "alert": ("alerts",),
    "key": ("keys", "key_drill", "rekey"),
    "rebuild-index": ("rebuild",), "backup": ("backup",), "restore": ("backup",),
    "viewer": ("viewers",), "webhook": ("webhooks",), "conformance": ("conformance",), "service": ("service",),
}
"""The modules of this room that make each command: imported when it is asked for, in this order."""


class Top(Group):
    """The commands of `archive`, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 # click's signature
        """Return every command's name."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, None when there is none of that name."""
        for name in COMMANDS.get(cmd_name, ()):
            import_module(f"archive.cli.{name}").attach(self)
        return super().get_command(ctx, cmd_name)


@click.group(cls=Top)
@click.version_option(__version__, prog_name="Strongroom")
def archive() -> None:
    """Strongroom: an encrypted archive for medical images."""


_ENDING = (signal.SIGTERM, signal.SIGHUP)

FEWER_COLLECTIONS = 10_000
"""Of garbage, while a command imports what it needs: a seventh of the time goes into looking through modules that all stay."""


def load_commands() -> click.Group:
    """Return the whole command line, every group attached."""
    context = click.Context(archive)
    for command in COMMANDS:
        archive.get_command(context, command)
    return archive


def run(arguments: Sequence[str], session: Session) -> int:
    """Run one command and return its exit status."""
    try:
        return _run(arguments, session)
    except click.exceptions.Exit as left:
        return left.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("archive: stopped", file=sys.stderr)
    except BrokenPipeError:
        # Whoever read the answer has seen enough; the interpreter must not fail again while it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # noqa: BLE001 # the outermost place there is
        return failures.show_unexpected(error, as_json=session.as_json)
    return failures.FAILED


def _run(arguments: Sequence[str], session: Session) -> int:
    try:
        with closing(session):
            status = archive.main(list(arguments), prog_name="archive", standalone_mode=False, obj=session)
    except click.ClickException as error:
        return failures.show_usage(error, as_json=session.as_json or "--json" in arguments)
    except ArchiveError as error:
        return failures.show(error, as_json=session.as_json)
    except BrokenPipeError:
        raise
    except OSError as error:
        message = f"{error.filename or 'a file'} cannot be used: {error.strerror or type(error).__name__}"
        shown = Unavailable(message, remedy="check that it exists and that this user may read and write it")
        return failures.show(shown, as_json=session.as_json)
    return status if isinstance(status, int) else failures.DONE


def _end(_number: int, _frame: Any) -> None:
    """End as by Ctrl-C, so that what is temporary is removed; once more while it is does not keep it from that."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; what it writes is its user's alone."""
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:  # what nohup has ignored stays so
            signal.signal(number, _end)
    gc.set_threshold(FEWER_COLLECTIONS)
    os.umask(0o077)
    status = run(sys.argv[1:], Session())
    gc.freeze()  # all that stays until the end is not looked through once more
    sys.exit(status)
