"""Large frames are decoded one after the other: a worker's threads together would need too much memory."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext

from archive.dicom import pixels
from archive.dicom.part10 import Scanned

LARGE_SAMPLES = 1 << 25
"""Frames of more samples wait for their turn."""

_one_large = threading.Lock()


def turn(scanned: Scanned) -> AbstractContextManager[object]:
    """Return what to be in while a frame of an instance is decoded."""
    return _one_large if pixels.samples(scanned) > LARGE_SAMPLES else nullcontext()
