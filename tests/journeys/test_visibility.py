"""Who sees what: nothing without a grant, just what the grants say with them, and never a sign of the rest."""

from __future__ import annotations

import io
import random
import socket
import ssl
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests

from archive.access.grants import Target
from tests.journeys import doors
from tests.journeys.running import RunningArchive
from tests.web.samples import instance

PASSWORD = "a walk by the river 7"
STUDY = "1.2.826.0.1.3680043.2.1125.77"
MODALITIES = {1: "CT", 2: "MR", 3: "PT"}
STUDIES, SERIES, NUMBERS = (1, 2, 3), (1, 2, 3), (1, 2, 3)
LARGE, LARGE_BYTES, LARGE_COUNT = 9, 8 << 20, 8
NEITHER = {"date", "x-request-id"}


def study_uid(study: int) -> str:
    return f"{STUDY}.{study}"


def series_uid(study: int, series: int) -> str:
    return f"{STUDY}.{study}.{series}"


def sop_uid(study: int, series: int, number: int) -> str:
    return f"{STUDY}.{study}.{series}.{number}"


ALL = frozenset(sop_uid(study, series, number) for study in STUDIES for series in SERIES for number in NUMBERS)


@dataclass
class World:
    """A served archive with three patients of a study each, and a large study."""

    archive: RunningArchive
    admin: requests.Session

    def url(self, path: str) -> str:
        """A DICOMweb address."""
        return f"{self.archive.url}/dicomweb{path}"

    def user(self) -> tuple[str, requests.Session]:
        """A new user without grants, and a session with a token of his."""
        name = f"u{uuid.uuid4().hex[:10]}"
        with doors.at_the_console(self.archive) as (node, console):
            node.accounts.add_user(console, name, password=PASSWORD)
            made = node.accounts.create_token(console, owner=name)
        return name, doors.session(self.archive, made["token"])

    def grant(self, to: str, target: Target, **options: Any) -> int:
        """Give a user the role radiologist on something."""
        with doors.at_the_console(self.archive) as (node, console):
            return int(node.accounts.add_grant(console, to=to, role=options.pop("role", "radiologist"), target=target, **options)["id"])

    def seen(self, asker: requests.Session) -> set[str]:
        """The SOP Instance UIDs a search answers, of the three small studies."""
        answer = asker.get(self.url("/instances"), timeout=30)
        assert answer.status_code == 200
        rows = {row["00080018"]["Value"][0] for row in answer.json()}
        found = {uid for uid in rows if not uid.startswith(f"{study_uid(LARGE)}.")}
        if len(found) == len(rows):
            assert answer.headers["X-Total-Count"] == str(len(rows))
        return found

    def retrieved(self, asker: requests.Session) -> set[str]:
        """The SOP Instance UIDs that WADO-RS gives."""
        client = self.archive.client("none")
        found = set()
        for study in STUDIES:
            answer = asker.get(self.url(f"/studies/{study_uid(study)}"), headers={"Accept": doors.AS_STORED}, timeout=30)
            if answer.status_code == 404:
                continue
            assert answer.status_code == 200
            for part in client._decode_multipart_message(answer, stream=False):
                at = bytes(part).index(b"\x08\x00\x18\x00UI")
                length = int.from_bytes(part[at + 6 : at + 8], "little")
                found.add(bytes(part[at + 8 : at + 8 + length]).rstrip(b"\0").decode())
        return found

    def described(self, asker: requests.Session) -> set[str]:
        """The SOP Instance UIDs that metadata tells of."""
        found = set()
        for study in STUDIES:
            answer = asker.get(self.url(f"/studies/{study_uid(study)}/metadata"), timeout=30)
            if answer.status_code == 404:
                continue
            assert answer.status_code == 200
            found |= {document["00080018"]["Value"][0] for document in answer.json()}
        return found

    def downloaded(self, asker: requests.Session) -> set[str]:
        """The SOP Instance UIDs that the directories of zips name; as many files lie beside them."""
        found = set()
        for study in STUDIES:
            answer = asker.get(self.url(f"/studies/{study_uid(study)}/zip"), timeout=30)
            if answer.status_code == 404:
                continue
            assert answer.status_code == 200
            with zipfile.ZipFile(io.BytesIO(answer.content)) as made:
                directory = pydicom.dcmread(io.BytesIO(made.read("DICOMDIR")))
                named = {str(one.ReferencedSOPInstanceUIDInFile) for one in directory.DirectoryRecordSequence if "ReferencedFileID" in one}
                assert len(made.namelist()) == len(named) + 1
            found |= named
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with RunningArchive(tmp_path_factory.mktemp("visibility")) as archive:
        made = World(archive, doors.session(archive, archive.token("admin")))
        files = [
            instance(number, study=study, series=series, Modality=MODALITIES[series], PatientID=f"P{study}", AccessionNumber=f"A{study}")
            for study in STUDIES for series in SERIES for number in NUMBERS
        ]
        status, stored, _failed = doors.stow(archive, made.admin, files)
        assert (status, set(stored)) == (200, ALL)
        large = [
            instance(number, study=LARGE, Rows=2048, Columns=2048, PixelData=bytes([number]) * LARGE_BYTES)
            for number in range(1, LARGE_COUNT + 1)
        ]
        for one in large:
            assert doors.stow(archive, made.admin, [one])[0] == 200
        yield made


def told(answer: requests.Response) -> tuple[int, dict[str, str], bytes]:
    """Everything an answer says, but for when and which."""
    headers = {name.lower(): value for name, value in answer.headers.items() if name.lower() not in NEITHER}
    return answer.status_code, headers, answer.content


def random_uid() -> str:
    return f"2.25.{uuid.uuid4().int}"


def addresses(study: str, series: str, sop: str) -> list[str]:
    """Every address that names an object."""
    place = f"/studies/{study}/series/{series}/instances/{sop}"
    return [
        f"/studies?StudyInstanceUID={study}", f"/series?SeriesInstanceUID={series}", f"/instances?SOPInstanceUID={sop}",
        f"/studies/{study}/series", f"/studies/{study}/instances", f"/studies/{study}/series/{series}/instances",
        f"/studies/{study}", f"/studies/{study}/series/{series}", place,
        f"/studies/{study}/metadata", f"/studies/{study}/series/{series}/metadata", f"{place}/metadata",
        f"{place}/frames/1", f"{place}/frames/99", f"{place}/bulk/7FE00010", f"{place}/bulk/00420011",
        f"/studies/{study}/zip", f"/studies/{study}/series/{series}/zip",
        f"/wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={sop}",
        f"/wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={sop}&contentType=application/dicom",
    ]


def test_without_a_grant_there_is_nothing(world: World) -> None:
    _name, asker = world.user()
    assert asker.get(world.url("/studies"), timeout=30).json() == []
    there = addresses(study_uid(1), series_uid(1, 1), sop_uid(1, 1, 1))
    nowhere = addresses(random_uid(), random_uid(), random_uid())
    for real, invented in zip(there, nowhere, strict=True):
        assert world.admin.get(world.url(real), timeout=30).status_code == (404 if real.endswith(("/frames/99", "/00420011")) else 200)
        tag = world.admin.get(world.url(real), timeout=30).headers.get("ETag", '"x"')
        for headers in ({}, {"Accept": "*/*", "If-None-Match": tag}, {"Accept": "text/html"}):
            hidden, absent = (told(asker.get(world.url(path), headers=headers, timeout=30)) for path in (real, invented))
            assert hidden == absent, real
            assert hidden[0] in {200, 404, 406}, real
            assert hidden[0] != 200 or hidden[2] == b"[]"
        head = [told(asker.head(world.url(path), timeout=30)) for path in (real, invented)]
        assert head[0] == head[1], real


def test_mixed_paths_show_no_more(world: World) -> None:
    """An instance under a study or series that it is not of, and another datastore, answer like nothing too."""
    name, asker = world.user()
    world.grant(name, Target("study", study_uid(1)))
    for path in (
        f"/studies/{study_uid(1)}/series/{series_uid(2, 1)}", f"/studies/{study_uid(2)}/series/{series_uid(1, 1)}",
        f"/studies/{study_uid(1)}/series/{series_uid(1, 2)}/instances/{sop_uid(1, 1, 1)}",
    ):
        assert asker.get(world.url(path), timeout=30).status_code == 404
    elsewhere = f"{world.archive.url}/datastores/other/dicomweb/studies"
    assert asker.get(elsewhere, timeout=30).status_code == 404
    assert told(asker.get(f"{elsewhere}/{study_uid(1)}", timeout=30)) == told(asker.get(f"{elsewhere}/{random_uid()}", timeout=30))


def test_pages_without_a_grant(world: World) -> None:
    name, _asker = world.user()
    browser = doors.session(world.archive, "")
    browser.headers["Sec-Fetch-Site"] = "same-origin"
    done = browser.post(f"{world.archive.url}/login", data={"name": name, "password": PASSWORD, "next": "/studies"}, timeout=30)
    assert "There is no study that you may see" in done.text
    for path in ("/studies/{0}", "/studies/{0}/series/{1}", "/studies/{0}/series/{1}/instances/{2}/frames/1/picture"):
        real = path.format(study_uid(1), series_uid(1, 1), sop_uid(1, 1, 1))
        invented = path.format(random_uid(), random_uid(), random_uid())
        hidden, absent = (told(browser.get(f"{world.archive.url}{one}", timeout=30)) for one in (real, invented))
        assert hidden == absent
        assert hidden[0] == 404


def until_the_end(give: Callable[[datetime], object], seen: Callable[[], bool]) -> None:
    """Give a right that ends, and look again and again: it is there before the end, and gone with it, however long a look takes."""
    for seconds in (2, 8, 32, 128):  # a slow machine needs longer to give it and to look once
        give(end := datetime.now(UTC) + timedelta(seconds=seconds))
        shown = seen()
        if datetime.now(UTC) < end:
            break
    assert shown
    while shown:
        asked = datetime.now(UTC)
        shown = seen()
        assert not shown or asked < end
        assert shown or datetime.now(UTC) > end
        time.sleep(0.05)


def test_one_series_until_the_end(world: World) -> None:
    name, asker = world.user()

    def granted(until: datetime) -> int:
        given = ("--to", name, "--role", "radiologist", "--series", series_uid(2, 1), "--until", until.isoformat())
        return int(world.archive.json("grant", "add", *given)["id"])

    first = granted(datetime.now(UTC) + timedelta(hours=1))
    just = {sop_uid(2, 1, number) for number in NUMBERS}
    assert world.seen(asker) == world.retrieved(asker) == world.described(asker) == just
    [study] = asker.get(world.url("/studies?includefield=ModalitiesInStudy"), timeout=30).json()
    assert study["00080061"]["Value"] == ["CT"]
    assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([1], [3])
    for path in (f"/studies?ModalitiesInStudy={MODALITIES[2]}", f"/studies/{study_uid(2)}/series?Modality={MODALITIES[2]}"):
        hidden = asker.get(world.url(path), timeout=30)
        assert (hidden.json(), hidden.headers["X-Total-Count"]) == ([], "0")
    world.archive.json("grant", "revoke", str(first))
    path = world.url(f"/studies/{study_uid(2)}/series/{series_uid(2, 1)}/metadata")
    until_the_end(granted, lambda: asker.get(path, timeout=30).status_code == 200)
    assert world.seen(asker) == world.retrieved(asker) == world.described(asker) == set()


def test_a_denial_wins_whatever_its_level(world: World) -> None:
    name, asker = world.user()
    world.grant(name, Target("everything"))
    assert world.seen(asker) == ALL
    denied = world.grant(name, Target("study", study_uid(1)), deny=True)
    world.grant(name, Target("series", series_uid(1, 2)))  # more specific and later, and still hidden
    assert world.seen(asker) == {uid for uid in ALL if not uid.startswith(f"{study_uid(1)}.")}
    world.archive.json("grant", "revoke", str(denied))
    assert world.seen(asker) == ALL
    world.grant(name, Target("everything"), deny=True, modality="MR")
    assert world.seen(asker) == {uid for uid in ALL if not uid.startswith(tuple(f"{series_uid(study, 2)}." for study in STUDIES))}


def test_a_revocation_holds_on_the_next_request(world: World) -> None:
    name, asker = world.user()
    place = world.url(f"/studies/{study_uid(3)}/series/{series_uid(3, 3)}/instances/{sop_uid(3, 3, 3)}/frames/1")
    for _ in range(5):
        made = world.grant(name, Target("series", series_uid(3, 3)))
        assert asker.get(place, timeout=30).status_code == 200
        with doors.at_the_console(world.archive) as (node, console):
            node.accounts.revoke_grant(console, made)
            assert asker.get(place, timeout=30).status_code == 404
            assert world.seen(asker) == set()


def test_groups_disabled_users_and_revoked_tokens(world: World) -> None:
    name, asker = world.user()
    with doors.at_the_console(world.archive) as (node, console):
        accounts = node.accounts
        accounts.add_group(console, "ward")
        accounts.add_grant(console, to="ward", role="radiologist", target=Target("patient", "P1"))
        assert world.seen(asker) == set()
        accounts.join_group(console, "ward", name)
        assert world.seen(asker) == {uid for uid in ALL if uid.startswith(f"{study_uid(1)}.")}
        accounts.leave_group(console, "ward", name)
        assert world.seen(asker) == set()
        until_the_end(lambda end: accounts.join_group(console, "ward", name, until=end), lambda: len(world.seen(asker)) == 9)
        assert world.seen(asker) == set()
        accounts.add_grant(console, to=name, role="radiologist", target=Target("everything"))
        accounts.disable_user(console, name)
        assert asker.get(world.url("/instances"), timeout=30).status_code == 401
        accounts.enable_user(console, name)
        token = accounts.create_token(console, owner=name)
        other = doors.session(world.archive, token["token"])
        assert world.seen(other) == ALL
        accounts.revoke_token(console, token["id"])
        assert other.get(world.url("/instances"), timeout=30).status_code == 401


def test_a_token_bounded_to_one_study(world: World) -> None:
    name, unbound = world.user()
    made = world.grant(name, Target("everything"))
    asker = doors.session(world.archive, world.archive.token(name, "--study", study_uid(2)))
    one = {uid for uid in ALL if uid.startswith(f"{study_uid(2)}.")}
    assert world.seen(asker) == world.retrieved(asker) == world.described(asker) == one
    assert world.seen(unbound) == ALL
    world.archive.json("grant", "revoke", str(made))
    assert world.seen(asker) == set()  # a bound gives nothing
    hidden, absent = (told(asker.get(world.url(f"/studies/{uid}"), timeout=30)) for uid in (study_uid(1), random_uid()))
    assert hidden == absent


def test_counts_are_of_what_is_visible(world: World) -> None:
    name, asker = world.user()
    for series in (1, 3):
        world.grant(name, Target("series", series_uid(1, series)))
    world.grant(name, Target("series", series_uid(3, 2)))
    answer = asker.get(world.url("/studies?includefield=all"), timeout=30)
    rows = {row["0020000D"]["Value"][0]: row for row in answer.json()}
    assert answer.headers["X-Total-Count"] == "2"
    assert set(rows) == {study_uid(1), study_uid(3)}
    assert rows[study_uid(1)]["00201206"]["Value"] == [2]
    assert rows[study_uid(1)]["00201208"]["Value"] == [6]
    assert sorted(rows[study_uid(1)]["00080061"]["Value"]) == ["CT", "PT"]
    assert rows[study_uid(3)]["00201208"]["Value"] == [3]
    assert rows[study_uid(3)]["00080061"]["Value"] == ["MR"]
    answer = asker.get(world.url(f"/studies/{study_uid(1)}/instances?limit=2"), timeout=30)
    assert (len(answer.json()), answer.headers["X-Total-Count"]) == (2, "6")
    whole = {row["0020000D"]["Value"][0]: row for row in world.admin.get(world.url("/studies"), timeout=30).json()}
    assert whole[study_uid(1)]["00201208"]["Value"] == [9]


def test_a_role_gives_just_its_permissions(world: World) -> None:
    """A referrer sees images, but takes no originals; an original that is out of reach answers like none."""
    name, asker = world.user()
    world.grant(name, Target("study", study_uid(1)), role="referrer")
    assert world.described(asker) == {uid for uid in ALL if uid.startswith(f"{study_uid(1)}.")}
    place = world.url(f"/studies/{study_uid(1)}/series/{series_uid(1, 1)}/instances/{sop_uid(1, 1, 1)}")
    assert asker.get(f"{place}/frames/1", timeout=30).status_code == 200
    assert told(asker.get(place, timeout=30)) == told(asker.get(world.url(f"/studies/{random_uid()}"), timeout=30))


@pytest.mark.parametrize("seed", range(8))
def test_every_way_shows_the_same(world: World, seed: int) -> None:
    """Random grants: what a search finds, WADO-RS gives and metadata tells is one set, the one plain rules give."""
    draw = random.Random(seed)
    name, asker = world.user()
    given: list[tuple[bool, str, int, int, str]] = []
    with doors.at_the_console(world.archive) as (node, console):
        group = f"g{uuid.uuid4().hex[:8]}"
        node.accounts.add_group(console, group)
        node.accounts.join_group(console, group, name)
        for _ in range(draw.randint(1, 6)):
            level = draw.choice(["everything", "patient", "study", "series", "series"])
            study, series = draw.choice(STUDIES), draw.choice(SERIES)
            deny, modality = draw.random() < 0.3, draw.choice(["", "", "", *MODALITIES.values()])
            target = {
                "everything": Target("everything"), "patient": Target("patient", f"P{study}"),
                "study": Target("study", study_uid(study)), "series": Target("series", series_uid(study, series)),
            }[level]
            node.accounts.add_grant(
                console, to=draw.choice([name, group]), role="radiologist", target=target, deny=deny, modality=modality
            )
            given.append((deny, level, study, series, modality))

    def covered(study: int, series: int, *, deny: bool) -> bool:
        return any(
            is_deny is deny and (not modality or modality == MODALITIES[series])
            and (level == "everything" or (of_study == study and (level != "series" or of_series == series)))
            for is_deny, level, of_study, of_series, modality in given
        )

    visible = {
        sop_uid(study, series, number) for study in STUDIES for series in SERIES for number in NUMBERS
        if covered(study, series, deny=False) and not covered(study, series, deny=True)
    }
    assert world.seen(asker) == visible, given
    assert world.retrieved(asker) == visible, given
    assert world.described(asker) == visible, given
    assert world.downloaded(asker) == visible, given


def test_a_revocation_cuts_a_stream_short(world: World) -> None:
    """At most the instance under way leaves; the next one does not.

    An instance is larger than all the buffers between the archive and a reader that takes little at a time.
    """
    name, _asker = world.user()
    made = world.grant(name, Target("study", study_uid(LARGE)))
    token = world.archive.token(name)
    port = world.archive.status["http"]["port"]
    context = ssl.create_default_context(cafile=str(world.archive.ca))
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    raw.settimeout(30)
    raw.connect(("127.0.0.1", port))
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as link:
        link.sendall(
            f"GET /dicomweb/studies/{study_uid(LARGE)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Accept: {doors.AS_STORED}\r\n\r\n".encode()
        )
        first = b""
        while len(first) < LARGE_BYTES // 2:
            first += link.recv(65536)
        assert first.startswith(b"HTTP/1.1 200")
        with doors.at_the_console(world.archive) as (node, console):
            node.accounts.revoke_grant(console, made)
        data = bytearray(first)
        try:
            while piece := link.recv(1 << 20):
                data += piece
        except OSError:
            pass  # cut without a goodbye
    assert data.count(b"Content-Type: application/dicom") <= 2
    assert len(data) < 2 * LARGE_BYTES + 65536


def test_who_asked_in_vain_is_on_record(world: World) -> None:
    name, asker = world.user()
    asker.get(world.url(f"/studies/{study_uid(1)}"), timeout=30)
    asker.get(world.url("/studies"), timeout=30)
    kinds = [row["kind"] for row in world.archive.json("audit", "search", "--user", name)]
    assert kinds.count("denied") == 1
    assert kinds.count("searched") == 1


def test_the_folder_was_used(world: World) -> None:
    """What was hidden from users is whole."""
    assert Path(world.archive.storage / "segments").is_dir()
    report = world.archive.json("verify")
    assert report["ok"], report["findings"]
    assert report["checked"] == len(ALL) + LARGE_COUNT
