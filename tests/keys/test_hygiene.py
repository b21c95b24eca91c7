"""A hardened process leaves no core and lets nobody look in."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource
from archive.keys.hygiene import harden_process
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 1
assert harden_process()
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0  # PR_GET_DUMPABLE
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_harden_process() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)
