"""A few synthetic studies to look at: drawn by formulas here, of nobody.

The same archive always makes the same bytes: UIDs are UUID-derived (PS3.5 B.2, root 2.25) from the archive's own UUID, dates
are fixed. So a second `--demo` finds what the first one stored.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

    Image = NDArray[np.float64]

CT, MR, US, CR = ("1.2.840.10008.5.1.4.1.1." + tail for tail in ("2", "4", "6.1", "1"))
EXPLICIT_LE = "1.2.840.10008.1.2.1"
SLICES = 20


class Sink(Protocol):
    """What takes an instance: `services.store.Incoming` opened for an import."""

    def write(self, data: bytes) -> None:
        """Take Part 10 bytes."""

    def finish(self) -> Any:
        """Make them durable."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series: how its attributes and images are made."""

    description: str
    number: int
    images: int
    fill: Callable[[Dataset, int, int], None]


@dataclass(frozen=True, slots=True)
class Study:
    """One study of one synthetic patient."""

    name: str
    patient_id: str
    birth_date: str
    sex: str
    date: str
    description: str
    accession_number: str
    sop_class_uid: str
    modality: str
    body_part: str
    series: tuple[Series, ...]


def instances(archive_uuid: str) -> Iterator[bytes]:
    """Yield every demo instance as Part 10 bytes, always in the same order."""
    root = uuid.UUID(archive_uuid)
    for study in STUDIES:
        for series in study.series:
            for index in range(series.images):
                yield _part10(root, study, series, index)


def load(open_sink: Callable[[], Sink], archive_uuid: str, progress: Callable[[int, int], None] = lambda _done, _all: None) -> int:
    """Store the demo studies and return how many instances were new; none when the last one is there already."""
    everything = list(instances(archive_uuid))
    stored = 0
    for done, data in enumerate(reversed(everything), 1):
        sink = open_sink()
        sink.write(data)
        outcome = sink.finish()
        if outcome.status != "stored" and done == 1:
            break
        stored += outcome.status == "stored"
        progress(done, len(everything))
    return stored


def _uid(root: uuid.UUID, *parts: object) -> UID:
    from pydicom.uid import UID

    return UID(f"2.25.{uuid.uuid5(root, '/'.join(map(str, parts))).int}")


def _part10(root: uuid.UUID, study: Study, series: Series, index: int) -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.filewriter import dcmwrite
    from pydicom.uid import UID

    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SOPClassUID = study.sop_class_uid
    dataset.SOPInstanceUID = _uid(root, study.accession_number, series.number, index)
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = study.date
    dataset.StudyTime = "093000"
    dataset.SeriesTime = dataset.ContentTime = f"0931{series.number:02d}"
    dataset.AccessionNumber = study.accession_number
    dataset.Modality = study.modality
    dataset.Manufacturer = "Strongroom demo"
    dataset.ReferringPhysicianName = "Demo^Doctor"
    dataset.StudyDescription = study.description
    dataset.SeriesDescription = series.description
    dataset.PatientName = study.name
    dataset.PatientID = study.patient_id
    dataset.PatientBirthDate = study.birth_date
    dataset.PatientSex = study.sex
    dataset.BodyPartExamined = study.body_part
    dataset.StudyInstanceUID = _uid(root, study.accession_number)
    dataset.SeriesInstanceUID = _uid(root, study.accession_number, series.number)
    dataset.FrameOfReferenceUID = _uid(root, study.accession_number, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.StudyID = "1"
    dataset.SeriesNumber = series.number
    dataset.InstanceNumber = index + 1
    dataset.PatientOrientation = ""
    series.fill(dataset, index, series.images)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(study.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(EXPLICIT_LE)
    meta.ImplementationClassUID = _uid(root, "demo")
    meta.ImplementationVersionName = "STRONGROOM DEMO"
    dataset.file_meta = meta
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _grey(dataset: Dataset, image: Image, *, bits: int, signed: bool = False) -> None:
    """Put a 16-bit grey image into the data set."""
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = image.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = np.ascontiguousarray(np.rint(image), dtype="<i2" if signed else "<u2").tobytes()


def _grid(rows: int, columns: int) -> tuple[Image, Image]:
    """Return y and x of each pixel, -1 to 1."""
    return np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")


def _noise(seed: int, shape: tuple[int, ...], spread: float) -> Image:
    return np.random.RandomState(seed).normal(0.0, spread, shape)  # its stream is frozen for ever, a Generator's is not


# Ellipsoids of the head: centre x y z, half axes x y z, turn in degrees, then Hounsfield units and T1 and T2 brightness.
_HEAD = (
    ((0, 0, 0), (0.69, 0.92, 0.95), 0, (0, 900, 350)),  # scalp
    ((0, 0, 0), (0.665, 0.89, 0.92), 0, (1100, 40, 30)),  # skull
    ((0, -0.01, 0), (0.62, 0.83, 0.86), 0, (30, 520, 430)),  # brain
    ((0, -0.01, 0), (0.50, 0.70, 0.70), 0, (36, 640, 360)),  # white matter
    ((0.20, -0.05, -0.05), (0.10, 0.32, 0.28), -18, (6, 160, 950)),  # ventricles
    ((-0.20, -0.05, -0.05), (0.10, 0.32, 0.28), 18, (6, 160, 950)),
    ((0, 0.42, 0.0), (0.05, 0.10, 0.25), 0, (6, 160, 950)),
    ((0.30, 0.30, 0.25), (0.13, 0.11, 0.16), 25, (68, 700, 640)),  # a round finding
    ((0.30, 0.30, 0.25), (0.06, 0.05, 0.08), 25, (20, 300, 900)),
)


def _head(size: int, z: float, tissue: int, air: float) -> Image:
    y, x = _grid(size, size)
    image = np.full((size, size), float(air))
    for (cx, cy, cz), (ax, ay, az), turn, values in _HEAD:
        height = 1 - ((z - cz) / az) ** 2
        if height <= 0:
            continue
        angle = np.deg2rad(turn)
        dx, dy = x - cx, y - cy
        u, v = dx * np.cos(angle) + dy * np.sin(angle), -dx * np.sin(angle) + dy * np.cos(angle)
        image[(u / ax) ** 2 + (v / ay) ** 2 <= height] = values[tissue]
    return image


def _position(dataset: Dataset, index: int, images: int, *, spacing_mm: float, thickness_mm: float, size: int) -> float:
    """Describe an axial slice (PS3.3 C.7.6.2) and return its height, -0.85 to 0.85."""
    z = -0.85 + 1.7 * index / max(images - 1, 1)
    dataset.PixelSpacing = [spacing_mm, spacing_mm]
    dataset.SliceThickness = thickness_mm
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    edge = -spacing_mm * (size - 1) / 2
    dataset.ImagePositionPatient = [edge, edge, round((index - images / 2) * thickness_mm, 3)]
    dataset.SliceLocation = round((index - images / 2) * thickness_mm, 3)
    return z


def _ct(dataset: Dataset, index: int, images: int) -> None:
    z = _position(dataset, index, images, spacing_mm=0.9, thickness_mm=5, size=256)
    image = _head(256, z, 0, air=-1000) + _noise(index, (256, 256), 6)
    _grey(dataset, np.clip(image, -1024, 3071), bits=16, signed=True)
    dataset.KVP = "120"
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "HU"
    dataset.WindowCenter, dataset.WindowWidth = ["40", "500"], ["120", "2500"]
    dataset.WindowCenterWidthExplanation = ["BRAIN", "BONE"]


def _mr(tissue: int, echo_ms: str, repetition_ms: str) -> Callable[[Dataset, int, int], None]:
    def fill(dataset: Dataset, index: int, images: int) -> None:
        z = _position(dataset, index, images, spacing_mm=1.2, thickness_mm=7, size=192)
        image = np.abs(_head(192, z, tissue, air=0) + _noise(100 * tissue + index, (192, 192), 14))
        _grey(dataset, np.clip(image, 0, 4095), bits=12)
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", ""
        dataset.MRAcquisitionType = "2D"
        dataset.EchoTime, dataset.RepetitionTime, dataset.EchoTrainLength = echo_ms, repetition_ms, "1"
        dataset.WindowCenter, dataset.WindowWidth = "450", "900"

    return fill


def _cr(dataset: Dataset, _index: int, _images: int) -> None:
    """A chest: ribs over lungs, spine, heart."""
    y, x = _grid(640, 576)
    image = 2300 - 500 * (x**2 + 0.4 * y**2)
    for side in (-1, 1):
        lung = ((x - side * 0.42) / 0.30) ** 2 + ((y + 0.05) / 0.62) ** 2
        image -= 1100 / (1 + np.exp((lung - 1) * 14))
    image += 700 * np.exp(-((x / 0.09) ** 2))  # spine
    image += 850 / (1 + np.exp(((((x - 0.14) / 0.27) ** 2 + ((y - 0.25) / 0.30) ** 2) - 1) * 9))  # heart
    for rib in range(9):
        height = -0.62 + 0.15 * rib
        curve = y - height - 0.16 * (np.abs(x) - 0.45) ** 2 * 3 + 0.10 * np.abs(x)
        image += 190 * np.exp(-((curve / 0.022) ** 2)) * (np.abs(x) > 0.10) * (np.abs(x) < 0.78)
    image[(np.abs(x) > 0.93 - 0.12 * (y < -0.7))] = 250
    _grey(dataset, np.clip(image + _noise(7, image.shape, 18), 0, 4095), bits=12)
    dataset.ViewPosition = "PA"
    dataset.ImagerPixelSpacing = [0.6, 0.6]
    dataset.WindowCenter, dataset.WindowWidth = "1900", "2600"


def _us(dataset: Dataset, index: int, images: int) -> None:
    """A fan of speckle with a round structure and a colour box over a vessel."""
    rows, columns = 360, 480
    y, x = np.meshgrid(np.linspace(0, 1.5, rows), np.linspace(-1, 1, columns), indexing="ij")
    radius, angle = np.hypot(x, y + 0.15), np.arctan2(x, y + 0.15)
    fan = (np.abs(angle) < 0.72) & (radius > 0.25) & (radius < 1.55)
    speckle = np.abs(_noise(31 + index, (rows, columns), 1.0) + 1j * _noise(77 + index, (rows, columns), 1.0))
    grey = 62 * speckle * np.exp(-0.5 * radius) * fan
    grey[((x + 0.25) / 0.22) ** 2 + ((y - 0.75) / 0.18) ** 2 < 1] *= 0.12
    wall = np.abs(np.hypot((x + 0.25) / 0.22, (y - 0.75) / 0.18) - 1)
    grey += 110 * np.exp(-((wall / 0.06) ** 2)) * fan
    image = np.repeat(np.clip(grey, 0, 255)[:, :, None], 3, axis=2)
    vessel = np.abs(y - 0.95 - 0.18 * np.sin(3 * (x - 0.2))) < 0.07
    box = (np.abs(x - 0.3) < 0.28) & (np.abs(y - 0.95) < 0.25)
    flow = vessel & box & fan
    swing = np.cos(2 * np.pi * index / max(images, 1))
    image[flow] = [200 + 40 * swing, 60 - 40 * swing, 30]
    image[flow & (y - 0.95 > 0.18 * np.sin(3 * (x - 0.2)))] = [40, 90, 220]
    edge = box & ~((np.abs(x - 0.3) < 0.27) & (np.abs(y - 0.95) < 0.24))
    image[edge] = [240, 220, 90]
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.clip(image, 0, 255).astype(np.uint8).tobytes()


STUDIES = (
    Study("Demo^Anna", "DEMO-1", "19640512", "F", "20250918", "CT head without contrast", "DEMO0001", CT, "CT", "HEAD",
          (Series("Head 5 mm axial", 2, SLICES, _ct),)),
    Study("Demo^Anna", "DEMO-1", "19640512", "F", "20251104", "MR brain", "DEMO0002", MR, "MR", "HEAD",
          (Series("T1 axial", 3, 12, _mr(1, "12", "600")), Series("T2 axial", 4, 12, _mr(2, "95", "4200")))),
    Study("Demo^Bruno", "DEMO-2", "19880130", "M", "20251120", "Chest PA", "DEMO0003", CR, "CR", "CHEST",
          (Series("Chest PA", 1, 1, _cr),)),
    Study("Demo^Chiyo=試験^千代=しけん^ちよ", "DEMO-3", "19711003", "F", "20251202", "Ultrasound", "DEMO0004", US, "US", "ABDOMEN",
          (Series("Liver, colour", 1, 4, _us),)),
)
