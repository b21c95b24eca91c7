"""Ports for servers that are told which to take: nobody else is given one between the choice and the start."""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LOWEST, HIGHEST = 10_000, 65_535


def free_port() -> int:
    """Return a TCP port that nobody listens at.

    It is none of those that the system gives to whoever asks for any, and to connections that go out; and in each worker another.
    """
    while True:
        port = next(_mine())
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:  # taken
                continue
        return port


@cache
def _mine() -> Iterator[int]:
    """Yield the ports of this worker again and again; those of another run on this machine begin elsewhere."""
    given_out = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first, last = map(int, given_out.read_text(encoding="ascii").split()) if given_out.exists() else (32_768, HIGHEST)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    outside = [*range(LOWEST, first), *range(last + 1, HIGHEST + 1)] or [*range(LOWEST, HIGHEST + 1)]  # a system may give out all
    ports = outside[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    begin = random.SystemRandom().randrange(len(ports))
    return itertools.cycle([*ports[begin:], *ports[:begin]])
