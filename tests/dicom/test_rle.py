"""RLE: a segment gives a frame's samples and no more, however long it is."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from archive.dicom.encode import RLE
from archive.dicom.pixels import decode_frame
from archive.errors import NotAcceptable
from tests.dicom.test_isolated import resident_kb
from tests.dicom.test_pixels import encapsulated, parts


def coded(*segments: bytes) -> bytes:
    starts, at = [], 64
    for segment in segments:
        starts.append(at)
        at += len(segment)
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(starts))) + b"".join(segments)


def decoded(stream: bytes, side: int) -> np.ndarray:  # type: ignore[type-arg]
    return decode_frame(*parts(encapsulated(stream, RLE, side, side)))


@pytest.mark.parametrize("side", [10, 1100])
def test_runs_without_end_take_no_memory(side: int) -> None:
    """Two bytes are a run of 128: eight megabytes would be half a gigabyte."""
    stream = coded(b"\x81\x07" * (4 << 20))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident_kb("self", "VmHWM")
    assert (decoded(stream, side) == 7).all()
    assert resident_kb("self", "VmHWM") - before < 200 << 10


@pytest.mark.parametrize("side", [10, 1100])
@pytest.mark.parametrize("kind", ["literals", "runs", "single literals", "nothing between", "padded"])
def test_every_way_to_write_a_segment_is_read(side: int, kind: str) -> None:
    values = np.random.default_rng(3).integers(0, 256, side * side, np.uint8)
    if kind == "runs":
        values = np.repeat(values[: -(-values.size // 100)], 100)[: values.size]
    raw = values.tobytes()
    if kind == "runs":
        made = b"".join(bytes((157, raw[at])) for at in range(0, len(raw), 100))
    elif kind == "single literals":
        made = b"".join(bytes((0, value)) for value in raw)
    else:
        made = b"".join(bytes([len(raw[at : at + 128]) - 1]) + raw[at : at + 128] for at in range(0, len(raw), 128))
    made = b"\x80" * 50 + made if kind == "nothing between" else made + b"\0" * 7 if kind == "padded" else made
    assert np.array_equal(decoded(coded(made), side).ravel(), values)


@pytest.mark.parametrize("side", [10, 1100])
def test_a_short_segment_is_refused(side: int) -> None:
    made = b"".join(bytes((0, 1)) for _ in range(side * side - 1))
    with pytest.raises(NotAcceptable) as refused:
        decoded(coded(made), side)
    assert refused.value.reason == "short"
