"""A decoded frame to an image people look at: grey or colour, the wanted part of it in the wanted size, as PNG or JPEG.

Source: PS3.4 N.2; PS3.18 8.3.5.1.
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

RENDERER_VERSION = 4
"""Grows when the same recipe of the same frame would give another picture: pictures kept by an older one are made again."""


def fit_of(layout: Layout, recipe: Recipe) -> tuple[int, int] | None:
    """Return the columns and rows that are enough to draw from where the picture is much smaller than the image; None: all of them."""
    view = recipe.viewport
    if view is None or (view.left, view.top, view.region_width, view.region_height) != (0, 0, None, None):
        return None
    scale = 2 * min(view.width / layout.columns, view.height / layout.rows)
    return None if scale > 0.5 else (math.ceil(layout.columns * scale), math.ceil(layout.rows * scale))


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


def encode(image: Image.Image, recipe: Recipe) -> bytes:
    """Return the image as the recipe wants it.

    Raises:
        InvalidRequest: the viewport's region lies outside the image.
    """
    if recipe.viewport is not None:
        image = _fitted(image, recipe.viewport)
    out = io.BytesIO()
    if recipe.form == "png":
        image.save(out, "PNG", compress_level=1)
    else:
        image.save(out, "JPEG", quality=recipe.quality)
    return out.getvalue()


def _fitted(image: Image.Image, view: Viewport) -> Image.Image:
    """Return the viewport's part of the image, scaled into it in its own proportions."""
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
    scale = min(view.width / image.width, view.height / image.height)
    if scale == 1 or (scale > 1 and not view.enlarge):
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
