"""Queries with a Timezone Offset From UTC: their times are those of a clock that hangs there, through both doors and in the worklist."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from archive.dicom.attributes import Level
from archive.dimse.extended import agree
from archive.dimse.models import FIND_CLASSES
from archive.errors import InvalidQuery
from archive.web.dicomweb import qido
from tests.dimse.clinic import FIND, Clinic
from tests.dimse.test_find import EVERYTHING, sequence, uids
from tests.dimse.test_forward import forwarding
from tests.dimse.test_worklist import ask, asking, entry, numbers
from tests.services.archives import instance, the_console, user

STUDIES = {  # what the clocks showed, and where they hung
    "1.2.1": ("20260301", "233000", "+0000"), "1.2.2": ("20260302", "003000", "+0100"), "1.2.3": ("20260302", "003000", None),
    "1.2.4": ("20260301", "183000", "-0500"), "1.2.5": ("20260302", "003000", "+0000"), "1.2.6": ("20260302", "", "+0000"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    with forwarding(tmp_path_factory.mktemp("clocks")) as it:
        for uid, (date, time, zone) in STUDIES.items():
            more = {} if zone is None else {"TimezoneOffsetFromUTC": zone}
            it.put(instance(1, study=uid, StudyDate=date, StudyTime=time, ContentTime=time, AcquisitionDateTime=date + time, **more))
        it.plain_peer("WS", target=EVERYTHING)
        console = the_console(it.node)
        for number, (date, time, zone) in enumerate(STUDIES.values(), 1):
            more = {} if zone is None else {"TimezoneOffsetFromUTC": zone}
            step = {"ScheduledProcedureStepStartDate": date, "ScheduledProcedureStepStartTime": time or "120000"}
            it.node.worklist.add(console, entry(number, step=step, **more))
        it.node.peers.add(console, "ANY", ["ANY"], issue=it.folder / "ANY", roles=["modality"])
        it.node.peers.set(console, "ANY", {"whole_worklist": True})
        yield it


def web(made: Clinic, level: Level = Level.STUDY, **keys: str) -> list[str]:
    asked = qido.parse([(name, [text]) for name, text in keys.items()], level, "clinical")
    return sorted(row["0020000D"]["Value"][0] for row in made.node.query.find(user(made.node, "router"), asked).rows)


DAY = {"StudyDate": "20260302"}


@pytest.mark.parametrize(("keys", "zone", "expected"), [
    (DAY, "+0100", "2356"), (DAY | {"StudyTime": "0000-0100"}, "+0100", "1234"), (DAY | {"StudyTime": "003000"}, "+0100", "1234"),
    (DAY | {"StudyTime": "0000-0100"}, "", "235"), (DAY | {"StudyTime": "0000-2359"}, "+0100", "12345"),
    ({"StudyDate": "20260301", "StudyTime": "-235959"}, "+0000", "124"), ({"StudyTime": "1830"}, "-0500", "124"),
    ({"StudyDate": "-20260301", "StudyTime": "18-19"}, "-0500", "1245"), ({"StudyDate": "20260303-", "StudyTime": "00-"}, "+1400", ""),
    ({"StudyTime": "003000"}, "+0000", "35"), (DAY | {"StudyTime": "0130"}, "+0100", "5"),
])  # fmt: skip
def test_times_are_those_of_the_askers_clock(made: Clinic, keys: dict[str, str], zone: str, expected: str) -> None:
    """A date by itself is what was written; with its time it is the day on which the asker's clock showed that time."""
    asked = keys | ({"TimezoneOffsetFromUTC": zone} if zone else {})
    wanted = [f"1.2.{one}" for one in expected]
    assert sorted(uids(made.find("WS", "STUDY", StudyInstanceUID="", **asked))) == wanted
    assert web(made, **asked) == wanted
    assert sorted(one for at in range(len(wanted) + 1) for one in web(made, **asked, limit="1", offset=str(at))) == wanted


@pytest.mark.parametrize(("text", "zone", "expected"), [
    ("20260302003000", "+0100", "1234"), ("20260302000000-20260302010000", "+0100", "1234"), ("20260302003000", "", "235"),
    ("20260301233000+0000", "-0500", "124"), ("-20260301183000", "-0500", "124"),
])  # fmt: skip
def test_dates_and_times_without_an_offset_have_the_requests(made: Clinic, text: str, zone: str, expected: str) -> None:
    asked = {"AcquisitionDateTime": text} | ({"TimezoneOffsetFromUTC": zone} if zone else {})
    wanted = [f"1.2.{one}" for one in expected if one != "6"]
    found = made.find("WS", "IMAGE", extended={FIND: b"\1\0\0\1"}, SOPInstanceUID="", StudyInstanceUID="", **asked)
    assert sorted(uid for uid in uids(found) if uid != "1.2.6") == wanted
    assert [uid for uid in web(made, Level.IMAGE, **asked) if uid != "1.2.6"] == wanted


def test_an_answer_says_where_its_own_clock_hung(made: Clinic) -> None:
    found = made.find("WS", "STUDY", StudyInstanceUID="1.2.4", StudyDate="20260302", StudyTime="0030", TimezoneOffsetFromUTC="+0100")
    assert [(one.StudyDate, one.StudyTime, one.TimezoneOffsetFromUTC) for one in found] == [("20260301", "183000", "-0500")]


@pytest.mark.parametrize(("step", "zone", "expected"), [
    ({"Date": "20260302", "Time": "0000-0100"}, "+0100", [1, 2, 3, 4]), ({"Date": "20260302", "Time": "0000-0100"}, "", [2, 3, 5]),
    ({"Date": "20260301-20260302", "Time": "2300-0045"}, "+0100", [1, 2, 3, 4]), ({"Date": "20260302"}, "+0100", [2, 3, 5, 6]),
    ({"Time": "1830"}, "-0500", [1, 2, 4]),
])  # fmt: skip
def test_the_worklist(made: Clinic, step: dict[str, str], zone: str, expected: list[int]) -> None:
    wanted = asking({f"ScheduledProcedureStepStart{name}": text for name, text in step.items()})
    if zone:
        wanted.TimezoneOffsetFromUTC = zone
    status, found = ask(made, "ANY", wanted)
    assert (status, sorted(numbers(found))) == (0, expected)


@pytest.mark.parametrize("text", ["0100", "+01", "+1500", "CET", "+0100\\+0200"])
def test_what_is_no_offset_is_refused(made: Clinic, text: str) -> None:
    with pytest.raises(InvalidQuery, match="TimezoneOffsetFromUTC"):
        web(made, TimezoneOffsetFromUTC=text, StudyTime="0030")
    assert made.ask("WS", "STUDY", StudyInstanceUID="", TimezoneOffsetFromUTC=text.split("\\"))[0] == 0xA900


def test_an_offset_whose_sign_the_address_lost(made: Clinic) -> None:
    assert web(made, TimezoneOffsetFromUTC=" 0100", StudyDate="20260302", StudyTime="0030") == ["1.2.1", "1.2.2", "1.2.3", "1.2.4"]


def test_keys_inside_sequences_have_it_too(made: Clinic) -> None:
    status, _ = made.ask("WS", "SERIES", StudyInstanceUID="1.2.1", SeriesInstanceUID="", TimezoneOffsetFromUTC="+0100",
                         RequestAttributesSequence=sequence(ScheduledProcedureStepID="S7"))
    assert status == 0


def test_it_is_agreed_on_when_asked_for() -> None:
    for uid in FIND_CLASSES:
        assert [one.information for one in agree({uid: b"\1\1\1\1"}, frozenset({uid}))] == [b"\1\0\1\1"]
