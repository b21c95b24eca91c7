"""Instances as scanners make them: one template a series, of which only the SOP Instance UID is patched."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
MULTIFRAME = "1.2.840.10008.5.1.4.1.1.7.3"
EXPLICIT_LE = str(ExplicitVRLittleEndian)
UID_BYTES = 60
_MARK = b"9" * UID_BYTES
_RUN = os.urandom(8).hex()


def uid(*parts: object) -> str:
    """Return a UID of 60 characters that no other run makes."""
    digest = hashlib.blake2b("|".join(map(str, (_RUN, *parts))).encode(), digest_size=12).digest()
    return "1.2.826.0.1.3680043.10.1451.1" + str(int.from_bytes(digest, "big")).zfill(31)


@dataclass(frozen=True, slots=True)
class Series:
    """A series whose instances differ in their SOP Instance UID alone."""

    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    dataset: bytes  # with the mark in the place of the SOP Instance UID
    meta: bytes  # preamble and file meta information, likewise
    uid_offset: int  # of the mark in the data set

    def patched(self, sop_instance_uid: str) -> tuple[bytes, memoryview]:
        """Return the data set in two parts, up to and after the SOP Instance UID."""
        end = self.uid_offset + UID_BYTES
        return self.dataset[: self.uid_offset] + sop_instance_uid.encode(), memoryview(self.dataset)[end:]

    def part10(self, sop_instance_uid: str) -> bytes:
        """Return the instance as a file."""
        return b"".join((self.meta.replace(_MARK, sop_instance_uid.encode()), *self.patched(sop_instance_uid)))


def series(kind: str, *key: object, name: str = "Bench^Anna") -> Series:
    """Return a new series: "CT" (0.5 MB an instance), "MR" (60 KB), "multiframe" (200 frames, 105 MB) or "small" (1 KB of pixels)."""
    sop_class, modality, size, frames = {
        "CT": (CT, "CT", 512, 1), "MR": (MR, "MR", 172, 1), "multiframe": (MULTIFRAME, "OT", 512, 200), "small": (MR, "MR", 24, 1),
    }[kind]
    dataset = _header(sop_class, modality, (kind, *key), name)
    dataset.Rows = dataset.Columns = size
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.PixelData = _pixels(size) * frames
    dataset["PixelData"].VR = "OW"
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    whole = stream.getvalue()
    start = whole.index(b"\x08\x00\x05\x00CS")  # Specific Character Set, the data set's first element
    body = whole[start:]
    return Series(sop_class, dataset.StudyInstanceUID, dataset.SeriesInstanceUID, body, whole[:start], body.index(_MARK))


def _header(sop_class: str, modality: str, key: tuple[object, ...], name: str) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, _MARK.decode()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study", *key), uid("series", *key)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "20260131"
    dataset.StudyTime = dataset.ContentTime = "101112.000000"
    dataset.AccessionNumber, dataset.StudyID, dataset.Modality = "A000000001", "1", modality
    dataset.Manufacturer, dataset.ManufacturerModelName, dataset.InstitutionName = "SIEMENS", "SOMATOM X", "Clinic 1"
    dataset.ReferringPhysicianName = "House^Gregory"
    dataset.StudyDescription, dataset.SeriesDescription, dataset.BodyPartExamined = "THORAX", "THORAX 1.5 B31f", "CHEST"
    dataset.PatientName, dataset.PatientID, dataset.IssuerOfPatientID = name, uid("patient", *key)[-16:], "CLINIC"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19610203", "F", "064Y"
    dataset.ProtocolName, dataset.DeviceSerialNumber, dataset.SoftwareVersions = "P01", "123456", "VB20A"
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = 1, "1", 1
    dataset.FrameOfReferenceUID = uid("frame", *key)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "24627-2", "LN", "CT Chest"
    dataset.ProcedureCodeSequence = [code]
    request = Dataset()
    request.ScheduledProcedureStepID, request.RequestedProcedureID = "S1", "R1"
    dataset.RequestAttributesSequence = [request]
    dataset.add_new(0x00090010, "LO", "SYNTH")
    dataset.add_new(0x00091001, "OB", bytes(1024))
    dataset.SliceThickness, dataset.SliceLocation, dataset.PatientPosition = "1.5", "-10.5", "HFS"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = ["-250", "-250", "-10.5"], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.WindowCenter, dataset.WindowWidth = [".7", ".7"], "40", "400"
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, _MARK.decode()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    return dataset


def _pixels(size: int) -> bytes:
    """One slice: a smooth body with organs, and the noise of a detector."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    image = np.where((x / 0.8) ** 2 + (y / 0.65) ** 2 < 1, 1040.0, 0.0)
    for _ in range(12):
        cx, cy = rng.uniform(-0.5, 0.5, 2)
        rx, ry = rng.uniform(0.04, 0.28, 2)
        image[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1] += rng.uniform(-250, 350)
    return bytes(np.clip(image + rng.normal(0, 12, image.shape), 0, 4095).astype("<u2").tobytes())
