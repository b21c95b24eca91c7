"""`python -m archive.witness`: the witness as a program of its own, for a machine that has no archive."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from archive.errors import ArchiveError, ConfigurationError
from archive.witness import memory, service


def address_of(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT.

    Raises:
        ConfigurationError.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        message = f"{text} is not an address to listen at"
        raise ConfigurationError(message, remedy="write it as HOST:PORT, for example 0.0.0.0:7373")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 # a witness is asked from elsewhere


def init(state: Path, name: str) -> str:
    """Make a witness, and return its verifier key."""
    return str(memory.make(state, name))


def serve(state: Path, listen: str, logs: Sequence[str], certificate: Path | None = None, key: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ArchiveError: what is given, or what is remembered, cannot be used.
    """
    known, host = service.read_logs(logs), address_of(listen)
    tls = service.tls_context(certificate, key)
    remembered = memory.Memory(state)
    try:
        try:
            server = service.Server(host, service.Witness(remembered, known), tls)
        except OSError as error:
            message = f"{listen} cannot be listened at: {error.strerror}"
            raise ConfigurationError(message, remedy="name a free port and an address of this machine") from error
        with server:
            bound = server.server_address
            signal.signal(signal.SIGTERM, _leave)
            print(f"{remembered.cosigner.verifier}\nlistening at {bound[0]!s}:{bound[1]}", flush=True)
            with suppress(KeyboardInterrupt):
                server.serve_forever()
    finally:
        remembered.close()


def _leave(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def show(state: Path) -> list[tuple[str, int, str]]:
    """Return origin, size and note of every log that is remembered."""
    remembered = memory.Memory(state)
    remembered.close()
    return [(known.origin, known.size, known.note) for known in remembered.logs()]


def forget(state: Path, origin: str) -> int:
    """Begin anew with a log, and return the size that was remembered of it, 0 where what was is lost."""
    remembered = memory.Memory(state, lost=origin)
    try:
        return remembered.forget(origin).size
    finally:
        remembered.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser("archive.witness", description="A witness that remembers how far a log has come.")
    commands = parser.add_subparsers(dest="command", required=True)
    given = {name: commands.add_parser(name, help=text) for name, text in (
        ("init", "make its key"), ("serve", "cosign checkpoints"), ("remembered", "show what is remembered"),
        ("forget", "begin anew with a log whose newest part is lost for good"),
    )}
    for one in given.values():
        one.add_argument("--state", type=Path, required=True, metavar="DIR")
    given["init"].add_argument("--name", required=True)
    given["serve"].add_argument("--listen", default="127.0.0.1:7373", metavar="HOST:PORT")
    given["serve"].add_argument("--log", action="append", required=True, metavar="VKEY|FILE")
    given["serve"].add_argument("--certificate", type=Path)
    given["serve"].add_argument("--key", type=Path)
    given["forget"].add_argument("--origin", required=True)
    asked = parser.parse_args(arguments)
    os.umask(0o077)
    try:
        if asked.command == "init":
            print(init(asked.state, asked.name))
        elif asked.command == "serve":
            serve(asked.state, asked.listen, asked.log, asked.certificate, asked.key)
        elif asked.command == "remembered":
            for origin, size, _note in show(asked.state):
                print(origin, size)
        else:
            print(f"forgotten at {forget(asked.state, asked.origin)}: the next checkpoint begins anew")
    except ArchiveError as error:
        print(f"archive.witness: {error.message}\n  {error.remedy}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
