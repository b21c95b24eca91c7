"""The query parameters of rendered resources and thumbnails, checked before anything is read.

Source: PS3.18 8.3.5.1. What is not asked for by these names is ignored; `annotation` and `iccprofile` are understood, not applied, and a
Warning says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from archive.dicom.recipe import DEFAULT_QUALITY, THUMBNAIL, Form, Function, Recipe, Viewport, Window
from archive.errors import InvalidRequest

MOST_PIXELS = 1 << 25
"""The largest viewport, as its width times its height."""

_LONGEST_SIDE = 1 << 16
_INTEGER = re.compile(r"[0-9]{1,6}")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12})([eE][+-]?[0-9]{1,2})?")
_FUNCTIONS: dict[str, Function] = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
_ANNOTATIONS = frozenset({"patient", "technique"})
_PROFILES = frozenset({"no", "yes", "srgb", "adobergb", "rommrgb"})


@dataclass(frozen=True, slots=True)
class Wish:
    """What the query asks of a picture, and what of it is not done."""

    recipe: Recipe
    unapplied: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """The value of a Warning header, or nothing."""
        return f'299 strongroom "{" and ".join(self.unapplied)} not applied"' if self.unapplied else ""

    def as_form(self, form: Form) -> Recipe:
        """Return the recipe in one of the two forms."""
        r = self.recipe
        return Recipe(form, r.window, r.viewport, r.quality)


def of_rendered(query: Mapping[str, str]) -> Wish:
    """Return what the query of a rendered resource asks for.

    Raises:
        InvalidRequest: a value is malformed or out of range.
    """
    viewport = _viewport(query["viewport"], region=True) if "viewport" in query else None
    window = _window(query["window"]) if "window" in query else None
    return Wish(Recipe(window=window, viewport=viewport, quality=_quality(query)), _unapplied(query))


def of_thumbnail(query: Mapping[str, str]) -> Wish:
    """Return what the query of a thumbnail asks for; an image smaller than that stays as it is.

    Raises:
        InvalidRequest: a value is malformed or out of range.
    """
    viewport = _viewport(query["viewport"], region=False) if "viewport" in query else Viewport(THUMBNAIL, THUMBNAIL)
    return Wish(Recipe(viewport=viewport, quality=_quality(query)), _unapplied(query))


def _refuse(name: str, form: str) -> NoReturn:
    message = f"the parameter {name} is malformed or out of range"
    raise InvalidRequest(message, remedy=f"write it as {form}")


def _quality(query: Mapping[str, str]) -> int:
    text = query.get("quality")
    if text is None:
        return DEFAULT_QUALITY
    if not _INTEGER.fullmatch(text) or not 1 <= int(text) <= 100:
        _refuse("quality", "quality=1 to quality=100")
    return int(text)


def _window(text: str) -> Window:
    parts = [part.strip() for part in text.split(",")]
    function = _FUNCTIONS.get(parts[2].lower().replace("_", "-")) if len(parts) == 3 else "LINEAR" if len(parts) == 2 else None
    center, width = (_decimal(part) for part in parts[:2]) if len(parts) >= 2 else (None, None)
    if function is None or center is None or width is None or width <= 0:
        _refuse("window", "window=centre,width,function with a width above 0 and linear, linear-exact or sigmoid")
    return Window(center, width, function)


def _viewport(text: str, *, region: bool) -> Viewport:
    parts = [part.strip() for part in text.split(",")]
    form = "viewport=vw,vh or viewport=vw,vh,sx,sy,sw,sh" if region else "viewport=vw,vh"
    if len(parts) not in ((2, 6) if region else (2,)) or not all(_INTEGER.fullmatch(part) for part in parts[:2]):
        _refuse("viewport", form)
    width, height = int(parts[0]), int(parts[1])
    if not 0 < width < _LONGEST_SIDE or not 0 < height < _LONGEST_SIDE or width * height > MOST_PIXELS:
        _refuse("viewport", f"{form}, of at most {MOST_PIXELS} pixels")
    if len(parts) == 2:
        return Viewport(width, height, enlarge=region)
    numbers = [_decimal(part) if part else None for part in parts[2:]]
    if any(number is None and part for number, part in zip(numbers, parts[2:], strict=True)):
        _refuse("viewport", form)
    left, top, across, down = numbers
    if (left is not None and left < 0) or (top is not None and top < 0) or across == 0 or down == 0:
        _refuse("viewport", form)
    # A negative size turns the region round (PS3.18 8.3.5.1.3).
    return Viewport(
        width, height, left or 0.0, top or 0.0, None if across is None else abs(across), None if down is None else abs(down),
        across is not None and across < 0, down is not None and down < 0, enlarge=True,
    )


def _decimal(text: str) -> float | None:
    if not _DECIMAL.fullmatch(text):
        return None
    number = float(text)
    return number if math.isfinite(number) and abs(number) < 1e15 else None


def _unapplied(query: Mapping[str, str]) -> tuple[str, ...]:
    found = []
    if "annotation" in query:
        if not {part.strip().lower() for part in query["annotation"].split(",")} <= _ANNOTATIONS:
            _refuse("annotation", "annotation=patient, annotation=technique or both")
        found.append("annotation")
    if "iccprofile" in query:
        profile = query["iccprofile"].strip().lower()
        if profile not in _PROFILES:
            _refuse("iccprofile", "iccprofile=no, yes, srgb, adobergb or rommrgb")
        if profile != "no":
            found.append("iccprofile")
    return tuple(found)
