"""A whole archive in a folder, opened in this process, and instances to put into it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom.config
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from archive.access.subject import Subject
from archive.config import Config, parse
from archive.node import Node, open_node
from archive.services import setup
from archive.services.console import console
from archive.services.store import Outcome, Source
from tests.services import templates

pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
PASSWORD = "violet-otter-94-lantern"
CT = "1.2.840.10008.5.1.4.1.1.2"


def configured(folder: Path, **sections: dict[str, Any]) -> Config:
    """A configuration whose storage is in `folder`, small segments, no reserve; the database is the one `made` was given."""
    raw: dict[str, Any] = {
        "archive": {"storage": "storage"}, "storage": {"segment_bytes": 4 << 20, "reserve": "0%"}, "http": {"port": 0},
        "dimse": {"tls": {"port": 0}},
    }
    kept = folder / "database-url"
    if kept.exists():
        raw["database"] = {"url": kept.read_text()}
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return parse(raw, folder / "config.toml")


def made(folder: Path, *, own_keys: bool = False, **sections: dict[str, Any]) -> Config:
    """An initialised archive with owner `admin`; with the keys of every other of these settings unless it is to have its own."""
    if "database" in sections:
        (folder / "database-url").write_text(sections["database"]["url"])
    config = configured(folder, **sections)
    if own_keys or config.storage_dir.exists() or "'/" in repr(sections):  # an absolute path is no part of the folder that is copied
        setup.initialise(config, admin="admin", password=PASSWORD)
    else:
        templates.copy(folder, sections, lambda first, settings: setup.initialise(
            configured(first, **settings), admin="admin", password=PASSWORD))
    return config


@contextmanager
def opened(config: Config, **options: Any) -> Iterator[Node]:
    """The archive, opened and replayed as a server does it."""
    node = open_node(config, **options)
    try:
        assert node.start() == ""
        yield node
    finally:
        node.close()


def made_with_one(folder: Path) -> Config:
    """An archive in its folder, with one instance."""
    config = made(folder)
    with opened(config) as node:
        store(node, instance())
    return config


def the_console(node: Node) -> Subject:
    """Who the command line is."""
    return console(node.core, "tester")


def user(node: Node, name: str = "admin") -> Subject:
    """A user as a token of his would come in, without the token."""
    from archive.access import principals

    with node.core.database.read() as tx:
        row = principals.find(tx, name)
    return Subject(row["id"], row["name"], "user", "token")


def instance(
    number: int = 1, *, study: str = "1.2.3", series: str | None = None, sop: str | None = None, rows: int = 16, **attributes: Any
) -> bytes:
    """A small Part 10 file; attributes by keyword, None removes one."""
    dataset = Dataset()
    dataset.SOPClassUID = CT
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = series or f"{study}.1"
    dataset.SOPInstanceUID = sop or f"{dataset.SeriesInstanceUID}.{number}"
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P1", "Canary^Test", "CT"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260102", "030405", "A1"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = rows
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = bytes((number + i) % 256 if i % 2 == 0 else 0 for i in range(min(rows, 64) ** 2 * 2)).ljust(rows * rows * 2, b"\0")
    dataset["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CT)
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = "1.2.3.4"
    dataset.file_meta = meta
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def store(node: Node, data: bytes, *, subject: Subject | None = None, pieces: int = 65536, study: str | None = None) -> Outcome:
    """Put a Part 10 file in, in pieces."""
    incoming = node.store.open(subject or the_console(node), "clinical", Source("stow"), study_instance_uid=study)
    try:
        for start in range(0, len(data), pieces):
            incoming.write(data[start : start + pieces])
        return incoming.finish()
    finally:
        incoming.abort()
