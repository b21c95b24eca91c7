"""A downloaded viewer is unpacked whole, or not at all."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from archive.config import Config
from archive.errors import InvalidRequest, NotFound, Unavailable
from archive.services import viewers
from tests.services import archives

PACKAGE = json.dumps({"name": "@ohif/app", "version": "3.12.10"}).encode()
GOOD = {
    "package/package.json": PACKAGE, "package/dist/index.html": b"<html>", "package/dist/assets/a.png": b"png",
    "package/dist/a.js.map": b"m",
}


def tarball(path: Path, files: dict[str, bytes], odd: Callable[[tarfile.TarFile], None] = lambda _tar: None) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
        odd(made)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return archives.made(tmp_path / "archive")


def test_a_release_is_unpacked_and_taken_away(config: Config, tmp_path: Path) -> None:
    assert viewers.installed(config) is None
    release = viewers.install(config, tarball(tmp_path / "a.tgz", GOOD))
    assert (release.version, release.files) == ("3.12.10", 4)
    assert viewers.installed(config) == release
    files = viewers.folder(config) / viewers.FILES
    assert sorted(path.name for path in files.rglob("*")) == ["a.png", "assets", "index.html"]
    newer = viewers.install(config, tarball(tmp_path / "b.tgz", {**GOOD, "package/package.json": PACKAGE.replace(b"3.12", b"3.13")}))
    assert viewers.installed(config) == newer
    assert newer.version == "3.13.10"
    assert [path.name for path in viewers.folder(config).parent.iterdir()] == ["ohif"]
    viewers.remove(config)
    assert viewers.installed(config) is None
    with pytest.raises(NotFound):
        viewers.remove(config)


def _link(made: tarfile.TarFile) -> None:
    member = tarfile.TarInfo("package/dist/link")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    made.addfile(member)


@pytest.mark.parametrize("files", [
    {**GOOD, "package/dist/../../../../out": b"x"}, {**GOOD, "/package/dist/out": b"x"}, {**GOOD, "other/dist/out": b"x"},
    {**GOOD, "package/dist/.hidden": b"x"}, {**GOOD, "package/package.json": b'{"name": "left-pad", "version": "1"}'},
    {**GOOD, "package/package.json": b"[]"}, {name: data for name, data in GOOD.items() if "index" not in name}, {},
])
def test_what_is_no_release_changes_nothing(config: Config, tmp_path: Path, files: dict[str, bytes]) -> None:
    release = viewers.install(config, tarball(tmp_path / "good.tgz", GOOD))
    with pytest.raises(InvalidRequest):
        viewers.install(config, tarball(tmp_path / "bad.tgz", files))
    assert viewers.installed(config) == release
    assert [path.name for path in viewers.folder(config).parent.iterdir()] == ["ohif"]
    assert not (tmp_path / "out").exists()


def test_links_huge_and_broken_tarballs_are_refused(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest):
        viewers.install(config, tarball(tmp_path / "link.tgz", GOOD, _link))
    whole = tarball(tmp_path / "whole.tgz", GOOD).read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidRequest):
        viewers.install(config, tmp_path / "cut.tgz")
    (tmp_path / "text.tgz").write_bytes(b"hello")
    with pytest.raises(InvalidRequest):
        viewers.install(config, tmp_path / "text.tgz")
    with pytest.raises(Unavailable):
        viewers.install(config, tmp_path / "absent.tgz")
    monkeypatch.setattr(viewers, "MOST_BYTES", 10)
    with pytest.raises(InvalidRequest):
        viewers.install(config, tmp_path / "whole.tgz")
    assert viewers.installed(config) is None
