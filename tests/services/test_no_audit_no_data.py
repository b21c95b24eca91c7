"""T10: when the ledger cannot take an event, nothing goes out and nothing comes in, at any door."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from archive.db.tables import instance
from archive.dicom.recipe import Recipe
from archive.errors import ArchiveError, DatabaseUnavailable, Unavailable
from archive.ledger.log import Ledger
from archive.services.audit_export import Span
from archive.services.store import Source
from tests.services import archives
from tests.web import real
from tests.web.real import SEEN, Place

OUT_OF_RESOURCES = 0xA700


@pytest.fixture
def place(tmp_path: object) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path)) as node:  # type: ignore[arg-type] # a folder
        yield real.place(node)


@pytest.fixture(params=["ours", "the library's"])
def deaf(request: pytest.FixtureRequest, place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An archive whose ledger takes nothing."""

    def refuse(*_arguments: object, **_options: object) -> int:
        if request.param == "ours":
            message = "the database is busy"
            raise DatabaseUnavailable(message)
        raise sa.exc.IntegrityError("INSERT", {}, ValueError("leaf"))

    monkeypatch.setattr(Ledger, "record", refuse)
    return place


def canary(data: bytes) -> bool:
    return any(word in data for word in (b"Canary", b"DICM", b"P1.2.3", b"PNG", b"JFIF"))


def routes(place: Place) -> list[tuple[str, str]]:
    named = real.addresses(place.app, study=SEEN, series=f"{SEEN}.1", sop=f"{SEEN}.1.1")
    searches = ["/dicomweb/studies", "/dicomweb/series", "/dicomweb/instances", "/studies", "/datastores/clinical/dicomweb/studies"]
    by_parameters = f"requestType=WADO&studyUID={SEEN}&seriesUID={SEEN}.1&objectUID={SEEN}.1.1"
    searches += [f"/dicomweb/wado?{by_parameters}", f"/dicomweb?{by_parameters}&contentType=application/dicom"]
    searches += [f"/dicomweb/studies/{SEEN}?accept=application/zip"]
    return [(method, path) for method, path in named if method == "GET"] + [("GET", path) for path in searches]


def test_t10_every_route_that_shows_something_answers_while_the_ledger_does(place: Place) -> None:
    for method, path in routes(place):
        assert place.ask(method, path, browser=not path.startswith(("/dicomweb", "/datastores"))).status_code == real.seen(path), path


def test_t10_no_audit_no_data_over_http(deaf: Place) -> None:
    for method, path in routes(deaf):
        for headers in ({}, {"Accept": "*/*"}, {"If-None-Match": "*"}):
            answer = deaf.ask(method, path, browser=not path.startswith(("/dicomweb", "/datastores")), headers=headers)
            assert answer.status_code == 503, f"{method} {path}"
            assert not canary(answer.get_data()), f"{method} {path}"
            assert "ETag" not in answer.headers


def test_t10_a_pack_that_is_there_already_stays_inside(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/dicomweb/studies/{SEEN}/series/{SEEN}.1/metadata"
    assert canary(place.ask("GET", path).get_data())

    def refuse(*_arguments: object, **_options: object) -> int:
        message = "the database is busy"
        raise DatabaseUnavailable(message)

    monkeypatch.setattr(Ledger, "record", refuse)
    assert place.ask("GET", path).status_code == 503


def test_t10_nothing_is_stored(deaf: Place) -> None:
    count = sa.select(sa.func.count()).select_from(instance)
    from archive.access import policy

    def rows() -> int:
        with deaf.node.core.database.read() as tx:
            return int(policy.run_as(tx, policy.system("verify"), count).scalar_one())

    before = rows()
    data = archives.instance(7, study="1.2.9")
    assert deaf.ask("POST", "/dicomweb/studies", data=data, content_type="application/dicom").status_code >= 409
    again = archives.instance(1, study=SEEN, PatientID=f"P{SEEN}", PatientName="Canary^Hidden")
    assert deaf.ask("POST", "/dicomweb/studies", data=again, content_type="application/dicom").status_code >= 409
    assert rows() == before


def test_t10_c_store_is_told_to_come_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from archive.dimse import status

    def refuse(*_arguments: object, **_options: object) -> int:
        message = "the database is busy"
        raise DatabaseUnavailable(message)

    monkeypatch.setattr(Ledger, "record", refuse)
    incoming = place.node.store.open(archives.the_console(place.node), "clinical", Source("dimse"))
    incoming.write(archives.instance(8, study="1.2.10"))
    with pytest.raises(Unavailable) as told:
        incoming.finish()
    assert status.of_error(told.value).status == OUT_OF_RESOURCES


def test_t10_no_service_answers_anything_of_a_patient(deaf: Place) -> None:
    node = deaf.node
    console, admin = archives.the_console(node), archives.user(node)
    asked: list[Callable[[], object]] = [
        lambda: node.retrieve.instances(admin, "clinical", SEEN), lambda: node.retrieve.metadata(admin, "clinical", SEEN),
        lambda: node.retrieve.reading(admin, "clinical", SEEN, f"{SEEN}.1", f"{SEEN}.1.1", lambda found: found),
        lambda: node.retrieve.frames(admin, "clinical", SEEN, f"{SEEN}.1", f"{SEEN}.1.1", [1]),
        lambda: node.pictures.of_instance(admin, "clinical", SEEN, f"{SEEN}.1", f"{SEEN}.1.1", [1], Recipe()),
        lambda: node.pictures.standing_for(admin, "clinical", SEEN, None, Recipe()),
        lambda: node.pictures.of_each(admin, "clinical", SEEN, None, Recipe()),
        lambda: node.retrieve.bulk(admin, "clinical", SEEN, f"{SEEN}.1", f"{SEEN}.1.1", "7FE00010"),
        lambda: node.reconcile.list(console), lambda: node.oversight.search(console), lambda: node.accounts.list_grants(console),
        lambda: node.accounts.explain(console, "mia", SEEN), lambda: node.oversight.prove(console, f"{SEEN}.1.1"),
        lambda: node.audit_export.lines(console, Span()), lambda: node.ledger_replay.at(console, size=1),
        lambda: node.arrival_rules.test(console, SEEN), lambda: node.disclosure.of_patient(console, f"P{SEEN}"),
        lambda: node.accounts.show_user(console, "mia"), lambda: node.verify.run(console, "quick"),
        lambda: node.remove.reject(console, "clinical", "study", SEEN, reason="test"),
    ]
    for ask in asked:
        with pytest.raises((ArchiveError, sa.exc.IntegrityError)):
            ask()
