"""A really served archive, tampered with while it serves and between two starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests

from archive.config import load
from tests.journeys import doors
from tests.journeys.running import RunningArchive
from tests.services import archives
from tests.tamper import world
from tests.tamper.catalogue import flip
from tests.tamper.world import Sql

Served = tuple[RunningArchive, requests.Session, dict[str, bytes]]
ONE, OTHER = "1.2.3.1.1", "1.2.4.1.1"


def asked(archive: RunningArchive, asker: requests.Session, uid: str) -> bytes | None:
    """What WADO-RS gives for an instance; None for an error, also one that comes after the first bytes."""
    study, series = uid.rsplit(".", 2)[0], uid.rsplit(".", 1)[0]
    try:
        answer = asker.get(
            f"{archive.url}/dicomweb/studies/{study}/series/{series}/instances/{uid}", headers={"Accept": doors.AS_STORED}, timeout=60
        )
    except requests.RequestException:
        return None
    return answer.content if answer.status_code == 200 else None


def verified(archive: RunningArchive, *level: str) -> tuple[int, set[str]]:
    """The exit status of `archive verify`, and its codes."""
    done = archive.run("--json", "verify", *level)
    return done.returncode, {found["code"] for found in json.loads(done.stdout)["findings"]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    archive = RunningArchive(tmp_path_factory.mktemp("served"))
    archive.start()
    asker = doors.session(archive, archive.token("admin"))
    given = {
        ONE: archives.instance(1, study="1.2.3"), OTHER: archives.instance(1, study="1.2.4", PatientID="P2"),
    }
    status, stored, _ = doors.stow(archive, asker, list(given.values()))
    assert (status, sorted(stored)) == (200, sorted(given))
    yield archive, asker, given
    archive.stop()


def test_tampered_with_while_it_serves(served: Served) -> None:
    archive, asker, given = served
    assert verified(archive, "--full") == (0, set())
    assert all(data in (asked(archive, asker, uid) or b"") for uid, data in given.items())

    with _flipped(archive):
        assert None in [asked(archive, asker, uid) for uid in given]
        assert verified(archive, "--full") == (1, {"V07"})
    assert all(data in (asked(archive, asker, uid) or b"") for uid, data in given.items())

    config = load(archive.config)
    rename = "UPDATE instance SET sop_instance_uid = '{}' WHERE sop_instance_uid = '{}'"
    assert world.run(config, Sql([rename.format("1.2.3.1.7", ONE)]))
    assert asked(archive, asker, "1.2.3.1.7") is None
    assert verified(archive) == (1, {"V10"})
    assert world.run(config, Sql([rename.format(ONE, "1.2.3.1.7")]))
    assert verified(archive) == (0, set())


@contextmanager
def _flipped(archive: RunningArchive) -> Iterator[None]:
    """A byte of the first record's image is another, for a while."""
    paths = list((archive.storage / "segments").iterdir())
    for again in (False, True):
        for path in paths:
            flip(path, 4096 + 200)
        if not again:
            yield


def test_rolled_back_between_two_starts(served: Served) -> None:
    archive, asker, given = served
    archive.stop()
    index = load(archive.config).index_path
    shutil.copy(index, archive.folder / "yesterday")
    archive.start("serve")
    later = archives.instance(2, study="1.2.3")
    assert doors.stow(archive, asker, [later])[0] == 200
    archive.stop()
    for path in index.parent.glob(f"{index.name}*"):
        path.unlink()
    shutil.copy(archive.folder / "yesterday", index)
    archive.start("serve")
    assert doors.stow(archive, asker, [archives.instance(3, study="1.2.3")])[0] == 503
    assert given[ONE] in (asked(archive, asker, ONE) or b"")
    code, said = verified(archive)
    assert (code, "V14" in said) == (1, True)
