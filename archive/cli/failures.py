"""Errors as the command line shows them, and the exit status of each: the one table.

0 done; 1 the work found problems or failed; 2 wrong usage or configuration; 3 not permitted; 4 storage, database or key
unavailable. An error goes to standard error: two lines, or with --json one line {"error": code, "message": …, "remedy": …}.
"""

from __future__ import annotations

import sys
import traceback

import click

from archive.errors import ArchiveError, ConfigurationError, Denied, InvalidQuery, InvalidRequest, Unavailable

DONE, FAILED, USAGE, DENIED, UNAVAILABLE = range(5)

EXIT_STATUS: tuple[tuple[type[ArchiveError], int], ...] = (
    (ConfigurationError, USAGE),
    (InvalidRequest, USAGE),
    (InvalidQuery, USAGE),
    (Denied, DENIED),
    (Unavailable, UNAVAILABLE),
    (ArchiveError, FAILED),
)
"""First match counts."""

REMEDIES: dict[str, str] = {
    "forbidden": "ask someone whose role allows it; 'archive role list' shows the roles",
    "unauthenticated": "sign in again, or name a user that is enabled",
    "not-found": "check the name or UID; the list command of the same group shows what is there",
    "read-only": "run 'archive doctor'",
    "configuration": "compare the configuration with config.example.toml",
}
"""What to do next where the error itself does not say."""


def exit_status(error: ArchiveError) -> int:
    """Return the exit status of an error."""
    return next(status for kind, status in EXIT_STATUS if isinstance(error, kind))


def remedy_of(error: ArchiveError) -> str:
    """Return what to do next; every error has something."""
    return error.remedy or REMEDIES.get(error.code) or "run 'archive doctor'; it says what is wrong and how to mend it"


def show(error: ArchiveError, *, as_json: bool) -> int:
    """Print an error and return its exit status."""
    _print(error.code, error.message, remedy_of(error), as_json=as_json)
    return exit_status(error)


def show_usage(error: click.ClickException, *, as_json: bool) -> int:
    """Print wrong usage and return its exit status."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "archive"
    _print("usage", error.format_message(), f"'{path} --help' shows how it is used", as_json=as_json)
    return USAGE


def show_unexpected(error: BaseException, *, as_json: bool) -> int:
    """Print a fault of our own: its class and where it rose. Its text stays away: a library's may quote a value."""
    rose = traceback.extract_tb(error.__traceback__)
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in rose if "/click/" not in frame.filename]
    if not as_json:
        print("\n".join(f"  {frame}" for frame in frames), file=sys.stderr)
    remedy = "this is a fault of the program: report the lines above with what you did"
    _print("unexpected", f"unexpected {type(error).__qualname__}", remedy, as_json=as_json)
    return FAILED


def _print(code: str, message: str, remedy: str, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        print(msgspec.json.encode({"error": code, "message": message, "remedy": remedy}).decode(), file=sys.stderr)
    else:
        print(f"archive: {message}\n  what to do: {remedy}", file=sys.stderr)
