"""Amounts of space, errors in our words, short writes."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from archive.errors import OutOfSpace, VaultUnavailable
from archive.vault.buffers import Buffers, aligned_copy
from archive.vault.disk import Disk, padded, reserve_bytes, translated


@pytest.mark.parametrize(("text", "expected"), [
    ("5%", 50), ("0%", 0), ("12.5%", 125), ("0B", 0), ("17", 17), ("17B", 17), ("2KiB", 2048), ("1.5MiB", 3 << 19), ("2GiB", 2 << 30),
    ("1TiB", 1 << 40),
])
def test_reserve(text: str, expected: int) -> None:
    assert reserve_bytes(text, 1000) == expected


@pytest.mark.parametrize("text", ["", "x", "5 GiB", "-1", "1GB"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        reserve_bytes(text, 1000)


def test_errors_are_told_apart() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT):
        assert isinstance(translated(OSError(code, "x"), "writing"), OutOfSpace)
    for code in (errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE):
        found = translated(OSError(code, "x", "/secret/path"), "writing")
        assert isinstance(found, VaultUnavailable)
        assert found.remedy
        assert "secret" not in found.message


def test_padding() -> None:
    assert [padded(n) for n in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


@pytest.mark.parametrize("limit", [1, 4095, 4096, 5000, 12_288])
def test_short_writes_go_on(tmp_path: Path, limit: int) -> None:
    calls = []

    def short_at_first(number: int, name: str) -> int | None:
        if name == "pwrite":
            calls.append(number)
        return limit if name == "pwrite" and len(calls) <= 2 else None

    disk = Disk(short_at_first)
    fd = disk.create(tmp_path / "f", direct=False)
    data = os.urandom(20_480)
    disk.pwrite(fd, aligned_copy(data), 4096)
    assert os.pread(fd, 1 << 20, 4096) == data
    os.close(fd)


def test_a_disk_that_takes_nothing_ends_in_an_error(tmp_path: Path) -> None:
    disk = Disk(lambda _number, name: 10 if name == "pwrite" else None)
    fd = disk.create(tmp_path / "f", direct=False)
    with pytest.raises(OSError, match="Input/output"):
        disk.pwrite(fd, aligned_copy(bytes(8192)), 0)
    os.close(fd)


def test_of_many_large_buffers_few_keep_their_memory() -> None:
    pool = Buffers(4 << 20)
    taken = [pool.take() for _ in range(5)]
    for one in taken:
        one[:1], one[-1:] = b"x", b"x"
        pool.give(one)
    del taken, one
    again = [pool.take() for _ in range(5)]
    assert [bytes(one[:1]) for one in again] == [b"x"] * 5
    assert [bytes(one[-1:]) for one in again] == [b"x"] * 2 + [b"\0"] * 3  # what is used first is whole


def test_buffers_are_used_again() -> None:
    pool = Buffers(4096, keep=1)
    one, two = pool.take(), pool.take()
    one[:3] = b"one"
    pool.give(one)
    pool.give(two)
    assert bytes(pool.take()[:3]) == b"one"
    assert bytes(pool.take()[:3]) == bytes(3)


def test_a_file_system_that_neither_reserves_nor_punches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ext3 and FAT: O_DIRECT is taken, and refuses what the C library does in place of both."""

    def refused(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    class Library:
        @staticmethod
        def fallocate(*_args: object) -> int:
            return -1

    disk = Disk()
    fd = disk.create(tmp_path / "f", direct=True)
    monkeypatch.setattr(os, "posix_fallocate", refused)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: Library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EOPNOTSUPP)
    disk.allocate(fd, 0, 16_384)
    assert os.fstat(fd).st_size == 16_384
    disk.pwrite(fd, aligned_copy(b"x" * 16_384), 0)
    disk.punch(fd, 4096, 8192)
    os.close(fd)
    assert (tmp_path / "f").read_bytes() == b"x" * 4096 + bytes(8192) + b"x" * 4096
