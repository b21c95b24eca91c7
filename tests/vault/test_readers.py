"""Descriptors for reading: few, shared, closed when others are read."""

from __future__ import annotations

import os
from pathlib import Path

from archive.vault.readers import KEPT, Readers


def open_below(folder: Path) -> int:
    held = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            held += os.readlink(f"/proc/self/fd/{number}").startswith(str(folder))
        except OSError:
            continue
    return held


def test_many_segments_take_few_descriptors(tmp_path: Path) -> None:
    ids = [number.to_bytes(16) for number in range(3 * KEPT)]
    for one in ids:
        (tmp_path / one.hex()).write_bytes(one)
    readers = Readers(lambda one: tmp_path / one.hex())
    for one in [*ids, *ids]:
        into = memoryview(bytearray(16))
        assert readers.read_into(one, 0, into) == 16
        assert bytes(into) == one
        assert open_below(tmp_path) <= KEPT
    readers.close()
    assert not open_below(tmp_path)
