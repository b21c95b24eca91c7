"""The standard's registries of attributes (PS3.6 tables 6-1 ff.) and UIDs (PS3.6 annex A), as pydicom carries them.

They are two modules of data. The package around them takes a third of a second to import, with numpy, codecs and an HTTP client, which
who looks up a keyword has no use for.
"""

from __future__ import annotations

import sys
from functools import cache, lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

_VR, _VM, _KEYWORD = 0, 1, 4
_WILD = str.maketrans({"x": "0"})


def _data(name: str) -> Any:
    """Return a module of pydicom's, alone unless pydicom is here already."""
    if (here := sys.modules.get(f"pydicom.{name}")) is not None:
        return here
    package = find_spec("pydicom")
    assert package is not None
    assert package.origin is not None
    spec = spec_from_file_location(f"{__name__}.{name}", Path(package.origin).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


UIDS: dict[str, tuple[str, str, str, str, str]] = {
    # Newer than pydicom's table: pynetdicom adds them to it when it is imported. Here they stand, whoever was imported first.
    "1.2.840.10008.1.2.4.110": ("JPEG XL Lossless", "Transfer Syntax", "", "", "JPEGXLLossless"),
    "1.2.840.10008.1.2.4.111": ("JPEG XL JPEG Recompression", "Transfer Syntax", "", "", "JPEGXLJPEGRecompression"),
    "1.2.840.10008.1.2.4.112": ("JPEG XL", "Transfer Syntax", "", "", "JPEGXL"),
    "1.2.840.10008.1.2.8.1": ("Deflated Image Frame Compression", "Transfer Syntax", "", "", "DeflatedImageFrameCompression"),
    **_data("_uid_dict").UID_dictionary,
}
"""Name, type, info, "Retired" or nothing, and keyword of each UID."""


@cache
def _attributes() -> tuple[dict[int, tuple[str, ...]], list[tuple[int, int, tuple[str, ...]]], dict[str, int]]:
    """Return the attributes by tag, those of repeating groups by mask (the bits that count, and what they are), and tags by keyword."""
    module = _data("_dicom_dict")
    single: dict[int, tuple[str, ...]] = module.DicomDictionary
    masked = [
        (int("".join("0" if digit == "x" else "F" for digit in tag), 16), int(tag.translate(_WILD), 16), entry)
        for tag, entry in module.RepeatersDictionary.items()
    ]
    return single, masked, {entry[_KEYWORD]: tag for tag, entry in single.items()}


@lru_cache(maxsize=8192)
def _entry(tag: int) -> tuple[str, ...]:
    single, masked, _ = _attributes()
    found = single.get(tag)
    if found is None and not tag >> 16 & 1:
        found = next((entry for mask, bits, entry in masked if tag & mask == bits), None)
    return found or ()


def keyword_of(tag: int) -> str:
    """Return the keyword of a tag, nothing for one the standard does not have."""
    entry = _entry(tag)
    return entry[_KEYWORD] if entry else ""


def tag_of(keyword: str) -> int | None:
    """Return the tag of a keyword; None for what is none, or the keyword of a repeating group."""
    return _attributes()[2].get(keyword)


def vr_of(tag: int) -> str:
    """Return the VR or VRs of a tag, nothing for one the standard does not have."""
    entry = _entry(tag)
    return entry[_VR] if entry else ""


def vm_of(tag: int) -> str:
    """Return the value multiplicity of a tag, nothing for one the standard does not have."""
    entry = _entry(tag)
    return entry[_VM] if entry else ""
