"""One frame from its stored bytes to an array; each codec is asked for one frame only.

Sizes are compared with what the code stream itself says before anything is allocated. Colours stay as PhotometricInterpretation says;
`Frame.photometric` tells where decoding changed them.

Source: PS3.5 8, A.4; PS3.3 C.7.6.3.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from archive.dicom.jpeg_header import coded_size, many_scans
from archive.dicom.layout import Layout, native_bits, refused, stored_bytes, subsampled
from archive.dicom.transfer import DEFLATED_FRAMES, EXPLICIT_BE, UNCOMPRESSED
from archive.errors import NotAcceptable

Array = npt.NDArray[Any]

LONG_SEGMENT = 2 << 20
"""Of RLE; a longer one is gone through before it is decoded, as two bytes may stand for 128."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame: (rows, columns) or (rows, columns, samples)."""

    array: Array
    photometric: str


def decode(layout: Layout, frame: bytes, index: int = 0, fit: tuple[int, int] | None = None) -> Frame:
    """Decode the stored bytes of one frame; `index` matters to native frames that do not begin on a byte.

    With `fit` (columns, rows) a JPEG of three samples may come out smaller, in its own proportions, but no smaller than that.

    Raises:
        NotAcceptable: one of REFUSALS.
    """
    if layout.transfer_syntax_uid in UNCOMPRESSED:
        return _native(layout, frame, index)
    decoder = _DECODERS.get(layout.transfer_syntax_uid)
    if decoder is None:
        raise refused("no-codec")
    shrunk = fit is not None and decoder is _jpeg and layout.samples == 3
    try:
        decoded = _jpeg(layout, frame, fit) if shrunk else decoder(layout, frame)
    except NotAcceptable:
        raise
    except ImportError as error:
        raise refused("no-codec") from error
    except BaseException as error:  # codecs raise whatever they like, a panic in Rust not even an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise refused("damaged") from error
    if decoded.array.size != layout.pixels and not shrunk:
        raise refused("size-lies")
    # A decoder gives every sample of every pixel.
    return replace(decoded, photometric="YBR_FULL") if decoded.photometric == "YBR_FULL_422" else decoded


def _shaped(layout: Layout, flat: Array, *, planar: bool) -> Array:
    if flat.size < layout.pixels:
        raise refused("short")
    flat = flat[: layout.pixels]
    if layout.samples == 1:
        return flat.reshape(layout.rows, layout.columns)
    if planar:
        return flat.reshape(layout.samples, layout.rows, layout.columns).transpose(1, 2, 0)
    return flat.reshape(layout.rows, layout.columns, layout.samples)


def _native(layout: Layout, frame: bytes, index: int) -> Frame:
    raw, skipped = stored_bytes(layout, frame, index)
    bits = native_bits(layout)
    if len(raw) * 8 < skipped + bits:
        raise refused("short")
    if layout.bits_allocated == 1:
        unpacked = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[skipped : skipped + bits]
        return Frame(_shaped(layout, unpacked, planar=layout.planar), layout.photometric)
    stored = layout.dtype.newbyteorder(">" if layout.transfer_syntax_uid == EXPLICIT_BE else "<")
    flat = np.frombuffer(raw, stored, count=bits // layout.bits_allocated, offset=skipped // 8)
    flat = flat.astype(layout.dtype, copy=False)
    if subsampled(layout):
        if layout.pixels % 6:
            raise refused("no-shape")  # two pixels have their chroma together
        out = np.empty(layout.pixels, layout.dtype)
        out[0::6], out[3::6] = flat[0::4], flat[1::4]
        out[1::6] = out[4::6] = flat[2::4]
        out[2::6] = out[5::6] = flat[3::4]
        return Frame(_shaped(layout, out, planar=False), "YBR_FULL" if layout.photometric == "YBR_FULL_422" else layout.photometric)
    if layout.dtype.kind != "f":
        flat = _stored_values(layout, flat)
    return Frame(_shaped(layout, flat, planar=layout.planar), layout.photometric)


def _stored_values(layout: Layout, words: Array, precision: int = 64) -> Array:
    """Return what is stored in words, of which a code stream holds the lowest `precision` bits (PS3.5 8.1.1)."""
    if layout.whole:
        return _without_unused_bits(words, layout.bits_allocated - precision)
    unused = layout.bits_allocated - layout.bits_stored
    if layout.low and precision >= layout.low + layout.bits_stored and words.size:
        below = int(np.bitwise_or.reduce(words, axis=None)) & ((1 << layout.low) - 1)
        if not below or not _fits(words, unused):  # else they lie lowest, and it is High Bit that is wrong
            words = np.right_shift(words, layout.low)
    return _without_unused_bits(words, unused)


def _fits(array: Array, unused: int) -> bool:
    """Whether values would be the same without their highest bits."""
    highest = int(np.iinfo(array.dtype).max) >> unused
    return bool(array.max() <= highest and (array.dtype.kind == "u" or array.min() >= -1 - highest))


def _without_unused_bits(array: Array, shift: int) -> Array:
    """Return values of the stored bits only, the highest being the sign of signed ones (PS3.5 8.1.1)."""
    if shift <= 0 or not array.size or _fits(array, shift):
        return array  # as nearly always: a large frame is not copied
    kept: Array = np.left_shift(array, shift)
    return np.right_shift(kept, shift, out=kept)


def _rle(layout: Layout, frame: bytes) -> Frame:
    """Put a frame together from its segments, most significant bytes first (PS3.5 G).

    Segment by segment: the library's own decoder of whole frames runs over the end of its buffer when a segment is too long.
    """
    from rle.rle import decode_segment

    size = layout.dtype.itemsize
    # A run is two bytes for at most 128.
    if layout.pixels * layout.bits_allocated // 8 > len(frame) * 64:
        raise refused("size-lies")
    starts = [int.from_bytes(frame[at : at + 4], "little") for at in range(4, 64, 4)]
    count = int.from_bytes(frame[:4], "little")
    if count != (layout.samples if layout.bits_allocated == 1 else layout.samples * size):
        raise refused("damaged")
    ends = [*starts[1:count], len(frame)]
    segments = []
    area = layout.rows * layout.columns
    for start, end in zip(starts, ends, strict=False):
        if not 64 <= start < end <= len(frame):
            raise refused("damaged")
        segments.append(np.frombuffer(bytes(decode_segment(_filling(frame, start, end, area))), np.uint8))
    if layout.bits_allocated == 1:
        # Writers differ in whether they pack the bits; the length tells.
        segments = [bits if bits.size >= area else np.unpackbits(bits, bitorder="little") for bits in segments]
    if any(segment.size < area for segment in segments):
        raise refused("short")
    flat = np.empty((layout.samples, area, size), np.uint8)
    for n, segment in enumerate(segments):
        flat[n // size, :, size - 1 - n % size] = segment[:area]
    values = flat.reshape(-1).view(layout.dtype.newbyteorder("<")).astype(layout.dtype, copy=False)
    if layout.bits_allocated > 1:
        values = _stored_values(layout, values)
    return Frame(_shaped(layout, values, planar=True), layout.photometric)


def _filling(frame: bytes, start: int, end: int, area: int) -> bytes:
    """Return the part of a long segment that fills an area: what follows could be many times as much as the frame."""
    if end - start <= LONG_SEGMENT:
        return frame[start:end]
    at, end = start, min(end, start + 2 * area + LONG_SEGMENT)
    while area > 0 and at < end:
        code = frame[at]
        area -= code + 1 if code < 128 else 257 - code if code > 128 else 0
        at += code + 2 if code < 128 else 2 if code > 128 else 1
    return frame[start:at]


def _deflated(layout: Layout, frame: bytes) -> Frame:
    wanted = (layout.pixels * layout.bits_allocated + 7) // 8
    raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, wanted + 2)
    if len(raw) < wanted:
        raise refused("short")
    if layout.bits_allocated == 1:
        flat = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    else:
        flat = np.frombuffer(raw, layout.dtype.newbyteorder("<"), count=layout.pixels).astype(layout.dtype, copy=False)
        flat = _stored_values(layout, flat)
    return Frame(_shaped(layout, flat, planar=layout.planar), layout.photometric)


def _of_precision(layout: Layout, raw: bytes, precision: int, coded_signed: bool, *, planar: bool = False) -> Array:
    """Return samples of a codec's container in the data set's, read as signed or not as the data set says."""
    size = 1 if precision <= 8 else 2 if precision <= 16 else 4
    flat = np.frombuffer(raw, f"<{'i' if layout.signed else 'u'}{size}")
    shift = 8 * size - precision
    if shift and coded_signed != layout.signed and layout.samples == 1:
        flat = np.right_shift(np.left_shift(flat, shift), shift)
    flat = flat.astype(layout.dtype, copy=False)
    if layout.low and not layout.whole:
        flat = _stored_values(layout, flat, precision)
    return _shaped(layout, flat, planar=planar)


def _j2k(layout: Layout, frame: bytes) -> Frame:
    from archive.dicom.isolated import codec

    at = frame.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(frame) < at + 43:
        raise refused("damaged")
    x1, y1, x0, y0 = (int.from_bytes(frame[at + n : at + n + 4], "big") for n in (8, 12, 16, 20))
    components = int.from_bytes(frame[at + 40 : at + 42], "big")
    if (y1 - y0, x1 - x0, components) != (layout.rows, layout.columns, layout.samples):
        raise refused("size-lies")
    precision = (frame[at + 42] & 0x7F) + 1
    raw = codec.jpeg_2000(_request(layout), frame)
    if not raw:
        raise refused("damaged")
    photometric = "RGB" if layout.photometric in {"YBR_ICT", "YBR_RCT"} else layout.photometric
    return Frame(_of_precision(layout, raw, precision, bool(frame[at + 42] & 0x80)), photometric)


def _sized(layout: Layout, frame: bytes) -> int:
    said = coded_size(frame)
    if said is None:
        raise refused("damaged")
    rows, columns, components, precision = said
    if (rows, columns, components) != (layout.rows, layout.columns, layout.samples):
        raise refused("size-lies")
    return precision


def _jls(layout: Layout, frame: bytes) -> Frame:
    from archive.dicom.isolated import codec

    precision = _sized(layout, frame)
    raw, planar = codec.jpeg_ls(_request(layout), frame)
    if not raw:
        raise refused("damaged")
    size = 1 if precision <= 8 else 2
    flat = np.frombuffer(raw, f"<{'i' if layout.signed else 'u'}{size}")
    if layout.signed:
        # JPEG-LS knows no sign: the stored bits are the number's own.
        flat = _without_unused_bits(flat, 8 * size - precision)
    flat = flat.astype(layout.dtype, copy=False)
    if layout.low and not layout.whole:
        flat = _stored_values(layout, flat, precision)
    return Frame(_shaped(layout, flat, planar=planar), layout.photometric)


def _jpeg(layout: Layout, frame: bytes, fit: tuple[int, int] | None = None) -> Frame:
    from PIL import Image

    if _sized(layout, frame) != 8:
        return _isolated(layout, frame)  # 12-bit samples: Pillow's libjpeg reads 8 only
    if many_scans(frame):
        raise refused("damaged")
    image = Image.open(io.BytesIO(frame), formats=("JPEG",))
    photometric = layout.photometric
    if layout.samples == 3:
        transform = image.info.get("adobe_transform")
        coded_ybr = transform == 1 or (transform is None and ("jfif" in image.info or photometric.startswith("YBR")))
        as_stored = (coded_ybr and photometric.startswith("YBR")) or (transform is None and not coded_ybr)
        named_rgb = not transform and "jfif" not in image.info and [one[0] for one in getattr(image, "layer", ())] == list(b"RGB")
        # Stored components as they are: no colour transformation here.
        image.draft("YCbCr" if as_stored and not named_rgb else None, fit or image.size)
        if named_rgb and photometric.startswith("YBR"):
            flat = np.frombuffer(image.convert("YCbCr").tobytes(), np.uint8)  # what the data set speaks of
            return _of_jpeg(layout, flat, image.size, shrunk=fit is not None)
    flat = np.frombuffer(image.tobytes(), np.uint8)
    return _of_jpeg(layout, flat, image.size, shrunk=fit is not None)


def _of_jpeg(layout: Layout, flat: Array, size: tuple[int, int], *, shrunk: bool) -> Frame:
    if shrunk:
        return Frame(flat.reshape(size[1], size[0], layout.samples), layout.photometric)
    return Frame(_shaped(layout, flat.astype(layout.dtype, copy=False), planar=False), layout.photometric)


def _request(layout: Layout) -> dict[str, int]:
    return {"rows": layout.rows, "columns": layout.columns, "samples": layout.samples, "bits_allocated": layout.bits_allocated}


def _isolated(layout: Layout, frame: bytes) -> Frame:
    from archive.dicom.isolated import codec

    precision = _sized(layout, frame)
    request = {
        "transfer_syntax_uid": layout.transfer_syntax_uid,
        "rows": layout.rows, "columns": layout.columns,
        "samples": layout.samples,
        "planar": int(layout.planar),
        "photometric": layout.photometric,
        "bits_allocated": layout.bits_allocated,
        "bits_stored": min(max(precision, layout.bits_stored), layout.bits_allocated),
        "signed": int(layout.signed),
    }
    raw = codec.decode(request, frame)
    if not raw:
        raise refused("damaged")
    flat = np.frombuffer(raw, layout.dtype.newbyteorder("<")).astype(layout.dtype, copy=False)
    flat = _stored_values(layout, flat, max(precision, layout.bits_stored))
    return Frame(_shaped(layout, flat, planar=layout.planar), layout.photometric)


_DECODERS: dict[str, Callable[[Layout, bytes], Frame]] = {
    "1.2.840.10008.1.2.5": _rle,
    DEFLATED_FRAMES: _deflated,
    "1.2.840.10008.1.2.4.50": _jpeg,
    "1.2.840.10008.1.2.4.51": _jpeg,
    "1.2.840.10008.1.2.4.57": _isolated,
    "1.2.840.10008.1.2.4.70": _isolated,
    "1.2.840.10008.1.2.4.80": _jls,
    "1.2.840.10008.1.2.4.81": _jls,
    "1.2.840.10008.1.2.4.90": _j2k,
    "1.2.840.10008.1.2.4.91": _j2k,
    "1.2.840.10008.1.2.4.201": _j2k,
    "1.2.840.10008.1.2.4.202": _j2k,
    "1.2.840.10008.1.2.4.203": _j2k,
}
DECODABLE = frozenset(_DECODERS) | UNCOMPRESSED
"""Transfer syntaxes whose frames can be decoded."""
