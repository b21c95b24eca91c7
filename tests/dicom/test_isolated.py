"""isolated: GDCM aborts on damaged frames; its process dies, ours does not, and the next frame is decoded."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from openjpeg.utils import encode_buffer

from archive.dicom.isolated import CodecProcess, codec
from archive.dicom.part10 import scan
from archive.dicom.pixels import decode_frame, render
from archive.dicom.recipe import Recipe, thumbnail
from archive.errors import NotAcceptable
from tests.dicom.test_pixels import encapsulated, parts


def lossless(corpus: Path):
    data = (corpus / "pydicom__pydicom-data" / "data" / "JPGLosslessP14SV1_1s_1f_8b.dcm").read_bytes()
    scanned = scan(data)
    assert scanned.frames is not None
    frame = b"".join(data[offset : offset + length] for offset, length in scanned.frames.pieces(0))
    return data[: scanned.head_bytes], scanned, frame


def test_damaged_frames_are_refused_and_later_ones_decoded(corpus: Path) -> None:
    head, scanned, frame = lossless(corpus)
    good = decode_frame(head, scanned, frame)
    random.seed(3)
    processes = set()
    refusals: list[str] = []
    for _ in range(40):
        broken = bytearray(frame)
        for _ in range(random.randint(1, 6)):
            broken[random.randrange(200)] = random.randrange(256)
        try:
            decode_frame(head, scanned, bytes(broken))
        except NotAcceptable as refusal:
            refusals.append(refusal.reason)
        if codec._process is not None:
            processes.add(codec._process.pid)
    assert len(refusals) > 5
    assert set(refusals) <= {"damaged", "size-lies", "no-codec", "short"}
    assert len(processes) > 1  # it did die
    assert np.array_equal(decode_frame(head, scanned, frame), good)


def test_threads_take_turns(corpus: Path) -> None:
    head, scanned, frame = lossless(corpus)
    good = decode_frame(head, scanned, frame)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(np.array_equal(decode_frame(head, scanned, frame), good))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


def test_a_process_killed_between_frames_is_started_again(corpus: Path) -> None:
    head, scanned, frame = lossless(corpus)
    good = decode_frame(head, scanned, frame)
    assert codec._process is not None
    codec._process.kill()
    codec._process.wait()
    assert np.array_equal(decode_frame(head, scanned, frame), good)


def test_a_frame_that_takes_too_long_is_given_up() -> None:
    slow = CodecProcess(timeout_s=0.3)
    try:
        slow._running()
        assert slow._process is not None
        os.kill(slow._process.pid, 19)  # stopped, it answers never
        begun = time.monotonic()
        assert slow.decode({}, b"frame") == b""
        assert time.monotonic() - begun < 10
        assert slow.decode({}, b"frame") == b""  # a new one, which finds the request wanting
    finally:
        slow.close()


@pytest.mark.parametrize("times", [1, 2])
def test_closing_is_safe(times: int) -> None:
    process = CodecProcess()
    for _ in range(times):
        process.close()


# Ten by ten pixels; each of these ends where more bits are wanted, and its decoder goes on reading none.
ENDLESS = [
    "ffd8fff7001108000a000a03011100021100031100ffda000c0301000200030000020001596657ff7f57e94ad47f952bff7c2109944ccfff7fe56d5fff7fff7f088bc0ff0000",
    "ffd8fff7001108000a000a03011100021100031100ffda000c0301000200030000020001596657ff7f57e94aff7f952bff7c21095e4ccfff7fe56d5fff7fff7f088b",
    "ffd8fff7001108000a000a03011100021100031100ffda000c03010002000300000200d8596657ff7f57e9",
]


@pytest.mark.parametrize("stream", ENDLESS)
def test_a_code_stream_cut_short_costs_seconds_and_holds_up_nobody_else(corpus: Path, stream: str) -> None:
    data = next(corpus.rglob("sm_image_jpegls.dcm")).read_bytes()
    scanned = scan(data)
    assert scanned.frames is not None
    good = b"".join(data[offset : offset + length] for offset, length in scanned.frames.pieces(0))
    head = data[: scanned.head_bytes]
    decode_frame(head, scanned, good)
    moments, done = [time.monotonic()], threading.Event()

    def beat() -> None:
        while not done.wait(0.02):
            moments.append(time.monotonic())

    beside = threading.Thread(target=beat)
    before = time.process_time()
    beside.start()
    try:
        with pytest.raises(NotAcceptable) as refused:
            decode_frame(head, scanned, bytes.fromhex(stream))
    finally:
        done.set()
        beside.join()
    assert refused.value.reason == "damaged"
    assert time.process_time() - before < 3
    assert len(moments) > 1
    assert decode_frame(head, scanned, good).shape == (10, 10, 3)


def resident_kb(pid: int | str, name: str) -> int:
    """What the kernel says of a process's memory."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def finest(side: int) -> bytes:
    """JPEG 2000 of a black image in as many parts as can be: 200 bytes, and half a kilobyte of memory for each pixel."""
    raw = bytes(encode_buffer(bytes(side * side), side, side, 1, 8, False, photometric_interpretation=0, use_mct=False))
    at = raw.index(b"\xff\x52")
    body = bytearray(raw[at + 4 : at + 2 + int.from_bytes(raw[at + 2 : at + 4], "big")])
    body[0] |= 1  # sizes of precincts are given
    body[6] = body[7] = 0  # code-blocks of 4 by 4
    body += b"\x11" * (body[5] + 1)
    return raw[:at] + b"\xff\x52" + struct.pack(">H", 2 + len(body)) + body + raw[at + len(body) - body[5] + 3 :]


@pytest.mark.parametrize("recipe", [Recipe("png"), thumbnail("png")])
def test_a_code_stream_in_countless_parts_takes_no_memory_of_ours_and_little_of_its_process(recipe: Recipe) -> None:
    side = 1024
    data = encapsulated(finest(side), "1.2.840.10008.1.2.4.90", side, side)
    head, scanned, frame = parts(data)
    plain = bytes(encode_buffer(bytes(side * side), side, side, 1, 8, False, photometric_interpretation=0, use_mct=False))
    render(*parts(encapsulated(plain, "1.2.840.10008.1.2.4.90", side, side)), recipe)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident_kb("self", "VmHWM")
    codec.decode({}, b"")  # there is a process
    first = codec._process
    assert first is not None
    with contextlib.suppress(NotAcceptable):
        render(head, scanned, frame, recipe)
    assert resident_kb("self", "VmHWM") - before < 100 << 10
    if first.poll() is None:
        assert resident_kb(first.pid, "VmHWM") < 450 << 10
    render(*parts(encapsulated(plain, "1.2.840.10008.1.2.4.90", side, side)), recipe)
