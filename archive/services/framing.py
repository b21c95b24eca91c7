"""The frames of one instance in each form they are asked for, with what has to be read for that and nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from archive.db.location import RecordRef
from archive.dicom import pixels, transcode
from archive.dicom.frames import SUBSAMPLED
from archive.dicom.layout import Layout, refused, require_label
from archive.dicom.part10 import Scanned
from archive.dicom.transfer import UNCOMPRESSED
from archive.services.frame_maps import FrameMap, FrameMaps
from archive.services.turns import turn


class Framing:
    """Frames by number, from 1; `read` reads one as it lies there, `head` the bytes before the pixel data, `scan` all that was scanned."""

    def __init__(
        self, maps: FrameMaps, ref: RecordRef, kept: FrameMap | None, *, scan: Callable[[], Scanned], head: Callable[[], bytes],
        read: Callable[[int], bytes],
    ) -> None:
        """`kept` is what the maps have of the record, None where nothing is kept yet."""
        self._maps, self._ref, self._kept, self._head, self._read = maps, ref, kept, head, read
        self._scan = cache(scan)
        self._scanned = self._scan() if kept is None else kept.scanned
        self._layout = cache(self._found_layout)
        table = self._scanned.frames
        self._shares = table is not None and table.kind == "native" and table.frame_bits % table.word_bits > 0

    def require_boundaries(self) -> None:
        """Go on only where frames lie where they seem to, and keep that.

        Raises:
            NotAcceptable: their transfer syntax is not what they are in, or they are longer than is said.
        """
        scanned = self._scanned
        require_label(scanned)
        if self._kept is None:
            if scanned.transfer_syntax_uid in UNCOMPRESSED and scanned.text("PhotometricInterpretation") in SUBSAMPLED:
                self._layout()
            self._maps.keep(self._ref, scanned)

    def stored(self, number: int) -> bytes:
        """Return a frame as it is stored; one that shares bytes with others from its own first byte on."""
        frame = self._read(number)
        return pixels.native_alone(self._layout(), frame, number - 1) if self._shares else frame

    def explicit_le(self, number: int) -> bytes:
        """Return a frame in explicit VR little endian."""
        if self._scanned.transfer_syntax_uid in UNCOMPRESSED:
            return pixels.native_le(self._layout(), self._read(number), number - 1)
        if not pixels.can_decode(self._scanned):  # before anything is read: it may be a film
            raise refused("no-codec")
        with turn(self._scan()):
            return pixels.frame_explicit_le(self._head(), self._scan(), self._read(number), number - 1)

    def encoded(self, number: int, transfer_syntax_uid: str) -> bytes:
        """Return a frame in a compressed transfer syntax."""
        with turn(self._scan()):
            return transcode.frame_in(self._head(), self._scan(), self._read(number), transfer_syntax_uid, number - 1)

    def _found_layout(self) -> Layout:
        if self._kept is not None and self._kept.layout is not None:
            return self._kept.layout
        layout = pixels.stored_layout(self._head(), self._scan())
        self._maps.keep(self._ref, self._scanned, layout)
        return layout
