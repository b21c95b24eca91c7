"""The corpus as instances: what a file holds, read by pydicom alone, and what the archive should give back."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.filereader import _read_file_meta_info, read_preamble

CUT_SHORT = frozenset({"GH179B.dcm"})
"""Ends in the middle of an element."""

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class Instance:
    """A whole instance with its four UIDs."""

    path: Path
    study: str
    series: str
    sop: str
    sop_class: str
    syntax: str
    frames: int
    data: bytes

    @property
    def kept(self) -> bytes:
        """The file as it is kept: its preamble cleared when it could be another kind of file."""
        preamble = self.data[:128]
        return self.data if preamble.startswith(TIFF) else bytes(128) + self.data[128:]

    @property
    def dataset(self) -> bytes:
        """What follows the file meta information."""
        return dataset_bytes(self.data)


def dataset_bytes(part10: bytes) -> bytes:
    """Return what follows the file meta information."""
    stream = io.BytesIO(part10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the files
        read_preamble(stream, force=False)
        _read_file_meta_info(stream)
    return part10[stream.tell() :]


def read(path: Path) -> Instance | None:
    """Return what pydicom reads of a file, None when it is no instance that can be kept."""
    data = path.read_bytes()
    if data[128:132] != b"DICM" or path.name in CUT_SHORT:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the files
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        words = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
        uids = [str(dataset.get(word, "")) for word in words]
        if not all(_UID.fullmatch(uid) and len(uid) <= 64 for uid in uids):
            return None
        frames = int(dataset.get("NumberOfFrames") or 1)
    return Instance(path, *uids, str(dataset.file_meta.TransferSyntaxUID), frames, data)


def files(corpus: Path) -> Iterator[Path]:
    """Every file of the corpus that is not hostile."""
    yield from (path for path in sorted(corpus.rglob("*")) if path.is_file() and "own__hostile" not in path.parts)


def distinct(corpus: Path, folder: Path) -> tuple[list[Instance], list[Path]]:
    """Copy the corpus into `folder` so that no SOP Instance UID comes twice; return its instances, and the other files.

    Variants of one image (other transfer syntax, other fragments) share their UID in the corpus; the copies of all but the first get
    another one of the same length, nothing else changes.
    """
    seen: set[str] = set()
    found, others = [], []
    for number, path in enumerate(files(corpus)):
        copy = folder / f"{number:03d}-{path.name}"
        copy.write_bytes(path.read_bytes())
        instance = read(copy) if path.name not in CUT_SHORT else None
        if instance is None:
            others.append(copy)
            continue
        if instance.sop in seen:
            other = _other(instance.sop, seen)
            copy.write_bytes(instance.data.replace(instance.sop.encode(), other.encode()))
            instance = read(copy)
            assert instance is not None
            assert instance.sop == other
        seen.add(instance.sop)
        found.append(instance)
    return found, others


def _other(uid: str, seen: set[str]) -> str:
    stem, last = uid.rsplit(".", 1)
    for number in range(1, 10 ** len(last)):
        other = f"{stem}.{str(number)[-len(last):].rjust(len(last), '7')}"
        if other not in seen:
            return other
    raise AssertionError(uid)
