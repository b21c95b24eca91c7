"""`python -m archive.serve ROLE SOCKET`: a worker process; started by the supervisor only."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from pathlib import Path

from archive.errors import ArchiveError
from archive.serve import logs, start
from archive.serve.handover import Link


def main(argv: list[str]) -> int:
    """Run one worker until SIGTERM."""
    parser = argparse.ArgumentParser(prog="archive.serve", description="A worker of 'archive serve'; start that instead.")
    parser.add_argument("role", choices=["dimse", "web", "background"])
    parser.add_argument("socket", type=Path)
    parser.add_argument("--tls-fd", type=int)
    parser.add_argument("--plain-fd", type=int)
    args = parser.parse_args(argv)
    os.umask(0o077)
    logs.configure(args.role)
    try:
        link = Link(args.socket)
        if args.role == "web":
            from archive.serve import web

            web.run(link, args.socket)
        elif args.role == "dimse":
            start.run_dimse(link, _socket(args.tls_fd), _socket(args.plain_fd))
        else:
            start.run_background(link)
    except ArchiveError as error:
        logging.getLogger("archive.serve").critical("worker cannot run: %s", error.message, extra={"remedy": error.remedy})
        return 1
    return 0


def _socket(number: int | None) -> socket.socket | None:
    return socket.socket(fileno=number) if number is not None else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
