"""What a data set says about its frames: their shape, their samples, and how native ones lie in their bytes.

Source: PS3.5 8; PS3.3 C.7.6.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from archive.dicom.frames import SUBSAMPLED
from archive.dicom.metadata import encoding
from archive.dicom.part10 import Scanned
from archive.dicom.structure import PIXEL_TAGS, odd_header
from archive.dicom.transfer import EXPLICIT_BE
from archive.errors import NotAcceptable

MAX_FRAME_BYTES = 512 << 20
"""The largest frame that is ever decoded."""

REFUSALS = {
    "no-pixels": "the instance has no pixel data",
    "no-shape": "rows, columns or bits allocated are absent or make no frame",
    "too-large": "the frame is larger than the limit",
    "short": "the frame's bytes are fewer than its rows and columns ask for",
    "size-lies": "the encoded frame has another size than its rows and columns",
    "no-codec": "there is no decoder for this transfer syntax",
    "damaged": "the frame cannot be decoded",
    "no-image": "pixels of this kind cannot be shown as an image",
    "no-frames": "the boundaries of the frames are not known",
    "few-frames": "there are fewer frames than the instance is said to have",
    "more-frames": "there are more frames than the instance is said to have",
    "more-samples": "the pixel data hold more samples than their photometric interpretation says",
    "goes-on": "the data set goes on behind zeros, where it is taken to end",
    "mislabelled": "the pixel data are encapsulated, and their transfer syntax says that they are not",
}
"""Every reason a frame is refused for (NotAcceptable.reason)."""


def refused(reason: str) -> NotAcceptable:
    """Return the error for one of REFUSALS."""
    return NotAcceptable(REFUSALS[reason], reason=reason)


def require_label(scanned: Scanned) -> None:
    """Refuse encapsulated pixel data that are said to be native: a code stream would pass for samples.

    Raises:
        NotAcceptable: mislabelled.
    """
    if scanned.mislabelled:
        raise refused("mislabelled")


@dataclass(frozen=True, slots=True)
class Layout:
    """What the data set says about one frame."""

    transfer_syntax_uid: str
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    planar: bool
    photometric: str
    vr: str  # of native pixel data
    dtype: np.dtype[Any]  # of one sample, in the machine's byte order
    low: int = 0  # unused bits below the stored ones (High Bit)
    whole: bool = False  # whether words are wanted as they are, with what is in their unused bits

    @property
    def pixels(self) -> int:
        """Samples in a frame."""
        return self.rows * self.columns * self.samples


def layout_of(scanned: Scanned, pixel_tag: int = 0x7FE00010, vr: str = "OW") -> Layout:
    """Return the layout of a frame.

    Raises:
        NotAcceptable: no-shape, too-large.
    """
    rows, columns = scanned.number("Rows") or 0, scanned.number("Columns") or 0
    float_bits = {0x7FE00008: 32, 0x7FE00009: 64}.get(pixel_tag, 0)
    allocated = float_bits or scanned.number("BitsAllocated") or 0
    samples = scanned.number("SamplesPerPixel")
    samples = 1 if samples is None else samples
    stored = scanned.number("BitsStored") or allocated
    stored = stored if 0 < stored <= allocated else allocated
    high = scanned.number("HighBit") or 0
    if rows <= 0 or columns <= 0 or samples not in (1, 3, 4) or (allocated != 1 and (allocated % 8 or not 0 < allocated <= 64)):
        raise refused("no-shape")
    if rows * columns * samples * max(allocated, 8) // 8 > MAX_FRAME_BYTES:
        raise refused("too-large")
    signed = scanned.number("PixelRepresentation") == 1
    size = {1: 1, 8: 1, 16: 2, 32: 4, 64: 8}.get(allocated)
    if size is None:
        raise refused("no-shape")
    return Layout(
        scanned.transfer_syntax_uid,
        rows,
        columns,
        samples,
        allocated,
        stored,
        signed,
        scanned.number("PlanarConfiguration") == 1,
        scanned.text("PhotometricInterpretation"),
        vr,
        np.dtype(f"{'f' if float_bits else 'i' if signed else 'u'}{size}"),
        high + 1 - stored if stored <= high < allocated and not float_bits else 0,
    )


def pixel_element(head: bytes, scanned: Scanned) -> tuple[int, str]:
    """Return tag and VR of the pixel data whose header ends `head`."""
    order = "big" if scanned.transfer_syntax_uid == EXPLICIT_BE else "little"
    for size in (12, 8):
        at = len(head) - size
        if at < 0:
            continue
        group = int.from_bytes(head[at : at + 2], order)  # type: ignore[arg-type]
        element = int.from_bytes(head[at + 2 : at + 4], order)  # type: ignore[arg-type]
        tag = group << 16 | element
        if tag in PIXEL_TAGS:
            return tag, "OB" if head[at + 4 : at + 6] == b"OB" and size == 12 else "OW"
    return 0x7FE00010, "OW"


def value_bytes(head: bytes, scanned: Scanned) -> int:
    """Return how long the native pixel data are whose header ends `head`."""
    implicit, little = encoding(head, scanned)
    order: Literal["little", "big"] = "little" if little else "big"
    tag = int.from_bytes(head[-8:-6], order) << 16 | int.from_bytes(head[-6:-4], order)
    short = not implicit and tag in PIXEL_TAGS and odd_header(tag, head[-4:-2], 1)[1] > 0
    return int.from_bytes(head[-2:] if short else head[-4:], order)


def packed_pairs(layout: Layout) -> bool:
    """Whether native bytes are swapped in pairs: small samples as OW in big endian."""
    return layout.transfer_syntax_uid == EXPLICIT_BE and layout.vr == "OW" and layout.bits_allocated <= 8


def stored_bytes(layout: Layout, frame: bytes, index: int) -> tuple[bytes, int]:
    """Return native bytes in order, and how many bits of them belong to the frame before."""
    bits = native_bits(layout)
    if packed_pairs(layout):
        even = len(frame) & ~1
        swapped = bytearray(frame)
        swapped[0:even:2], swapped[1:even:2] = frame[1:even:2], frame[0:even:2]
        return bytes(swapped), index * bits % 16
    return frame, index * bits % 8


def native_bits(layout: Layout) -> int:
    """Bits of one native frame."""
    bits = layout.pixels * layout.bits_allocated
    return bits // 3 * 2 if subsampled(layout) else bits


def subsampled(layout: Layout) -> bool:
    """Whether native frames hold chroma for every second pixel only (PS3.3 C.7.6.3.1.2)."""
    return layout.photometric in SUBSAMPLED and layout.samples == 3
