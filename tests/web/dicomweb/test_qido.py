"""QIDO-RS: rows E01 to E19 of the DICOMweb checklist."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from archive.dicom.attributes import ATTRIBUTES, Level, lookup
from archive.errors import Unavailable
from archive.services.query import SearchRequest
from archive.web.dicomweb import qido
from tests.web.fakes import FakeNode
from tests.web.samples import STUDY, instance

BASE = "https://pacs.example:8443/dicomweb"


@pytest.fixture
def filled(node: FakeNode) -> FakeNode:
    """Two studies, the first of two series with two and one instances."""
    for data in (instance(1), instance(2), instance(1, series=2), instance(1, study=2, PatientName="Müller^Jörg", PatientID="C2")):
        node.add(data)
    return node


def asked(node: FakeNode) -> SearchRequest:
    return node.query.asked[-1]


def keys(node: FakeNode) -> dict[str, str]:
    return {attribute.keyword: text for attribute, text in asked(node).keys}


def values(answer: TestResponse, tag: str) -> list[Any]:
    return [row[tag]["Value"][0] for row in answer.json]


@pytest.mark.parametrize(
    ("path", "level", "count"),
    [
        ("studies", Level.STUDY, 2),
        ("series", Level.SERIES, 3),
        ("instances", Level.IMAGE, 4),
        (f"studies/{STUDY}.1/series", Level.SERIES, 2),
        (f"studies/{STUDY}.1/instances", Level.IMAGE, 3),
        (f"studies/{STUDY}.1/series/{STUDY}.1.1/instances", Level.IMAGE, 2),
    ],
)
def test_e01_six_resources(client: FlaskClient, filled: FakeNode, path: str, level: Level, count: int) -> None:
    answer = client.get(f"/dicomweb/{path}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/dicom+json"
    assert answer.headers["X-Total-Count"] == str(count)
    assert len(answer.json) == count
    assert asked(filled).level is level
    for row in answer.json:
        assert ("0020000D" in row) is True
        assert ("0020000E" in row) is (level is not Level.STUDY)
        assert ("00080018" in row) is (level is Level.IMAGE)
        assert list(row) == sorted(row)


def test_e02_nothing_matches(client: FlaskClient, filled: FakeNode) -> None:
    answer = client.get("/dicomweb/studies?PatientID=nobody")
    assert (answer.status_code, answer.data, answer.headers["X-Total-Count"]) == (200, b"[]", "0")


def test_g04_what_may_not_be_seen_is_not_found(client: FlaskClient, filled: FakeNode) -> None:
    answer = client.get("/dicomweb/studies", headers={"Authorization": "Bearer ole-token"})
    assert (answer.status_code, answer.data, answer.headers["X-Total-Count"]) == (200, b"[]", "0")


def test_e03_percent_encoded_utf8(client: FlaskClient, filled: FakeNode) -> None:
    answer = client.get("/dicomweb/studies?PatientName=M%C3%BC*")
    assert keys(filled) == {"PatientName": "Mü*"}
    assert values(answer, "0020000D") == [f"{STUDY}.2"]
    client.get("/dicomweb/studies?PatientName=a%20b+c%26d%3De")
    assert keys(filled) == {"PatientName": "a b c&d=e"}
    assert client.get("/dicomweb/studies?PatientName=%ff%fe").status_code == 200


def test_e04_fuzzymatching(client: FlaskClient, filled: FakeNode) -> None:
    for text, fuzzy in (("true", True), ("false", False)):
        assert client.get(f"/dicomweb/studies?fuzzymatching={text}&PatientName=x").status_code == 200
        assert asked(filled).fuzzy is fuzzy
    assert client.get("/dicomweb/studies?fuzzymatching=yes").status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        "Nonsense=1", "99990010=x", "0010001=x", "PatientsName=x", "patientname=x", "0040A043.00080104=x", "=x", "%3Cscript%3E=1",
        "StudyDate=today", "StudyDate=-", "InstanceNumber=1", "Modality=CT", "SOPInstanceUID=1.2", "00081190=http://x", "Limit=1",
    ],
)
def test_e07_a_key_that_is_not_understood_never_widens(client: FlaskClient, filled: FakeNode, query: str) -> None:
    answer = client.get(f"/dicomweb/studies?{query}")
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json")
    assert "CANARY" not in answer.text
    assert "<script>" not in answer.text


def test_e07_the_answer_names_the_key_and_not_the_value(client: FlaskClient, filled: FakeNode) -> None:
    answer = client.get("/dicomweb/studies?PatientsName=CANARY")
    assert "PatientsName" in answer.json["detail"]
    assert "CANARY" not in answer.text
    answer = client.get("/dicomweb/studies?StudyDate=CANARY")
    assert "StudyDate" in answer.json["detail"]
    assert "CANARY" not in answer.text


@pytest.mark.parametrize("noise", ["_=1718", "token=abc", "access_token=abc", "accept=application/dicom%2Bjson", "_=1&_=2"])
def test_2a10_noise_is_ignored(client: FlaskClient, filled: FakeNode, noise: str) -> None:
    answer = client.get(f"/dicomweb/studies?PatientID=C2&{noise}")
    assert answer.status_code == 200
    assert keys(filled) == {"PatientID": "C2"}
    assert len(answer.json) == 1


@pytest.mark.parametrize("name", ["StudyInstanceUID", "0020000D", "0020000d"])
def test_e08_keyword_and_tag(client: FlaskClient, filled: FakeNode, name: str) -> None:
    answer = client.get(f"/dicomweb/studies?{name}={STUDY}.2")
    assert keys(filled) == {"StudyInstanceUID": f"{STUDY}.2"}
    assert values(answer, "0020000D") == [f"{STUDY}.2"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=", "limit=1.5", "limit=%2B1", "limit=1&limit=1", "limit=9999999999999"]
)
def test_e09_bad_limits(client: FlaskClient, filled: FakeNode, query: str) -> None:
    assert client.get(f"/dicomweb/studies?{query}").status_code == 400
    assert filled.query.asked == []


@pytest.mark.parametrize("query", ["offset=-1", "offset=x", "offset=", "offset=1&offset=2", "offset=%D9%A1"])
def test_e09_bad_offsets(client: FlaskClient, filled: FakeNode, query: str) -> None:
    assert client.get(f"/dicomweb/studies?{query}").status_code == 400


def test_e09_past_the_end(client: FlaskClient, filled: FakeNode) -> None:
    answer = client.get("/dicomweb/instances?offset=100&limit=5")
    assert (answer.status_code, answer.data, answer.headers["X-Total-Count"]) == (200, b"[]", "4")


def test_e09_the_archives_own_bound_is_told(client: FlaskClient, filled: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qido, "MAX_ROWS", 2)
    answer = client.get("/dicomweb/instances")
    assert len(answer.json) == 2
    assert answer.headers["Warning"].startswith("299 ")
    assert "Warning" not in client.get("/dicomweb/instances?limit=1").headers
    assert "Warning" in client.get("/dicomweb/instances?limit=500").headers
    assert "Warning" not in client.get("/dicomweb/instances?offset=2").headers
    assert "Warning" not in client.get("/dicomweb/studies").headers


def test_e10_paging_is_complete(client: FlaskClient, filled: FakeNode) -> None:
    found = []
    for offset in range(0, 10, 3):
        found += values(client.get(f"/dicomweb/instances?limit=3&offset={offset}"), "00080018")
    assert sorted(found) == sorted(filled.kept)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("includefield=00081080", {"AdmittingDiagnosesDescription"}),
        ("includefield=AdmittingDiagnosesDescription&includefield=00101010", {"AdmittingDiagnosesDescription", "PatientAge"}),
        (
            "includefield=00081030,00080060,%2000080090,00100030,",
            {"StudyDescription", "Modality", "ReferringPhysicianName", "PatientBirthDate"},
        ),
        ("includefield=00081030%2C00080060", {"StudyDescription", "Modality"}),
        ("includefield=00081140,Rows", {"Rows"}),
        ("includefield=0009,abc", set()),
        ("includefield=", set()),
        ("", set()),
    ],
)
def test_e11_includefield(client: FlaskClient, filled: FakeNode, query: str, expected: set[str]) -> None:
    assert client.get(f"/dicomweb/studies?{query}").status_code == 200
    assert {attribute.keyword for attribute in asked(filled).include} == expected  # type: ignore[union-attr]


def test_e11_includefield_all_and_nonsense(client: FlaskClient, filled: FakeNode) -> None:
    for query in ("includefield=all", "includefield=00080060,all", "includefield=all&includefield=00080060"):
        assert client.get(f"/dicomweb/studies?{query}").status_code == 200
        assert asked(filled).include == "all"
    assert client.get("/dicomweb/studies?includefield=%3Cscript%3E").status_code == 400


def test_e11_what_is_matched_is_answered(client: FlaskClient, filled: FakeNode) -> None:
    client.get("/dicomweb/studies?PatientAge=030Y&PatientID=C1")
    assert [attribute.keyword for attribute in asked(filled).include] == ["PatientAge"]  # type: ignore[union-attr]


def test_e12_2a7_every_row_has_an_absolute_retrieve_url(client: FlaskClient, filled: FakeNode) -> None:
    study, series = f"{BASE}/studies/{STUDY}.1", f"{BASE}/studies/{STUDY}.1/series/{STUDY}.1.1"
    headers = {"Host": "127.0.0.1"}
    assert study in values(client.get("/dicomweb/studies", headers=headers), "00081190")
    assert series in values(client.get(f"/dicomweb/studies/{STUDY}.1/series", headers=headers), "00081190")
    answer = client.get(f"/dicomweb/studies/{STUDY}.1/series/{STUDY}.1.1/instances", headers=headers)
    assert values(answer, "00081190")[0] == f"{series}/instances/{STUDY}.1.1.1"
    assert answer.json[0]["00081190"]["vr"] == "UR"


def test_e12_a_row_without_its_parents_takes_them_from_the_address() -> None:
    request = SearchRequest(level=Level.IMAGE, datastore="clinical", keys=(), study_instance_uid="1.2", series_instance_uid="1.3")
    from flask import Flask

    from archive.web.context import KEY

    app = Flask("x")
    app.extensions[KEY] = FakeNode()
    with app.app_context():
        row = qido.located({"00080018": {"vr": "UI", "Value": ["1.4"]}}, request)
    assert row["00081190"]["Value"] == ["https://127.0.0.1:8443/dicomweb/studies/1.2/series/1.3/instances/1.4"]


def test_another_datastore_is_asked_by_name(client: FlaskClient, filled: FakeNode) -> None:
    answer = client.get("/datastores/research/dicomweb/studies")
    assert asked(filled).datastore == "research"
    assert values(answer, "00081190")[0].startswith("https://pacs.example:8443/datastores/research/dicomweb/studies/")
    client.get("/dicomweb/studies")
    assert asked(filled).datastore == "clinical"


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "",
        "*/*",
        "application/dicom+json",
        "application/json",
        "application/dicom+json, application/json",
        "application/dicom+json, multipart/related; type=application/octet-stream",
        "toto, application/dicom+json",
        "text/html,*/*;q=0.1",
    ],
)
def test_e14_accepted(client: FlaskClient, accept: str | None) -> None:
    answer = client.get("/dicomweb/studies", headers={"Accept": accept})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/dicom+json")


@pytest.mark.parametrize(
    "accept", ["text/plain", "multipart/related", "application/dicom"]
)
def test_e14_not_accepted(client: FlaskClient, node: FakeNode, accept: str) -> None:
    assert client.get("/dicomweb/studies", headers={"Accept": accept}).status_code == 406
    assert node.query.asked == []


@pytest.mark.parametrize("query", ["PatientID=1&PatientID=1", "PatientID=1&00100020=1", "StudyDate=20200101&StudyDate=20200102"])
def test_e15_the_same_key_twice(client: FlaskClient, query: str) -> None:
    assert client.get(f"/dicomweb/studies?{query}").status_code == 400


def test_e15_an_empty_value_matches_everything(client: FlaskClient, filled: FakeNode) -> None:
    assert len(client.get("/dicomweb/studies?PatientID=").json) == 2


def test_e16_values_are_passed_on_as_they_are(client: FlaskClient, filled: FakeNode) -> None:
    for text in ("%25", "_", "%22", "%27%20OR%20%271%27%3D%271", "%5C", "a%00b", "[a]"):
        assert client.get(f"/dicomweb/studies?PatientID={text}").json == []


@pytest.mark.parametrize("separator", [",", "%2C", "%5C", "%5C%5C", "%5C%5C%5C", ",,", ", "])
def test_e19_2a8_uid_lists(client: FlaskClient, filled: FakeNode, separator: str) -> None:
    answer = client.get(f"/dicomweb/studies?StudyInstanceUID={STUDY}.1{separator}{STUDY}.2{separator}")
    assert len(answer.json) == 2
    assert len(client.get(f"/dicomweb/studies?StudyInstanceUID={separator}{STUDY}.2").json) == 1


@pytest.mark.parametrize("text", [",", "%5C", "%5C%5C", "%20,", "%00"])
def test_2a8_a_list_of_nothing_is_not_everything(client: FlaskClient, filled: FakeNode, text: str) -> None:
    assert client.get(f"/dicomweb/studies?StudyInstanceUID={text}").status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        "limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060",
        "limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060&StudyInstanceUID=1.2.3",
        "00100020=C1&limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060",
        "limit=25&offset=0&includefield=00081030%2C00080060&StudyDate=19521125-20210507",
    ],
)
def test_e18_ohif(client: FlaskClient, filled: FakeNode, query: str) -> None:
    assert client.get(f"/dicomweb/studies?{query}").status_code == 200


def test_b15_a_malformed_uid_in_the_path(client: FlaskClient, filled: FakeNode) -> None:
    for path in ("studies/x/series", f"studies/{STUDY}.1/series/x/instances", "studies/1..2/instances", f"studies/{'1' * 65}/series"):
        assert client.get(f"/dicomweb/{path}").status_code == 400


def test_a22_a_padded_uid_in_the_path(client: FlaskClient, filled: FakeNode) -> None:
    for padding in ("%00", "%20", "%20%00"):
        assert len(client.get(f"/dicomweb/studies/{STUDY}.1{padding}/series").json) == 2


def test_no_audit_no_data(client: FlaskClient, filled: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise Unavailable("the access could not be recorded")

    monkeypatch.setattr(filled.query, "find", refuse)
    answer = client.get("/dicomweb/studies")
    assert answer.status_code == 503
    assert STUDY not in answer.text


def test_the_count_may_be_left_out(client: FlaskClient, filled: FakeNode) -> None:
    filled.query.total = None
    assert "X-Total-Count" not in client.get("/dicomweb/studies").headers


def test_head_has_no_body(client: FlaskClient, filled: FakeNode) -> None:
    answer = client.head("/dicomweb/studies")
    assert (answer.status_code, answer.data) == (200, b"")
    assert answer.headers["X-Total-Count"] == "2"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([a.keyword for a in ATTRIBUTES] + ["limit", "offset", "junk", "includefield"]), st.text(max_size=20), max_size=3
    )
)
def test_any_query_is_answered_or_refused_with_a_reason(client: FlaskClient, filled: FakeNode, query: dict[str, str]) -> None:
    answer = client.get("/dicomweb/instances", query_string=query)
    assert answer.status_code in {200, 400}
    json.loads(answer.data)


def test_keys_of_every_level_are_taken_at_or_above_it() -> None:
    order = [Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE]
    for attribute in ATTRIBUTES:
        if attribute.computed or attribute.vr == "SQ" or attribute.keyword == "TimezoneOffsetFromUTC":  # says how others are meant
            continue
        for level in order[1:]:
            allowed = order.index(attribute.level) <= order.index(level)
            try:
                found = qido.parse([(attribute.tag_hex, ["1"])], level, "clinical")
                assert allowed
                assert found.keys == ((lookup(attribute.keyword), "1"),)
            except qido.InvalidQuery:
                assert not allowed
