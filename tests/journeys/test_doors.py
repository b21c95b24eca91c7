"""The whole corpus in through each door and out through DICOMweb unchanged."""

from __future__ import annotations

import io
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from PIL import Image
from pydicom.encaps import generate_frames

from tests.dicom.pixel_shape import in_shape
from tests.journeys import doors
from tests.journeys.instances import Instance, dataset_bytes, distinct
from tests.journeys.running import RunningArchive

EXPLICIT_LE = "1.2.840.10008.1.2.1"
SETTINGS = "private_sop_classes = true\n"
BATCH = 25
NATIVE = {"1.2.840.10008.1.2", EXPLICIT_LE, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"}
DECODED_EVERYWHERE = {
    "1.2.840.10008.1.2", EXPLICIT_LE, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90",
}


@pytest.fixture(scope="module")
def held(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Instance], list[Path]]:
    """The corpus as distinct instances, and its files that are none."""
    return distinct(corpus, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def instances(held: tuple[list[Instance], list[Path]]) -> list[Instance]:
    """The instances of the corpus."""
    assert len(held[0]) > 180
    return held[0]


@pytest.fixture(scope="module")
def others(held: tuple[list[Instance], list[Path]]) -> list[Path]:
    """The files of the corpus that cannot be kept: no file meta, no UIDs, cut short, or not DICOM."""
    assert held[1]
    return held[1]


@dataclass
class Filled:
    """An archive that took the corpus through one door."""

    archive: RunningArchive
    door: str
    asker: requests.Session
    client: Any
    certificates: Path | None = None
    answers: Any = None


def served(folder: Path) -> RunningArchive:
    """An archive that takes private SOP classes too, as the corpus holds some."""
    (folder / "config.toml").write_text(
        f"[http]\nport = 0\nworkers = 1\n[dimse]\nworkers = 1\n{SETTINGS}[dimse.tls]\nport = 0\n", encoding="utf-8"
    )
    return RunningArchive(folder)


@pytest.fixture(scope="module", params=["dimse", "stow", "import"])
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, held: tuple[list[Instance], list[Path]]
) -> Iterator[Filled]:
    """The corpus in an archive of its own, through each door in turn."""
    instances, _others = held
    folder = tmp_path_factory.mktemp(request.param)
    with served(folder) as archive:
        token = archive.token("admin")
        made = Filled(archive, request.param, doors.session(archive, token), archive.client(token))
        if made.door == "dimse":
            made.certificates = doors.enrol(archive)
            made.answers = doors.send(archive, made.certificates, [one.path for one in instances])
        elif made.door == "stow":
            made.answers = stow_all(made, [one.data for one in instances])
        else:
            lines = doors.import_files(archive, [instances[0].path.parent], folder / "report")
            made.answers = {Path(line["file"]): line for line in lines}
        yield made


def stow_all(filled: Filled, files: list[bytes]) -> list[tuple[list[str], list[int]]]:
    """Store with the Python dicomweb-client, unchanged, some instances a request."""
    told = []
    for start in range(0, len(files), BATCH):
        answer = filled.client._http_post_multipart_application_dicom(
            f"{filled.archive.url}/dicomweb/studies", files[start : start + BATCH]
        )
        stored = [item.ReferencedSOPInstanceUID for item in answer.get("ReferencedSOPSequence", [])]
        told.append((stored, [item.FailureReason for item in answer.get("FailedSOPSequence", [])]))
    return told


def address(filled: Filled, instance: Instance) -> str:
    """Where an instance is."""
    return f"{filled.archive.url}/dicomweb/studies/{instance.study}/series/{instance.series}/instances/{instance.sop}"


def test_every_instance_is_taken(filled: Filled, instances: list[Instance]) -> None:
    if filled.door == "dimse":
        assert {path.name: status for path, status in filled.answers.items() if status != 0} == {}
        assert len(filled.answers) == len(instances)
    elif filled.door == "stow":
        assert [uid for stored, _failed in filled.answers for uid in stored] == [one.sop for one in instances]
        assert [failed for _stored, failed in filled.answers if failed] == []
    else:
        outcomes = {one.path.name: filled.answers[one.path]["outcome"] for one in instances}
        assert {name: outcome for name, outcome in outcomes.items() if outcome != "stored"} == {}


def test_what_is_no_instance_is_refused_with_a_reason(filled: Filled, others: list[Path]) -> None:
    if filled.door == "import":
        for path in others:
            line = filled.answers.get(path)
            assert line is None or (line["outcome"], bool(line["reason"])) == ("rejected", True), path.name
    elif filled.door == "stow":
        for path in others:
            status, stored, failed = doors.stow(filled.archive, filled.asker, [path.read_bytes()])
            assert (status, stored) == (409, []), path.name
            assert failed[0] in {49152, 43264}, path.name


def test_every_instance_comes_back_unchanged(filled: Filled, instances: list[Instance]) -> None:
    """One request a study, read as the Python dicomweb-client reads it."""
    expected: dict[str, dict[str, Instance]] = {}
    for one in instances:
        expected.setdefault(one.study, {})[one.sop] = one
    for study, wanted in expected.items():
        answer = filled.asker.get(
            f"{filled.archive.url}/dicomweb/studies/{study}", headers={"Accept": doors.AS_STORED}, stream=True, timeout=60
        )
        assert answer.status_code == 200
        seen = set()
        for part in filled.client._decode_multipart_message(answer, stream=True):
            sop, syntax, meta_class = meta_of(bytes(part))
            original = wanted[sop]
            seen.add(sop)
            assert (syntax, meta_class) == (original.syntax, original.sop_class), original.path.name
            if filled.door == "dimse":
                assert dataset_bytes(bytes(part)) == original.dataset, original.path.name
            else:
                assert part == original.kept, original.path.name
        assert seen == set(wanted)


def meta_of(part10: bytes) -> tuple[str, str, str]:
    """Return SOP Instance UID, transfer syntax and SOP class, the first and last as the data set says."""
    import io

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the files
        dataset = pydicom.dcmread(io.BytesIO(part10), stop_before_pixels=True)
        return str(dataset.SOPInstanceUID), str(dataset.file_meta.TransferSyntaxUID), str(dataset.SOPClassUID)


def test_metadata_of_each_series(filled: Filled, instances: list[Instance]) -> None:
    expected: dict[tuple[str, str], dict[str, Instance]] = {}
    for one in instances:
        expected.setdefault((one.study, one.series), {})[one.sop] = one
    for (study, series), wanted in list(expected.items())[:: 1 if filled.door == "dimse" else 4]:
        documents = filled.client.retrieve_series_metadata(study, series)
        assert {document["00080018"]["Value"][0] for document in documents} == set(wanted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break their VR
            for document in documents:
                original = wanted[document["00080018"]["Value"][0]]
                try:
                    dataset = pydicom.Dataset.from_json(document, lambda *_: b"")
                except ValueError:  # a DS that is no number: nobody makes numbers of it, pydicom of its own reading no more than of ours
                    with pytest.raises(ValueError, match="could not convert"):
                        pydicom.dcmread(original.path).to_json_dict()
                else:
                    assert (dataset.StudyInstanceUID, dataset.SeriesInstanceUID) == (study, series)


def test_frames_as_stored_and_decoded(filled: Filled, instances: list[Instance]) -> None:
    """The first and last frame of each multi-frame or compressed instance, against pydicom's reading of the file."""
    compared = {"stored": 0, "decoded": 0}
    for one in instances:
        compressed = one.syntax not in NATIVE
        if one.frames == 1 and not compressed:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the files
            dataset = pydicom.dcmread(one.path)
            if "PixelData" not in dataset:
                continue
            try:
                wanted = frames_of(dataset, one)
            except (ValueError, AttributeError):
                continue
        numbers = sorted({1, one.frames})
        if len(wanted) < one.frames:
            continue
        url = f"{address(filled, one)}/frames/{','.join(map(str, numbers))}"
        answer = filled.asker.get(
            url, headers={"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}, timeout=60
        )
        if wanted[0] is not None:
            assert answer.status_code == 200, one.path.name
            parts = [bytes(part) for part in filled.client._decode_multipart_message(answer, stream=False)]
            assert parts == [wanted[number - 1] for number in numbers], one.path.name
            compared["stored"] += 1
        if compressed and one.syntax in DECODED_EVERYWHERE and dataset.BitsAllocated in {8, 16} and dataset.SamplesPerPixel == 1:
            array = dataset.pixel_array
            flat = array.reshape(one.frames, -1)
            [decoded] = filled.client.retrieve_instance_frames(
                one.study, one.series, one.sop, [one.frames], media_types=(("application/octet-stream", EXPLICIT_LE),)
            )
            assert decoded == flat[-1].tobytes(), one.path.name
            compared["decoded"] += 1
        absent = filled.asker.get(f"{address(filled, one)}/frames/{one.frames + 1}", timeout=60)
        assert absent.status_code == 404
    assert compared["stored"] >= 30
    assert compared["decoded"] >= 8


def test_pictures_are_drawn_or_refused_with_the_reason(filled: Filled, instances: list[Instance]) -> None:
    """A thumbnail and a rendered frame of every instance, as dicomweb-client asks for them; all of them through one door alone."""
    drawn, looked_at = 0, instances if filled.door == "dimse" else instances[::8]
    for one in looked_at:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the files
            dataset = pydicom.dcmread(one.path)
        url = address(filled, one)
        answers = [filled.asker.get(f"{url}/{what}", timeout=60) for what in ("thumbnail", "rendered", f"frames/{one.frames}/rendered")]
        assert {answer.status_code for answer in answers} <= {200, 404, 406}, one.path.name
        if answers[1].status_code == 406:
            assert answers[1].json()["detail"], one.path.name
            continue
        if answers[1].status_code == 404:
            assert "PixelData" not in dataset, one.path.name
            continue
        small, whole = (Image.open(io.BytesIO(answer.content)) for answer in answers[:2])
        if "PixelData" in dataset:  # pydicom gives up half-way through two files
            assert whole.size == in_shape(dataset), one.path.name
        assert max(small.size) <= 128
        again = filled.client.retrieve_instance_rendered(one.study, one.series, one.sop, media_types=("image/jpeg",))
        assert again == answers[1].content
        drawn += 1
    assert drawn > len(looked_at) * 0.75


def frames_of(dataset: pydicom.Dataset, one: Instance) -> list[bytes | None]:
    """Return the frames as they lie in the file; those that do not end at a byte, and big endian ones, as None."""
    if one.syntax not in NATIVE:
        return list(generate_frames(dataset.PixelData, number_of_frames=one.frames))
    bits = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated
    subsampled = dataset.PhotometricInterpretation == "YBR_FULL_422"
    if bits % 8 or one.syntax == "1.2.840.10008.1.2.2" or subsampled:
        return [None] * one.frames
    size = bits // 8
    return [dataset.PixelData[at * size : (at + 1) * size] for at in range(one.frames)]


def test_the_same_again_is_a_duplicate(filled: Filled, instances: list[Instance], tmp_path: Path) -> None:
    if filled.door == "dimse":
        assert filled.certificates is not None
        again = doors.send(filled.archive, filled.certificates, [one.path for one in instances[::7]])
        assert set(again.values()) == {0}
    elif filled.door == "stow":
        status, stored, failed = doors.stow(filled.archive, filled.asker, [one.data for one in instances[::7]])
        assert status in {200, 202}  # 202: a preamble was cleared, which is a warning every time
        assert (stored, failed) == ([one.sop for one in instances[::7]], [])
    else:
        copies = tmp_path / "again"
        copies.mkdir()
        for one in instances[::7]:
            (copies / one.path.name).write_bytes(one.data)
        assert {line["outcome"] for line in doors.import_files(filled.archive, [copies], tmp_path / "report")} == {"duplicate"}
    report = filled.archive.json("verify", "--quick")
    assert (report["ok"], report["checked"]) == (True, len(instances)), report["findings"]


def test_other_bytes_under_the_same_uid_are_refused_and_kept(filled: Filled, instances: list[Instance], tmp_path: Path) -> None:
    one = next(one for one in instances if one.syntax == EXPLICIT_LE and one.data[-600:-100].count(0) < 400 and one.frames == 1)
    other = bytearray(one.data)
    other[-500] ^= 0xFF
    changed = tmp_path / "changed.dcm"
    changed.write_bytes(other)
    for _ in range(2):  # every time
        if filled.door == "dimse":
            assert filled.certificates is not None
            assert doors.send(filled.archive, filled.certificates, [changed]) == {changed: 0x0111}
        elif filled.door == "stow":
            assert doors.stow(filled.archive, filled.asker, [bytes(other)]) == (409, [], [45070])
        else:
            report = tmp_path / "report"
            report.unlink(missing_ok=True)
            copy = tmp_path / f"copy-{_}.dcm"
            copy.write_bytes(other)
            [line] = doors.import_files(filled.archive, [copy], report)
            assert line["outcome"] == "conflict"
    waiting = filled.archive.json("reconcile", "list")
    assert [(row["kind"], row["sop_instance_uid"]) for row in waiting] == [("conflict", one.sop)]
    answer = filled.asker.get(address(filled, one), headers={"Accept": "application/dicom; transfer-syntax=*"}, timeout=30)
    assert dataset_bytes(answer.content) == one.dataset


def test_dcmtk_sends_a_series_that_comes_back_unchanged(
    corpus: Path, tmp_path: Path, program: Callable[[str, str], str]
) -> None:
    from tests.journeys.instances import read

    paths = sorted((corpus / "neurolabusc__dcm_qa_ct" / "GE").rglob("*.dcm"))
    series = [one for one in map(read, paths) if one is not None]
    assert len(series) == len(paths) > 10
    with served(tmp_path) as archive:
        certificates = doors.enrol(archive)
        where = archive.status["dimse_tls"]
        options = ["+tls", str(certificates / "key.pem"), str(certificates / "cert.pem"), "+cf", str(certificates / "ca.pem")]
        done = subprocess.run(
            [program("storescu", "dcmtk"), *options, "-aet", "CT1", "-aec", "STRONGROOM", where["host"], str(where["port"]),
             *map(str, paths)],
            capture_output=True, text=True, timeout=120, check=False,
        )
        assert done.returncode == 0, done.stderr
        asker = doors.session(archive, archive.token("admin"))
        for one in series:
            url = f"{archive.url}/dicomweb/studies/{one.study}/series/{one.series}/instances/{one.sop}"
            answer = asker.get(url, headers={"Accept": "application/dicom; transfer-syntax=*"}, timeout=30)
            assert dataset_bytes(answer.content) == one.dataset
