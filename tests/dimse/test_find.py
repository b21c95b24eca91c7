"""C-FIND: dcmtk and pynetdicom ask an archive with content; every answer is what the one search gives, and nothing unseen shows."""

from __future__ import annotations

import io
import itertools
import json
import socket
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from archive.access.grants import Target
from archive.dicom.attributes import BY_KEYWORD, Level
from archive.dimse import find as find_module
from archive.errors import InvalidQuery, Unavailable
from archive.ledger.audit import Kind
from archive.services.query import SearchRequest
from archive.web.dicomweb import qido
from tests.dimse.clinic import EXPLICIT, FIND, IMPLICIT, PATIENT_FIND, Clinic, clinic, identifier
from tests.dimse.rawpeer import AC, DATA, RawPeer, command, element, p_data, uid_value
from tests.services.archives import instance, the_console

EVERYTHING = Target("everything")
A900, CANCEL = 0xA900, 0xFE00


def sequence(**keys: Any) -> list[Dataset]:
    item = Dataset()
    for keyword, value in keys.items():
        setattr(item, keyword, value)
    return [item]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """Four studies of three patients; WS sees all, NARROW one study, NOBODY nothing."""
    with clinic(tmp_path_factory.mktemp("find")) as it:
        requested = sequence(ScheduledProcedureStepID="S7", RequestedProcedureID="R1")
        it.put(
            *(instance(n, study="1.2.3") for n in (1, 2, 3)),
            *(instance(n, study="1.2.3", series="1.2.3.9", Modality="SR", SeriesNumber=2, SeriesDescription="Notes",
                       RequestAttributesSequence=requested) for n in (1, 2)),
            instance(1, study="1.2.4", PatientID="P2", PatientName="Müller^Jürgen", SpecificCharacterSet="ISO_IR 100",
                     StudyDate="20250704", AccessionNumber="B2", Modality="MR", StudyDescription="Knee left",
                     AcquisitionDateTime="20250704120000+0200"),
            instance(1, study="1.2.5", PatientID="P2", PatientName="Müller^Jürgen", SpecificCharacterSet="ISO_IR 100",
                     StudyDate="20250101", StudyTime="235959.5", AccessionNumber="", Modality="US"),
            instance(1, study="1.2.6", PatientID="P3", PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう", PatientSex="M",
                     SpecificCharacterSet="ISO_IR 192", StudyDate=None, AccessionNumber="C[3]"),
        )
        it.plain_peer("WS", target=EVERYTHING)
        it.plain_peer("NARROW", target=Target("study", "1.2.4"))
        it.plain_peer("NOBODY", target=Target("study", "1.2.5"))
        it.grant("NOBODY", Target("study", "1.2.5"), deny=True)
        yield it


def uids(found: list[Dataset], keyword: str = "StudyInstanceUID") -> list[str]:
    return sorted(str(one[keyword].value) for one in found)


def test_findscu_of_dcmtk_plain_and_over_tls(made: Clinic, program: Callable[[str, str], str]) -> None:
    findscu = program("findscu", "dcmtk")
    keys = ["QueryRetrieveLevel=STUDY", "PatientName=*üller*", "StudyInstanceUID", "ModalitiesInStudy", "NumberOfStudyRelatedInstances"]
    options = [word for key in keys for word in ("-k", key)]
    certificate = made.tls_peer("TLSWS", target=EVERYTHING)
    for tls, name in ((None, "WS"), (certificate, "TLSWS")):
        done = made.dcmtk(findscu, name, "-S", "-v", "-k", "SpecificCharacterSet=ISO_IR 192", *options, tls=tls)
        assert done.returncode == 0, done.stderr
        output = done.stdout + done.stderr
        assert output.count("(Pending)") == 2
        for text in ("[1.2.4", "[1.2.5", "Müller^Jürgen", "ISO_IR 192", "[STRONGROOM]", "[ONLINE]", "(Success)"):
            assert text in output, text
    for model, level, uid, expected in (
        ("-P", "PATIENT", [], 3), ("-P", "STUDY", ["PatientID=P2"], 2), ("-S", "SERIES", ["StudyInstanceUID=1.2.3"], 2),
        ("-S", "IMAGE", ["StudyInstanceUID=1.2.3", "SeriesInstanceUID=1.2.3.9"], 2), ("-O", "STUDY", ["PatientID=P1"], 1),
    ):
        options = [word for key in (f"QueryRetrieveLevel={level}", *uid, "PatientName=") for word in ("-k", key)]
        done = made.dcmtk(findscu, "WS", model, "-v", *options)
        assert (done.stdout + done.stderr).count("(Pending)") == expected, (level, done.stderr)


def test_what_every_answer_has(made: Clinic) -> None:
    found = made.find("WS", "STUDY", PatientID="P1", StudyInstanceUID="", PatientBirthDate="", ModalitiesInStudy="", RetrieveURL="",
                      NumberOfStudyRelatedSeries="", NumberOfStudyRelatedInstances="", SOPClassesInStudy="", ReasonForStudy="")
    assert len(found) == 1
    one = found[0]
    assert (one.QueryRetrieveLevel, one.RetrieveAETitle, one.InstanceAvailability) == ("STUDY", "STRONGROOM", "ONLINE")
    assert one.SpecificCharacterSet == "ISO_IR 100"
    assert sorted(one.ModalitiesInStudy) == ["CT", "SR"]
    assert (one.NumberOfStudyRelatedSeries, one.NumberOfStudyRelatedInstances) == (2, 5)
    assert one.PatientBirthDate == ""
    assert one.ReasonForStudy == ""
    assert "PatientName" not in one
    assert [int(element.tag) for element in one] == sorted(int(element.tag) for element in one)


@pytest.mark.parametrize(("root", "level", "keys"), [
    (FIND, "", {"StudyInstanceUID": ""}), (FIND, "NONSENSE", {}), (FIND, "PATIENT", {"PatientID": "P1"}),
    (FIND, "SERIES", {"SeriesInstanceUID": ""}), (FIND, "SERIES", {"StudyInstanceUID": ""}), (FIND, "SERIES", {"StudyInstanceUID": "*"}),
    (FIND, "SERIES", {"StudyInstanceUID": ["1.2.3", "1.2.4"]}), (FIND, "IMAGE", {"StudyInstanceUID": "1.2.3"}),
    (FIND, "IMAGE", {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.?"}),
    (PATIENT_FIND, "STUDY", {"StudyInstanceUID": ""}), (PATIENT_FIND, "STUDY", {"PatientID": "P*"}),
    (PATIENT_FIND, "SERIES", {"PatientID": "P1"}), (FIND, "STUDY", {"StudyDate": "2025*"}), (FIND, "STUDY", {"StudyInstanceUID": "abc"}),
])  # fmt: skip
def test_what_does_not_match_its_sop_class(made: Clinic, root: str, level: str, keys: dict[str, Any]) -> None:
    """A missing unique key never means everything."""
    assert made.ask("WS", level, root=root, **keys) == (A900, [])


def test_relational_queries_when_negotiated(made: Clinic) -> None:
    relational = {FIND: b"\1\0\0"}
    assert uids(made.find("WS", "SERIES", extended=relational, SeriesInstanceUID=""), "SeriesInstanceUID") == [
        "1.2.3.1", "1.2.3.9", "1.2.4.1", "1.2.5.1", "1.2.6.1",
    ]
    assert len(made.find("WS", "IMAGE", extended=relational, PatientID="P2", SOPInstanceUID="")) == 2
    assert made.ask("WS", "SERIES", extended={FIND: b"\0\0\0"}, SeriesInstanceUID="")[0] == A900
    fuzzy = {FIND: b"\0\0\1"}
    assert uids(made.find("WS", "STUDY", extended=fuzzy, PatientName="jürg müll", CharacterSet="ISO_IR 192", StudyInstanceUID="")) == [
        "1.2.4", "1.2.5",
    ]
    assert made.find("WS", "STUDY", PatientName="jurg mull", StudyInstanceUID="") == []


@pytest.mark.parametrize(("keys", "expected"), [
    ({"StudyDate": "20250101-20251231"}, ["1.2.4", "1.2.5"]), ({"StudyDate": "-20250101"}, ["1.2.5"]), ({"StudyDate": "*"}, None),
    ({"StudyTime": "2359-"}, ["1.2.5"]), ({"PatientName": "müller^j?rgen"}, ["1.2.4", "1.2.5"]),
    ({"PatientName": "MULLER*"}, ["1.2.4", "1.2.5"]),
    ({"PatientName": "山田*"}, ["1.2.6"]), ({"AccessionNumber": "C[3]"}, ["1.2.6"]), ({"AccessionNumber": '""'}, ["1.2.5"]),
    ({"ModalitiesInStudy": "SR"}, ["1.2.3"]), ({"ModalitiesInStudy": ["MR", "US"]}, ["1.2.4", "1.2.5"]), ({"Modality": "SR"}, ["1.2.3"]),
    ({"StudyInstanceUID": ["1.2.3", "1.2.6", "1.2.99"]}, ["1.2.3", "1.2.6"]), ({"NumberOfStudyRelatedInstances": "5"}, ["1.2.3"]),
    ({"SOPClassesInStudy": "1.2.840.10008.5.1.4.1.1.2"}, None), ({"PatientSex": "M"}, ["1.2.6"]), ({"PatientSex": "*"}, None),
    ({"StudyDescription": "knee*"}, ["1.2.4"]), ({"InstanceAvailability": "OFFLINE"}, []),
    ({"PatientID": ["P1", "P3"]}, ["1.2.3", "1.2.6"]),
    ({"RetrieveAETitle": "ELSEWHERE"}, None), ({"TimezoneOffsetFromUTC": "+0100"}, None), ({"PatientName": "O'Brien"}, []),
])  # fmt: skip
def test_matching(made: Clinic, keys: dict[str, Any], expected: list[str] | None) -> None:
    keys = {"StudyInstanceUID": "", **keys}
    found = made.find("WS", "STUDY", CharacterSet="ISO_IR 192", **keys)
    assert uids(found) == (expected if expected is not None else ["1.2.3", "1.2.4", "1.2.5", "1.2.6"])


def test_dates_and_times_with_an_offset_are_matched_by_the_instant(made: Clinic) -> None:
    image = {"StudyInstanceUID": "1.2.4", "SeriesInstanceUID": "1.2.4.1", "SOPInstanceUID": ""}
    for text, count in (
        ("20250704100000+0000", 1), ("20250704120000+0000", 0), ("2025070406-0400", 1), ("20250704055959-0400-20250704060001-0400", 1),
        ("20250704120000", 1), ("-20250704095959+0000", 0),
    ):  # fmt: skip
        assert len(made.find("WS", "IMAGE", AcquisitionDateTime=text, **image)) == count, text
    series = {"StudyInstanceUID": "1.2.4", "SeriesInstanceUID": "", "AcquisitionDateTime": "20250704100000+0000"}
    assert made.ask("WS", "SERIES", **series)[0] == 0
    assert len(made.find("WS", "SERIES", **series)) == 1
    assert made.find("WS", "SERIES", **{**series, "AcquisitionDateTime": "20250801100000+0000"}) == []


def test_two_hundred_and_forty_nine_uids(made: Clinic) -> None:
    many = [f"1.2.826.0.1.3680043.8.498.{n:030d}" for n in range(10**29, 10**29 + 248)]
    assert uids(made.find("WS", "STUDY", StudyInstanceUID=[*many, "1.2.3"])) == ["1.2.3"]


def test_keys_inside_sequences(made: Clinic) -> None:
    def series(**keys: Any) -> list[Dataset]:
        return made.find("WS", "SERIES", StudyInstanceUID="1.2.3", SeriesInstanceUID="", RequestAttributesSequence=sequence(**keys))

    assert len(series(ScheduledProcedureStepID="")) == 2
    found = series(ScheduledProcedureStepID="S?", RequestedProcedureID="")
    assert uids(found, "SeriesInstanceUID") == ["1.2.3.9"]
    item = found[0].RequestAttributesSequence[0]
    assert (item.ScheduledProcedureStepID, item.RequestedProcedureID) == ("S7", "R1")
    assert len(series(ScheduledProcedureStepID="S7")[0].RequestAttributesSequence[0]) == 1
    assert series(ScheduledProcedureStepID="S7", RequestedProcedureID="R2") == []
    assert series(ScheduledProcedureStepID="s7") == []
    body = made.events(Kind.SEARCHED)[0].body
    assert body is not None
    assert body["detail"]["also"] == ["00400275.00400009"]  # that it was asked for, not what
    assert "s7" not in str(body)


def test_keys_that_nobody_can_match_are_said_to_be_so(made: Clinic) -> None:
    with made.association("WS", FIND) as association:
        wanted = identifier("STUDY", StudyInstanceUID="1.2.3", ReasonForStudy="pain", StudyStatusID="")
        answers = [(int(status.Status), found) for status, found in association.send_c_find(wanted, FIND)]
    assert [status for status, _ in answers] == [0xFF01, 0]
    assert answers[0][1] is not None
    assert answers[0][1].ReasonForStudy == ""


# --- one matcher with QIDO-RS -------------------------------------------------------------------------------------------------------

_VALUES: dict[str, list[str]] = {
    "PatientName": ["", "*", "müller*", "Canary^Test", "*TEST", "Yamada", "=山田^太郎", "c?nary^*", "^", "x" * 1100],
    "PatientID": ["", "P1", "p1", "P?", " P2 ", "P1\0"],
    "StudyDate": ["", "20250704", "20250101-", "-20251231", "20260102-20260102", "garbage", '""'],
    "StudyTime": ["030405", "03", "23-", "9999"],
    "AccessionNumber": ["A1", "a1", "*[*", '""'],
    "ModalitiesInStudy": ["CT", "M?", "XX"],
    "StudyDescription": ["Knee*", "*LEFT"],
    "StudyInstanceUID": ["1.2.3", "1.2.3\\1.2.5", "1.2.3,1.2.4", "1..2"],
    "SeriesDescription": ["notes", "*"],
    "InstanceNumber": ["1", "01"],
}


def test_the_same_queries_through_both_doors(made: Clinic) -> None:
    """services.query.Query.find is what QIDO-RS asks: the same studies, the same values, the same refusals."""
    pairs = [(keyword, text) for keyword, texts in _VALUES.items() for text in texts]
    asked: list[tuple[tuple[str, str], ...]] = [(pair,) for pair in pairs]
    asked += [both for n, both in enumerate(itertools.combinations(pairs, 2)) if n % 11 == 0 and both[0][0] != both[1][0]]
    with made.node.core.database.read() as tx:
        from archive.access import principals

        row = principals.find(tx, "WS", ("device",))
    from archive.access.subject import Subject

    subject = Subject(row["id"], "WS", "device", "dimse")
    returned = ["StudyInstanceUID", "PatientName", "PatientID", "StudyDate", "StudyTime", "NumberOfStudyRelatedInstances"]
    with made.association("WS", FIND) as association:
        for keys in asked:
            request = SearchRequest(
                Level.STUDY, "clinical", tuple((BY_KEYWORD[keyword], text) for keyword, text in keys),
                include=tuple(BY_KEYWORD[keyword] for keyword in returned),
            )
            try:
                rows = made.node.query.find(subject, request).rows
            except InvalidQuery:
                rows = None
            wanted = identifier("STUDY", CharacterSet="ISO_IR 192", **dict.fromkeys(returned, "") | dict(keys))
            answers = list(association.send_c_find(wanted, FIND))
            if rows is None:
                assert int(answers[-1][0].Status) == A900, keys
                continue
            assert int(answers[-1][0].Status) == 0, keys
            found = [one for _, one in answers[:-1] if one is not None]
            assert len(found) == len(rows), keys
            for one, row_ in zip(found, rows, strict=True):
                there = json.loads(one.to_json())
                for keyword in returned:
                    tag = BY_KEYWORD[keyword].tag_hex
                    assert there[tag].get("Value", []) == row_[tag].get("Value", []), (keys, keyword)


def test_the_same_sequence_keys_through_both_doors(made: Clinic) -> None:
    """The addresses of QIDO-RS, read by its own parser, and C-FIND find the same series (checklist E08)."""
    from archive.access import principals
    from archive.access.subject import Subject
    from archive.web.dicomweb import qido

    with made.node.core.database.read() as tx:
        row = principals.find(tx, "WS", ("device",))
    subject = Subject(row["id"], "WS", "device", "dimse")
    some = 0
    for keys in (
        {"ScheduledProcedureStepID": "S7"}, {"ScheduledProcedureStepID": "S?"}, {"ScheduledProcedureStepID": "s7"},
        {"ScheduledProcedureStepID": "S7", "RequestedProcedureID": "R1"}, {"ScheduledProcedureStepID": "S7", "RequestedProcedureID": "R2"},
        {"ScheduledProcedureStepID": "*"}, {"ScheduledProcedureStepID": ""}, {"RequestedProcedureID": "R*"}, {"RequestedProcedureID": '""'},
    ):
        found = made.find("WS", "SERIES", StudyInstanceUID="1.2.3", SeriesInstanceUID="", RequestAttributesSequence=sequence(**keys))
        for spelled in (
            {f"RequestAttributesSequence.{keyword}": [text] for keyword, text in keys.items()},
            {f"00400275.{tag_for_keyword(keyword):08x}": [text] for keyword, text in keys.items()},
        ):
            asked = qido.parse(spelled.items(), Level.SERIES, "clinical", "1.2.3")
            rows = made.node.query.find(subject, asked).rows
            assert {one["0020000E"]["Value"][0] for one in rows} == set(uids(found, "SeriesInstanceUID")), keys
        some += bool(found)
    assert 3 < some < 9


# --- character sets -----------------------------------------------------------------------------------------------------------------


def test_the_character_sets_of_the_corpus(tmp_path: Path, corpus: Path) -> None:
    """Each file is found by its name in Unicode, and answered in UTF-8 and in its own character set."""
    files = [path for path in sorted(corpus.rglob("chr*.dcm")) if "hostile" not in str(path)]
    assert len(files) >= 16
    declared = {}
    with clinic(tmp_path) as it:
        it.plain_peer("WS", target=EVERYTHING)
        for n, path in enumerate(files):
            data, declared[f"1.2.50.{n}"] = with_uids(path, f"1.2.50.{n}")
            it.put(data)
        rows = it.find("WS", "STUDY", CharacterSet="ISO_IR 192", StudyInstanceUID="", PatientName="")
        named = [one for one in rows if str(one.PatientName)]
        assert len(named) >= 14
        in_their_own = 0
        for one in named:
            name, uid = str(one.PatientName), str(one.StudyInstanceUID)
            assert "\x1b" not in name
            assert "\ufffd" not in name
            found = it.find("WS", "STUDY", CharacterSet="ISO_IR 192", PatientName=name, StudyInstanceUID="")
            assert uid in uids(found), name
            answer = it.find("WS", "STUDY", CharacterSet=declared[uid], StudyInstanceUID=uid, PatientName="")[0]
            assert answer.SpecificCharacterSet in (declared[uid], "ISO_IR 192")
            in_their_own += answer.SpecificCharacterSet == declared[uid]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pydicom, which reads the answer
                # pydicom 3.0 leaves these escape sequences in names it reads.
                assert str(answer.PatientName).replace("\x1b$)A", "") == name, declared[uid]
        assert in_their_own >= len(named) - 2


def with_uids(path: Path, study: str) -> tuple[bytes, Any]:
    """A file of the corpus as an instance of its own study, its text untouched; and its character set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", f"{study}.1.1"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.PatientID = study, f"{study}.1", study
        declared = dataset.get("SpecificCharacterSet") or "ISO_IR 100"
        file = io.BytesIO()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(file, enforce_file_format=True)
    return file.getvalue(), declared


def test_a_character_set_that_cannot_say_it(made: Clinic) -> None:
    for declared in (None, "ISO_IR 100", "ISO_IR 144", ["", "ISO 2022 IR 149"], "NO SUCH SET"):
        keys = {} if declared is None else {"CharacterSet": declared}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = made.find("WS", "STUDY", PatientID="P3", PatientName="", **keys)[0]
            assert str(one.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"
        assert one.SpecificCharacterSet == "ISO_IR 192"
    one = made.find("WS", "STUDY", PatientID="P3", PatientName="", CharacterSet=["", "ISO 2022 IR 87"])[0]
    assert list(one.SpecificCharacterSet) == ["", "ISO 2022 IR 87"]
    assert str(one.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"


# --- what may not be seen is not there -----------------------------------------------------------------------------------------------


def test_unseen_is_absent(made: Clinic) -> None:
    assert made.find("NOBODY", "STUDY", StudyInstanceUID="") == []
    assert made.find("NOBODY", "PATIENT", root=PATIENT_FIND, PatientID="") == []
    found = made.find("NARROW", "STUDY", StudyInstanceUID="", PatientID="")
    assert uids(found) == ["1.2.4"]
    patients = made.find("NARROW", "PATIENT", root=PATIENT_FIND, PatientID="", NumberOfPatientRelatedStudies="")
    assert [(one.PatientID, one.NumberOfPatientRelatedStudies) for one in patients] == [("P2", 1)]
    for study in ("1.2.3", "1.2.77"):  # hidden, and unknown
        for level, keys in (
            ("STUDY", {"StudyInstanceUID": study}), ("SERIES", {"StudyInstanceUID": study}),
            ("IMAGE", {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1"}),
        ):
            assert made.ask("NARROW", level, **keys) == (0, [])


def test_a_peer_without_any_grant_may_not_even_ask_in_clear(made: Clinic) -> None:
    made.node.peers.add(the_console(made.node), "PLAIN", ["PLAIN"], networks=["127.0.0.1/32"])
    with RawPeer(socket.create_connection(("127.0.0.1", made.plain_port))) as peer:
        assert peer.associate([(FIND, [IMPLICIT]), ("1.2.840.10008.1.1", [IMPLICIT])], calling="PLAIN") == AC
        assert [peer.results[n][0] for n in (1, 3)] == [1, 0]
        peer.release()


def test_the_ledger_comes_first(made: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(made.events(Kind.SEARCHED))
    assert len(made.find("WS", "STUDY", PatientID="P1")) == 1
    events = made.events(Kind.SEARCHED)
    assert len(events) == before + 1
    body = events[0].body
    assert body is not None
    assert body["detail"]["keys"] == {"PatientID": "P1"}
    assert body["subject"]["name"] == "WS"

    def fails(*_: object, **__: object) -> None:
        raise Unavailable

    monkeypatch.setattr(made.node.core.ledger, "record", fails)
    assert made.ask("WS", "STUDY", PatientID="P1") == (0xA700, [])


# --- cancel, memory, hostile ----------------------------------------------------------------------------------------------------------


def test_cancel(made: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come page by page, and between two pages a C-CANCEL ends them."""
    monkeypatch.setattr(find_module, "PAGE_ROWS", 1)
    asked, go_on = [], threading.Event()
    original = type(made.node.query).find

    def slow(query: Any, subject: Any, request: SearchRequest) -> Any:
        asked.append(request.offset)
        if request.offset == 1:
            assert go_on.wait(60)
        return original(query, subject, request)

    monkeypatch.setattr(type(made.node.query), "find", slow)
    wanted = bytes.fromhex("08005200 06000000") + b"STUDY " + bytes.fromhex("20000d00 00000000")
    find = command(
        element(0x0002, uid_value(FIND.encode())), element(0x0100, b"\x20\x00"), element(0x0110, b"\x07\x00"),
        element(0x0700, b"\0\0"), element(0x0800, b"\0\0"),
    )
    cancel = command(element(0x0100, b"\xff\x0f"), element(0x0120, b"\x07\x00"), element(0x0800, b"\x01\x01"))
    with RawPeer(socket.create_connection(("127.0.0.1", made.plain_port))) as peer:
        assert peer.associate([(FIND, [IMPLICIT])], calling="WS") == AC
        peer.message(1, find, wanted)
        peer.message(1, cancel)
        threading.Timer(0.2, go_on.set).start()
        while (status := int.from_bytes(peer.response().get(0x0900, b"\0\0"), "little")) in (0xFF00, 0):
            pass
        assert status == CANCEL
        peer.message(1, find, wanted)  # the association goes on, and the cancel was for the other one
        kind, body = peer.read_pdu()
        assert kind == DATA
        assert struct.pack("<HHIH", 0, 0x0900, 2, 0xFF00) in body
    assert max(asked) <= 4


def test_hostile_identifiers_cost_nobody_else_anything(made: Clinic) -> None:
    level = bytes.fromhex("08005200 06000000") + b"STUDY "
    deep = b"".join(bytes.fromhex("40007502 ffffffff fefffe00e0ffffffff".replace("fefffe00e0", "feff00e0")) for _ in range(500))
    hostile = [
        b"", b"\0", level[:-3], level + b"\x10\x00\x10\x00\xff\xff\xff\x7fabc", level + level, level + deep,
        level + bytes.fromhex("40007502 ffffffff"), level + b"".join(struct.pack("<HHI", 0x11, n, 0) for n in range(1, 5000)),
        bytes(2 << 20), level + bytes.fromhex("feff0de0 00000000"), b"\xff" * 64, level + bytes.fromhex("0800050002000000") + b"\x1b\x1b",
        level + bytes.fromhex("10001000 04000000") + b"\x1b$B\xff", level + bytes.fromhex("10001000 06000000") + b"a\0b\0c ",
    ]
    find = command(
        element(0x0002, uid_value(FIND.encode())), element(0x0100, b"\x20\x00"), element(0x0110, b"\x01\x00"),
        element(0x0700, b"\0\0"), element(0x0800, b"\0\0"),
    )
    with RawPeer(socket.create_connection(("127.0.0.1", made.plain_port))) as peer:
        assert peer.associate([(FIND, [IMPLICIT]), (FIND, [EXPLICIT])], calling="WS") == AC
        for context_id in (1, 3):
            for bad in hostile:
                peer.message(context_id, find, bad)
                while (status := _status_of(peer)) in (0xFF00, 0xFF01, None):
                    pass
                assert status in (0, 0xC000, A900), (context_id, bad[:40])
        peer.message(1, find, hostile[5])
        assert _status_of(peer) == 0xC000
        assert len(made.find("WS", "STUDY", PatientID="P1")) == 1
        peer.release()


def _status_of(peer: RawPeer) -> int | None:
    """The status of the next message, None for an identifier."""
    kind, body = peer.read_pdu()
    assert kind == DATA
    if not body[5] & 1:
        return None
    at = body.index(struct.pack("<HHI", 0, 0x0900, 2))
    return int.from_bytes(body[at + 8 : at + 10], "little")


def test_a_storage_command_on_a_query_context(made: Clinic) -> None:
    with RawPeer(socket.create_connection(("127.0.0.1", made.plain_port))) as peer:
        assert peer.associate([(FIND, [IMPLICIT])], calling="WS") == AC
        get = command(
            element(0x0002, uid_value(FIND.encode())), element(0x0100, b"\x10\x00"), element(0x0110, b"\x01\x00"),
            element(0x0700, b"\0\0"), element(0x0800, b"\0\0"),
        )
        peer.message(1, get, bytes.fromhex("08005200 06000000") + b"STUDY ")
        assert _status_of(peer) == 0x0122
        assert peer.store(1, FIND, "1.2.3", b"\0" * 8) == 0x0122
        peer.send(p_data(1, 3, command(element(0x0100, b"\xff\x0f"), element(0x0120, b"\x63\0"), element(0x0800, b"\x01\x01"))))
        peer.release()


def test_several_values_through_both_doors(made: Clinic) -> None:
    """Any of them may fit; of codes a comma stands between them too, as clients write it in an address."""
    from archive.access import principals
    from archive.access.subject import Subject

    with made.node.core.database.read() as tx:
        asking = Subject(principals.find(tx, "WS", ("device",))["id"], "WS", "device", "dimse")
    for level, keyword, texts in (
        (Level.STUDY, "ModalitiesInStudy", ("MR\\US", "CT\\XX", "XX\\YY", "SR\\M?")), (Level.STUDY, "PatientID", ("P1\\P3", "P?\\x")),
        (Level.STUDY, "AccessionNumber", ("A1\\nowhere",)), (Level.SERIES, "Modality", ("MR\\SR", "US\\XX")),
    ):  # fmt: skip
        for text in texts:
            unique = {"StudyInstanceUID": "", "SeriesInstanceUID": ""} if level is Level.SERIES else {"StudyInstanceUID": ""}
            expected = made.find("WS", level.value, extended={FIND: b"\1\0\0"}, **unique, **{keyword: text.split("\\")})
            for written in {text, text.replace("\\", ",")} if keyword.startswith("Modalit") else {text}:
                answer = made.node.query.find(asking, qido.parse([(keyword, [written])], level, "clinical"))
                assert sorted(row["0020000D"]["Value"][0] for row in answer.rows) == uids(expected), (keyword, written)
                assert (len(answer.rows), answer.total) == (len(expected), len(expected)), (keyword, written)
