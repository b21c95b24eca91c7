"""T15: what may not be seen answers as what is not there: status, headers, body, length, at every door that names an object."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import pytest
from werkzeug.test import TestResponse

from archive.access.grants import Target
from tests.services import archives
from tests.web import real
from tests.web.real import ABSENT, HIDDEN, SEEN, Place

EVERY = "bytes that no answer shares"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("oracles"))) as node:
        yield real.place(node)


def told(answer: TestResponse, study: str) -> tuple[object, ...]:
    """Everything an answer says, with the UID that was asked for taken out."""
    headers = sorted((name, value.replace(study, EVERY)) for name, value in answer.headers.items() if name not in {"Date", "X-Request-Id"})
    return answer.status_code, headers, answer.get_data().replace(study.encode(), EVERY.encode())


def both(place: Place, method: str, path: str, *, study: str = "{}", **more: object) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """What is told of the hidden study and of one that is not there; both UIDs are equally long."""
    first, second = (told(place.ask(method, path.replace(study, uid), **more), uid) for uid in (HIDDEN, ABSENT))  # type: ignore[arg-type]
    return first, second


def paths(place: Place, uid: str) -> list[tuple[str, str]]:
    return real.addresses(place.app, study=uid, series=f"{uid}.1", sop=f"{uid}.1.1")


def test_the_walk_meets_every_door(place: Place) -> None:
    methods = {method for method, _ in paths(place, SEEN)}
    assert methods >= {"GET", "HEAD", "POST"}
    assert len(paths(place, SEEN)) > 20
    for method, path in paths(place, SEEN):
        if method == "GET":  # a walk that reaches nothing compares nothing
            assert place.ask(method, path, browser=not path.startswith(("/dicomweb", "/datastores"))).status_code == real.seen(path), path


@pytest.mark.parametrize("headers", [{}, {"If-None-Match": "*"}, {"Accept": "*/*"}, {"Accept": "image/png"}, {"Accept": "text/html"}])
def test_t15_reads(place: Place, headers: dict[str, str]) -> None:
    for (method, hidden), (_, absent) in zip(paths(place, HIDDEN), paths(place, ABSENT), strict=True):
        if method == "POST":
            continue
        browser = not hidden.startswith(("/dicomweb", "/datastores"))
        first = told(place.ask(method, hidden, browser=browser, headers=headers), HIDDEN)
        second = told(place.ask(method, absent, browser=browser, headers=headers), ABSENT)
        assert first == second, f"{method} {hidden}"
        assert first[0] != 200 or b"Canary" not in first[2], hidden  # type: ignore[operator]


def test_t15_an_entity_tag_somebody_else_has_seen_opens_nothing(place: Place) -> None:
    admin = place.node.accounts.create_token(archives.the_console(place.node), owner="admin")["token"]
    for method, path in paths(place, HIDDEN):
        if method != "GET" or not path.startswith("/dicomweb"):
            continue
        etag = place.ask("GET", path, headers={"Authorization": f"Bearer {admin}"}).headers.get("ETag")
        if etag is None:
            continue
        assert place.ask("GET", path, headers={"Authorization": f"Bearer {admin}", "If-None-Match": etag}).status_code == 304
        answer = place.ask("GET", path, headers={"If-None-Match": etag})
        assert told(answer, HIDDEN) == told(place.ask("GET", path.replace(HIDDEN, ABSENT), headers={"If-None-Match": etag}), ABSENT)
        assert answer.status_code == 404


@pytest.mark.parametrize("query", [
    "studies?StudyInstanceUID={}", "series?StudyInstanceUID={}", "instances?StudyInstanceUID={}", "studies?PatientID=P{}",
    "studies?SeriesInstanceUID={}.1", "series?SeriesInstanceUID={}.1", "instances?SOPInstanceUID={}.1.1", "studies/{}/series",
    "studies/{}/instances", "studies/{}/series/{}.1/instances", "studies?StudyInstanceUID={}&includefield=all&limit=1&offset=1",
])
def test_t15_searches(place: Place, query: str) -> None:
    if query.startswith("studies?SeriesInstanceUID"):
        assert place.ask("GET", f"/dicomweb/{query}".replace("{}", SEEN)).status_code in {200, 400}
    first, second = both(place, "GET", f"/dicomweb/{query}")
    assert first == second


def test_t15_pages(place: Place) -> None:
    for path in ("/studies/{}", "/studies/{}/series/{}.1", "/studies?id=P{}", "/studies?name=Hidden&id=P{}"):
        first, second = both(place, "GET", path, browser=True)
        assert first == second, path


def test_t15_a_store_tells_nothing_of_what_else_the_study_holds(place: Place) -> None:
    # The same study as a hidden one, by a patient of the same identity but another name: kept as an unknown study would be.
    fresh = {}
    for study in (HIDDEN, ABSENT):
        data = archives.instance(9, study=study, series=f"{study}.9", PatientID=f"P{study}", PatientName="Guessed^Name",
                                 StudyDescription="a guess")
        answer = place.ask("POST", "/dicomweb/studies", data=data, content_type="application/dicom")
        assert answer.status_code == 200
        fresh[study] = told(answer, study)
    assert fresh[HIDDEN] == fresh[ABSENT]
    addressed = {}
    for study in (HIDDEN, ABSENT):
        data = archives.instance(10, study="1.2.77", PatientID="other")
        addressed[study] = told(place.ask("POST", f"/dicomweb/studies/{study}", data=data, content_type="application/dicom"), study)
    assert addressed[HIDDEN] == addressed[ABSENT]
    # One who sees the study is told what differs.
    data = archives.instance(9, study=SEEN, series=f"{SEEN}.9", PatientID=f"P{SEEN}", PatientName="Guessed^Name")
    assert place.ask("POST", "/dicomweb/studies", data=data, content_type="application/dicom").status_code == 202


def test_t15_the_same_bytes_again_look_like_success(place: Place) -> None:
    again = archives.instance(1, study=HIDDEN, PatientID=f"P{HIDDEN}", PatientName="Canary^Hidden")
    new = archives.instance(1, study="1.2.6", PatientID="P1.2.6", PatientName="Canary^Hidden")
    first, second = (place.ask("POST", "/dicomweb/studies", data=data, content_type="application/dicom") for data in (again, new))
    assert told(first, HIDDEN) == told(second, "1.2.6")
    assert first.status_code == 200


def test_another_datastore_without_a_right_to_it_answers_as_none(place: Place) -> None:
    from archive.db.tables import datastore
    from archive.services.clock import utc_now

    with place.node.core.database.begin() as tx:
        tx.execute(datastore.insert().values(uid=b"r" * 16, name="research", created_at=utc_now()))
    place.node.keyring.add_kek(b"r" * 16, at=utc_now())
    data = archives.instance(1, study="1.2.8")
    for method, tail, more in (
        ("GET", "studies", {}), ("GET", "series", {}), ("GET", f"studies/{SEEN}", {}), ("GET", f"studies/{SEEN}/metadata", {}),
        ("POST", "studies", {"data": data, "content_type": "application/dicom"}),
    ):
        first, second = (told(place.ask(method, f"/datastores/{name}/dicomweb/{tail}", **more), name)  # type: ignore[arg-type]
                         for name in ("research", "reserved"))
        assert first == second, f"{method} {tail}"
        assert first[0] == 404
    place.node.accounts.add_grant(
        archives.the_console(place.node), to="mia", role="researcher", target=Target("everything"), datastore="research"
    )
    assert place.ask("GET", "/datastores/research/dicomweb/studies").status_code == 200
    assert place.ask("POST", "/datastores/research/dicomweb/studies", data=data, content_type="application/dicom").status_code == 200


def test_t15_hidden_takes_no_longer_than_absent(place: Place) -> None:
    def taken_s(path: str) -> float:
        start = time.perf_counter()
        assert place.ask("GET", path).status_code == 404
        return time.perf_counter() - start

    samples: dict[str, list[float]] = {HIDDEN: [], ABSENT: []}
    for _ in range(40):
        for study, kept in samples.items():
            kept.append(taken_s(f"/dicomweb/studies/{study}/metadata"))
    hidden, absent = (statistics.median(kept) for kept in samples.values())
    assert 0.4 < hidden / absent < 2.5


@pytest.mark.parametrize("path", [
    "/studies?page=" + "9" * 5000, "/studies/1.2.3/series/1.2.3.1/instances/1.2.3.1.1/frames/" + "9" * 5000 + "/picture",
    "/studies/1.2.3/series/1.2.3.1?image=" + "9" * 5000, "/studies/" + "1" * 3000, "/studies/%00", "/studies?name=%00",
    "/studies?id=%ED%A0%80", "/studies?from=x&to=y",
])
def test_odd_addresses_are_no_faults(place: Place, path: str) -> None:
    assert place.ask("GET", path, browser=True).status_code in {200, 400, 404}


@pytest.mark.parametrize("target", [
    "https://evil.example/studies", "//evil.example/studies", "/\\evil.example", "/studies/../../evil", "javascript:alert(1)",
    "/studies\r\nSet-Cookie: a=b", "/studies\t//evil.example", "/studies@evil.example", "\\\\evil.example/studies", " /studies",
])
def test_signing_in_leads_nowhere_else(place: Place, target: str) -> None:
    answer = place.ask(
        "POST", "/login", browser=True, data={"name": "mia", "password": archives.PASSWORD, "next": target}
    )
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/studies")
    assert all(cookie.startswith("__Host-session=") for cookie in answer.headers.getlist("Set-Cookie"))
