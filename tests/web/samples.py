"""Small synthetic instances."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

STUDY = "1.2.826.0.1.3680043.2.1125.77"


def instance(
    number: int = 1, *, study: int = 1, series: int = 1, syntax: str = ExplicitVRLittleEndian, frames: int = 1, **changes: Any
) -> bytes:
    """Return Part 10 bytes of a 16x12 image; pixels differ by number and frame."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = changes.get("SOPInstanceUID") or f"{STUDY}.{study}.{series}.{number}"
    meta.TransferSyntaxUID = syntax
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = f"{STUDY}.{study}"
    dataset.SeriesInstanceUID = f"{STUDY}.{study}.{series}"
    dataset.StudyDate, dataset.StudyTime, dataset.Modality = "20260102", "101112", "CT"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "CANARY^One", "C1", "19700101", "O"
    dataset.StudyID, dataset.AccessionNumber, dataset.SeriesNumber, dataset.InstanceNumber = "1", "", series, number
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 12, 16, 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    pixels = np.arange(frames * 192, dtype="<u2").reshape(frames, 12, 16) + number * 1000
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if syntax == RLELossless:
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(RLELossless, generate_instance_uid=False)
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True, enforce_file_format=True)
    return out.getvalue()


def multipart(
    *parts: bytes, boundary: str = "b", content_type: str | None = "application/dicom", end: str = "\r\n", lead: str = "\r\n"
) -> bytes:
    """Return a multipart body."""
    body = lead.encode()
    head = f"Content-Type: {content_type}{end}" if content_type else ""
    for part in parts:
        body += f"--{boundary}{end}{head}{end}".encode() + part + end.encode()
    return body + f"--{boundary}--".encode()
