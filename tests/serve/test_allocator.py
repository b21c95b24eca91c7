"""Threads that come and go leave no arenas of their own behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="arenas are glibc's")

ALLOCATE = """
import sys, threading
from archive.serve import allocator
if sys.argv[1] == "limited":
    allocator.limit_arenas()
gate = threading.Barrier(13)
def work():
    held = bytearray(4000)
    gate.wait()
    gate.wait()
threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads:
    thread.start()
gate.wait()
found = 0
for line in open("/proc/self/maps"):
    start, _, rest = line.partition("-")
    found += int(start, 16) % (64 << 20) == 0 and len(rest.split()) == 5
gate.wait()
allocator.give_back()
print(found)
"""


def arenas(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", ALLOCATE, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def test_a_process_keeps_to_two_arenas() -> None:
    if arenas("as it is") <= 2:
        pytest.skip("this system's allocator has no arenas of threads")
    assert arenas("limited") <= 2
