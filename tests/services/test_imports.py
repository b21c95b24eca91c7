"""Bulk import: counts, reports, resumption, files without meta, hostile files."""

from __future__ import annotations

import io
import itertools
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from archive.db.tables import job
from archive.dicom.stream import StreamScanner
from archive.errors import DatabaseUnavailable, InvalidRequest, KeysUnavailable, OutOfSpace, Unavailable, VaultUnavailable
from archive.node import Node
from archive.services import batch
from archive.services.core import Core
from archive.services.imports import BATCH, Imports, Summary
from archive.services.store import Incoming
from tests import posix_locks
from tests.services import archives


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "archive").mkdir()
    with archives.opened(archives.made(tmp_path / "archive")) as node:
        yield node


def run(node: Node, *paths: Path, **options: object) -> tuple[Summary, list[dict[str, object]]]:
    report = io.StringIO()
    summary = node.imports.run(archives.the_console(node), paths, "clinical", report=report, **options)  # type: ignore[arg-type]
    return summary, [json.loads(line) for line in report.getvalue().splitlines()]


def test_a_folder_is_imported_and_reported_line_by_line(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(archives.instance(1))
    (folder / "b.dcm").write_bytes(archives.instance(1))
    (folder / "c.dcm").write_bytes(archives.instance(1, StudyDescription="other"))
    (folder / "d.txt").write_bytes(b"not DICOM")
    summary, lines = run(node, folder)
    assert summary.stored + summary.duplicate + summary.conflict + summary.rejected == 4
    assert summary.rejected == 1
    assert {line["file"] for line in lines} == {str(path) for path in folder.iterdir()}
    assert all(line["reason"] for line in lines if line["outcome"] == "rejected")
    assert node.imports.list(archives.the_console(node))[0]["state"] == "done"
    again, _ = run(node, folder / "a.dcm")
    assert (again.stored, again.duplicate) in {(0, 1), (0, 0)}


def test_what_is_named_twice_is_stored_once(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(archives.instance(ord(name)))
    once, lines = run(node, folder / "a", folder / "a")
    assert (once.stored, once.duplicate, len(lines)) == (1, 0, 1)
    twice, lines = run(node, folder / "b", folder, folder / "b")
    assert (twice.stored, twice.duplicate, len(lines)) == (1, 2, 3)  # b, a that is there, b again
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("c", archives.instance(1))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("c", archives.instance(2))
    assert run(node, tmp_path / "x.zip")[0].stored == 2
    shown = node.imports.show(archives.the_console(node), twice.job)["files"]
    assert sorted((Path(one["file"]).name, one["outcome"]) for one in shown) == [("a", "duplicate"), ("b", "stored")]


def test_whole_files_come_out_as_they_were(node: Node, tmp_path: Path) -> None:
    data = archives.instance(1)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("deep/a", data)
    assert run(node, tmp_path / "x.zip")[0].stored == 1
    admin = archives.user(node)
    (found,) = node.retrieve.instances(admin, "clinical", "1.2.3")
    assert b"".join(bytes(view) for view in node.retrieve.open(admin, found)) == data


def test_an_interrupted_import_goes_on_where_it_stopped(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(130):
        (folder / f"{number:03d}").write_bytes(archives.instance(number + 1))

    def stop(_summary: Summary, done: int, _total: int) -> None:
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(node, folder, progress=stop)
    summary, _ = run(node, folder)
    assert (summary.skipped, summary.stored, summary.duplicate) == (64, 66, 0)


def test_what_was_refused_before_an_interruption_is_told_of_again(node: Node, tmp_path: Path) -> None:
    """The call that ends the job must not look as if everything had been taken in."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "000").write_bytes(archives.instance(1))
    (folder / "001").write_bytes(b"not DICOM")
    (folder / "002").write_bytes(archives.instance(1, StudyDescription="other"))
    for number in range(3, 130):
        (folder / f"{number:03d}").write_bytes(archives.instance(number + 1))

    def stop(_summary: Summary, done: int, _total: int) -> None:
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(node, folder, progress=stop)
    summary, _ = run(node, folder)
    assert (summary.skipped, summary.stored, summary.rejected, summary.conflict) == (62, 66, 1, 1)
    (only,) = node.imports.list(archives.the_console(node))
    assert (only["state"], only["stored"], only["rejected"], only["conflict"]) == ("done", 128, 1, 1)


def test_an_import_that_was_killed_is_taken_up_and_one_that_runs_is_not(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(130):
        (folder / f"{number:03d}").write_bytes(archives.instance(number + 1))
    beside: list[Summary] = []

    def stop(_summary: Summary, done: int, _total: int) -> None:
        if not beside:
            beside.append(Summary())
            beside[0] = run(node, folder)[0]
            assert [one["state"] for one in node.imports.list(archives.the_console(node))] == ["done", "running"]
        if done >= 64:
            raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        end = Imports._end
        killed.setattr(Imports, "_end", lambda *given: end(*given) if given[-1] == "done" else None)
        with pytest.raises(KeyboardInterrupt):
            run(node, folder, progress=stop)
    first, second = node.imports.list(archives.the_console(node))
    assert (first["id"], first["stored"], first["state"]) == (beside[0].job, 66, "done")
    assert second["state"] == "interrupted"
    summary, _ = run(node, folder)
    assert (summary.job, summary.skipped, summary.duplicate) == (second["id"], 64, 66)
    assert not list(node.core.config.run_dir.glob("job-*"))


def test_names_that_are_no_text_are_imported_and_reported(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.dcm")).write_bytes(archives.instance(1))
    summary, (line,) = run(node, folder)
    assert summary.stored == 1
    assert str(line["file"]).endswith("caf\\xe9/\\xff.dcm")
    (only,) = node.imports.list(archives.the_console(node))
    assert msgspec.json.encode(only["paths"]).endswith(b'caf\\\\xe9"]')


def test_a_file_without_meta_is_reported_and_stored_when_asked(node: Node, tmp_path: Path) -> None:
    data = archives.instance(1)
    bare = data[data.index(b"\x08\x00\x16\x00UI") :]
    (tmp_path / "bare").write_bytes(bare)
    summary, lines = run(node, tmp_path / "bare")
    assert summary.rejected == 1
    assert "no-meta" in str(lines[0]["reason"])
    assert run(node, tmp_path / "bare", wrap=True)[0].stored == 1
    admin = archives.user(node)
    (found,) = node.retrieve.instances(admin, "clinical", "1.2.3")
    assert b"".join(bytes(view) for view in node.retrieve.open(admin, found)).endswith(bare)


def test_hostile_files_cost_no_more_than_a_line_each(node: Node, corpus: Path) -> None:
    summary, lines = run(node, corpus / "own__hostile")
    files = [path for path in (corpus / "own__hostile").iterdir() if path.name.upper() != "DICOMDIR"]
    assert len(lines) == len(files)
    assert summary.stored > 20
    assert summary.rejected > 20
    assert node.verify.run(archives.the_console(node), "full").findings == []


@pytest.mark.parametrize("error", [struct.error("at P1.2.3"), KeyError("P1.2.3"), zlib.error("P1.2.3"), AssertionError()])
@pytest.mark.parametrize("step", ["feed", "finish"])
def test_an_unexpected_error_of_one_file_is_a_line_of_the_report(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, step: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(1, 6):
        (folder / f"{number}.dcm").write_bytes(archives.instance(number))
    done, count = getattr(StreamScanner, step), itertools.count()

    def failing(scanner: StreamScanner, *data: bytes) -> object:
        if next(count) == 2:
            raise error
        return done(scanner, *data)

    monkeypatch.setattr(StreamScanner, step, failing)
    summary, lines = run(node, folder)
    assert (summary.stored, summary.rejected) == (4, 1)
    (line,) = (line for line in lines if line["outcome"] == "rejected")
    assert line["reason"] in {f"unreadable: {name}" for name in ("struct.error", "KeyError", "zlib.error", "AssertionError")}
    assert node.imports.list(archives.the_console(node))[0]["state"] == "done"


@pytest.mark.parametrize(
    "error", [OutOfSpace(), VaultUnavailable(), DatabaseUnavailable(), KeysUnavailable(), sa.exc.InvalidRequestError(), MemoryError()]
)
def test_an_error_of_the_archive_ends_the_import(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (tmp_path / "a.dcm").write_bytes(archives.instance(1))

    def failing(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(Incoming, "seal", failing)
    with pytest.raises(type(error)):
        run(node, tmp_path / "a.dcm")
    assert node.imports.list(archives.the_console(node))[0]["state"] == "interrupted"


def test_what_was_taken_away_while_it_arrived_is_a_line_of_the_report(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge beside an import stands in the way of its own instances, and of no other."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(1, 6):
        (folder / f"{number}.dcm").write_bytes(archives.instance(number))
    seal, count = Incoming.seal, itertools.count()

    def sealed(incoming: Incoming) -> object:
        if next(count) == 2:
            raise Unavailable("the instance was purged while it arrived", remedy="send it again")
        return seal(incoming)

    monkeypatch.setattr(Incoming, "seal", sealed)
    summary, lines = run(node, folder)
    assert (summary.stored, summary.rejected) == (4, 1)
    assert [line["reason"] for line in lines if line["reason"]] == ["unavailable: the instance was purged while it arrived"]


@pytest.mark.parametrize("files", [1, BATCH * 2])
def test_an_error_nobody_was_told_of_ends_the_import_and_is_no_file_s(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """What waited for the commit may be stored or not: no line of the report would be true."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(files):
        (folder / f"{number:03d}").write_bytes(archives.instance(number + 1))
    monkeypatch.setattr(batch, "INSTANCES", 2)

    def failing(_core: Core, arrivals: Sequence[object], *_others: object, **_options: object) -> list[Exception]:
        return [ValueError("P1.2.3") for _ in arrivals]

    monkeypatch.setattr(batch, "adopt_all", failing)
    with pytest.raises(ValueError, match=r"P1\.2\.3"):
        run(node, folder)
    (only,) = node.imports.list(archives.the_console(node))
    assert (only["state"], only.get("rejected", 0)) == ("interrupted", 0)
    monkeypatch.undo()
    summary, _ = run(node, folder)
    assert (summary.rejected, summary.stored + summary.duplicate) == (0, files)


def test_the_whole_corpus_comes_out_unchanged(node: Node, corpus: Path) -> None:
    summary, lines = run(node, corpus)
    admin = archives.user(node)
    checked = 0
    for line in lines:
        if line["outcome"] != "stored":
            continue
        data = Path(str(line["file"])).read_bytes()
        (found,) = node.retrieve.instances(admin, "clinical", str(line["study_instance_uid"]), sop=str(line["sop_instance_uid"]))
        kept = b"".join(bytes(view) for view in node.retrieve.open(admin, found))
        assert kept[128:] == data[128:], line["file"]
        checked += 1
    assert checked == summary.stored > 170
    assert node.verify.run(archives.the_console(node), "full").findings == []


def test_the_archives_own_files_are_not_touched(node: Node, tmp_path: Path) -> None:
    """Opening and closing a database's file would give up the locks of the databases that are open here."""
    config = node.core.config
    (tmp_path / "a.dcm").write_bytes(archives.instance(1))
    os.link(config.index_path, tmp_path / "linked.db")
    os.link(f"{config.keystore_path}-shm", tmp_path / "linked")
    with node.core.database.read() as tx:
        tx.execute(sa.select(job)).all()
        before = posix_locks.held(config.storage_dir.glob("*.db*"))
        assert before
        summary, lines = run(node, tmp_path)
        assert posix_locks.held(config.storage_dir.glob("*.db*")) == before
    assert summary.stored == 1
    assert not [line for line in lines if str(config.storage_dir) in str(line["file"]) or "linked" in str(line["file"])]
    for path in (config.index_path, config.storage_dir, config.segments_dir, tmp_path / "linked.db"):
        with pytest.raises(InvalidRequest, match="own storage"):
            run(node, path)
