"""JPEG frames, lossless or of 12 bits, by GDCM, JPEG-LS ones by CharLS and JPEG 2000 ones by OpenJPEG, in a process of its own.

GDCM aborts the process on damaged code streams. CharLS goes on for many seconds where one ends too soon, and OpenJPEG takes gigabytes for
one of a hundred bytes that says it is in countless parts; no other thread runs while either is at work.

One helper process serves its parent's threads in turn. It is started at the first frame, started again after it died, and ends when
its standard input closes. Nothing is written to disk; its memory is limited, and so is its processor time for each frame.

Request: 4-byte length and JSON layout, 8-byte length and code stream. Answer: 8-byte length and samples; an empty one means damaged. With
"encode" in the layout the request holds samples, the answer the code stream of lossless JPEG with the first predictor (ISO/IEC 10918-1 H);
with "jpeg_ls" the samples end with a byte that says whether they are by plane, with "halvings" with their columns, rows and bits.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import resource
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

TIMEOUT_S = 60.0
"""How long one frame may take."""
MEMORY_BYTES = 4 << 30
LEAST_CPU_S = 3
BYTES_A_CPU_S = 2 << 20
"""A frame may take that much processor time, and a second more for so many bytes of its samples; the slowest codec is ten times as fast."""
SPARE_BYTES = 256 << 20
BYTES_A_SAMPLE = 24
"""JPEG 2000 may take that much memory, and so many bytes for each sample; OpenJPEG holds eight of them and the answer."""


_SMALLER = struct.Struct("<IIB")


class CodecProcess:
    """The helper process as its parent sees it; threads take turns."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        """Nothing is started yet."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._timeout_s = timeout_s

    def decode(self, layout: dict[str, Any], frame: bytes) -> bytes:
        """Return the samples of one frame, empty when it cannot be decoded."""
        return self._ask(layout, frame)

    def jpeg_ls(self, layout: dict[str, Any], frame: bytes) -> tuple[bytes, bool]:
        """Return the samples of one JPEG-LS frame and whether they are by plane; empty when it cannot be decoded."""
        answer = self._ask({**layout, "jpeg_ls": True}, frame)
        return answer[:-1], answer[-1:] == b"\1"

    def jpeg_2000(self, layout: dict[str, Any], frame: bytes) -> bytes:
        """Return the samples of one JPEG 2000 frame, empty when it cannot be decoded."""
        return self._ask({**layout, "jpeg_2000": True}, frame)

    def smaller(self, layout: dict[str, Any], frame: bytes, halvings: int) -> tuple[bytes, int, int, int]:
        """Return the samples of a grey JPEG 2000 frame at a lower resolution, its columns, rows and bits a sample; empty as above."""
        answer = self._ask({**layout, "halvings": halvings}, frame)
        return (answer[:-9], *_SMALLER.unpack(answer[-9:])) if len(answer) > 9 else (b"", 0, 0, 0)

    def encode(self, layout: dict[str, Any], samples: bytes) -> bytes:
        """Return lossless JPEG of one frame's samples, colour by pixel; empty when it cannot be made."""
        return self._ask({**layout, "encode": True}, samples)

    def _ask(self, layout: dict[str, Any], frame: bytes) -> bytes:
        head = json.dumps(layout).encode()
        request = struct.pack("<I", len(head)) + head + struct.pack("<Q", len(frame)) + frame
        with self._lock:
            process = self._running()
            alarm = threading.Timer(self._timeout_s + _sample_bytes(layout) // BYTES_A_CPU_S, process.kill)
            alarm.daemon = True
            alarm.start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(request)
                process.stdin.flush()
                return _take(process.stdout, struct.unpack("<Q", _take(process.stdout, 8))[0])
            except (EOFError, OSError):
                self._end()
                return b""
            finally:
                alarm.cancel()

    def close(self) -> None:
        """End the helper process."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and (self._owner != os.getpid() or self._process.poll() is not None):
            self._end()
        if self._process is None:
            self._owner = os.getpid()
            # Run by path, not as archive.dicom.isolated: it needs no module of ours but this file.
            command = [sys.executable, "-I", str(Path(__file__).resolve())]
            self._process = subprocess.Popen(  # noqa: S603 # our own interpreter and file
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", env={}
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        mine = self._owner == os.getpid()
        if mine:
            process.kill()
        for stream in (process.stdin, process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except OSError:
                continue  # what was still to be written no one reads any more
        if mine:
            process.wait()
        else:
            process.returncode = 0  # a fork's parent waits for it


def _sample_bytes(layout: dict[str, Any]) -> int:
    size: int = layout.get("rows", 0) * layout.get("columns", 0) * layout.get("samples", 1) * ((layout.get("bits_allocated", 8) + 7) // 8)
    return size


codec = CodecProcess()
"""The helper of this process."""
atexit.register(codec.close)


def _take(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _gdcm(layout: dict[str, Any], frame: bytes) -> bytes:
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout["columns"], layout["rows"], 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(layout["photometric"])
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if layout["samples"] > 1:
        image.SetPlanarConfiguration(layout["planar"])
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(layout["transfer_syntax_uid"])))
    stored = layout["bits_stored"]
    image.SetPixelFormat(gdcm.PixelFormat(layout["samples"], layout["bits_allocated"], stored, stored - 1, layout["signed"]))
    samples: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")
    return samples


def _charls(frame: bytes) -> bytes:
    import jpeg_ls

    samples, told = jpeg_ls.decode_pixel_data(frame)
    return bytes(samples) + bytes([told["components"] > 1 and told["interleave_mode"] == 0])


def _lossless_jpeg(layout: dict[str, Any], samples: bytes) -> bytes:
    import gdcm

    # An element's value is of even length: frames of odd length are encoded twice over, and the first is taken.
    copies = 1 + len(samples) % 2
    stored = layout["bits_stored"]
    codec = gdcm.JPEGCodec()
    codec.SetNumberOfDimensions(3 if copies > 1 else 2)
    codec.SetDimensions((layout["columns"], layout["rows"], copies))
    kind = gdcm.PhotometricInterpretation.GetPIType(layout["photometric"])
    codec.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    codec.SetPixelFormat(gdcm.PixelFormat(layout["samples"], layout["bits_allocated"], stored, stored - 1, layout["signed"]))
    codec.SetPlanarConfiguration(0)
    codec.SetLossless(True)
    given, made = (gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010)) for _ in range(2))
    given.SetByteStringValue(samples * copies)
    if not codec.Code(given, made):
        return b""
    encoded: bytes = made.GetSequenceOfFragments().GetFragment(0).GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")
    return encoded


def _openjpeg(frame: bytes) -> bytes:
    from openjpeg.utils import decode_pixel_data

    return bytes(decode_pixel_data(frame, version=2))


def _smaller(layout: dict[str, Any], frame: bytes) -> bytes:
    from PIL import Image

    image = Image.open(io.BytesIO(frame), formats=("JPEG2000",))
    if image.size != (layout["columns"], layout["rows"]) or image.mode not in {"L", "I;16"}:
        return b""
    image.reduce = layout["halvings"]  # type: ignore[method-assign] # of this format a number
    samples = image.tobytes()
    return samples + _SMALLER.pack(*image.size, 8 if image.mode == "L" else 16)


def _limit(layout: dict[str, Any]) -> None:
    """End this process where the next frame takes too much processor time, and give JPEG 2000 no more memory than its size is worth."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime) + 1 + LEAST_CPU_S + _sample_bytes(layout) // BYTES_A_CPU_S
    hardest = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (until if hardest < 0 else min(until, hardest), hardest))
    memory = MEMORY_BYTES
    if "jpeg_2000" in layout or "halvings" in layout:
        there = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        memory = min(memory, there + SPARE_BYTES + layout["rows"] * layout["columns"] * layout["samples"] * BYTES_A_SAMPLE)
    resource.setrlimit(resource.RLIMIT_AS, (memory, MEMORY_BYTES))


def _answer(layout: dict[str, Any], frame: bytes) -> bytes:
    if "encode" in layout:
        return _lossless_jpeg(layout, frame)
    if "jpeg_ls" in layout:
        return _charls(frame)
    if "halvings" in layout:
        return _smaller(layout, frame)
    return _openjpeg(frame) if "jpeg_2000" in layout else _gdcm(layout, frame)


def _serve() -> None:
    """Answer requests until standard input closes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # GDCM prints
    while True:
        try:
            layout = json.loads(_take(requests, struct.unpack("<I", _take(requests, 4))[0]))
            frame = _take(requests, struct.unpack("<Q", _take(requests, 8))[0])
        except EOFError:
            return
        try:
            _limit(layout)
            answer = _answer(layout, frame)
        except Exception:  # noqa: BLE001 # whatever it raises, the frame is damaged
            answer = b""
        answers.write(struct.pack("<Q", len(answer)) + answer)
        answers.flush()


if __name__ == "__main__":
    _serve()
