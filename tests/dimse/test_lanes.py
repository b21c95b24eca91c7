"""Both lanes are fed the same bytes: however they are cut up, and whatever is wrong with them, the same comes of it."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from archive.dimse import admission
from archive.dimse.secured import QUICKACK
from tests.dimse.conftest import Running, StartNode
from tests.dimse.rawpeer import (
    ABORT,
    AC,
    CT,
    DATA,
    EXPLICIT,
    IMPLICIT,
    RELEASE_RP,
    RELEASE_RQ,
    VERIFICATION,
    RawPeer,
    associate_rq,
    command,
    echo_command,
    element,
    p_data,
    pdu,
    store_command,
    uid_value,
)

CONTEXTS = [(CT, [EXPLICIT]), (VERIFICATION, [IMPLICIT])]
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
RELEASE = pdu(RELEASE_RQ, bytes(4))


@pytest.fixture
def receiver() -> str:
    """These tests start both themselves."""
    return "own"


@dataclass(frozen=True)
class Seen:
    """What a peer got back, and what reached the store."""

    answers: tuple[tuple[int, int, int], ...]  # context, command field, status; sorted: the library's two threads may change the order
    end: str  # released, aborted or closed
    kept: tuple[tuple[str, str, bytes], ...]


def spoken(node: Running, pieces: Sequence[bytes], *, pause_s: float = 0.0, patience_s: float = 10.0) -> Seen:
    """Associate, send the pieces one by one, and listen to the end; a peer that is waited for in vain says no more."""
    before = len(node.store.kept)
    answers: list[tuple[int, int, int]] = []
    end = "closed"
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS) == AC
        try:
            for number, piece in enumerate(pieces):
                if number and pause_s:
                    time.sleep(pause_s)
                peer.send(piece)
        except OSError:
            pass  # the archive has had enough already
        peer.connection.settimeout(patience_s)
        try:
            while True:
                try:
                    kind, body = peer.read_pdu()
                except TimeoutError:
                    peer.connection.settimeout(10)
                    peer.connection.shutdown(socket.SHUT_WR)
                    continue
                if kind == DATA:
                    answers.append(answered(body))
                else:
                    end = {ABORT: "aborted", RELEASE_RP: "released"}[kind]
                    peer.connection.shutdown(socket.SHUT_WR)
        except (EOFError, OSError):
            pass
    deadline = time.monotonic() + 10
    while node.listener.associations and time.monotonic() < deadline:
        time.sleep(0.001)
    kept = tuple((one.sop_class_uid, one.sop_instance_uid, one.data) for one in node.store.kept[before:])
    return Seen(tuple(sorted(answers)), end, kept)


def one_after_the_other(own: Running, library: Running, data: bytes) -> tuple[Seen, Seen]:
    """The same to both; where the own lane, which takes everything in its order, ends nothing by itself, nothing more comes of it."""
    ours = spoken(own, [data], patience_s=0.1)
    return ours, spoken(library, [data], patience_s=0.1 if ours.end == "closed" else 10)


def answered(body: bytes) -> tuple[int, int, int]:
    """Context, command field and status of a response in one fragment."""
    at, found = 6, {}
    while at < len(body):
        _, number, length = struct.unpack_from("<HHI", body, at)
        found[number] = body[at + 8 : at + 8 + length]
        at += 8 + length
    return body[4], int.from_bytes(found[0x0100], "little"), int.from_bytes(found[0x0900], "little")


def fragment(context_id: int, control: int, data: bytes) -> bytes:
    return struct.pack(">LBB", len(data) + 2, context_id, control) + data


STORE = store_command(CT.encode(), b"1.2.3", 7)
DATASET = bytes(range(256)) * 2 + b"end"
TALK = b"".join((
    p_data(3, 3, echo_command(1)),
    p_data(1, 1, STORE[:40]), p_data(1, 3, STORE[40:]),
    pdu(DATA, fragment(1, 0, DATASET[:100]) + fragment(1, 0, b"") + fragment(1, 0, DATASET[100:120])), p_data(1, 2, DATASET[120:]),
    pdu(DATA, fragment(1, 3, store_command(CT.encode(), b"1.2.4", 8)) + fragment(1, 2, DATASET)),
    p_data(3, 3, echo_command(9)), RELEASE,
))
EXPECTED = Seen(
    ((1, 0x8001, 0), (1, 0x8001, 0), (3, 0x8030, 0), (3, 0x8030, 0)), "released", ((CT, "1.2.3", DATASET), (CT, "1.2.4", DATASET)),
)


@pytest.fixture
def own(start_node: StartNode) -> Running:
    return start_node(receiver="own", idle_timeout_s=5)


@pytest.fixture
def library(start_node: StartNode) -> Running:
    return start_node(receiver="pynetdicom", idle_timeout_s=5)


def test_a_talk_comes_out_the_same(own: Running, library: Running) -> None:
    assert spoken(own, [TALK]) == EXPECTED
    assert spoken(library, [TALK]) == EXPECTED


def test_cut_in_two_at_any_byte(own: Running) -> None:
    for at in range(1, len(TALK), 2):
        assert spoken(own, [TALK[:at], TALK[at:]], pause_s=0.0005) == EXPECTED, at


def test_byte_by_byte(own: Running, library: Running) -> None:
    pieces = [bytes((byte,)) for byte in TALK]
    assert spoken(own, pieces) == EXPECTED
    assert spoken(library, pieces) == EXPECTED


def test_cut_up_at_random(own: Running, library: Running) -> None:
    chance = random.Random(1)
    for number in range(40):
        cuts = sorted(chance.sample(range(1, len(TALK)), chance.randint(2, 40)))
        pieces = [TALK[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(TALK)], strict=True)]
        for node in (own, library) if number % 8 == 0 else (own,):
            assert spoken(node, pieces, pause_s=chance.choice([0, 0.0005])) == EXPECTED


@pytest.mark.parametrize("size", [1, 3, 128, 4096])
def test_fragments_of_any_size(own: Running, library: Running, size: int) -> None:
    dataset = random.Random(size).randbytes(3000)
    starts = range(0, len(dataset), size)
    pieces = [p_data(1, 3, STORE), *(p_data(1, 2 if at + size >= len(dataset) else 0, dataset[at : at + size]) for at in starts)]
    expected = Seen(((1, 0x8001, 0),), "released", ((CT, "1.2.3", dataset),))
    assert spoken(own, [b"".join([*pieces, RELEASE])]) == expected
    assert spoken(library, [b"".join([*pieces, RELEASE])]) == expected


def talk(*pdus: bytes) -> bytes:
    return b"".join(pdus)


def changed(find: int, value: bytes) -> bytes:
    """A C-STORE-RQ whose element `find` has another value."""
    values = {0x0002: uid_value(CT.encode()), 0x0100: b"\x01\0", 0x0110: b"\x01\0", 0x0700: b"\0\0", 0x0800: b"\0\0", 0x1000: b"1.2.3\0"}
    return command(*[element(number, content) for number, content in ({**values, find: value}).items()])


WRONG: dict[str, bytes] = {
    "data without a command": talk(p_data(1, 2, DATASET)),
    "a command in the middle of a data set": talk(p_data(1, 3, STORE), p_data(1, 0, b"x"), p_data(1, 3, STORE)),
    "another context in the middle": talk(p_data(1, 3, STORE), p_data(3, 2, b"x")),
    "a context that was not accepted": talk(p_data(9, 3, STORE)),
    "an empty P-DATA": pdu(DATA, b""),
    "a fragment of length 0": pdu(DATA, struct.pack(">L", 0)),
    "a fragment of length 1": pdu(DATA, struct.pack(">LB", 1, 1)),
    "a fragment past its PDU": pdu(DATA, struct.pack(">LBB", 500, 1, 3) + STORE),
    "a second A-ASSOCIATE-RQ": pdu(1, bytes(80)),
    "an A-ASSOCIATE-AC": pdu(2, bytes(60)),
    "an A-RELEASE-RP": pdu(6, bytes(4)),
    "no PDU at all": b"GET / HTTP/1.1\r\n\r\n",
    "a PDU of an unknown type": pdu(0x42, bytes(10)),
    "a P-DATA longer than was allowed": struct.pack(">BBL", 4, 0, 1 << 24) + bytes(100),
    "an A-RELEASE longer than it can be": struct.pack(">BBL", 5, 0, 1 << 20) + bytes(100),
    "an A-ABORT": pdu(ABORT, bytes(4)),
    "an A-ABORT in the middle of a data set": talk(p_data(1, 3, STORE), p_data(1, 0, b"xyz"), pdu(ABORT, bytes(4))),
    "a release in the middle of a data set": talk(p_data(1, 3, STORE), p_data(1, 0, b"xyz"), RELEASE),
    "a command set that is too long": talk(*[p_data(1, 1, bytes(16000)) for _ in range(5)]),
    "a command set cut short": talk(p_data(1, 3, STORE[:-3])),
    "a command set of nothing": talk(p_data(1, 3, b"")),
    "no message id": talk(p_data(1, 3, changed(0x0110, b""))),
    "a UID of letters": talk(p_data(1, 3, changed(0x1000, b"abcd")), p_data(1, 2, DATASET), RELEASE),
    "another SOP class": talk(p_data(1, 3, changed(0x0002, uid_value(b"1.2.840.10008.5.1.4.1.1.4"))), p_data(1, 2, DATASET), RELEASE),
    "a C-STORE on the Verification context": talk(p_data(3, 3, STORE), p_data(3, 2, DATASET), RELEASE),
    "a C-STORE without a data set": talk(p_data(1, 3, store_command(CT.encode(), b"1.2.3", data_set=False)), RELEASE),
    "an empty data set": talk(p_data(1, 3, STORE), p_data(1, 2, b""), RELEASE),
    "the end in the middle of a PDU": talk(p_data(1, 3, STORE), p_data(1, 2, DATASET)[:50]),
    "the end between two PDUs": talk(p_data(1, 3, STORE)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_has_the_same_end(own: Running, library: Running, name: str) -> None:
    ours, theirs = one_after_the_other(own, library, WRONG[name])
    assert ours == theirs
    assert own.store.opened == library.store.opened
    assert own.store.aborted == library.store.aborted


def test_a_request_nobody_serves_is_answered(own: Running) -> None:
    """The library aborts; PS3.7 Annex C has a status for it."""
    find = command(
        element(0x0002, uid_value(FIND.encode())), element(0x0100, b"\x20\0"), element(0x0110, b"\x05\0"), element(0x0800, b"\1\0"),
    )
    cancel = command(element(0x0100, b"\xff\x0f"), element(0x0120, b"\x05\0"), element(0x0800, b"\x01\x01"))
    response = command(element(0x0100, b"\x20\x80"), element(0x0120, b"\x05\0"), element(0x0800, b"\0\0"), element(0x0900, b"\0\0"))
    seen = spoken(own, [talk(
        p_data(1, 3, find), p_data(1, 2, DATASET), p_data(1, 3, cancel), p_data(1, 3, response), p_data(1, 2, DATASET),
        p_data(3, 3, echo_command(3)), RELEASE,
    )])
    assert seen == Seen(((1, 0x8020, 0x0211), (3, 0x8030, 0)), "released", ())


def mutated(chance: random.Random) -> bytes:
    data = bytearray(TALK)
    kind = chance.randrange(5)
    at = chance.randrange(len(data))
    if kind == 0:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at : at + chance.randint(1, 30)]
    elif kind == 3:
        data[at:at] = chance.randbytes(chance.randint(1, 30))
    else:
        for _ in range(4):
            data[chance.randrange(len(data))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
    return bytes(data)


def other_commands(seen: Seen) -> bool:
    """Whether a mutation has made another request of one: those the library refuses by its own rules."""
    return any(field not in {0x8001, 0x8030} for _context, field, _status in seen.answers)


def judge(ours: Seen, theirs: Seen) -> str:
    """What differs beyond what may: nothing, as a rule."""
    if ours == theirs or other_commands(ours):
        return ""
    # The library checks every value of a C-ECHO's command set; this lane those it uses.
    if ours.kept != theirs.kept and ours.kept[: len(theirs.kept)] != theirs.kept:
        return "other instances were kept"
    if Counter(theirs.answers) - Counter(ours.answers):
        return "fewer answers were given"
    # What the library's second thread still had to say is lost when the first one ends the association.
    return "it ended otherwise" if theirs.end == "released" else ""


def test_mutated_streams_have_the_same_end(own: Running, library: Running) -> None:
    chance = random.Random(20261121)
    agreed = 0
    for _ in range(80):
        data = mutated(chance)
        ours, theirs = one_after_the_other(own, library, data)
        assert not judge(ours, theirs), (data, ours, theirs)
        agreed += ours.kept == theirs.kept  # answers of the library's second thread may be lost, which grows with the load
    assert agreed > 75
    for node in (own, library):
        assert spoken(node, [TALK]) == EXPECTED, "a lane no longer works"


@pytest.mark.parametrize(("contexts", "wanted"), [
    ([(CT, [EXPLICIT])], "own"), ([(VERIFICATION, [IMPLICIT])], "own"), (CONTEXTS, "own"),
    ([*CONTEXTS, (FIND, [IMPLICIT])], "pynetdicom"), ([(FIND, [IMPLICIT])], "pynetdicom"),
])
def test_the_request_chooses_the_lane(
    own: Running, monkeypatch: pytest.MonkeyPatch, contexts: list[tuple[str, list[str]]], wanted: str
) -> None:
    chosen: list[str] = []

    def watched(name: str, serve: Callable[..., None]) -> Callable[..., None]:
        def run(*args: object, **options: object) -> None:
            chosen.append(name)
            serve(*args, **options)

        return run

    lanes = own.listener._lane
    for name, lane in (("own", lanes._storage), ("pynetdicom", lanes._library)):
        monkeypatch.setattr(lane, "serve", watched(name, lane.serve))
    with RawPeer(own.connect()) as peer:
        assert peer.associate(contexts) == AC
        peer.release()
    assert chosen == [wanted]


USER_IDENTITY = struct.pack(">BBH", 0x58, 0, 18) + bytes((2, 1)) + struct.pack(">H", 4) + b"name" + struct.pack(">H", 8) + b"password"


@pytest.mark.parametrize("identified", [False, True])
def test_set_up_is_the_same_in_both_lanes(own: Running, library: Running, identified: bool) -> None:
    """Contexts, roles and the largest PDU; the request of a user identity is never kept."""
    admission._parse.cache_clear()
    asked = [(CT, ["1.2.840.10008.1.2.4.70", EXPLICIT]), ("1.2.840.10008.5.1.4.1.1.4", ["1.2.3"]), (VERIFICATION, [EXPLICIT, IMPLICIT])]
    request = bytearray(associate_rq(asked, roles=[(CT, 1, 1)]))
    if identified:
        at = request.rindex(b"\x50\x00", 0, request.rindex(b"\x51\x00"))
        request += USER_IDENTITY
        request[at + 2 : at + 4] = struct.pack(">H", len(request) - at - 4)
        request[2:6] = struct.pack(">L", len(request) - 6)
    seen = []
    for node in (own, library):
        with RawPeer(node.connect()) as peer:
            peer.send(bytes(request))
            kind, body = peer.read_pdu()
            assert kind == AC
            peer._read_accept(body[68:])
            seen.append((peer.results, peer.roles, peer.max_pdu, body[:68]))
            peer.release()
    assert seen[0] == seen[1]
    assert {number: result for number, (result, _syntax) in seen[0][0].items()} == {1: 0, 3: 4, 5: 0}
    assert seen[0][1] == {CT: (1, 0)}
    assert admission._parse.cache_info().currsize == (0 if identified else 1)


@pytest.mark.skipif(QUICKACK is None, reason="Linux alone has TCP_QUICKACK")
@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_a_sender_that_left_nagle_on_is_not_kept_waiting(own: Running, secured: bool) -> None:
    """Its second small segment waits for our acknowledgement, which may come 40 ms late unless it is asked for."""
    with RawPeer(own.connect_tls(own.pki.ct1) if secured else own.connect()) as peer:
        assert peer.associate(CONTEXTS) == AC
        peer.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        took = []
        for number in range(25):
            started = time.monotonic()
            assert peer.store(1, CT, f"1.2.{number + 1}", DATASET) == 0
            took.append(time.monotonic() - started)
        peer.release()
    assert sorted(took)[len(took) // 2] < 0.038


def test_an_idle_association_has_no_memory_of_its_own(own: Running) -> None:
    def resident() -> int:
        fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        return int(fields["Anonymous"].split()[0])  # what is shared grows when another process ends

    peers = [RawPeer(own.connect()) for _ in range(21)]
    assert peers[0].associate(CONTEXTS) == AC
    before = resident()
    for peer in peers[1:]:
        assert peer.associate(CONTEXTS) == AC
    grown = resident() - before
    for peer in peers:
        peer.release()
    assert grown / 20 < 400, "kilobytes an association"
