"""In which shape a picture shows its pixels, by what pydicom reads of them."""

from __future__ import annotations

import pydicom


def in_shape(dataset: pydicom.Dataset) -> tuple[int, int]:
    """Columns and rows of the picture without a viewport."""
    names = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
    found = next((value for name in names if (value := dataset.get(name))), (1, 1))
    high = float(found[0]) / float(found[1])
    high = high if abs(high - 1) > 0.01 else 1.0
    return round(dataset.Columns * max(1.0, 1 / high)), round(dataset.Rows * max(1.0, high))
