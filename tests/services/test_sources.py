"""Where imports look: stable order, no links, zip members, Orthanc's compressed attachments, DICOMDIR media."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from archive.errors import InvalidRequest
from archive.services import sources
from archive.services.sources import Source, TooManyMembers, walk

PART10 = bytes(128) + b"DICM" + b"\2\0\0\0" * 64


def contents(*paths: Path) -> dict[str, bytes]:
    found = {}
    for source in walk(list(paths)):
        with source.open() as file:
            found[source.name] = file.read()
    return found


def test_folders_are_walked_in_order_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "b" / "2").write_bytes(b"two")
    (tmp_path / "in" / "a").write_bytes(b"one")
    (tmp_path / "secret").write_bytes(b"outside")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "links").symlink_to(tmp_path)
    found = contents(tmp_path / "in")
    assert list(found.values()) == [b"one", b"two"]


def test_a_file_swapped_for_a_link_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"mine")
    source = next(walk([path]))
    (tmp_path / "secret").write_bytes(b"outside")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"), source.open():
        pass


def test_zip_members_are_read_in_place_whatever_their_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../../etc/passwd", PART10)
        archive.writestr("/abs", b"abs")
        archive.writestr("DICOMDIR", b"directory")
    found = contents(tmp_path / "x.zip")
    assert sorted(found.values()) == sorted([PART10, b"abs"])
    assert {path.name for path in tmp_path.iterdir()} == {"x.zip"}


def test_the_directory_of_a_zip_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(50):
            archive.writestr(f"{number:02}", b"%d" % number)
    read: list[object] = []
    real = zipfile.ZipFile._RealGetContents  # type: ignore[attr-defined]
    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", lambda self: (read.append(self), real(self))[1])
    found = list(walk([tmp_path]))
    with ThreadPoolExecutor(4) as pool:

        def content(source: Source) -> bytes:
            with source.open() as file:
                return file.read()

        assert list(pool.map(content, found)) == [b"%d" % number for number in range(50)]
    assert len(read) == 1
    read.clear()  # it holds the archive
    before = len(os.listdir("/dev/fd"))
    del found
    assert len(os.listdir("/dev/fd")) == before - 1


def test_a_zip_of_too_many_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ZIP_MEMBERS", 2)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("a", "b", "c"):
            archive.writestr(name, PART10)
    *first, last = walk([tmp_path])
    assert [one.name[-2:] for one in first] == ["!a", "!b"]
    with pytest.raises(TooManyMembers, match="holds 3 files") as told, last.open():
        pass
    assert last.name == str(tmp_path / "x.zip")
    assert "unpack" in told.value.remedy


def test_a_broken_zip_is_one_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", b"1" * 1000)
    data = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(data[:-40] + b"\0" * 18 + data[-22:])
    assert len(list(walk([tmp_path]))) == 1


def test_orthancs_compressed_attachments_are_inflated(tmp_path: Path) -> None:
    body = PART10 * 1000
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(body)) + zlib.compress(body))
    assert contents(tmp_path / "a")[str(tmp_path / "a")] == body


def test_a_bomb_gives_no_more_than_it_announces(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(struct.pack("<Q", 200) + zlib.compress(bytes(50 << 20)))
    assert len(contents(tmp_path / "a")[str(tmp_path / "a")]) == 200


def test_a_dicomdir_names_its_folder(tmp_path: Path) -> None:
    (tmp_path / "IMAGES").mkdir()
    (tmp_path / "IMAGES" / "1").write_bytes(PART10)
    (tmp_path / "DICOMDIR").write_bytes(b"directory")
    assert list(contents(tmp_path / "DICOMDIR").values()) == [PART10]
    assert list(contents(tmp_path).values()) == [PART10]


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nowhere"):
        list(walk([tmp_path / "nowhere"]))


def test_an_instance_that_ends_like_a_zip_is_an_instance(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "document.zip", "w") as archive:
        archive.writestr("inside", b"not an instance")
    whole = bytes(128) + b"DICM" + b"head" + (tmp_path / "document.zip").read_bytes()
    (tmp_path / "document.zip").unlink()
    (tmp_path / "encapsulated").write_bytes(whole)
    assert zipfile.is_zipfile(tmp_path / "encapsulated")
    assert list(contents(tmp_path / "encapsulated").values()) == [whole]


def test_a_folder_that_cannot_be_read_is_told_and_keeps_nothing_else_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b/1", "c"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    listdir = os.listdir

    def refused(path: str) -> list[str]:
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refused)
    found = list(walk([tmp_path / "in"]))
    assert [Path(one.name).name for one in found] == ["a", "b", "c"]
    with pytest.raises(PermissionError), found[1].open():
        pass


def test_a_file_that_goes_while_it_is_looked_at_is_told_when_it_is_opened(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b").chmod(0o640)

    def gone(found: os.stat_result) -> bool:
        if found.st_mode & 0o777 == 0o640:
            (tmp_path / "b").unlink()
        return False

    found = list(walk([tmp_path], gone))
    assert [Path(one.name).name for one in found] == ["a", "b", "c"]
    with pytest.raises(FileNotFoundError), found[1].open():
        pass


def test_a_file_that_is_gone_before_it_is_looked_at_is_told_too(tmp_path: Path) -> None:
    """A stick that is pulled out: what was not read is not passed over in silence."""
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1").write_bytes(b"x")
    found = walk([tmp_path / "in"])
    assert next(found).name.endswith("a/1")
    shutil.rmtree(tmp_path / "in")
    (left,) = found
    assert left.name.endswith("in/b")
    with pytest.raises(FileNotFoundError), left.open():
        pass


def test_folders_may_lie_deeper_than_calls_do(tmp_path: Path) -> None:
    deep = tmp_path / "in"
    deep.mkdir()
    for _ in range(sys.getrecursionlimit() + 100):
        deep = deep / "d"
        deep.mkdir()
    (deep / "a").write_bytes(b"deep")
    (tmp_path / "in" / "e").write_bytes(b"after")
    found = contents(tmp_path / "in")
    (deep / "a").unlink()
    os.removedirs(deep)  # pytest's own removing would call itself too deep
    assert list(found.values()) == [b"deep", b"after"]


def test_what_is_neither_file_nor_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert contents(tmp_path) == {}
    with pytest.raises(InvalidRequest, match="neither a file nor a folder"):
        list(walk([tmp_path / "pipe"]))
