"""isolated: GDCM aborts on damaged frames; its process dies, ours does not, and the next frame is decoded."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from archive.dicom.isolated import CodecProcess, codec
from archive.dicom.part10 import scan
from archive.dicom.pixels import decode_frame
from archive.errors import NotAcceptable


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
