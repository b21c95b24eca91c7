"""Descriptors for reading segments."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from pathlib import Path
from unittest import mock

import pytest

from archive.errors import SealBroken, VaultUnavailable
from archive.vault.disk import O_DIRECT
from archive.vault.readers import Readers

MIB = 1 << 20
NAME = b"s" * 16


def one(folder: Path, size: int) -> tuple[Readers, bytes]:
    data = os.urandom(size)
    (folder / "segment").write_bytes(data)
    return Readers(lambda _segment_id: folder / "segment"), hashlib.sha256(data).digest()


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 4096, 3 * MIB + 5])
def test_a_whole_file_is_hashed(tmp_path: Path, size: int, direct: bool) -> None:
    readers, digest = one(tmp_path, size)
    assert readers.digest(NAME, direct=direct) == digest


def test_past_the_page_cache_it_is_asked_for_and_what_refuses_it_is_read_through_it(tmp_path: Path) -> None:
    readers, digest = one(tmp_path, 2 * MIB)
    opening, flags = os.open, []

    def refusing(path: Path, how: int) -> int:
        flags.append(how)
        if how & O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opening(path, how)

    with mock.patch("os.open", refusing):
        assert readers.digest(NAME, direct=True) == digest
    assert [bool(how & O_DIRECT) for how in flags] == [False, True]


def test_pieces_that_end_between_blocks_are_gone_on_from_there(tmp_path: Path) -> None:
    readers, digest = one(tmp_path, 2 * MIB + 100)
    reading = os.preadv

    def short(fd: int, into: list[memoryview], offset: int) -> int:
        return reading(fd, [into[0][:70_000]], offset)  # O_DIRECT takes neither this length nor what begins behind it

    with mock.patch("os.preadv", short):
        assert readers.digest(NAME, direct=True) == digest


@pytest.mark.parametrize("size", [4096, 3 * 4096, 10_000])
def test_blocks_are_read_past_the_page_cache(tmp_path: Path, size: int) -> None:
    readers, _ = one(tmp_path, size)
    data = (tmp_path / "segment").read_bytes()
    into = memoryview(mmap.mmap(-1, 8192))
    opening, direct = os.open, []

    def noted(path: Path, how: int) -> int:
        direct.append(bool(how & O_DIRECT))
        return opening(path, how)

    with mock.patch("os.open", noted):
        for offset in range(0, size, 4096):
            count = readers.read_into(NAME, offset, into, direct=True)
            assert bytes(into[:count]) == data[offset : offset + 8192]
        assert readers.read_into(NAME, 5000, into, direct=True) == max(0, min(8192, size - 5000))  # not a block: the other way
        assert any(direct)
        direct.clear()
        readers.read_into(NAME, 0, into)
        assert not any(direct)
    with mock.patch("os.preadv", side_effect=OSError(errno.EIO, "broken")), pytest.raises(VaultUnavailable):
        readers.read_into(NAME, 0, into, direct=True)


def test_what_cannot_be_read_has_no_hash(tmp_path: Path) -> None:
    readers, _ = one(tmp_path, MIB)
    with mock.patch("os.preadv", side_effect=OSError(errno.EIO, "broken")), pytest.raises(VaultUnavailable):
        readers.digest(NAME, direct=True)
    (tmp_path / "segment").unlink()
    readers.forget(NAME)
    with pytest.raises(SealBroken) as missing:
        readers.digest(NAME, direct=True)
    assert missing.value.verdict == "V01"
