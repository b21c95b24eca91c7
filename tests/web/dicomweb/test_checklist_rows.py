"""Rows of the DICOMweb checklist that hold over a whole archive and its files; each test names its row."""

from __future__ import annotations

import base64
import io
import json
import math
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from archive.access.grants import Target
from archive.ledger.log import AuditFilter
from tests.services import archives
from tests.web import real
from tests.web.real import ABSENT, HIDDEN, SEEN, Place

NAMES = {
    "chrFren": "Buc^Jérôme", "chrGerm": "Äneas^Rüdiger", "chrGreek": "Διονυσιος", "chrRuss": "Люкceмбypг", "chrHbrw": "שרון^דבורה",
    "chrArab": "قباني^لنزار", "chrI2": "Hong^Gildong=洪^吉洞=홍^길동", "chrX1": "Wang^XiaoDong=王^小東", "chrX2": "Wang^XiaoDong=王^小东",
    "chrH31": "Yamada^Tarou=山田^太郎=やまだ^たろう", "chrH32": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
}  # fmt: skip
"""The standard's examples (PS3.5 H to K), as they read."""


class Everything(Place):
    """The archive as one who may see all of it asks."""

    def add(self, data: bytes) -> None:
        assert archives.store(self.node, data).status == "stored"

    def json(self, path: str, **headers: str) -> Any:
        answer = self.ask("GET", path, headers=headers)
        assert answer.status_code == 200, (path, answer.data[:300])
        return answer.json


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everything]:
    with archives.opened(real.config(tmp_path_factory.mktemp("rows"))) as node:
        made = real.place(node)
        node.accounts.add_user(archives.the_console(node), "ann", roles=["technologist"], password=archives.PASSWORD)
        node.accounts.add_grant(archives.the_console(node), to="ann", role="radiologist", target=Target("everything"))
        token = node.accounts.create_token(archives.the_console(node), owner="ann")["token"]
        yield Everything(node, made.app, token, made.session)


def address(study: str) -> str:
    return f"/dicomweb/studies/{study}/series/{study}.1/instances/{study}.1.1"


def document(place: Everything, study: str) -> dict[str, Any]:
    found = place.json(f"{address(study)}/metadata")
    assert len(found) == 1
    return dict(found[0])


def written(dataset: Dataset, study: str, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """A data set as an instance of its own study in a transfer syntax."""
    base = pydicom.dcmread(io.BytesIO(archives.instance(1, study=study)))
    for element in dataset:
        base[element.tag] = element
    base.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    # A fresh data set: pydicom writes one that was read in the byte order it was read in.
    fresh = Dataset()
    fresh.update({element.tag: element for element in base})
    fresh.file_meta = base.file_meta
    little = syntax != ExplicitVRBigEndian
    pydicom.dcmwrite(file, fresh, implicit_vr=False, little_endian=little, enforce_file_format=True)
    return file.getvalue()


def image(pixels: np.ndarray[Any, Any], photometric: str, *, frames: int = 1) -> Dataset:
    """The attributes of an image, its pixels native."""
    dataset = Dataset()
    shape = pixels.shape[1:] if frames > 1 else pixels.shape
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = shape[2] if len(shape) > 2 else 1
    dataset.PhotometricInterpretation = photometric
    if dataset.SamplesPerPixel > 1:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
    return dataset


def octets(place: Everything, study: str, frame: int = 1) -> bytes:
    answer = place.ask("GET", f"{address(study)}/frames/{frame}", headers={"Accept": "application/octet-stream"})
    assert answer.status_code == 200, answer.data[:300]
    assert answer.content_type == f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}"
    return bytes(answer.data)


def test_b16_an_instance_without_pixels(place: Everything) -> None:
    data = archives.instance(1, study="1.2.16", PixelData=None, Rows=None, Columns=None)
    place.add(data)
    answer = place.ask("GET", address("1.2.16"), headers={"Accept": "application/dicom"})
    assert (answer.status_code, answer.data) == (200, data)
    assert place.ask("GET", "/dicomweb/studies/1.2.16").status_code == 200


def test_c06_c07_c08_elements(place: Everything) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        item = Dataset()
        item.PatientName = "Yamada^Tarou=山田^太郎"
        place.add(archives.instance(
            1, study="1.2.20", SpecificCharacterSet="ISO_IR 192", PatientName=item.PatientName, AccessionNumber="", SeriesNumber="7",
            SliceThickness="2.5", ImagePositionPatient=["1", "-2.25", "1e2"], StationName="",
        ))
        dataset = Dataset()
        dataset.add_new(0x00200012, "LO", "not a number")
        dataset.add_new(0x00181060, "LO", "x1")
        data = written(dataset, "1.2.21").replace(b"\x20\x00\x12\x00LO", b"\x20\x00\x12\x00IS")
        archives.store(place.node, data.replace(b"\x18\x00\x60\x10LO", b"\x18\x00\x60\x10DS"))
    found = document(place, "1.2.20")
    assert found["00080050"] == {"vr": "SH"}
    assert found["00081010"] == {"vr": "SH"}
    assert found["00200011"] == {"vr": "IS", "Value": [7]}
    assert found["00180050"] == {"vr": "DS", "Value": [2.5]}
    assert found["00200032"]["Value"] == [1, -2.25, 100]
    assert found["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}]}
    row = place.json("/dicomweb/studies?StudyInstanceUID=1.2.20")[0]
    assert row["00080050"] == {"vr": "SH"}
    assert row["00100010"] == found["00100010"]
    odd = document(place, "1.2.21")
    assert odd["00200012"]["vr"] == "IS"
    assert odd["00181060"]["vr"] == "DS"


def test_c09_the_text_is_utf_8_and_says_so(place: Everything) -> None:
    place.add(archives.instance(1, study="1.2.22", SpecificCharacterSet="ISO_IR 100", PatientName="Äneas^Rüdiger"))
    found = document(place, "1.2.22")
    assert found["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert found["00100010"]["Value"] == [{"Alphabetic": "Äneas^Rüdiger"}]


def test_c10_c11_bulk_and_small_binary_values(place: Everything) -> None:
    inner = Dataset()
    inner.add_new(0x60031011, "OB", bytes(range(256)) * 40)
    dataset = Dataset()
    dataset.add_new(0x60030010, "LO", "TEST")
    dataset.add_new(0x60031010, "SQ", [inner])
    dataset.add_new(0x60031012, "UN", b"\1\2")
    dataset.add_new(0x60031013, "UN", b"")
    place.add(written(dataset, "1.2.23"))
    found = document(place, "1.2.23")
    base = f"{real.ORIGIN}{address('1.2.23')}/bulk"
    assert found["7FE00010"] == {"vr": "OW", "BulkDataURI": f"{base}/7FE00010"}
    nested = found["60031010"]["Value"][0]["60031011"]
    assert nested == {"vr": "OB", "BulkDataURI": f"{base}/60031010/1/60031011"}
    single = {"Accept": "application/octet-stream"}
    answer = place.ask("GET", nested["BulkDataURI"].removeprefix(real.ORIGIN), headers=single)
    assert answer.data == bytes(range(256)) * 40
    assert base64.b64decode(found["60031012"]["InlineBinary"]) == b"\1\2"
    assert place.ask("GET", f"{address('1.2.23')}/bulk/60031012", headers=single).data == b"\1\2"
    assert found["60031013"] == {"vr": "UN"}


@pytest.mark.parametrize("headers", [
    {"Host": "127.0.0.1"}, {"Host": "evil.example"}, {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"},
    {"Forwarded": "host=evil.example;proto=http"}, {"X-Forwarded-Prefix": "/evil"},
])
def test_c12_c13_addresses_come_from_the_configuration(place: Everything, headers: dict[str, str]) -> None:
    for path in (f"/dicomweb/studies/{SEEN}/metadata", f"/dicomweb/instances?StudyInstanceUID={SEEN}&includefield=all"):
        text = place.ask("GET", path, headers=headers).get_data(as_text=True)
        assert "evil" not in text
        assert text.count("https://") == text.count(f"{real.ORIGIN}/dicomweb/studies/{SEEN}/") > 0


@pytest.mark.parametrize("tail", ["", "/series/{}.1", "/series/{}.1/instances/{}.1.1"])
def test_c14_metadata_of_what_is_not_there(place: Everything, tail: str) -> None:
    assert place.ask("GET", f"/dicomweb/studies/{ABSENT}{tail.replace('{}', ABSENT)}/metadata").status_code == 404
    if tail:
        assert place.ask("GET", f"/dicomweb/studies/{HIDDEN}{tail.replace('{}', SEEN)}/metadata").status_code == 404
        assert place.ask("GET", f"/dicomweb/studies/{SEEN}{tail.replace('{}', ABSENT)}/metadata").status_code == 404


def test_c17_c18_odd_values_are_valid_json(place: Everything) -> None:
    dataset = Dataset()
    dataset.add_new(0x00720074, "FD", [math.nan, math.inf, -math.inf, 1.5])
    dataset.add_new(0x00081030, "LO", "broken")
    dataset.add_new(0x00720073, "OD", np.array([1.25, -2.0], "<f8").tobytes())
    dataset.add_new(0x00720075, "OL", np.array([1, 4_000_000_000], "<u4").tobytes())
    data = written(dataset, "1.2.24").replace(b"broken", b"\xff\xfe\xe4\x80\xc3\x28")
    assert archives.store(place.node, data).status == "stored"
    text = place.ask("GET", f"{address('1.2.24')}/metadata").get_data()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(text, parse_constant=refuse)[0]
    assert len(found["00720074"]["Value"]) == 4
    assert found["00720074"]["Value"][3] == 1.5
    big = Dataset()
    big.add_new(0x00720073, "OD", np.array([1.25, -2.0], ">f8").tobytes())
    big.PixelData = bytes(512)
    big["PixelData"].VR = "OW"
    place.add(written(big, "1.2.25", ExplicitVRBigEndian))
    for study in ("1.2.24", "1.2.25"):
        value = document(place, study)["00720073"]
        raw = base64.b64decode(value["InlineBinary"])
        assert np.frombuffer(raw, "<f8").tolist() == [1.25, -2.0], study


@pytest.mark.parametrize("charset", ["NO_SUCH_ST", "ISO_IR 192"])
def test_c17_unknown_character_sets_and_broken_text(place: Everything, charset: str) -> None:
    study = f"1.2.26.{ord(charset[0])}"
    data = archives.instance(1, study=study, StudyDescription="broken", SpecificCharacterSet="ISO_IR 100")
    data = data.replace(b"ISO_IR 100", charset.encode()).replace(b"broken", b"\xff\xfe\xe4\x80\xc3\x28")
    assert archives.store(place.node, data).status == "stored"
    json.loads(place.ask("GET", f"{address(study)}/metadata").get_data())


def test_c19_the_same_elements_as_dcm2json(place: Everything, tmp_path: Path, program: Callable[[str, str], str]) -> None:
    data = place.ask("GET", address(SEEN), headers={"Accept": "application/dicom"}).data
    (tmp_path / "one.dcm").write_bytes(data)
    done = subprocess.run([program("dcm2json", "dcmtk"), str(tmp_path / "one.dcm")], capture_output=True, check=True)
    theirs = json.loads(done.stdout)
    ours = document(place, SEEN)
    left_out = {tag for tag in theirs if tag.startswith("0002")}
    assert set(ours) - {"00080005"} == set(theirs) - left_out - {"00080005"}
    for tag in set(ours) & set(theirs) - {"7FE00010", "00080005"}:
        assert ours[tag]["vr"] == theirs[tag]["vr"], tag
        assert ours[tag].get("Value") == theirs[tag].get("Value"), tag


def test_d11_fragments_without_an_offset_table(place: Everything) -> None:
    frames = []
    for shade in (40, 200):
        file = io.BytesIO()
        Image.fromarray(np.full((16, 16), shade, np.uint8)).save(file, "JPEG")
        frames.append(file.getvalue() + b"\0" * (len(file.getvalue()) % 2))
    dataset = image(np.zeros((2, 16, 16), np.uint8), "MONOCHROME2", frames=2)
    dataset.PixelData = encapsulate(frames, fragments_per_frame=3, has_bot=False)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.LossyImageCompression = "01"
    place.add(written(dataset, "1.2.30", JPEGBaseline8Bit))
    for number, (shade, stored) in enumerate(zip((40, 200), frames, strict=True), 1):
        assert abs(np.frombuffer(octets(place, "1.2.30", number), np.uint8).astype(int) - shade).max() <= 2
        answer = place.ask("GET", f"{address('1.2.30')}/frames/{number}", headers={"Accept": "image/jpeg"})
        assert answer.data == stored


def test_d12_big_endian_is_swapped(place: Everything) -> None:
    pixels = np.arange(256, dtype="<u2").reshape(16, 16) * 3
    dataset = image(pixels, "MONOCHROME2")
    dataset.PixelData = pixels.astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    place.add(written(dataset, "1.2.31", ExplicitVRBigEndian))
    assert octets(place, "1.2.31") == pixels.tobytes()


def test_d13_a_colour_jpeg_decodes_to_the_colours_it_says(place: Everything) -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 220
    file = io.BytesIO()
    Image.fromarray(red).save(file, "JPEG", quality=95, subsampling=0)
    dataset = image(red, "YBR_FULL")
    dataset.PixelData = encapsulate([file.getvalue()])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.LossyImageCompression = "01"
    place.add(written(dataset, "1.2.32", JPEGBaseline8Bit))
    whole = place.ask("GET", address("1.2.32"), headers={"Accept": f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"})
    decoded = pydicom.dcmread(io.BytesIO(whole.data))
    assert octets(place, "1.2.32") == decoded.PixelData
    samples = np.frombuffer(decoded.PixelData, np.uint8).reshape(16, 16, 3)
    mode = "YCbCr" if decoded.PhotometricInterpretation == "YBR_FULL" else "RGB"
    assert decoded.PhotometricInterpretation in {"YBR_FULL", "RGB"}
    shown = np.asarray(Image.frombytes(mode, (16, 16), samples.tobytes()).convert("RGB"))
    assert abs(shown.astype(int) - red).max() <= 4  # read as what it is called, it is red


def test_d14_rgb_of_16_bits_raw_and_rle_multi_frame(place: Everything) -> None:
    pixels = (np.arange(2 * 16 * 16 * 3, dtype="<u2") * 41).reshape(2, 16, 16, 3)
    place.add(written(image(pixels, "RGB", frames=2), "1.2.33"))
    data = pydicom.dcmread(io.BytesIO(written(image(pixels, "RGB", frames=2), "1.2.34")))
    data.compress(RLELossless, generate_instance_uid=False)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    place.add(file.getvalue())
    for number in (1, 2):
        assert octets(place, "1.2.33", number) == octets(place, "1.2.34", number) == pixels[number - 1].tobytes()


@pytest.mark.parametrize(("text", "found"), [
    ("20200101-20200131", {"1", "31"}), ("20200131-", {"31", "32"}), ("-20200101", {"1"}), ("20200101", {"1"}),
    ("20200102-20200130", set()),
])
def test_e05_ranges_of_dates(place: Everything, text: str, found: set[str]) -> None:
    for name, date in (("1", "20200101"), ("31", "20200131"), ("32", "20200201")):
        archives.store(place.node, archives.instance(1, study=f"1.2.50.{name}", StudyDate=date, PatientID="E05"))
    rows = place.json(f"/dicomweb/studies?PatientID=E05&StudyDate={text}")
    assert {row["0020000D"]["Value"][0].removeprefix("1.2.50.") for row in rows} == found
    assert place.ask("GET", "/dicomweb/studies?StudyDate=-").status_code == 400


def test_e06_modalities_in_study(place: Everything) -> None:
    place.add(archives.instance(1, study="1.2.51", PatientID="E06"))
    place.add(archives.instance(1, study="1.2.51", series="1.2.51.2", PatientID="E06", Modality="MR"))
    for modality in ("CT", "MR"):
        row, = place.json(f"/dicomweb/studies?PatientID=E06&ModalitiesInStudy={modality}")
        assert sorted(row["00080061"]["Value"]) == ["CT", "MR"]
    assert place.json("/dicomweb/studies?PatientID=E06&ModalitiesInStudy=US") == []


def test_e13_parents_are_told_where_the_address_does_not(place: Everything) -> None:
    for level, more in (("series", ()), ("instances", ("0020000E", "00080060"))):
        for row in place.json(f"/dicomweb/{level}?StudyInstanceUID={SEEN}"):
            for tag in ("00100010", "00100020", "0020000D", "00080020", *more):
                assert row[tag]["Value"], (level, tag)


def test_e17_other_bytes_under_the_same_uid_change_nothing(place: Everything) -> None:
    place.add(archives.instance(1, study="1.2.52", PatientID="E17", PatientName="First^Name"))
    again = archives.instance(1, study="1.2.52", PatientID="E17", PatientName="Second^Name")
    answer = place.ask("POST", "/dicomweb/studies", data=again, content_type="application/dicom")
    assert answer.status_code == 409
    assert answer.json["00081198"]["Value"][0]["00081197"]["Value"] == [45070]
    row, = place.json("/dicomweb/studies?StudyInstanceUID=1.2.52")
    assert row["00100010"]["Value"] == [{"Alphabetic": "First^Name"}]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_e20_the_standards_names_in_their_character_sets(place: Everything, corpus: Path, name: str) -> None:
    path = next(corpus.rglob(f"{name}.dcm"))
    study = f"1.2.60.{sorted(NAMES).index(name) + 1}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", f"{study}.1.1"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.PatientID = study, f"{study}.1", study
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
    archives.store(place.node, file.getvalue())
    groups = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), NAMES[name].split("="), strict=False))
    row, = place.json(f"/dicomweb/studies?StudyInstanceUID={study}")
    assert row["00100010"]["Value"] == [groups]
    assert document(place, study)["00100010"]["Value"] == [groups]


def test_g03_every_way_out_and_in_is_one_event_with_its_study(place: Everything) -> None:
    core = place.node.core
    place.add(archives.instance(1, study="1.2.70"))

    def events() -> list[Any]:
        with core.database.read() as tx:
            return core.ledger.search(tx, AuditFilter(limit=1000))

    one, single = address("1.2.70"), {"Accept": "application/octet-stream"}
    asked: list[tuple[str, str, dict[str, Any], str]] = [
        ("GET", one, {}, "read"), ("GET", f"{one}/metadata", {}, "read"), ("GET", f"{one}/frames/1", {}, "read"),
        ("GET", f"{one}/bulk/7FE00010", {"headers": single}, "read"), ("GET", f"{one}/rendered", {}, "read"),
        ("GET", f"{one}/thumbnail", {}, "read"), ("GET", "/dicomweb/studies/1.2.70/series", {}, "searched"),
        ("GET", "/dicomweb/studies/1.2.70/zip", {}, "exported"),
        ("GET", one, {"headers": {"Accept": "application/dicom", "Range": "bytes=0-9"}}, "read"),
        ("GET", "/dicomweb/wado?requestType=WADO&studyUID=1.2.70&seriesUID=1.2.70.1&objectUID=1.2.70.1.1", {}, "read"),
        ("GET", "/dicomweb/studies/1.2.70.9", {}, "denied"),
        ("POST", "/dicomweb/studies", {"data": archives.instance(2, study="1.2.70"), "content_type": "application/dicom"}, "stored"),
    ]
    for method, path, more, kind in asked:
        before = {row.n for row in events()}
        answer = place.ask(method, path, **more)
        assert answer.status_code == (404 if kind == "denied" else answer.status_code)
        assert answer.status_code < 500
        new = [row for row in events() if row.n not in before]
        assert [row.kind for row in new] == [kind], path
        assert "1.2.70" in json.dumps(new[0].body), path
        assert new[0].outcome == (4 if kind == "denied" else 0)
