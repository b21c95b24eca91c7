"""Peers nobody wants: slow, silent, resetting, flooding; all bounded in number and time, on loopback."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from benchmarks import pdus
from benchmarks.instances import MR, series, uid
from benchmarks.sender import Scp

SLOW, SILENT, FLOODS_A_SECOND = 6, 30, 40


def behave_badly(scp: Scp, seconds: float) -> None:
    """Do all of it at once for so long."""
    end = time.monotonic() + seconds
    works: list[Callable[[Scp, float], None]] = [*[_slow] * SLOW, *[_silent] * SILENT, _reset, _flood, _nonsense]
    threads = [threading.Thread(target=work, args=(scp, end), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 30)


def _connect(scp: Scp) -> socket.socket:
    return socket.create_connection((scp.host, scp.port), timeout=10)


def _slow(scp: Scp, end: float) -> None:
    """An association that sends an instance a few bytes at a time."""
    one = series("MR", "slow", time.monotonic())
    head, tail = pdus.Message(one, 16384).encode(uid("slow", time.monotonic()), 1)
    data = head + tail
    with suppress(OSError), _connect(scp) as link:
        link.sendall(pdus.associate_rq(MR, calling="BENCH", called=scp.ae_title))
        link.recv(4096)
        at = 0
        while time.monotonic() < end and at < len(data):
            link.sendall(data[at : at + 50])
            at += 50
            time.sleep(0.2)


def _silent(scp: Scp, end: float) -> None:
    """A connection that says nothing, or half a request."""
    while time.monotonic() < end:
        with suppress(OSError), _connect(scp) as link:
            link.sendall(pdus.associate_rq(MR, calling="BENCH", called=scp.ae_title)[:20])
            link.settimeout(max(0.1, min(15, end - time.monotonic())))
            link.recv(1)
        time.sleep(0.5)


def _reset(scp: Scp, end: float) -> None:
    """Associations that are torn down in the middle of a data set, with RST."""
    one = series("MR", "reset")
    number = 0
    while time.monotonic() < end:
        number += 1
        with suppress(OSError), _connect(scp) as link:
            link.sendall(pdus.associate_rq(MR, calling="BENCH", called=scp.ae_title))
            link.recv(4096)
            head, tail = pdus.Message(one, 16384).encode(uid("reset", time.monotonic(), number), 1)
            link.sendall((head + tail)[: len(head) + len(tail) // 2])
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(0.1)


def _flood(scp: Scp, end: float) -> None:
    """Connections that come and go without a word."""
    while time.monotonic() < end:
        with suppress(OSError):
            _connect(scp).close()
        time.sleep(1 / FLOODS_A_SECOND)


def _nonsense(scp: Scp, end: float) -> None:
    """Bytes that are no PDU, and PDUs that lie about their length."""
    while time.monotonic() < end:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\xff\xff\xff\xff" + bytes(500), bytes(1000)):
            with suppress(OSError), _connect(scp) as link:
                link.sendall(data)
                link.settimeout(2)
                link.recv(100)
        time.sleep(0.2)
