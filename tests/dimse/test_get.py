"""C-GET: dcmtk and pynetdicom fetch; what arrives is what was stored, or the same pixels, and the counts are right."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import evt

from archive.access.grants import Target
from archive.dimse import retrieve as retrieve_module
from archive.errors import SealBroken, Unavailable
from archive.ledger.audit import Kind
from archive.services import sending as sending_module
from tests.dimse.clinic import EXPLICIT, GET, IMPLICIT, PATIENT_GET, Clinic, clinic, final_counts, identifier, received
from tests.dimse.part10 import sendable
from tests.services.archives import CT, instance, store, the_console

EVERYTHING = Target("everything")
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """Two patients; WS sees all, NARROW one series."""
    with clinic(tmp_path_factory.mktemp("get")) as it:
        it.put(
            *(instance(n, study="1.2.3") for n in range(1, 6)),
            *(instance(n, study="1.2.3", series="1.2.3.9", SeriesNumber=2) for n in (1, 2)),
            instance(1, study="1.2.4", PatientID="P2"), instance(1, study="1.2.5", PatientID="P2"),
            instance(1, study="1.2.6", PatientID="P3", IssuerOfPatientID="NORTH"),
            instance(1, study="1.2.7", PatientID="P3", IssuerOfPatientID="SOUTH"),
        )
        it.plain_peer("WS", target=EVERYTHING)
        it.plain_peer("NARROW", target=Target("series", "1.2.3.9"))
        yield it


class Kept:
    """What came back on the association."""

    def __init__(self, answers: Callable[[int], int] = lambda _n: 0) -> None:
        self.received: dict[str, tuple[str, bytes]] = {}
        self._answers = answers

    def __call__(self, event: Any) -> int:
        request = event.request
        self.received[str(request.AffectedSOPInstanceUID)] = (str(event.context.transfer_syntax), request.DataSet.getvalue())
        return self._answers(len(self.received))


def get(
    it: Clinic, name: str, level: str, *, root: str = GET, kept: Kept | None = None, storage: list[str] | None = None,
    syntaxes: list[str] | None = None, **keys: Any,
) -> tuple[Dataset, Dataset | None, Kept]:
    """The final response, its data set, and what came."""
    kept = kept or Kept()
    roles = keys.pop("roles", True)
    extended = keys.pop("extended", None)
    with it.association(
        name, root, storage=storage or [CT], evt_handlers=[(evt.EVT_C_STORE, kept)], storage_syntaxes=syntaxes, roles=roles,
        extended=extended,
    ) as association:
        *_, (status, found) = association.send_c_get(identifier(level, **keys), root)
    return status, found, kept


def counts(status: Dataset) -> tuple[int, int, int]:
    return (
        status.NumberOfCompletedSuboperations, status.NumberOfFailedSuboperations, status.NumberOfWarningSuboperations,
    )


def data_set(data: bytes) -> bytes:
    """The data set of a Part 10 file made by `instance`."""
    return data[132 + 12 + int.from_bytes(data[140:144], "little") :]


def test_getscu_of_dcmtk(made: Clinic, program: Callable[[str, str], str], tmp_path: Path) -> None:
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3"]
    done = made.dcmtk(program("getscu", "dcmtk"), "WS", "-S", "-v", *keys, "-od", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert final_counts(done.stdout + done.stderr) == {"Remaining": 0, "Completed": 7, "Failed": 0, "Warning": 0}
    found = received(tmp_path)
    assert len(found) == 7
    for uid, one in found.items():
        series, _, number = uid.rpartition(".")
        stored = instance(int(number), study="1.2.3", series=series, SeriesNumber=2 if series.endswith("9") else 1)
        original = pydicom.dcmread(io.BytesIO(stored))
        assert one.PixelData == original.PixelData
        assert one.PatientName == original.PatientName


def test_over_tls(made: Clinic) -> None:
    certificate = made.tls_peer("TLSWS", target=EVERYTHING)
    kept = Kept()
    with made.association("TLSWS", GET, storage=[CT], evt_handlers=[(evt.EVT_C_STORE, kept)], tls=certificate) as association:
        *_, (status, _) = association.send_c_get(identifier("STUDY", StudyInstanceUID="1.2.3"), GET)
    assert (status.Status, counts(status)) == (0, (7, 0, 0))
    assert kept.received["1.2.3.1.2"] == (EXPLICIT, data_set(instance(2, study="1.2.3")))


@pytest.mark.parametrize(("root", "level", "keys", "expected"), [
    (PATIENT_GET, "PATIENT", {"PatientID": "P2"}, 2), (PATIENT_GET, "STUDY", {"PatientID": "P1", "StudyInstanceUID": "1.2.3"}, 7),
    (PATIENT_GET, "STUDY", {"PatientID": "P2", "StudyInstanceUID": "1.2.3"}, 0),
    (GET, "STUDY", {"StudyInstanceUID": ["1.2.3", "1.2.4"]}, 8),
    (GET, "SERIES", {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.9"}, 2),
    (GET, "SERIES", {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": ["1.2.3.9", "1.2.3.1"]}, 7),
    (GET, "SERIES", {"StudyInstanceUID": "1.2.4", "SeriesInstanceUID": "1.2.3.9"}, 0),
    (GET, "IMAGE", {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1", "SOPInstanceUID": ["1.2.3.1.2", "1.2.3.1.4"]}, 2),
    (GET, "IMAGE", {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.9", "SOPInstanceUID": "1.2.3.1.2"}, 0),
    (GET, "STUDY", {"StudyInstanceUID": "1.2.77"}, 0),
])  # fmt: skip
def test_every_level(made: Clinic, root: str, level: str, keys: dict[str, Any], expected: int) -> None:
    status, _, kept = get(made, "WS", level, root=root, **keys)
    assert status.Status == 0
    assert counts(status) == (expected, 0, 0)
    assert len(kept.received) == expected
    for uid, (syntax, data) in kept.received.items():
        assert syntax == EXPLICIT
        if uid.startswith("1.2.3.1."):
            assert data == data_set(instance(int(uid[-1]), study="1.2.3"))


@pytest.mark.parametrize(("level", "keys", "expected"), [
    ("PATIENT", {}, ["1.2.6.1.1", "1.2.7.1.1"]), ("PATIENT", {"IssuerOfPatientID": ""}, ["1.2.6.1.1", "1.2.7.1.1"]),
    ("PATIENT", {"IssuerOfPatientID": "*"}, ["1.2.6.1.1", "1.2.7.1.1"]), ("PATIENT", {"IssuerOfPatientID": "NORTH"}, ["1.2.6.1.1"]),
    ("PATIENT", {"IssuerOfPatientID": "SOUTH"}, ["1.2.7.1.1"]), ("PATIENT", {"IssuerOfPatientID": "EAST"}, []),
    ("STUDY", {"IssuerOfPatientID": "NORTH", "StudyInstanceUID": ["1.2.6", "1.2.7"]}, ["1.2.6.1.1"]),
    ("SERIES", {"IssuerOfPatientID": "NORTH", "StudyInstanceUID": "1.2.7", "SeriesInstanceUID": "1.2.7.1"}, []),
    ("IMAGE", {"IssuerOfPatientID": "SOUTH", "StudyInstanceUID": "1.2.7", "SeriesInstanceUID": "1.2.7.1",
               "SOPInstanceUID": "1.2.7.1.1"}, ["1.2.7.1.1"]),
])  # fmt: skip
def test_two_patients_of_one_id_are_told_apart_by_its_issuer(
    made: Clinic, level: str, keys: dict[str, Any], expected: list[str]
) -> None:
    status, _, kept = get(made, "WS", level, root=PATIENT_GET, PatientID="P3", **keys)
    assert (status.Status, sorted(kept.received)) == (0, expected)


@pytest.mark.parametrize("issuer", ["NOR*", "NORTH\\SOUTH", '""'])
def test_an_issuer_that_is_not_one_is_refused(made: Clinic, issuer: str) -> None:
    status, _, kept = get(made, "WS", "PATIENT", root=PATIENT_GET, PatientID="P3", IssuerOfPatientID=issuer)
    assert (status.Status, kept.received) == (0xA900, {})


@pytest.mark.parametrize(("level", "keys"), [
    ("STUDY", {}), ("STUDY", {"StudyInstanceUID": ""}), ("STUDY", {"StudyInstanceUID": "*"}), ("STUDY", {"StudyInstanceUID": "1.2.*"}),
    ("PATIENT", {"PatientID": "P1"}), ("SERIES", {"SeriesInstanceUID": "1.2.3.9"}), ("", {"StudyInstanceUID": "1.2.3"}),
    ("SERIES", {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": ""}),
    ("IMAGE", {"StudyInstanceUID": "1.2.3", "SOPInstanceUID": "1.2.3.1.2"}),
    ("IMAGE", {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1", "SOPInstanceUID": ""}),
])  # fmt: skip
def test_an_empty_unique_key_never_means_everything(made: Clinic, level: str, keys: dict[str, Any]) -> None:
    status, _, kept = get(made, "WS", level, **keys)
    assert status.Status == 0xA900
    assert not kept.received
    for patient in ("", "*", "P?"):
        status, _, kept = get(made, "WS", "PATIENT", root=PATIENT_GET, PatientID=patient)
        assert (status.Status, kept.received) == (0xA900, {})


def test_relational_retrieve(made: Clinic) -> None:
    status, _, kept = get(made, "WS", "IMAGE", SOPInstanceUID=["1.2.3.1.2", "1.2.4.1.1"], extended={GET: b"\1"})
    assert status.Status == 0
    assert sorted(kept.received) == ["1.2.3.1.2", "1.2.4.1.1"]


def test_without_role_selection_and_in_implicit_vr(made: Clinic) -> None:
    _, _, kept = get(made, "WS", "SERIES", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.9", syntaxes=[IMPLICIT])
    assert len(kept.received) == 2
    for uid, (syntax, data) in kept.received.items():
        assert syntax == IMPLICIT
        dataset = pydicom.filereader.read_dataset(io.BytesIO(data), is_implicit_VR=True, is_little_endian=True)
        assert dataset.SOPInstanceUID == uid
        assert len(dataset.PixelData) == 512


def test_a_class_the_peer_does_not_take_fails_alone(tmp_path: Path) -> None:
    with clinic(tmp_path) as it:
        it.plain_peer("WS", target=EVERYTHING)
        it.put(instance(1), instance(2, SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), instance(3))
        status, found, kept = get(it, "WS", "STUDY", StudyInstanceUID="1.2.3")
        assert status.Status == 0xB000
        assert counts(status) == (2, 1, 0)
        assert found is not None
        assert found.FailedSOPInstanceUIDList == "1.2.3.1.2"
        assert sorted(kept.received) == ["1.2.3.1.1", "1.2.3.1.3"]
        status, found, _ = get(it, "WS", "STUDY", StudyInstanceUID="1.2.3", storage=["1.2.840.10008.5.1.4.1.1.7"])
        assert status.Status == 0xA702
        assert counts(status) == (0, 3, 0)


def test_what_the_peer_answers_is_counted(made: Clinic) -> None:
    kept = Kept(lambda n: {2: 0xB000, 3: 0xA700}.get(n, 0))
    status, found, _ = get(made, "WS", "SERIES", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1", kept=kept)
    assert status.Status == 0xB000
    assert counts(status) == (3, 1, 1)
    assert found is not None
    assert found.FailedSOPInstanceUIDList == list(kept.received)[2]


def test_pending_and_cancel(made: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve_module, "PENDING_S", 0.0)
    with made.association("WS", GET, storage=[CT], evt_handlers=[(evt.EVT_C_STORE, Kept())]) as association:
        seen = [status for status, _ in association.send_c_get(identifier("STUDY", StudyInstanceUID="1.2.3"), GET)]
    assert [one.Status for one in seen] == [0xFF00] * 6 + [0]
    assert [one.NumberOfRemainingSuboperations for one in seen[:-1]] == [6, 5, 4, 3, 2, 1]
    assert "NumberOfRemainingSuboperations" not in seen[-1]

    def cancels(event: Any) -> int:
        event.assoc.send_c_cancel(1, query_model=GET)
        return 0

    with made.association("WS", GET, storage=[CT], evt_handlers=[(evt.EVT_C_STORE, cancels)]) as association:
        *_, (status, _) = association.send_c_get(identifier("STUDY", StudyInstanceUID="1.2.3"), GET, msg_id=1)
    assert status.Status == 0xFE00
    assert 1 <= status.NumberOfCompletedSuboperations < 7
    assert status.NumberOfCompletedSuboperations + status.NumberOfRemainingSuboperations == 7


def test_more_than_can_be_counted(made: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_module, "MAXIMUM_INSTANCES", 6)
    status, _, kept = get(made, "WS", "STUDY", StudyInstanceUID="1.2.3")
    assert (status.Status, kept.received) == (0xA702, {})


# --- the scope ----------------------------------------------------------------------------------------------------------------------


def test_unseen_is_absent_and_both_are_in_the_ledger(made: Clinic) -> None:
    answers = []
    for study in ("1.2.4", "1.2.77"):  # hidden, and unknown
        status, found, kept = get(made, "NARROW", "STUDY", StudyInstanceUID=study)
        answers.append((status.to_json(), found, kept.received))
        body = made.events(Kind.DENIED)[0].body
        assert body is not None
        assert (body["objects"], body["detail"]["what"]) == ([["study", study]], "C-GET")
    assert answers[0] == answers[1]
    status, _, kept = get(made, "NARROW", "STUDY", StudyInstanceUID="1.2.3")
    assert sorted(kept.received) == ["1.2.3.9.1", "1.2.3.9.2"]
    body = made.events(Kind.READ)[0].body
    assert body is not None
    assert (body["subject"]["name"], body["instances"]) == ("NARROW", 2)


def test_the_ledger_comes_first(made: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise Unavailable

    monkeypatch.setattr(made.node.core.ledger, "record", fails)
    status, _, kept = get(made, "WS", "STUDY", StudyInstanceUID="1.2.3")
    assert (status.Status, kept.received) == (0xA701, {})


def test_a_revocation_in_the_middle(made: Clinic) -> None:
    """At most one further instance leaves."""
    console = the_console(made.node)
    made.plain_peer("BRIEF")
    grant = made.grant("BRIEF", EVERYTHING)
    after = []

    def revokes(event: Any) -> int:
        after.append(str(event.request.AffectedSOPInstanceUID))
        if len(after) == 3:
            made.node.accounts.revoke_grant(console, grant["id"])
        return 0

    with made.association("BRIEF", GET, storage=[CT], evt_handlers=[(evt.EVT_C_STORE, revokes)]) as association:
        *_, (status, _) = association.send_c_get(identifier("STUDY", StudyInstanceUID="1.2.3"), GET)
    assert len(after) in (3, 4)
    assert status.Status == 0xB000
    assert status.NumberOfFailedSuboperations == 7 - len(after)


@pytest.mark.parametrize("later", [False, True])
def test_one_broken_instance_fails_alone(made: Clinic, monkeypatch: pytest.MonkeyPatch, later: bool) -> None:
    """Also where the damage is behind bytes that are right: nothing of it leaves before all of it is authenticated."""
    original, calls = type(made.node.core.vault).read, []

    def broken(vault: Any, ref: Any, start: int = 0, length: int | None = None) -> Iterator[memoryview]:
        calls.append(ref)
        if len(calls) == 2:
            if later:
                yield next(original(vault, ref, start, length))[:300]
            raise SealBroken(verdict="V04")
        yield from original(vault, ref, start, length)

    monkeypatch.setattr(type(made.node.core.vault), "read", broken)
    status, _, kept = get(made, "WS", "SERIES", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1")
    assert (status.Status, counts(status)) == (0xB000, (4, 1, 0))
    assert len(kept.received) == 4


def test_a_large_instance_is_streamed(made: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_module, "WHOLE_BYTES", 0)
    big = instance(1, study="1.2.8", PatientID="P8", rows=1200)
    made.put(big)
    _, _, kept = get(made, "WS", "STUDY", StudyInstanceUID="1.2.8")
    assert kept.received["1.2.8.1.1"] == (EXPLICIT, data_set(big))


def test_a_large_instance_that_breaks_off_ends_the_association(made: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may follow half a data set, and nobody takes the half for the whole."""
    monkeypatch.setattr(sending_module, "WHOLE_BYTES", 0)
    original = type(made.node.core.vault).read

    def broken(vault: Any, ref: Any, start: int = 0, length: int | None = None) -> Iterator[memoryview]:
        yield memoryview(bytes(next(original(vault, ref, start, length))))[:300]
        raise SealBroken(verdict="V04")

    monkeypatch.setattr(type(made.node.core.vault), "read", broken)
    kept = Kept()
    with made.association("WS", GET, storage=[CT], evt_handlers=[(evt.EVT_C_STORE, kept)]) as association:
        answers = [status for status, _ in association.send_c_get(identifier("STUDY", StudyInstanceUID="1.2.4"), GET)]
    assert "Status" not in answers[-1]
    assert kept.received == {}


def test_a_peer_that_says_nothing_more(tmp_path: Path) -> None:
    """The archive waits for the answer to a C-STORE no longer than for anything else, and serves others meanwhile."""
    release = threading.Event()

    def silent(_event: Any) -> int:
        release.wait(20)
        return 0

    with clinic(tmp_path, idle_timeout_s=1) as it:
        it.plain_peer("WS", target=EVERYTHING)
        it.put(instance(1), instance(2))
        with it.association("WS", GET, storage=[CT], evt_handlers=[(evt.EVT_C_STORE, silent)]) as association:
            threading.Timer(2.5, release.set).start()
            answers = [status for status, _ in association.send_c_get(identifier("STUDY", StudyInstanceUID="1.2.3"), GET)]
        assert "Status" not in answers[-1]
        assert not association.is_established


# --- the corpus ---------------------------------------------------------------------------------------------------------------------


def test_the_corpus_comes_back_as_it_was_stored_or_with_the_same_pixels(tmp_path: Path, corpus: Path) -> None:
    """Byte for byte where the peer takes the stored transfer syntax, pixel for pixel where it takes explicit little endian alone."""
    folders = ["pydicom__pydicom-data", "cornerstonejs__dicomParser"]
    images = [image for name in folders for path in sorted((corpus / name).rglob("*")) if path.is_file() and path.stat().st_size < 600_000
              and (image := sendable(path))]
    with clinic(tmp_path, private_sop_classes=True) as it:
        it.plain_peer("WS", target=EVERYTHING)
        stored = {}
        for image in images:
            try:
                if store(it.node, image.path.read_bytes()).status != "stored":
                    continue
            except Exception:  # noqa: BLE001 # of files that no archive keeps
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = pydicom.dcmread(image.path)
                stored[str(dataset.SOPInstanceUID)] = (image, dataset)
        assert len(stored) > 40
        kinds = sorted({(image.sop_class_uid, image.transfer_syntax_uid) for image, _ in stored.values()})
        assert len({syntax for _, syntax in kinds}) >= 10
        classes = sorted({sop_class for sop_class, _ in kinds})
        studies = sorted({str(dataset.StudyInstanceUID) for _, dataset in stored.values()})
        exact, decoded = Kept(), Kept()
        for kept, syntaxes in ((exact, None), (decoded, [EXPLICIT])):
            from pynetdicom import AE, build_role

            ae = AE(ae_title="WS")
            ae.add_requested_context(GET)
            for sop_class, syntax in kinds if syntaxes is None else [(sop_class, EXPLICIT) for sop_class in classes]:
                ae.add_requested_context(sop_class, syntax)
            association = ae.associate(
                "127.0.0.1", it.plain_port, ext_neg=[build_role(uid, scp_role=True) for uid in classes],
                evt_handlers=[(evt.EVT_C_STORE, kept)],
            )
            assert association.is_established
            *_, (status, _) = association.send_c_get(identifier("STUDY", StudyInstanceUID=studies), GET)
            association.release()
            assert status.Status in (0, 0xB000)
        same = 0
        for uid, (syntax, data) in exact.received.items():
            image, dataset = stored[uid]
            if syntax == image.transfer_syntax_uid:
                assert data == image.data_set, image.path.name
                same += 1
        assert same > len(stored) * 0.6
        compared = 0
        for uid, (_, data) in decoded.received.items():
            image, dataset = stored[uid]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                again = pydicom.filereader.read_dataset(io.BytesIO(data), is_implicit_VR=False, is_little_endian=True)
                again.file_meta = Dataset()
                again.file_meta.TransferSyntaxUID = EXPLICIT
                if "PixelData" not in dataset or image.transfer_syntax_uid in (EXPLICIT, IMPLICIT):
                    continue
                try:
                    expected = dataset.pixel_array
                except Exception:  # noqa: BLE001 # what pydicom cannot decode it cannot be held against
                    continue
                if dataset.PhotometricInterpretation != again.PhotometricInterpretation:
                    continue
                found = again.pixel_array
            assert found.shape == expected.shape
            lossy = image.transfer_syntax_uid in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.91")
            tolerance = 2 if lossy else 0
            assert int(np.abs(found.astype(np.int64) - expected.astype(np.int64)).max()) <= tolerance, image.path.name
            compared += 1
        assert compared >= 8
