"""The META section of a record: what a rebuild and a retrieve need besides the Part 10 bytes (docs/format.md 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from archive.dicom.part10 import Scanned


@dataclass(frozen=True, slots=True)
class RecordMeta:
    """A decoded META section; `issuer` is the issuer of patient ID that identity was decided by."""

    scanned: Scanned
    issuer: str
    received: dict[str, Any]


def encode(scanned: Scanned, *, issuer: str, received: dict[str, Any]) -> bytes:
    """Return canonical JSON: keys sorted, no spaces."""
    return msgspec.json.encode({**scanned.to_json(), "issuer": issuer, "received": received}, order="sorted")


def decode(meta: bytes) -> RecordMeta:
    """Return what `encode` wrote."""
    raw = msgspec.json.decode(meta)
    return RecordMeta(Scanned.from_json(raw), raw["issuer"], raw["received"])
