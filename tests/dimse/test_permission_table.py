"""The table of what DIMSE operations need is whole, and every row is so: performed with no more than its right, and with all but that."""

from __future__ import annotations

import io
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pydicom
import pytest
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pynetdicom import evt, sop_class
from pynetdicom.association import Association

from archive.access import principals, roles
from archive.access.grants import Target
from archive.access.permissions import FUNCTION, OBJECT, Permission
from archive.dimse import admission, command, contexts, models, normalized, status
from archive.dimse.contexts import ACCEPTED, USER_REJECTION, VERIFICATION, Proposed
from archive.dimse.permissions import OPERATIONS, Operation
from archive.ledger.audit import KINDS
from archive.ledger.log import AuditFilter
from archive.services.commitment_rows import REPORTED
from tests.dimse import rawpeer
from tests.dimse.clinic import EXPLICIT, IMPLICIT, Clinic, Receiver, clinic, identifier
from tests.dimse.fakes import eventually
from tests.dimse.test_commitment import WELL_KNOWN, asked
from tests.dimse.test_mpps import begun, ended
from tests.dimse.test_worklist import asking, entry
from tests.services.archives import CT, instance, the_console

GRANTED, HIDDEN, ABSENT = "1.2.77400", "1.2.77401", "1.2.77402"
EVERYTHING = Target("everything")
PRIVATE = "1.2.826.0.1.3680043.2.1545.9"
ALL = FUNCTION | OBJECT
ROWS = [pytest.param(row, id=f"{row.name}-{min(row.sop_classes)}") for row in OPERATIONS]
NEEDING = [row for row in ROWS if row.values[0].need]  # type: ignore[attr-defined]


def class_of(row: Operation) -> str:
    """The SOP class a row is performed on: Study Root of the three models."""
    return CT if CT in row.sop_classes else next(
        (uid for uid in sorted(row.sop_classes) if uid.startswith(models.STUDY_ROOT)), min(row.sop_classes))


@dataclass
class Place:
    """An archive with a peer for each row that has no more than its permission (ONLY) and one that has all but that (BUT)."""

    clinic: Clinic
    receiver: Receiver
    reports: list[tuple[int, Dataset]]

    def name(self, kind: str, row: Operation) -> str:
        return f"{kind}{OPERATIONS.index(row)}"

    def enrol(self, name: str, held: Permission, target: Target | None, *, port: int | None = None) -> None:
        node, console = self.clinic.node, the_console(self.clinic.node)
        node.accounts.add_role(console, f"role-{name}", roles.names(held))
        address = None if port is None else f"127.0.0.1:{port}"
        node.peers.add(console, name, [name], networks=["127.0.0.1/32"], roles=[f"role-{name}"], address=address)
        node.peers.set(console, name, {"commitment_same_association": True})
        if target is not None and held & OBJECT:
            node.accounts.add_grant(console, to=name, role=f"role-{name}", target=target)

    def connect(self, name: str, *classes: str) -> Any:
        """VERIFICATION besides, so that there is an association to be had."""
        def take(event: Any) -> tuple[int, None]:
            self.reports.append((event.request.EventTypeID, event.event_information))
            return 0, None

        handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, take), (evt.EVT_C_STORE, lambda _event: 0)]
        back = [CT] if models.GET_CLASSES & set(classes) else None
        return self.clinic.association(name, VERIFICATION, *classes, storage=back, evt_handlers=handlers)

    def events(self, name: str, after: int = 0) -> list[Any]:
        """What a peer left in the ledger."""
        core = self.clinic.node.core
        with core.database.read() as tx:
            key = principals.find(tx, name, ("device",))["id"]
            return [one for one in core.ledger.search(tx, AuditFilter(principal_id=key, limit=200)) if one.n > after]

    def perform(self, row: Operation, association: Association, name: str, study: str, *, to: str = "DEST") -> tuple[Any, set[str]]:
        """What was answered, the study's own UID taken out, and the kinds of events it left."""
        before = max((one.n for one in self.events(name)), default=0)
        told = len(self.reports)
        answer = _ask(row, association, study, to)
        if row.name == "N-ACTION" and answer[0] == 0:
            assert eventually(lambda: any(
                one.body["detail"].get("what") == REPORTED for one in self.events(name, before) if one.body is not None))
            answer += tuple((kind, report.to_json()) for kind, report in self.reports[told:])
        said = repr(answer).replace(study, "STUDY")
        return (answer[0], said), {one.kind for one in self.events(name, before)}


def _ask(row: Operation, association: Association, study: str, to: str) -> tuple[Any, ...]:
    uid = class_of(row)
    if row.name == "C-ECHO":
        return (int(association.send_c_echo().Status),)
    if row.name == "C-STORE":
        file = pydicom.dcmread(io.BytesIO(instance(7, study=study, PatientID=f"P{study}")))
        said = association.send_c_store(file)
        return int(said.Status), said.to_json()
    if row.name == "N-CREATE":
        said, _ = association.send_n_create(begun(1, StudyInstanceUID=study), uid, f"1.2.9.{study}")
        return int(said.Status), said.to_json()
    if row.name == "N-SET":
        said, _ = association.send_n_set(ended(), uid, f"1.2.8.{study}")
        return int(said.Status), said.to_json()
    if row.name == "N-ACTION":
        request = asked(f"{study}.9", f"{study}.1.1")
        said, _ = association.send_n_action(request, 1, uid, WELL_KNOWN)
        return int(said.Status), said.get("ErrorComment", "")
    if uid == models.WORKLIST:
        answers = association.send_c_find(asking(StudyInstanceUID=study), uid)
    elif row.name == "C-FIND":
        answers = association.send_c_find(identifier("STUDY", StudyInstanceUID=study, PatientID=""), uid)
    elif row.name == "C-MOVE":
        answers = association.send_c_move(identifier("STUDY", StudyInstanceUID=study), to, uid)
    else:
        answers = association.send_c_get(identifier("STUDY", StudyInstanceUID=study), uid)
    told = [(said, found) for said, found in answers if found is not None or said.Status != status.PENDING]
    return int(told[-1][0].Status), *((said.to_json(), None if found is None else found.to_json()) for said, found in told)


def gave(answer: Any) -> bool:
    """Whether an answer has anything of an object in it."""
    return "00100020" in answer[1] or re.search(r'"00001021": {"Value": \[[1-9]', answer[1]) is not None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with clinic(tmp_path_factory.mktemp("table"), private_sop_classes=True) as it:
        receiver = Receiver("DEST")
        made = Place(it, receiver, [])
        console = the_console(it.node)
        for study in (GRANTED, HIDDEN):
            it.put(*(instance(n, study=study, PatientID=f"P{study}") for n in (1, 2)))
        made.enrol("DEST", Permission.RECEIVE, EVERYTHING, port=receiver.port)
        made.enrol("DEAF", ALL & ~Permission.RECEIVE, EVERYTHING, port=receiver.port)
        made.enrol("SELF", Permission.ORIGINAL | Permission.RECEIVE, Target("study", GRANTED), port=receiver.port)
        made.enrol("UNSENT", ALL & ~Permission.ORIGINAL, EVERYTHING, port=receiver.port)
        made.enrol("ALL", ALL, EVERYTHING)
        for row in OPERATIONS:
            made.enrol(made.name("ONLY", row), (row.need | row.of_objects) or Permission.STATS, Target("study", GRANTED))
            made.enrol(made.name("BUT", row), ALL & ~row.need, EVERYTHING)
        for number, study in enumerate((GRANTED, HIDDEN), 1):
            title = "ALL" if study == HIDDEN else next(made.name("ONLY", row) for row in OPERATIONS if models.WORKLIST in row.sop_classes)
            it.node.worklist.add(console, entry(number, step={"ScheduledStationAETitle": title}, StudyInstanceUID=study))
        for owner, study in ((next(made.name("ONLY", row) for row in OPERATIONS if row.name == "N-SET"), GRANTED), ("ALL", HIDDEN)):
            with made.connect(owner, models.MPPS) as association:
                assert association.send_n_create(begun(1), models.MPPS, f"1.2.8.{study}")[0].Status == 0
        try:
            yield made
        finally:
            receiver.close()


# --- the table is whole ---------------------------------------------------------------------------------------------------------------

COMMANDS = {
    "C-STORE": command.C_STORE_RQ, "C-GET": command.C_GET_RQ, "C-FIND": command.C_FIND_RQ, "C-MOVE": command.C_MOVE_RQ,
    "C-ECHO": command.C_ECHO_RQ, "N-EVENT-REPORT": normalized.N_EVENT_REPORT_RQ, "N-GET": 0x0110, "N-SET": normalized.N_SET_RQ,
    "N-ACTION": normalized.N_ACTION_RQ, "N-CREATE": normalized.N_CREATE_RQ, "N-DELETE": 0x0150,
}
"""Every request there is (PS3.7 Table E.1-1) but C-CANCEL, which has no answer."""
WITHOUT_DATA = {"C-ECHO", "N-GET", "N-DELETE"}
NOT_ANSWERED = {0x0211, 0x0122}


def test_every_class_that_is_taken_has_a_row() -> None:
    named = {str(uid) for uid in vars(sop_class).values() if isinstance(uid, sop_class.SOPClass)}  # some that the dictionary lacks
    classes = {uid for uid, (_, kind, *_) in UID_dictionary.items() if "SOP Class" in kind} | named | {PRIVATE}
    answered, _ = contexts.answer(
        [Proposed(n, uid, (EXPLICIT, IMPLICIT)) for n, uid in enumerate(sorted(classes))], {}, may_store=True, may_query=True, private=True,
        functions=frozenset(admission.FUNCTIONS),
    )
    taken = {one.abstract_syntax for one in answered if one.result == ACCEPTED}
    rows = frozenset().union(*(row.sop_classes for row in OPERATIONS))
    assert taken - {PRIVATE} == rows
    assert PRIVATE in taken
    assert [row.name for row in OPERATIONS if row.private] == ["C-STORE"]


def test_the_rows_say_what_admission_does() -> None:
    gate = {uid: row.need for row in OPERATIONS for uid in row.sop_classes if row.context == "who may" and row.name != "C-STORE"}
    assert gate == admission.FUNCTIONS
    assert {uid for row in OPERATIONS for uid in row.sop_classes if row.context.startswith("over TLS")} == models.CLASSES
    for row in OPERATIONS:
        assert {*row.recorded, *row.refused} <= set(KINDS)
        assert row.command == COMMANDS[row.name]


def ask(peer: rawpeer.RawPeer, context_id: int, uid: str, name: str) -> int | None:
    """The status of a request that means nothing; None when the association ends instead."""
    data = None if name in WITHOUT_DATA else b""
    value = rawpeer.uid_value(uid.encode())
    encoded = rawpeer.command(
        rawpeer.element(0x0002, value), rawpeer.element(0x0003, value), rawpeer.element(0x0100, struct.pack("<H", COMMANDS[name])),
        rawpeer.element(0x0110, b"\1\0"), rawpeer.element(0x0600, b"DEST"), rawpeer.element(0x0700, b"\0\0"),
        rawpeer.element(0x0800, b"\1\1" if data is None else b"\1\0"), rawpeer.element(0x1000, b"1.2.3\0"),
        rawpeer.element(0x1001, b"1.2.3\0"), rawpeer.element(0x1002, b"\1\0"), rawpeer.element(0x1008, b"\1\0"),
    )
    try:
        peer.message(context_id, encoded, data)
        while True:
            said = peer.response()
            if said[0x0800] != struct.pack("<H", command.NO_DATA_SET):
                while not peer.read_pdu()[1][5] & 2:  # the data set, to its last fragment
                    pass
            code = int.from_bytes(said[0x0900], "little")
            if code not in (status.PENDING, status.PENDING_UNSUPPORTED_KEY):
                return code
    except (OSError, EOFError):
        return None


def walk(place: Place, classes: list[str], *more: str) -> dict[tuple[str, str], int | None]:
    found: dict[tuple[str, str], int | None] = {}
    peer: rawpeer.RawPeer | None = None
    proposed = [(uid, [IMPLICIT]) for uid in (*classes, *more)]
    for name in COMMANDS:
        for number, uid in enumerate(classes):
            if peer is None:
                peer = rawpeer.RawPeer(socket.create_connection(("127.0.0.1", place.clinic.plain_port)))
                assert peer.associate(proposed, calling="ALL") == rawpeer.AC
                assert {peer.results[2 * n + 1][0] for n in range(len(classes))} == {ACCEPTED}
            found[uid, name] = ask(peer, 2 * number + 1, uid, name)
            if found[uid, name] is None:
                peer.connection.close()
                peer = None
    if peer is not None:
        peer.release()
    return found


@pytest.mark.parametrize("lane", ["storage", "library", "query"])
def test_every_command_that_is_answered_has_a_row_and_every_row_a_handler(place: Place, lane: str) -> None:
    classes = [VERIFICATION, CT, PRIVATE]
    unknown = ["1.2.840.10008.5.1.1.1"] if lane == "library" else []  # a class nobody takes leads away from the storage lane
    if lane == "query":
        classes += sorted(models.SERVED)
    found = walk(place, classes, *unknown)
    answered = {request for request, code in found.items() if code is not None and code not in NOT_ANSWERED}
    rows = {(uid, row.name) for row in OPERATIONS for uid in classes if uid in row.sop_classes or (row.private and uid == PRIVATE)}
    assert answered == rows
    assert None not in found.values()


# --- every row is so ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("row", ROWS)
def test_with_the_permission_alone(place: Place, row: Operation) -> None:
    """What is granted is given; what is hidden is answered as what is not there."""
    name = place.name("ONLY", row)
    with place.connect(name, class_of(row)) as association:
        hidden, hidden_kinds = place.perform(row, association, name, HIDDEN)
        absent, absent_kinds = place.perform(row, association, name, f"{ABSENT}.{OPERATIONS.index(row)}")  # which C-STORE makes
        given, kinds = place.perform(row, association, name, GRANTED)
    assert given[0] == 0
    assert kinds <= set(row.recorded)
    assert bool(kinds) == bool(row.recorded)
    assert hidden == absent
    assert not gave(hidden)
    assert hidden[0] == (row.denied_objects or 0)
    assert gave(given) == (row.name in {"C-FIND", "C-MOVE", "C-GET"})
    if row.denied_objects is None:
        assert hidden_kinds | absent_kinds <= set(row.recorded)
    else:
        assert given != hidden
        assert hidden_kinds == absent_kinds
        assert hidden_kinds <= set(row.refused)


@pytest.mark.parametrize("row", NEEDING)
def test_with_every_other_permission_on_everything(place: Place, row: Operation) -> None:
    name = place.name("BUT", row)
    with place.connect(name, class_of(row)) as association:
        refused = {str(one.abstract_syntax): one.result for one in association.rejected_contexts}
        if row.context == "who may":
            assert refused == {class_of(row): USER_REJECTION}
            return
        assert refused == {}
        answers = [place.perform(row, association, name, study) for study in (GRANTED, HIDDEN, ABSENT)]
    assert {answer for answer, _ in answers} == {answers[0][0]}
    assert answers[0][0][0] == row.denied
    assert not gave(answers[0][0])
    assert all(kinds and kinds <= set(row.refused) for _, kinds in answers)


@pytest.mark.parametrize("row", NEEDING)
def test_who_loses_it_while_associated(place: Place, row: Operation) -> None:
    name, console, accounts = place.name("ONLY", row), the_console(place.clinic.node), place.clinic.node.accounts
    instead, own = ["verify", "stats"], roles.names(row.need)
    with place.connect(name, class_of(row)) as association:
        accounts.change_role(console, f"role-{name}", add=instead, remove=own)
        try:
            answer, kinds = place.perform(row, association, name, GRANTED)
        finally:
            accounts.change_role(console, f"role-{name}", add=own, remove=instead)
    assert answer[0] == row.denied
    assert not gave(answer)
    assert kinds
    assert kinds <= set(row.refused)


def test_a_stranger_to_every_object_is_offered_no_query(place: Place) -> None:
    """Over TLS, or with a grant of whatever kind: a plain peer without one is not even answered that there is nothing."""
    ungranted = place.name("ONLY", next(row for row in OPERATIONS if row.need == Permission.MPPS))
    queries = [uid for row in OPERATIONS if row.context.startswith("over TLS") for uid in sorted(row.sop_classes)]
    with place.connect(ungranted, *queries) as association:
        refused = {str(one.abstract_syntax): one.result for one in association.rejected_contexts}
    assert refused == dict.fromkeys([*queries, CT], USER_REJECTION)  # nor may anything come back to it


def test_a_move_needs_both_sides(place: Place) -> None:
    row = next(row for row in OPERATIONS if row.name == "C-MOVE")
    assert (row.to_itself, row.of_destination) == (Permission.ORIGINAL, Permission.RECEIVE)
    with place.connect("SELF", class_of(row)) as association:
        assert gave(place.perform(row, association, "SELF", GRANTED, to="SELF")[0])
        nothing = place.perform(row, association, "SELF", HIDDEN, to="SELF")[0]
    for name, study, to in (("ALL", GRANTED, "DEAF"), ("UNSENT", GRANTED, "UNSENT"), ("SELF", GRANTED, "DEST")):
        with place.connect(name, class_of(row)) as association:
            answer, kinds = place.perform(row, association, name, study, to=to)
        assert (answer, kinds) == (nothing, set(row.refused)), (name, to)
