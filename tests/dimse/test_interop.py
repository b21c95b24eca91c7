"""What modalities really do, row by row: each trap has its test here or in the module that is named beside it; what peers are set to."""

from __future__ import annotations

import gzip
import importlib
import io
from collections.abc import Iterator
from typing import Any

import pydicom
import pytest
from pynetdicom import AE, evt

from archive.access.grants import Target
from archive.cli.main import run
from archive.cli.session import Session
from archive.errors import InvalidRequest
from archive.ledger.audit import Kind
from tests.dimse.clinic import EXPLICIT, FIND, GET, IMPLICIT, MOVE, Clinic, clinic, identifier
from tests.services.archives import CT, instance, the_console, user

VERIFICATION = "1.2.840.10008.1.1"
PRIVATE = "1.3.46.670589.11.0.0.12.1"
JPEG = "1.2.840.10008.1.2.4.70"

ELSEWHERE = {
    "association leak": ("tests.services.test_doorkeeper:test_slots_are_counted_per_peer_and_given_back",
                         "tests.services.test_doorkeeper:test_slots_of_the_whole_archive"),
    "maximum PDU": ("tests.dimse.test_receive:test_a_peer_with_a_tiny_maximum_pdu_gets_its_answer_in_pieces",),
    "called AE title": ("tests.dimse.test_identity:test_the_called_title",),
    "unknown calling AE title": ("tests.dimse.test_identity:test_any_other_pair_gets_a_clean_rejection_and_is_pending",
                                 "tests.services.test_peers:test_a_refused_caller_is_pending_and_can_be_enrolled"),
    "same UID, other bytes": ("tests.services.test_store:test_other_bytes_under_a_stored_uid_are_quarantined_once_and_the_first_stays",),
    "odd UIDs": ("tests.dimse.test_receive:test_odd_uids_reach_the_store_and_are_repeated_exactly",),
    "success before commit": ("tests.dimse.test_receive:test_success_only_after_the_store_has_finished",
                              "tests.services.test_store:test_a_data_set_is_kept_byte_for_byte_and_meta_is_the_same_from_any_peer"),
    "patient IDs": ("tests.services.test_store:test_without_a_patient_id_each_study_has_a_patient_of_its_own_until_one_is_named",
                    "tests.services.test_store:test_a_study_of_another_patient_is_held_and_nobody_sees_it"),
    "broken data sets": ("tests.dimse.test_archive:test_the_hostile_files_cost_no_more_than_an_answer",
                         "tests.dimse.test_scp:test_every_file_of_the_corpus_comes_in_unchanged"),
    "character sets": ("tests.dimse.test_find:test_the_character_sets_of_the_corpus",
                       "tests.dimse.test_find:test_a_character_set_that_cannot_say_it"),
    "role selection": ("tests.dimse.test_get:test_without_role_selection_and_in_implicit_vr", "tests.dimse.test_scp:test_role_selection"),
    "no acceptable context": ("tests.dimse.test_scp:test_an_association_without_any_accepted_context_is_accepted",
                              "tests.dimse.test_contexts:test_private_classes_by_opt_in_only"),
    "two contexts of a class": ("tests.dimse.test_contexts:test_the_proposers_order_decides",),
    "C-STORE-RSP names the instance": ("tests.dimse.test_receive:test_odd_uids_reach_the_store_and_are_repeated_exactly",),
    "C-FIND keys": ("tests.dimse.test_find:test_matching", "tests.dimse.test_find:test_two_hundred_and_forty_nine_uids",
                    "tests.dimse.test_find:test_keys_inside_sequences"),
    "empty unique key": ("tests.dimse.test_move:test_an_empty_unique_key_and_an_unknown_destination",
                         "tests.dimse.test_get:test_an_empty_unique_key_never_means_everything"),
    "more than 65535": ("tests.dimse.test_move:test_more_than_can_be_counted", "tests.dimse.test_get:test_more_than_can_be_counted"),
}  # fmt: skip
"""Rows whose test stands elsewhere."""


@pytest.mark.parametrize("row", ELSEWHERE)
def test_the_row_has_its_test(row: str) -> None:
    for place in ELSEWHERE[row]:
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    with clinic(tmp_path_factory.mktemp("interop")) as it:
        it.put(instance(1), instance(1, study="1.2.4", PatientID="1.2.3", PatientName="Müller^Jürgen", SpecificCharacterSet="ISO_IR 100"))
        it.plain_peer("WS", target=Target("everything"))
        it.node.peers.add(the_console(it.node), "CT1", ["CT1"], networks=["127.0.0.1/32"])
        yield it


@pytest.fixture
def setting(made: Clinic) -> Iterator[Any]:
    """Set a peer for one test."""
    done: list[tuple[str, dict[str, Any]]] = []
    peers, console = made.node.peers, the_console(made.node)

    def change(name: str, **settings: Any) -> None:
        before = peers.get(console, name)["settings"]
        done.append((name, {key: before[key] for key in settings}))
        peers.set(console, name, settings)

    yield change
    for name, before in done:
        peers.set(console, name, before)


def asking(name: str, made: Clinic, *classes: Any, called: str = "STRONGROOM") -> Any:
    ae = AE(ae_title=name)
    for uid, syntaxes in classes:
        ae.add_requested_context(uid, syntaxes)
    return ae.associate("127.0.0.1", made.plain_port, ae_title=called)


def send(association: Any, data: bytes, **changes: Any) -> Any:
    dataset = pydicom.dcmread(io.BytesIO(data))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return association.send_c_store(dataset)


def test_a_large_maximum_pdu_is_offered_and_no_limit_is_understood(made: Clinic) -> None:
    ae = AE(ae_title="WS")
    ae.maximum_pdu_size = 0
    ae.add_requested_context(FIND, [EXPLICIT])
    association = ae.associate("127.0.0.1", made.plain_port, ae_title="STRONGROOM")
    assert association.acceptor.maximum_length >= 65536
    found = [one for _, one in association.send_c_find(identifier("STUDY", StudyInstanceUID=""), FIND) if one is not None]
    assert len(found) == 2
    association.release()


def test_a_patient_id_that_is_a_study_uid_opens_nothing_else(made: Clinic) -> None:
    """Typed identifiers: a grant for patient 1.2.3 is none for study 1.2.3."""
    made.node.peers.add(the_console(made.node), "ODD", ["ODD"], networks=["127.0.0.1/32"], roles=["workstation"])
    made.grant("ODD", Target("patient", "1.2.3"))
    assert [str(one.StudyInstanceUID) for one in made.find("ODD", "STUDY", StudyInstanceUID="")] == ["1.2.4"]


def test_the_store_response_names_class_and_instance(made: Clinic) -> None:
    seen: list[Any] = []
    ae = AE(ae_title="CT1")
    ae.add_requested_context(CT, [EXPLICIT])
    handlers = [(evt.EVT_DIMSE_RECV, lambda event: seen.append(event.message.command_set))]
    association = ae.associate("127.0.0.1", made.plain_port, ae_title="STRONGROOM", evt_handlers=handlers)  # type: ignore[arg-type]
    data = instance(7)
    assert send(association, data).Status == 0
    assert send(association, data).Status == 0, "identical bytes again"
    assert send(association, data, StudyDescription="other").Status == 0x0111, "other bytes"
    association.release()
    assert [(one.AffectedSOPClassUID, one.AffectedSOPInstanceUID) for one in seen] == [(CT, "1.2.3.1.7")] * 3


@pytest.mark.parametrize(("uid", "status"), [
    ("1.2.3.1.008", 0), ("1.2.3.1.9\0\0", 0), ("1.2.3.1.10 ", 0), ("1.2.x", 0xC000), ("1.2.3", 0),
])  # fmt: skip
def test_uids_of_modalities(made: Clinic, uid: str, status: int) -> None:
    """Leading zeros, padding, study, series and instance alike are kept; what is no UID is refused with a comment."""
    association = asking("CT1", made, (CT, [EXPLICIT]))
    dataset = pydicom.dcmread(io.BytesIO(instance(30)))
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = "1.2.3" if uid == "1.2.3" else "1.2.77"
    dataset.SOPInstanceUID = uid
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    answer = association.send_c_store(dataset)
    association.release()
    assert answer.Status == status
    assert ("ErrorComment" in answer) == bool(status)


def test_relational_by_setting_without_negotiation(made: Clinic, setting: Any) -> None:
    assert made.ask("WS", "SERIES", SeriesInstanceUID="")[0] == 0xA900
    setting("WS", relational=True)
    assert len(made.find("WS", "SERIES", SeriesInstanceUID="")) >= 2
    with made.association("WS", GET, storage=[CT]) as association:
        keys = identifier("IMAGE", SOPInstanceUID="1.2.3.1.1")
        statuses = [status for status, _ in association.send_c_get(keys, GET)]
    # Nothing above its level was named: it is looked for all the same, found and sent, and nobody here takes it.
    assert statuses[-1].NumberOfFailedSuboperations == 1
    assert made.ask("WS", "SERIES", root=FIND, StudyInstanceUID="1.2.x")[0] == 0xA900
    with made.association("WS", MOVE) as association:
        refused = [int(status.Status) for status, _ in association.send_c_move(identifier("STUDY", StudyInstanceUID=""), "WS", MOVE)]
    assert refused[-1] in (0xA801, 0xA900), "relational or not, nothing is never everything"


def test_the_called_ae_title_by_setting(made: Clinic, setting: Any) -> None:
    for strict, accepted in ((None, True), (True, False), (False, True)):
        setting("CT1", called_ae_strict=strict)
        association = asking("CT1", made, (VERIFICATION, [IMPLICIT]), called="SOMEBODY")
        assert association.is_established == accepted
        if accepted:
            association.release()


def test_transfer_syntaxes_by_setting(made: Clinic, setting: Any) -> None:
    offered = (CT, [IMPLICIT, JPEG, EXPLICIT])

    def agreed() -> list[str]:
        association = asking("CT1", made, offered, (VERIFICATION, [IMPLICIT]))
        found = [str(one.transfer_syntax[0]) for one in association.accepted_contexts if one.abstract_syntax == CT]
        assert VERIFICATION in [one.abstract_syntax for one in association.accepted_contexts]
        association.release()
        return found

    assert agreed() == [IMPLICIT], "its own order"
    setting("CT1", transfer_syntaxes=[JPEG, EXPLICIT])
    assert agreed() == [JPEG], "the archive's order"
    setting("CT1", transfer_syntaxes=["1.2.840.10008.1.2.5"])
    assert agreed() == [], "nothing else is taken"


def test_private_classes_by_setting(made: Clinic, setting: Any) -> None:
    association = asking("CT1", made, (PRIVATE, [EXPLICIT]), (CT, [EXPLICIT]))
    assert [one.abstract_syntax for one in association.accepted_contexts] == [CT]
    association.release()
    setting("CT1", private_sop_classes=True)
    association = asking("CT1", made, (PRIVATE, [EXPLICIT]), (CT, [EXPLICIT]))
    dataset = pydicom.dcmread(io.BytesIO(instance(40)))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = PRIVATE
    assert association.send_c_store(dataset).Status == 0
    association.release()


def test_the_character_set_of_a_question_without_one(made: Clinic, setting: Any) -> None:
    """A question in Latin-1 without (0008,0005), and its answer in the same."""
    keys = {"PatientName": "Müll*", "StudyInstanceUID": ""}
    found = made.find("WS", "STUDY", **{**keys, "PatientName": "", "PatientID": "1.2.3"})
    assert found[0].SpecificCharacterSet == "ISO_IR 192"
    setting("WS", character_set="ISO_IR 100")
    found = made.find("WS", "STUDY", **{**keys, "PatientName": "", "PatientID": "1.2.3"})
    assert (found[0].SpecificCharacterSet, str(found[0].PatientName)) == ("ISO_IR 100", "Müller^Jürgen")
    setting("WS", character_set="ISO_IR 144")
    found = made.find("WS", "STUDY", **{**keys, "PatientName": "", "PatientID": "1.2.3"})
    assert (found[0].SpecificCharacterSet, str(found[0].PatientName)) == ("ISO_IR 192", "Müller^Jürgen"), "what it cannot say is UTF-8"


def test_the_character_set_of_instances_without_one(made: Clinic, setting: Any) -> None:
    """Greek without (0008,0005): searched and answered as Greek, the bytes kept as they came, and verify finds nothing."""
    setting("CT1", character_set="ISO_IR 126")
    name = "Διονυσιος"
    greek = name.encode("iso8859_7")
    for number, declared in ((50, None), (51, "ISO_IR 100")):
        more = {"SpecificCharacterSet": declared} if declared else {}
        data = instance(number, study=f"1.2.{number}", PatientID=f"G{number}", PatientName="X" * len(greek), **more)
        association = asking("CT1", made, (CT, [EXPLICIT]))
        assert send(association, data.replace(b"X" * len(greek), greek)).Status == 0
        association.release()
    asked = {"CharacterSet": "ISO_IR 192", "PatientName": "Διον*"}
    assert [str(one.PatientName) for one in made.find("WS", "STUDY", PatientID="G50", **asked)] == [name]
    assert made.find("WS", "STUDY", PatientID="G51", **asked) == [], "what it says of itself counts"
    answer = made.node.retrieve.metadata(user(made.node, "WS"), "clinical", "1.2.50")
    assert name in gzip.decompress(b"".join(answer.gzip())).decode()
    made.node.upkeep.tick()
    report = made.node.verify.run(the_console(made.node), "standard")
    assert report.findings == []


@pytest.mark.parametrize("changes", [
    {"character_set": "KLINGON"}, {"character_set": "ISO_IR 999"}, {"character_set": "x" * 200}, {"transfer_syntaxes": ["1.2.3"]},
    {"transfer_syntaxes": [CT]}, {"is_admin": True},
])  # fmt: skip
def test_what_cannot_be_set(made: Clinic, changes: dict[str, Any]) -> None:
    before = made.node.peers.get(the_console(made.node), "CT1")
    with pytest.raises(InvalidRequest):
        made.node.peers.set(the_console(made.node), "CT1", changes)
    assert made.node.peers.get(the_console(made.node), "CT1")["settings"] == before["settings"]


def test_settings_by_the_command_line_and_in_the_ledger(made: Clinic, capsys: Any, setting: Any) -> None:
    class Here(Session):
        @property
        def node(self) -> Any:
            return made.node

        def close(self) -> None:
            """The clinic closes it."""

    setting("CT1", character_set="", called_ae_strict=None, relational=False, transfer_syntaxes=[], whole_worklist=False)
    arguments = ["--character-set", "ISO_IR 100", "--called-ae", "strict", "--relational", "--transfer-syntax", EXPLICIT]
    assert run(["peer", "set", "CT1", *arguments, "--whole-worklist"], Here()) == 0
    assert "character set: ISO_IR 100" in capsys.readouterr().out
    event = made.events(Kind.PEER_CHANGED)[0]
    assert event.body is not None
    assert event.body["detail"]["what"] == "peer set"
    assert event.body["detail"]["settings"]["transfer_syntaxes"] == [EXPLICIT]
    assert run(["peer", "set", "CT1"], Here()) == 2
    assert run(["peer", "set", "CT1", "--character-set", "no"], Here()) == 2
    assert run(["peer", "set", "NOBODY", "--relational"], Here()) == 1

