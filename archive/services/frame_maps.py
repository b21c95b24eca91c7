"""Where the frames of an instance lie, kept for those that are asked for one after the other.

A viewer asks for the frames of a multi-frame instance by the hundred, and each would open and decode the record's META section and its
head again. What is kept names the record, which is compared with its row each time, and says where frames lie and how large they are:
nothing of the patient, and no byte of a frame, which is opened under the record's key as ever.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

from archive.db.location import RecordRef
from archive.dicom.layout import Layout
from archive.dicom.part10 import Scanned

MOST_FRAGMENTS = 1 << 16
"""Of all that are kept together, 10 MB; an instance of more than a quarter of them is read each time."""

MOST_INSTANCES = 64


@dataclass(frozen=True, slots=True)
class FrameMap:
    """What was scanned of an instance, without its attributes; `layout` is that of uncompressed frames, once it has been asked for."""

    scanned: Scanned
    layout: Layout | None = None


class FrameMaps:
    """The last ones used; any thread. A record's bytes never change, so its reference says which it is."""

    def __init__(self) -> None:
        """Begin empty."""
        self._kept: OrderedDict[RecordRef, FrameMap] = OrderedDict()
        self._fragments = 0
        self._lock = threading.Lock()

    def find(self, ref: RecordRef) -> FrameMap | None:
        """Return what is kept of a record, None where it has to be read."""
        with self._lock:
            found = self._kept.get(ref)
            if found is not None:
                self._kept.move_to_end(ref)
            return found

    def keep(self, ref: RecordRef, scanned: Scanned, layout: Layout | None = None) -> None:
        """Keep what was scanned of an instance of several frames; those not asked for longest are forgotten."""
        table = scanned.frames
        if table is None or table.count <= 1 or scanned.deflated or len(table.fragments) > MOST_FRAGMENTS // 4:
            return
        with self._lock:
            before = self._kept.pop(ref, None)
            self._kept[ref] = FrameMap(replace(scanned, attributes={}, findings=()), layout)
            self._fragments += len(table.fragments) - (0 if before is None else _fragments(before))
            while len(self._kept) > MOST_INSTANCES or self._fragments > MOST_FRAGMENTS:
                self._fragments -= _fragments(self._kept.popitem(last=False)[1])


def _fragments(one: FrameMap) -> int:
    return 0 if one.scanned.frames is None else len(one.scanned.frames.fragments)
