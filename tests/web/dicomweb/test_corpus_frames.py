"""Every decodable file of the corpus at /frames and /rendered in each media type that is offered, against pydicom's values.

Never 500; 406 says why. Files of each kind (transfer syntax, pixels) are asked in every form where their frames are small, the rest
decoded alone: tests/dicom/test_transcode.py encodes what is larger.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.multival import MultiValue
from pydicom.pixels import pixel_array
from werkzeug.test import TestResponse

from archive.access.grants import Target
from archive.dicom import pixels
from archive.dicom.decode import DECODABLE
from archive.dicom.layout import REFUSALS
from archive.dicom.part10 import Scanned, scan
from archive.dicom.transfer import EXPLICIT_LE
from archive.errors import ArchiveError, InvalidInstance
from archive.web.dicomweb import media
from tests.dicom.conftest import corpus_files  # noqa: F401
from tests.dicom.pixel_shape import in_shape
from tests.dicom.test_pixels import JFIF_RGB, NOT_THEIRS
from tests.services import archives
from tests.web import real
from tests.web.dicomweb.test_wado import parts
from tests.web.real import Place

VIDEO = "1.2.840.10008.1.2.4.102"
MOST_BYTES, SMALL_BYTES, TINY_BYTES = 600 << 10, 160 << 10, 40 << 10
FORMS: dict[str, tuple[str, str]] = {
    "application/octet-stream": (media.OCTETS, EXPLICIT_LE),
    'multipart/related; type="image/jls"; transfer-syntax="1.2.840.10008.1.2.4.80"': ("image/jls", "1.2.840.10008.1.2.4.80"),
    "multipart/related; type=image/jp2; transfer-syntax=1.2.840.10008.1.2.4.90": ("image/jp2", "1.2.840.10008.1.2.4.90"),
    "image/dicom-rle, text/html": ("image/dicom-rle", "1.2.840.10008.1.2.5"),
    "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.70": ("image/jpeg", "1.2.840.10008.1.2.4.70"),
    "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.57": ("image/jpeg", "1.2.840.10008.1.2.4.57"),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:pydicom")
_KIND = ("PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation", "PlanarConfiguration")
Stored = tuple[Path, bytes, Scanned]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("corpus"))) as node:
        made = real.place(node)
        node.accounts.add_grant(archives.the_console(node), to="mia", role="radiologist", target=Target("everything"))
        yield made


@pytest.fixture(scope="module")
def stored(place: Place, corpus_files: list[Path]) -> list[Stored]:  # noqa: F811
    """A file or two of each kind, in the archive."""
    kinds: Counter[tuple[object, ...]] = Counter()
    found: list[Stored] = []
    uids: set[str] = set()
    for path in sorted(corpus_files, key=lambda path: (path.stat().st_size, path.name)):
        data = path.read_bytes()
        if len(data) > MOST_BYTES:
            continue
        try:
            scanned = scan(data)
        except InvalidInstance:
            continue
        if scanned.frames is None or not scanned.frames.count or scanned.sop_instance_uid in uids:
            continue
        kind = (scanned.transfer_syntax_uid, *(scanned.text(keyword) for keyword in _KIND), scanned.frames.count > 1)
        if kinds[kind] == (2 if len(data) < TINY_BYTES else 1):
            continue
        try:
            outcome = archives.store(place.node, data)
        except ArchiveError:
            continue
        if outcome.status != "stored":
            continue
        kinds[kind] += 1
        uids.add(scanned.sop_instance_uid)
        found.append((path, data, scanned))
    return found


def address(scanned: Scanned) -> str:
    return f"/dicomweb/studies/{scanned.study_instance_uid}/series/{scanned.series_instance_uid}/instances/{scanned.sop_instance_uid}"


def theirs(data: bytes, n: int, *, raw: bool = True) -> np.ndarray[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pixel_array(pydicom.dcmread(io.BytesIO(data)), index=n, raw=raw)


def opened(data: bytes, frame: bytes, syntax: str) -> np.ndarray[Any, Any]:
    """What pydicom reads out of a frame that was encoded for the client, beside the data set it belongs to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pydicom.dcmread(io.BytesIO(data))
        for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            if keyword in read:
                del read[keyword]
        read.file_meta.TransferSyntaxUID = syntax
        read.NumberOfFrames = 1
        if read.SamplesPerPixel > 1:
            # What `pixels` says of decoded frames; RGB in JPEG 2000 is transformed inside the code stream.
            whole = {"YBR_FULL_422": "YBR_FULL", "YBR_ICT": "RGB", "YBR_RCT": "RGB"}
            read.PhotometricInterpretation = whole.get(read.PhotometricInterpretation, read.PhotometricInterpretation)
            read.PlanarConfiguration = 0 if syntax != "1.2.840.10008.1.2.5" else 1
            if syntax.endswith("4.90") and read.PhotometricInterpretation == "RGB":
                read.PhotometricInterpretation = "YBR_RCT"
        read.PixelData = encapsulate([frame])
        read["PixelData"].VR = "OB"
        read["PixelData"].is_undefined_length = True
        return pixel_array(read, raw=True)


def body(answer: TestResponse) -> tuple[str, bytes]:
    if answer.headers["Content-Type"].startswith("multipart"):
        [(headers, content)] = parts(answer)
        return headers["content-type"], content
    return answer.headers["Content-Type"], answer.data


def asked(place: Place, one: Stored, accept: str) -> tuple[str, bytes] | None:
    """The part, or None where the archive says why not."""
    path, _, scanned = one
    assert scanned.frames is not None
    number = (scanned.frames.count + 1) // 2
    answer = place.ask("GET", f"{address(scanned)}/frames/{number}", headers={"Accept": accept})
    assert answer.status_code in (200, 406), (path.name, accept, answer.status_code)
    if answer.status_code == 406:
        assert answer.json["detail"], (path.name, accept)
        return None
    return body(answer)


def expected(one: Stored) -> np.ndarray[Any, Any] | None:
    path, data, scanned = one
    assert scanned.frames is not None
    if path.name in NOT_THEIRS or scanned.transfer_syntax_uid not in DECODABLE:
        return None
    return theirs(data, (scanned.frames.count + 1) // 2 - 1, raw=path.name != JFIF_RGB)


def test_frames_in_every_form(place: Place, stored: list[Stored]) -> None:
    compared: Counter[str] = Counter()
    for nth, one in enumerate(stored):
        path, data, scanned = one
        values = expected(one)
        forms = list(FORMS.items())
        for n, (accept, (media_type, syntax)) in enumerate(forms):
            large = pixels.samples(scanned) * (scanned.number("BitsAllocated") or 0) // 8 > SMALL_BYTES
            if n and (large or nth % 2) and (large or n != 1 + nth // 2 % (len(forms) - 1)):
                continue
            found = asked(place, one, accept)
            if found is None:
                assert n or scanned.transfer_syntax_uid not in DECODABLE or path.name in NOT_THEIRS, (path.name, accept)
                continue
            content_type, content = found
            assert content_type == f"{media_type}; transfer-syntax={syntax}", path.name
            if values is None or path.name == JFIF_RGB:
                continue
            if scanned.transfer_syntax_uid == syntax:
                table = scanned.frames
                assert table is not None
                pieces = table.pieces((table.count + 1) // 2 - 1)
                assert content == b"".join(data[offset : offset + length] for offset, length in pieces), path.name
            elif n == 0 and values.dtype.itemsize * values.size == len(content):
                order = (2, 0, 1) if values.ndim == 3 and scanned.number("PlanarConfiguration") == 1 else tuple(range(values.ndim))
                plain = np.frombuffer(content, values.dtype.newbyteorder("<")).reshape([values.shape[axis] for axis in order])
                unused = 8 * values.dtype.itemsize - (scanned.number("BitsStored") or 0)
                if values.dtype.kind != "f" and 0 < unused < 8 * values.dtype.itemsize:
                    plain = np.right_shift(np.left_shift(plain, unused), unused)  # old overlays stay in a native frame
                np.testing.assert_array_equal(plain, values.transpose(order), err_msg=path.name)
            elif n:
                np.testing.assert_array_equal(opened(data, content, syntax), values, err_msg=f"{path.name} {accept}")
            compared[accept] += 1
    assert compared["application/octet-stream"] > 40, compared
    assert min(compared[accept] for accept in FORMS) > 5, compared


def test_what_is_asked_for_with_loss_is_close_and_only_of_8_bits(place: Place, stored: list[Stored]) -> None:
    made = 0
    for one in stored:
        path, _, scanned = one
        if scanned.transfer_syntax_uid.endswith("4.50") or scanned.transfer_syntax_uid not in DECODABLE or path.name in NOT_THEIRS:
            continue
        found = asked(place, one, "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50")
        eight = (scanned.number("BitsAllocated"), scanned.number("BitsStored"), scanned.number("PixelRepresentation")) == (8, 8, 0)
        palette = scanned.text("PhotometricInterpretation") == "PALETTE COLOR"
        assert (found is not None) == (eight and not palette), path.name
        if found is None:
            continue
        assert found[0] == "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"
        values = expected(one)
        assert values is not None
        mode = "L" if values.ndim == 2 else "RGB" if not scanned.text("PhotometricInterpretation").startswith("YBR_FULL") else "YCbCr"
        image = Image.open(io.BytesIO(found[1]))
        if mode == "YCbCr":
            image.draft("YCbCr", image.size)
        shown = np.asarray(image if image.mode == mode else image.convert(mode)).astype(int)
        assert np.abs(shown - values).mean() < 4, path.name
        made += 1
    assert made > 8


def shown(one: Stored) -> np.ndarray[Any, Any] | None:
    """What a picture of the first frame shows by pydicom's values and the formula of PS3.3 C.11.2.1.2.1; None where it takes more."""
    path, data, scanned = one
    if path.name in NOT_THEIRS or path.name == JFIF_RGB or scanned.transfer_syntax_uid not in DECODABLE:
        return None
    read = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    if any(keyword in read for keyword in ("SharedFunctionalGroupsSequence", "VOILUTSequence", "ModalityLUTSequence", "VOILUTFunction")):
        return None
    colours = read.get("PhotometricInterpretation") in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
    if colours and read.BitsStored == 8:
        return theirs(data, 0, raw=False).astype(int)
    window = read.get("WindowCenter"), read.get("WindowWidth")
    center, width = (value[0] if isinstance(value, MultiValue) else value for value in window)
    if not str(read.get("PhotometricInterpretation")).startswith("MONOCHROME") or center is None or width is None or width <= 1:
        return None
    values = theirs(data, 0).astype(float) * float(read.get("RescaleSlope") or 1) + float(read.get("RescaleIntercept") or 0)
    grey = np.clip(((values - (float(center) - 0.5)) / (float(width) - 1) + 0.5) * 255, 0, 255)
    return 255 - grey if read.PhotometricInterpretation == "MONOCHROME1" else grey


def test_pictures_of_every_file(place: Place, stored: list[Stored]) -> None:
    drawn = compared = oblong = 0
    for nth, one in enumerate(stored):
        path, _, scanned = one
        values = shown(one)
        accept, form = (("image/png", "PNG"), ("image/jpeg", "JPEG"))[nth % 2 if values is None else 0]
        answer = place.ask("GET", f"{address(scanned)}/rendered", headers={"Accept": accept})
        assert answer.status_code in (200, 406), (path.name, answer.status_code)
        if answer.status_code == 406:
            detail = answer.json["detail"]
            assert any(detail.startswith(reason) for reason in REFUSALS.values()), (path.name, detail)
            assert scanned.transfer_syntax_uid not in DECODABLE or path.name in NOT_THEIRS, (path.name, detail)
            continue
        image = Image.open(io.BytesIO(answer.data))
        size = in_shape(pydicom.dcmread(io.BytesIO(one[1]), stop_before_pixels=True))
        assert (image.format, image.size) == (form, size), path.name
        drawn += 1
        oblong += size != (scanned.number("Columns"), scanned.number("Rows"))
        if values is not None and image.size == (scanned.number("Columns"), scanned.number("Rows")):
            assert np.abs(np.asarray(image).astype(int) - values).max() <= 3, path.name
            compared += 1
    assert drawn > 40
    assert compared > 15, compared
    assert 0 < oblong < 10


def test_what_no_decoder_reads_says_so(place: Place, stored: list[Stored]) -> None:
    """Video, JPEG XL, JPEG 2000 part 2: as stored, or 406 with the reason."""
    _, data, _ = next(one for one in stored if one[2].transfer_syntax_uid.endswith("4.90"))
    for number, syntax in enumerate((VIDEO, *(f"1.2.840.10008.1.2.4.{n}" for n in (110, 111, 112)), "1.2.840.10008.1.2.4.92\0")):
        read = pydicom.dcmread(io.BytesIO(data))
        read.file_meta.TransferSyntaxUID = VIDEO
        read.SOPInstanceUID = read.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.77.{number}"
        out = io.BytesIO()
        read.save_as(out, enforce_file_format=True)
        made = out.getvalue().replace(VIDEO.encode(), syntax.encode())
        archives.store(place.node, made)
        path = address(scan(made))
        for accept in FORMS:
            answer = place.ask("GET", f"{path}/frames/1", headers={"Accept": accept})
            assert (answer.status_code, answer.json["detail"]) == (406, REFUSALS["no-codec"]), (syntax, accept)
        assert place.ask("GET", f"{path}/rendered").status_code == 406
        as_stored = place.ask("GET", f"{path}/frames/1", headers={"Accept": "multipart/related; transfer-syntax=*"})
        assert as_stored.status_code == 200
