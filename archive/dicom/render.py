"""A decoded frame to an image people look at: grey or colour, the wanted part of it in the wanted size, as PNG or JPEG.

Pixels that are not square are drawn in their shape. A picture without a viewport then has more columns or rows than the image.

Source: PS3.4 N.2; PS3.18 8.3.5.1; PS3.3 C.7.6.3.1.7, 10.7.1.3.
"""

from __future__ import annotations

import io
import math

from PIL import Image

from archive.dicom import colour, grey
from archive.dicom.decode import Frame
from archive.dicom.header import Header
from archive.dicom.layout import Layout, refused
from archive.dicom.recipe import Recipe, Viewport, Window
from archive.errors import InvalidRequest

RENDERER_VERSION = 5
"""Grows when the same recipe of the same frame would give another picture: pictures kept by an older one are made again."""


MOST_OBLONG = 16.0
"""Pixels more oblong than that are taken for a mistake, and drawn as squares."""
ALIKE = 0.01
"""So little more or less than a square is one: such a picture would only lose its sharpness."""
MOST_STRETCHED = 1 << 25
"""A picture has as many pixels only where its image has them."""
_LONGEST_SIDE = 65_000  # JPEG counts in 16 bits
_SPACINGS = ("00280030", "00181164", "00182010", "00280034")
"""Pixel Spacing, Imager Pixel Spacing, Nominal Scanned Pixel Spacing, Pixel Aspect Ratio: vertical, then horizontal."""


def oblong(header: Header) -> float:
    """Return how high a pixel is for its width; 1.0 where nothing that can be believed says so."""
    for tag in _SPACINGS:
        values = header.values(tag)
        if len(values) >= 2 and values[0] > 0 and values[1] > 0:
            high = values[0] / values[1]
            return high if abs(high - 1) > ALIKE and 1 / MOST_OBLONG <= high <= MOST_OBLONG else 1.0
    return 1.0


def fit_of(layout: Layout, recipe: Recipe, high: float = 1.0) -> tuple[int, int] | None:
    """Return the columns and rows that are enough to draw from where the picture is much smaller than the image; None: all of them."""
    view = recipe.viewport
    if view is None or (view.left, view.top, view.region_width, view.region_height) != (0, 0, None, None):
        return None
    across, down = _stretch(high)
    scale = 2 * min(view.width / (layout.columns * across), view.height / (layout.rows * down)) * max(across, down)
    return None if scale > 0.5 else (math.ceil(layout.columns * scale), math.ceil(layout.rows * scale))


def _stretch(high: float) -> tuple[float, float]:
    """Return how much wider and higher pixels of that shape are drawn; none is made smaller by it."""
    return (1.0, high) if high >= 1 else (1 / high, 1.0)


def image_of(layout: Layout, frame: Frame, header: Header, window: Window | None) -> Image.Image:
    """Return the frame as an 8-bit grey or RGB image.

    Raises:
        NotAcceptable: no-image.
    """
    if layout.samples == 3:
        return colour.samples(layout, frame)
    if layout.samples != 1:
        raise refused("no-image")
    if frame.photometric == "PALETTE COLOR":
        return colour.palette(frame, header)
    return Image.fromarray(grey.eight_bits(layout, frame, header, window))


def encode(image: Image.Image, recipe: Recipe, high: float = 1.0) -> bytes:
    """Return the image as the recipe wants it, its pixels `high` times as high as wide.

    Raises:
        InvalidRequest: the viewport's region lies outside the image.
    """
    if recipe.viewport is not None:
        image = _fitted(image, recipe.viewport, high)
    elif high != 1:
        image = _resized(image, 1.0, high)
    out = io.BytesIO()
    if recipe.form == "png":
        image.save(out, "PNG", compress_level=1)
    else:
        image.save(out, "JPEG", quality=recipe.quality)
    return out.getvalue()


def _fitted(image: Image.Image, view: Viewport, high: float) -> Image.Image:
    """Return the viewport's part of the image, in columns and rows as stored, scaled into it in the proportions of what it shows."""
    columns, rows = image.size
    right = columns if view.region_width is None else min(columns, view.left + view.region_width)
    bottom = rows if view.region_height is None else min(rows, view.top + view.region_height)
    # Whole pixels: half of one would be mixed with what was left out.
    box = round(view.left), round(view.top), round(right), round(bottom)
    if box[2] <= box[0] or box[3] <= box[1]:
        message = "the viewport's region lies outside the image"
        raise InvalidRequest(message, remedy="give a region within the image's columns and rows, or leave it out")
    if box != (0, 0, columns, rows):
        image = image.crop(box)
    if view.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.upside_down:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    across, down = _stretch(high)
    scale = min(view.width / (image.width * across), view.height / (image.height * down))
    return _resized(image, scale if scale < 1 or view.enlarge else 1.0, high)


def _resized(image: Image.Image, scale: float, high: float) -> Image.Image:
    across, down = _stretch(high)
    wide, tall = image.width * across * scale, image.height * down * scale
    if high != 1:
        most = max(MOST_STRETCHED, image.width * image.height)
        less = min(1.0, math.sqrt(most / (wide * tall)), max(_LONGEST_SIDE, *image.size) / max(wide, tall))
        wide, tall = wide * less, tall * less
    size = max(1, round(wide)), max(1, round(tall))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
