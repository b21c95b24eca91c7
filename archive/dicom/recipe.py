"""How a picture of a frame is wanted: its form, its window, its part of the image and its size.

Source: PS3.18 8.3.5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["jpeg", "png"]
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

DEFAULT_QUALITY = 90
THUMBNAIL = 128
"""Longest side of a thumbnail whose size nobody asked for."""


@dataclass(frozen=True, slots=True)
class Window:
    """A VOI transformation that counts before the data set's own (PS3.3 C.11.2.1.2)."""

    center: float
    width: float
    function: Function = "LINEAR"


@dataclass(frozen=True, slots=True)
class Viewport:
    """The region [left, left + region_width) x [top, top + region_height) of the image, fitted into width x height.

    A region of None reaches to the image's edge. Proportions are kept, those of pixels that are not square too; smaller images are
    enlarged only where `enlarge` says so.
    """

    width: int
    height: int
    left: float = 0.0
    top: float = 0.0
    region_width: float | None = None
    region_height: float | None = None
    mirrored: bool = False
    upside_down: bool = False
    enlarge: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that tells two pictures of one frame apart."""

    form: Form = "jpeg"
    window: Window | None = None
    viewport: Viewport | None = None
    quality: int = DEFAULT_QUALITY

    @property
    def media_type(self) -> str:
        """What the picture is as a body."""
        return f"image/{self.form}"

    @property
    def text(self) -> str:
        """The same text for the same picture, another for any other."""
        quality = self.quality if self.form == "jpeg" else 0
        w, v = self.window, self.viewport
        window = "" if w is None else f"{w.center!r},{w.width!r},{w.function}"
        viewport = "" if v is None else ",".join(map(repr, (
            v.width, v.height, v.left, v.top, v.region_width, v.region_height, v.mirrored, v.upside_down, v.enlarge,
        )))
        return f"{self.form};{quality};{window};{viewport}"


def thumbnail(form: Form = "jpeg", size: tuple[int, int] = (THUMBNAIL, THUMBNAIL), *, quality: int = DEFAULT_QUALITY) -> Recipe:
    """Return the recipe of a small picture of the whole image."""
    return Recipe(form, None, Viewport(*size), quality)
