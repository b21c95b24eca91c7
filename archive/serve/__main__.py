"""`python -m archive.serve ROLE SOCKET`: a worker process, where workers are not forked; started by the supervisor only."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

from archive.serve import start


def main(argv: list[str]) -> int:
    """Run one worker until SIGTERM."""
    parser = argparse.ArgumentParser(prog="archive.serve", description="A worker of 'archive serve'; start that instead.")
    parser.add_argument("role", choices=["dimse", "web", "viewer", "events", "background"])
    parser.add_argument("socket", type=Path)
    parser.add_argument("--tls-fd", type=int)
    parser.add_argument("--plain-fd", type=int)
    args = parser.parse_args(argv)
    return start.run_role(args.role, args.socket, _socket(args.tls_fd), _socket(args.plain_fd))


def _socket(number: int | None) -> socket.socket | None:
    return socket.socket(fileno=number) if number is not None else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
