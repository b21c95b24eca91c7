"""Searches: what one may see, and never an answer without its entry in the ledger."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.subject import Subject
from archive.db.engine import Database
from archive.db.tables import datastore, ledger_leaf
from archive.dicom.attributes import BY_KEYWORD, Level
from archive.errors import InvalidQuery, NotFound, OutOfSpace, Unavailable
from archive.index import search
from archive.keys.keyring import Keyring
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter, AuditRow, Ledger
from archive.services import query
from archive.services.query import Query, SearchRequest
from tests.index.samples import add_datastore, add_user, grant, scanned, store


class Desk:
    """An index with two studies, a reader of one of them, and the query service over it."""

    def __init__(self, database: Database, keyring: Keyring, now: datetime) -> None:
        self.database, self.now = database, now
        self.ledger = Ledger(keyring)
        self.query = Query(database, self.ledger, lambda: now)
        place = add_datastore(database, now)
        self.reader, self.stranger = add_user(database, now), add_user(database, now, "stranger")
        done = store(
            database, place, now, scanned(PatientName="CANARY^A", PatientID="1", Modality="CT"),
            scanned("2", "2.1", "2.1.1", PatientName="CANARY^B", PatientID="2"),
        )
        grant(database, place, self.reader, now, done[0].study_pk * 4 + 2)

    def find(self, subject: Subject, level: Level = Level.STUDY, datastore: str = "clinical", **options: Any) -> Any:
        keys = tuple((BY_KEYWORD[name], text) for name, text in options.pop("keys", {}).items())
        return self.query.find(subject, SearchRequest(level, datastore, keys, **options))

    def events(self) -> list[AuditRow]:
        with self.database.read() as tx:
            return self.ledger.search(tx, AuditFilter(kinds=(Kind.SEARCHED,)))


@pytest.fixture
def desk(database: Database, now: datetime, access_keyring: Keyring) -> Desk:
    """On each engine in turn."""
    return Desk(database, access_keyring, now)


def test_an_answer_holds_what_is_granted_and_is_in_the_ledger(desk: Desk) -> None:
    answer = desk.find(desk.reader, keys={"PatientName": "canary*"}, limit=10)
    assert [row["00100020"]["Value"] for row in answer.rows] == [["1"]]
    assert answer.total == 1
    [event] = desk.events()
    assert event.body is not None
    assert (event.principal_id, event.outcome, event.body["detail"]["keys"]) == (desk.reader.principal_id, 0, {"PatientName": "canary*"})
    with desk.database.read() as tx:
        [leaf] = tx.execute(sa.select(ledger_leaf.c.data)).scalars()
    assert b"canary" not in leaf.lower()


def test_nothing_granted_is_an_empty_answer_and_recorded_too(desk: Desk) -> None:
    answer = desk.find(desk.stranger, Level.SERIES, study_instance_uid="1.1")
    assert (answer.rows, answer.total) == ([], 0)
    [event] = desk.events()
    assert event.body is not None
    assert event.body["objects"] == [["study", "1.1"]]


def test_fuzzy_is_only_for_names(desk: Desk) -> None:
    assert desk.find(desk.reader, keys={"PatientName": "can", "PatientID": "1"}, fuzzy=True).total == 1
    assert desk.find(desk.reader, keys={"PatientName": "can"}).total == 0
    assert desk.find(desk.reader, keys={"PatientID": "x"}, fuzzy=True).total == 0


def test_a_name_of_hundreds_of_words_is_refused_and_not_asked_of_the_database(desk: Desk) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [first + second for first in letters for second in letters]
    with pytest.raises(InvalidQuery, match="PatientName takes at most 32 words"):
        desk.find(desk.reader, keys={"PatientName": " ".join(words[:33])}, fuzzy=True)
    assert desk.find(desk.reader, keys={"PatientName": " ".join(words[:32])}, fuzzy=True).total == 0
    assert desk.find(desk.reader, keys={"PatientName": "can a " * 170}, fuzzy=True).total == 1  # the same words again say nothing more


def test_rows_before_a_page_are_not_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for what comes after a billion rows that meet a filter had all of them held in memory."""
    place = add_datastore(desk.database, desk.now, "many")
    store(desk.database, place, desk.now, *(
        scanned(f"7.{n}", f"7.{n}.1", f"7.{n}.1.1", StudyTime="1030", TimezoneOffsetFromUTC="+0000") for n in range(20)
    ))
    grant(desk.database, place, desk.reader, desk.now)

    class Row(dict[str, Any]):
        """One that tells when it is gone."""

    read: list[weakref.ref[Row]] = []
    alive: list[int] = []
    page = Query._page

    def watched(self: Query, subject: Subject, request: SearchRequest) -> search.SearchPage:
        alive.append(sum(one() is not None for one in read))
        rows = [Row(row) for row in page(self, subject, request).rows]
        read.extend(map(weakref.ref, rows))
        return search.SearchPage(list(rows), None)

    monkeypatch.setattr(query, "HELD_ROWS", 2)
    monkeypatch.setattr(Query, "_page", watched)
    for offset, rows, total in ((1_000_000, 0, 20), (0, 3, None), (17, 3, 20), (18, 2, 20)):
        answer = desk.find(desk.reader, datastore="many", keys={"StudyTime": "1130"}, zone="+0100", offset=offset, limit=3)
        assert (len(answer.rows), max(alive) <= 6) == (rows, True), (offset, alive)
        assert answer.total == total or (total == 20 and answer.total is None)
        del answer


def test_what_no_row_may_meet_is_not_looked_for_in_a_whole_archive(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million studies each was read and held against the key, while whoever asked had a thread of the archive."""
    place = add_datastore(desk.database, desk.now, "many")
    store(desk.database, place, desk.now, *(
        scanned(f"7.{n}", f"7.{n}.1", f"7.{n}.1.1", PatientID=str(n), StudyTime="1030", TimezoneOffsetFromUTC="+0000") for n in range(20)
    ))
    grant(desk.database, place, desk.reader, desk.now)
    monkeypatch.setattr(query, "HELD_ROWS", 2)
    monkeypatch.setattr(query, "HELD_AT_MOST", 12)

    def found(text: str, **more: str) -> int:
        return len(desk.find(desk.reader, datastore="many", keys={"StudyTime": text, **more}, zone="+0100", limit=3).rows)

    with pytest.raises(InvalidQuery) as refused:
        found("0115")
    assert refused.value.remedy
    assert (found("1130"), found("0115", PatientID="7"), found("1130", PatientID="7")) == (3, 0, 1)


@pytest.mark.parametrize(("text", "found"), [
    ("5.0", 2), ("5", 2), ("5.00", 2), ("+5", 2), ("0.5e1", 2), ("50e-1", 2), ("5.01", 0), ("0", 1), ("-0", 1), ("0.00", 1), ("1E-7", 1),
    ("0.0000001", 1), ("1e999", 0),
])  # fmt: skip
def test_decimal_numbers_are_matched_however_they_are_written(desk: Desk, text: str, found: int) -> None:
    place = add_datastore(desk.database, desk.now, "numbers")
    values = [5, 5.0, 0.0, 1e-7, [3.5, 3.25]]
    store(desk.database, place, desk.now, *(scanned("7", "7.1", f"7.1.{n}", SliceThickness=value) for n, value in enumerate(values)))
    grant(desk.database, place, desk.reader, desk.now)
    answer = desk.find(desk.reader, Level.IMAGE, "numbers", keys={"SliceThickness": text})
    assert (answer.total, len(answer.rows)) == (found, found)
    assert desk.find(desk.reader, Level.IMAGE, "numbers", keys={"SliceThickness": "3.250"}).total == 1


def test_what_was_asked_for_is_not_kept(desk: Desk) -> None:
    """Where a page ended is; a thousand lists of UIDs were a gigabyte."""
    many = "\\".join(["1.1", *map(str, range(1000))])
    held = sys.getrefcount(many)
    assert len(desk.find(desk.reader, keys={"StudyInstanceUID": many}, limit=1).rows) == 1
    gc.collect()
    assert sys.getrefcount(many) == held


@pytest.mark.parametrize("level", [Level.STUDY, Level.SERIES])
def test_a_list_of_very_many_uids_is_asked_for_like_a_short_one(desk: Desk, level: Level) -> None:
    """As many as an identifier holds: more than PostgreSQL takes as parameters of one statement."""
    many = "\\".join(str(number) for number in range(70_000))
    assert desk.find(desk.reader, level, keys={"StudyInstanceUID": f"{many}\\1.1", "SeriesInstanceUID": ""}).total == 1
    assert desk.find(desk.reader, level, keys={"StudyInstanceUID": many}).total == 0


@pytest.mark.parametrize(
    ("keyword", "text"),
    [("StudyDate", "-"), ("StudyInstanceUID", "a"), ("PatientName", "a\0b"), ("PatientID", "\ud800")],
)
def test_what_cannot_be_matched_is_refused_without_its_value(desk: Desk, keyword: str, text: str) -> None:
    with pytest.raises(InvalidQuery, match=keyword) as refused:
        desk.find(desk.reader, keys={keyword: text})
    assert "\0" not in str(refused.value)


def test_unknown_datastore(desk: Desk) -> None:
    with pytest.raises(NotFound):
        desk.find(desk.reader, datastore="other")


def test_no_audit_no_data(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_tx: sa.Connection) -> None:
        raise OutOfSpace("the disk is full", remedy="make room")

    desk.database.before_commit = full
    with pytest.raises(Unavailable) as refused:
        desk.find(desk.reader)
    assert refused.value.remedy == "make room"
    desk.database.before_commit = lambda _tx: None
    assert desk.events() == []


def test_the_entry_is_durable_before_the_answer(desk: Desk) -> None:
    durable: list[bool] = []
    original: Callable[..., Any] = desk.database.group

    def group(work: Callable[[sa.Connection], Any], **options: Any) -> Any:
        answer = original(work, **options)
        durable.append(options.get("durable", False) and len(desk.events()) == 1)  # committed: another connection sees it
        return answer

    desk.database.group = group  # type: ignore[method-assign]
    desk.find(desk.reader)
    assert durable == [True]


def test_the_page_after_one_starts_where_that_ended(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    place = add_datastore(desk.database, desk.now, "many")
    dates = [f"202601{day:02}" for day in (5, 4, 3, 2, 1)]
    store(desk.database, place, desk.now, *(scanned(f"7.{n}", f"7.{n}.1", f"7.{n}.1.1", StudyDate=date) for n, date in enumerate(dates)))
    grant(desk.database, place, desk.reader, desk.now)
    asked = []
    real = search.find

    def watched(tx: sa.Connection, scope: Any, query: search.SearchQuery) -> search.SearchPage:
        asked.append(query.after)
        return real(tx, scope, query)

    monkeypatch.setattr(search, "find", watched)

    def pages(subject: Subject) -> list[str]:
        found = [desk.find(subject, datastore="many", limit=2, offset=start, total=False) for start in (0, 2, 4)]
        return [row["0020000D"]["Value"][0] for page in found for row in page.rows]

    assert pages(desk.reader) == ["7.0", "7.1", "7.2", "7.3", "7.4"]
    assert [after and after.study_date for after in asked] == [None, "20260104", "20260102"]
    # Someone else begins at the beginning, and a deny counts on the next page.
    grant(desk.database, place, desk.stranger, desk.now)
    assert desk.find(desk.stranger, datastore="many", limit=2, offset=2, total=False).rows[0]["0020000D"]["Value"] == ["7.2"]
    assert asked[-1] is None
    grant(desk.database, place, desk.reader, desk.now, effect=0)
    assert desk.find(desk.reader, datastore="many", limit=2, offset=2, total=True).rows == []


@pytest.mark.parametrize("addressed", [{}, {"study_instance_uid": "1.1"}])
def test_what_is_asked_for_by_an_empty_key_is_answered_at_any_address(desk: Desk, addressed: dict[str, str]) -> None:
    for level in (Level.SERIES, Level.IMAGE):
        [row] = desk.find(desk.reader, level, keys={"PatientID": "", "AccessionNumber": "*"}, **addressed).rows
        assert (row["00100020"]["Value"], "00080050" in row) == (["1"], True)


def test_instants_are_found_by_what_every_clock_showed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images whose clocks hung elsewhere those that were made then, with totals, limits and pages of them alone."""
    monkeypatch.setattr(query, "HELD_ROWS", 3)
    clocks = ["20260301110000+0000", "20260301120000+0100", "20260301120000+0000", "20260301060000-0500", "20260301120000", "", "20260302"]
    with desk.database.begin() as tx:
        place = tx.execute(sa.select(datastore.c.id)).scalars().first()
    assert place is not None
    made = [scanned("3", "3.1", f"3.1.{n}", AcquisitionDateTime=clock) for n, clock in enumerate(clocks)]
    offset = scanned("4", "4.1", "4.1.0", AcquisitionDateTime="20260301060000", TimezoneOffsetFromUTC="-0500")
    done = store(desk.database, place, desk.now, *made, offset)
    grant(desk.database, place, desk.stranger, desk.now, done[0].study_pk * 4 + 2)
    grant(desk.database, place, desk.stranger, desk.now, done[-1].study_pk * 4 + 2)

    def found(text: str, **options: Any) -> tuple[list[str], int | None]:
        options = {"keys": {"AcquisitionDateTime": text}, "limit": 10} | options
        answer = desk.find(options.pop("subject", desk.stranger), Level.IMAGE, **options)
        return [row["00080018"]["Value"][0] for row in answer.rows], answer.total

    same = ["3.1.0", "3.1.1", "3.1.3", "3.1.4", "4.1.0"]  # of 3.1.4 nobody knows where
    everything, total = found("20260301120000+0100")
    assert (sorted(everything), total) == (same, 5)
    pages = [found("20260301120000+0100", limit=2, offset=at) for at in (0, 2, 4, 6)]
    assert [one for page, _ in pages for one in page] == everything
    assert [total for _, total in pages][-1] == 5
    assert found("20260301120000+0100", study_instance_uid="4") == (["4.1.0"], 1)
    assert found("20260301120000+0100", study_instance_uid="4", include="all") == (["4.1.0"], 1)
    assert found("20260301120000+0100", study_instance_uid="4", usual=False) == (["4.1.0"], 1)
    assert found("20260301120000+0100", subject=desk.reader) == ([], 0)
    assert sorted(found("20260301120000")[0]) == ["3.1.1", "3.1.2", "3.1.4"]  # as it was read
    assert desk.events()[0].body["detail"]["keys"] == {"AcquisitionDateTime": "20260301120000"}  # type: ignore[index]
    assert desk.events()[-1].body["detail"]["keys"] == {"AcquisitionDateTime": "20260301120000+0100"}  # type: ignore[index]
