"""What goes out stays what the caller may have, from one instance to the next; packs are those of the series as it is."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.uid import DeflatedExplicitVRLittleEndian

from archive.access import policy
from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.config import Config
from archive.db import guard
from archive.db.tables import series, series_pack
from archive.dicom import transcode
from archive.dicom.part10 import Limits, Scanned, inflate, meta, scan
from archive.errors import NotAcceptable, NotFound, Unavailable
from archive.index import locate, pictures
from archive.node import Node
from archive.services import packs as packs_module
from archive.services import retrieve
from archive.services.signin import SignedIn
from archive.vault.vault import Vault
from archive.web.dicomweb import wado
from tests.dicom.conftest import dataset, el
from tests.services import archives
from tests.services.ward import Clock
from tests.web import real
from tests.web.real import SEEN, Place

MANY = "1.2.200"
SERIES = f"/dicomweb/studies/{SEEN}/series/{SEEN}.1"
ACCEPT = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}


@contextmanager
def opened(config: Config) -> Iterator[Place]:
    with archives.opened(config) as node:
        made = real.place(node)
        for number in (3, 4):
            archives.store(node, archives.instance(number, study=SEEN, PatientID=f"P{SEEN}", PatientName="Canary^Hidden"))
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with opened(real.config(tmp_path)) as made:
        yield made


@pytest.fixture
def anywhere(tmp_path: Path, engine: dict[str, Any]) -> Iterator[Place]:
    """The same on each engine."""
    with opened(archives.made(tmp_path, archive={"public_url": real.ORIGIN}, **engine)) as made:
        yield made


def mia(place: Place) -> Subject:
    return archives.user(place.node, "mia")


def revoke(place: Place) -> None:
    console = archives.the_console(place.node)
    [mine] = [one for one in place.node.accounts.list_grants(console) if one["subject"] == "mia"]
    place.node.accounts.revoke_grant(console, mine["id"])


def chunks(place: Place, path: str) -> Iterator[bytes]:
    answer = place.app.test_client(use_cookies=False).get(
        path, headers={"Authorization": f"Bearer {place.token}", **ACCEPT}, base_url=real.ORIGIN, buffered=False
    )
    assert answer.status_code == 200
    return iter(answer.response)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The instances for which the scope was asked again."""
    found: list[str] = []
    real_still = locate.still

    def still(database: Any, scope: Any, row: locate.InstanceRow) -> bool:
        found.append(row.sop_instance_uid)
        return real_still(database, scope, row)

    monkeypatch.setattr(locate, "still", still)
    return found


def test_what_instances_have_in_common_is_in_memory_once(anywhere: Place) -> None:
    """A study may have hundreds of thousands."""
    found = anywhere.node.retrieve.instances(mia(anywhere), "clinical", SEEN, f"{SEEN}.1")
    assert len(found) > 1
    for one in found[1:]:
        assert one.study_instance_uid is found[0].study_instance_uid
        assert one.series_instance_uid is found[0].series_instance_uid
        assert one.transfer_syntax_uid is found[0].transfer_syntax_uid
        assert one.row.ref.key_id is found[0].row.ref.key_id
        assert one.row.ref.datastore is found[0].row.ref.datastore
        assert one.sop_instance_uid != found[0].sop_instance_uid
        assert one.row.ref.object_id != found[0].row.ref.object_id


def test_the_head_of_a_part_is_made_when_the_part_leaves(anywhere: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real_head = wado.part_head
    monkeypatch.setattr(wado, "part_head", lambda *given: (made.append(given[1].sop_instance_uid), real_head(*given))[1])
    stream = chunks(anywhere, SERIES)
    first = next(stream)
    measured, leaving = made[:-1], made[-1:]
    assert leaving == measured[:1]
    whole = first + b"".join(stream)
    assert made == measured * 2, "once for the length of the whole, once to leave"
    assert whole.count(b"DICM") == len(measured) > 1


def test_a_revocation_lets_at_most_the_instance_under_way_finish(anywhere: Place) -> None:
    stream = chunks(anywhere, SERIES)
    first = next(stream)
    assert first.count(b"DICM") == 1
    revoke(anywhere)
    assert b"DICM" not in b"".join(stream)
    assert b"Canary" in first


@pytest.mark.parametrize("change", ["grant", "token", "the token it was made with", "user", "instance"])
def test_whatever_ends_the_right_ends_the_stream(place: Place, change: str) -> None:
    node, console = place.node, archives.the_console(place.node)
    above = place.token.split("_")[1]
    if change == "the token it was made with":
        place = replace(place, token=node.accounts.create_token(console, owner="mia", studies=[SEEN], parent=above)["token"])
    stream = chunks(place, SERIES)
    next(stream)
    if change == "grant":
        node.accounts.add_grant(console, to="mia", role="researcher", target=Target("study", SEEN), deny=True)
    elif "token" in change:
        node.accounts.revoke_token(console, above)
    elif change == "user":
        node.accounts.disable_user(console, "mia")
    else:
        node.remove.reject(console, "clinical", "instance", f"{SEEN}.1.2", reason="test")
    assert b"DICM" not in b"".join(stream)


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Clock]]:
    """A study of 200 instances, kim with a token who has no right yet, mia who passes on what she is granted, a clock set by hand."""
    clock = Clock()
    with archives.opened(archives.made(tmp_path_factory.mktemp("many"), archive={"public_url": real.ORIGIN}), clock=clock) as node:
        place = real.place(node)
        for number in range(1, 201):
            archives.store(node, archives.instance(number, study=MANY, rows=1))
        console = archives.the_console(node)
        node.accounts.add_user(console, "kim", roles=["radiologist"])
        yield replace(place, token=node.accounts.create_token(console, owner="kim")["token"]), clock


@pytest.mark.parametrize("end", ["it is revoked", "its window closes", "what it was passed on from is revoked"])
def test_at_most_one_more_of_200_leaves_once_the_right_has_ended(ward: tuple[Place, Clock], end: str) -> None:
    place, clock = ward
    node, console, study = place.node, archives.the_console(place.node), Target("study", MANY)
    if end.startswith("what"):
        begun = node.signin.password("mia", archives.PASSWORD, address="192.0.2.7", user_agent="test")
        assert isinstance(begun, SignedIn)
        above = node.accounts.add_grant(console, to="mia", role="radiologist", target=study, delegable=1)
        given = node.delegation.delegate(
            node.signin.session(begun.token, address="192.0.2.7"), to="kim", target=study, permissions=["original"], parent=above["id"],
        )
    else:
        given = above = node.accounts.add_grant(console, to="kim", role="radiologist", target=study, until="5m")
    stream = chunks(place, f"/dicomweb/studies/{MANY}")
    left = 0
    while left < 100:
        left += next(stream).count(b"DICM")
    assert left == 100, "each leaves by itself"
    if end.startswith("its window"):
        clock.at = given["until"]
    else:
        node.accounts.revoke_grant(console, above["id"])
    assert b"".join(stream).count(b"DICM") <= 1
    unseen = place.ask("GET", f"/dicomweb/studies/{MANY}", headers=ACCEPT)
    absent = place.ask("GET", f"/dicomweb/studies/{real.ABSENT}", headers=ACCEPT)
    assert unseen.status_code == 404
    assert (unseen.status_code, unseen.data) == (absent.status_code, absent.data)


def test_the_scope_is_asked_for_each_instance_when_something_was_committed(place: Place, asked: list[str]) -> None:
    assert b"".join(chunks(place, f"{SERIES}/instances/{SEEN}.1.1")).count(b"DICM") == 1
    assert asked == []  # the statement that found it has just asked
    came = 0
    for chunk in chunks(place, SERIES):
        came += chunk.count(b"DICM")
        place.ask("GET", f"/dicomweb/studies/{real.ABSENT}", headers=ACCEPT)  # that is recorded
    assert came == 4
    assert asked == [f"{SEEN}.1.{number}" for number in (2, 3, 4)]


def test_opening_asks_again(place: Place) -> None:
    found = place.node.retrieve.instances(mia(place), "clinical", SEEN)
    assert b"".join(bytes(view) for view in place.node.retrieve.open(mia(place), found[0]))[128:132] == b"DICM"
    revoke(place)
    with pytest.raises(NotFound):
        place.node.retrieve.open(mia(place), found[0])


@pytest.mark.parametrize("pictured", [False, True])
def test_one_instance_is_found_by_its_own_index(place: Place, pictured: bool) -> None:
    # By the index of its series every page of that is deciphered: 2.6 ms instead of 0.3 in a series of 500.
    core = place.node.core
    scope = policy.scope_of(mia(place), Permission.ORIGINAL, core.clock())
    with core.database.read() as tx:
        prepared = pictures._every(scope.shape, True, True) if pictured else locate._instances(scope.shape, with_series=True, with_sop=True)
        compiled = prepared._for(tx)
        values = {"datastore": 1, "study_uid": SEEN, "series_uid": f"{SEEN}.1", "sop_uid": f"{SEEN}.1.1", **scope.parameters}
        plan = tx.exec_driver_sql(
            f"EXPLAIN QUERY PLAN {compiled.text}", tuple(compiled._values(values)), execution_options={guard.OPTION: scope.token}
        ).fetchall()
    assert any("sop_instance_uid" in str(line) for line in plan)


def told(node: Node, subject: Subject, study: str = SEEN) -> list[str]:
    answer = node.retrieve.metadata(subject, "clinical", study)
    return [one["00080018"]["Value"][0] for one in json.loads(gzip.decompress(b"".join(answer.gzip())))]


def packs(node: Node) -> dict[str, Any]:
    with node.core.database.read() as tx:
        rows = policy.run_as(tx, policy.system("packs"), sa.select(series_pack, series.c.series_instance_uid).join(series))
        return {row.series_instance_uid: row for row in rows}


def test_a_pack_is_served_as_it_is_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    node, subject = place.node, mia(place)
    expected = [f"{SEEN}.1.{number}" for number in (1, 2, 3, 4)]
    assert told(node, subject) == expected
    monkeypatch.setattr(Vault, "sections", None)  # no record is opened any more
    assert told(node, subject) == expected
    assert len(packs(node)) == 1


def test_a_revocation_lets_at_most_the_series_under_way_finish(anywhere: Place) -> None:
    """Of the metadata of a study, which leave as fast as their reader takes them."""
    node, subject = anywhere.node, mia(anywhere)
    for number in (1, 2, 3):
        archives.store(node, archives.instance(20 + number, study=SEEN, SeriesInstanceUID=f"{SEEN}.2{number}", PatientID=f"P{SEEN}"))
    stream = node.retrieve.metadata(subject, "clinical", SEEN).gzip()
    came = b"".join(bytes(next(stream)) for _ in range(2))
    revoke(anywhere)
    with suppress(NotFound):
        while True:
            came += bytes(next(stream))
    told_of = zlib.decompressobj(31).decompress(came)
    assert not [number for number in (1, 2, 3) if f"{SEEN}.2{number}".encode() in told_of]


def test_metadata_of_many_instances_take_the_memory_of_few(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    node, subject, mb = place.node, mia(place), 1 << 20
    archives.store(node, archives.instance(1, study=SEEN, series=f"{SEEN}.2", PatientID=f"P{SEEN}", PatientName="Canary^Hidden"))
    document = b'{"00204000":{"vr":"LT","Value":["' + b"x" * (8 * mb) + b'"]}}'
    monkeypatch.setattr(packs_module.Packs, "_json", lambda *_args, **_more: bytes(bytearray(document)))
    for _ in ("made", "kept"):
        tracemalloc.start()
        pieces = list(node.retrieve.metadata(subject, "clinical", SEEN).gzip())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 32 * mb  # of five, forty in all
        assert gzip.decompress(b"".join(pieces)) == b"[" + b",".join([document] * 5) + b"]"


def test_an_instance_more_or_less_is_another_answer(anywhere: Place) -> None:
    node, subject = anywhere.node, mia(anywhere)
    before = node.retrieve.metadata(subject, "clinical", SEEN).etag
    archives.store(node, archives.instance(5, study=SEEN, PatientID=f"P{SEEN}", PatientName="Canary^Hidden"))
    assert f"{SEEN}.1.5" in told(node, subject)
    after = node.retrieve.metadata(subject, "clinical", SEEN).etag
    node.remove.reject(archives.the_console(node), "clinical", "instance", f"{SEEN}.1.5", reason="test")
    assert f"{SEEN}.1.5" not in told(node, subject)
    last = node.retrieve.metadata(subject, "clinical", SEEN).etag
    assert len({before, after, last}) == 3


def test_a_row_that_names_another_series_pack_is_not_believed(place: Place) -> None:
    node, subject, admin = place.node, mia(place), archives.user(place.node)
    for number in (3, 4):  # as many generations as the other
        archives.store(node, archives.instance(number, study=real.HIDDEN, PatientID=f"P{real.HIDDEN}", PatientName="Canary^Hidden"))
    expected = told(node, subject)
    assert told(node, admin, real.HIDDEN)
    other = packs(node)[f"{real.HIDDEN}.1"]
    values = {name: getattr(other, name) for name in ("generation", "object_id", "key_id", "etag", "length")}
    mine = sa.update(series_pack).where(series_pack.c.series_pk != other.series_pk).values(**values)
    with node.core.database.begin() as tx:
        policy.run_as(tx, policy.system("packs"), mine)
    assert told(node, subject) == expected


def test_a_series_that_changes_while_its_lost_pack_is_made_again(place: Place) -> None:
    node, subject = place.node, mia(place)
    told(node, subject)
    answer = node.retrieve.metadata(subject, "clinical", SEEN)
    kept = packs(node)[f"{SEEN}.1"]
    node.core.vault.drop_blob(kept.object_id)
    assert json.loads(gzip.decompress(b"".join(answer.gzip())))
    answer = node.retrieve.metadata(subject, "clinical", SEEN)
    node.core.vault.drop_blob(packs(node)[f"{SEEN}.1"].object_id)
    node.remove.reject(archives.the_console(node), "clinical", "instance", f"{SEEN}.1.2", reason="test")
    with pytest.raises(Unavailable):  # its entity tag has been told already
        answer.gzip().__next__()
    assert f"{SEEN}.1.2" not in told(node, subject)


def test_nothing_is_missing_after_preparing(place: Place) -> None:
    with place.node.core.database.read() as tx:
        before = place.node.core.ledger.size(tx)
    place.node.retrieve.prepare()
    with place.node.core.database.read() as tx:
        assert place.node.core.ledger.size(tx) == before  # it reads nobody's data and records nothing


LIMIT = 1 << 20


@pytest.fixture
def overfull(tmp_path: Path) -> Iterator[Place]:
    """A study of the usual instances and one whose data set inflates beyond the limit, though it came deflated to a few KB."""
    uids = "1.2.840.10008.5.1.4.1.1.2", f"{SEEN}.1.99", "1.2.840.10008.1.2.1.99"
    body = {
        0x00080016: el(0x00080016, "UI", uids[0]), 0x00080018: el(0x00080018, "UI", uids[1]),
        0x00100010: el(0x00100010, "PN", "Canary^Hidden"), 0x00100020: el(0x00100020, "LO", f"P{SEEN}"),
        0x0020000D: el(0x0020000D, "UI", SEEN), 0x0020000E: el(0x0020000E, "UI", f"{SEEN}.1"),
        0x00420011: el(0x00420011, "OB", bytes(LIMIT)),
    }
    packer = zlib.compressobj(wbits=-15)
    data = meta(*uids) + packer.compress(dataset(body, uids={})) + packer.flush()
    with opened(archives.made(tmp_path, archive={"public_url": real.ORIGIN}, limits={"inflated_bytes": LIMIT})) as made:
        assert archives.store(made.node, data).status == "stored"
        yield made


def test_what_inflates_beyond_the_limit_is_not_inflated(overfull: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for bulk data nor on the way to another transfer syntax, and that is said before anything leaves."""
    made: list[int] = []

    def inflated(part10: bytes, scanned: Scanned, limits: Limits, **options: bool) -> bytes:
        made.append(limits.inflated_bytes)
        return inflate(part10, scanned, limits, **options)

    monkeypatch.setattr(retrieve, "inflate", inflated)
    monkeypatch.setattr(transcode, "inflate", inflated)
    instance = f"{SERIES}/instances/{SEEN}.1.99"
    assert overfull.ask("GET", f"{instance}/bulk/00420011").status_code == 404
    plain = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1'}
    assert overfull.ask("GET", instance, headers=plain).status_code == 406
    assert overfull.ask("GET", SERIES, headers=plain).status_code == 406
    node, subject = overfull.node, mia(overfull)
    [found] = node.retrieve.instances(subject, "clinical", SEEN, f"{SEEN}.1", f"{SEEN}.1.99")
    with pytest.raises(NotFound, match="too large"):
        node.retrieve.bulk(subject, "clinical", SEEN, f"{SEEN}.1", f"{SEEN}.1.99", "00420011")
    with pytest.raises(NotAcceptable, match="large"):
        next(node.retrieve.transcoded(subject, found, "1.2.840.10008.1.2.1"))
    assert set(made) == {LIMIT}


def test_frames_of_what_inflates_beyond_a_limit_that_was_lowered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    node, subject = place.node, mia(place)
    data = archives.instance(98, study=SEEN, series=f"{SEEN}.1", PatientID=f"P{SEEN}", PatientName="Canary^Hidden")
    whole = pydicom.dcmread(io.BytesIO(data))
    whole.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole.save_as(deflated := io.BytesIO())
    assert archives.store(node, deflated.getvalue()).status == "stored"
    uid = str(whole.SOPInstanceUID)
    assert node.retrieve.frames(subject, "clinical", SEEN, f"{SEEN}.1", uid, [1]).stored(1)
    monkeypatch.setattr(node.retrieve, "_limits", Limits(inflated_bytes=10))
    with pytest.raises(NotFound, match="too large"):
        node.retrieve.frames(subject, "clinical", SEEN, f"{SEEN}.1", uid, [1])


def test_what_inflates_beyond_the_limit_goes_out_as_it_is_stored(overfull: Place) -> None:
    instance = f"{SERIES}/instances/{SEEN}.1.99"
    for path, parts in ((instance, 1), (SERIES, 5)):
        answer = overfull.ask("GET", path, headers=ACCEPT)
        assert (answer.status_code, answer.data.count(b"DICM")) == (200, parts)
    deflated = {"Accept": "application/dicom; transfer-syntax=1.2.840.10008.1.2.1.99"}
    whole = overfull.ask("GET", instance, headers=deflated)
    assert scan(whole.data, Limits(inflated_bytes=LIMIT)).overfull
    assert overfull.ask("GET", f"{SERIES}/metadata").status_code == 200
