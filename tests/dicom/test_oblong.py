"""render: pixels that are not square are drawn in their shape, in bounds."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from archive.dicom import render as drawing
from archive.dicom.header import Header
from archive.dicom.layout import layout_of
from archive.dicom.pixels import render
from archive.dicom.recipe import Form, Recipe, Viewport, thumbnail
from archive.errors import InvalidRequest
from tests.dicom.conftest import dataset, el, item, part10, pixels, sequence
from tests.dicom.test_pixels import parts

SPACING, IMAGER, SCANNED, ASPECT = 0x00280030, 0x00181164, 0x00182010, 0x00280034


def image(said: dict[int, str], rows: int = 40, columns: int = 60) -> bytes:
    extra = {tag: el(tag, "IS" if tag == ASPECT else "DS", value) for tag, value in said.items()}
    samples = np.broadcast_to(np.linspace(0, 255, columns).astype(np.uint8), (rows, columns)).tobytes()
    return part10(dataset(pixels(rows, columns, samples) | extra))


def size(data: bytes, viewport: Viewport | None = None, form: Form = "png") -> tuple[int, int]:
    head, scanned, frame = parts(data, 0)
    return Image.open(io.BytesIO(render(head, scanned, frame, Recipe(form, viewport=viewport)))).size


@pytest.mark.parametrize(("said", "expected"), [
    ({}, (60, 40)),
    ({ASPECT: "1\\1"}, (60, 40)),
    ({ASPECT: "2\\1"}, (60, 80)),
    ({ASPECT: "1\\2"}, (120, 40)),
    ({SPACING: "1.5\\0.5"}, (60, 120)),
    ({SPACING: "0.5\\1.5"}, (180, 40)),
    ({IMAGER: "0.3\\0.1"}, (60, 120)),
    ({SCANNED: "0.3\\0.1"}, (60, 120)),
    ({SPACING: "1\\1", ASPECT: "2\\1"}, (60, 40)),  # the measured one counts
    ({SPACING: "1\\2", IMAGER: "1\\1"}, (120, 40)),
    ({SPACING: "0.501\\0.5"}, (60, 40)),
    ({SPACING: "0\\0.5", ASPECT: "2\\1"}, (60, 80)),
    ({SPACING: "0.5", ASPECT: "2\\1"}, (60, 80)),
    ({SPACING: "-1\\1"}, (60, 40)),
    ({ASPECT: "17\\1"}, (60, 40)),
    ({ASPECT: "1\\100000"}, (60, 40)),
    ({SPACING: "1e300\\1e-300"}, (60, 40)),
])
def test_a_picture_has_the_shape_of_what_it_shows(said: dict[int, str], expected: tuple[int, int]) -> None:
    assert size(image(said)) == expected
    assert size(image(said), form="jpeg") == expected


@pytest.mark.parametrize(("viewport", "expected"), [
    (Viewport(120, 120, enlarge=True), (90, 120)),  # of 60 x 80
    (Viewport(30, 100, enlarge=True), (30, 40)),
    (Viewport(30, 40), (30, 40)),
    (Viewport(100, 100), (60, 80)),  # a smaller one stays as large as it is without a viewport
    (Viewport(20, 20, 0, 0, 30, 10, enlarge=True), (20, 13)),  # a region counts in columns and rows as stored
    (Viewport(20, 20, 0, 0, 10, 30, enlarge=True), (3, 20)),
    (Viewport(5, 200, enlarge=True), (5, 7)),
    (Viewport(200, 2, enlarge=True), (2, 2)),
])
def test_a_viewport_is_filled_in_that_shape(viewport: Viewport, expected: tuple[int, int]) -> None:
    assert size(image({ASPECT: "2\\1"}), viewport) == expected


def test_a_thumbnail_too() -> None:
    assert size(image({ASPECT: "1\\4"}, 400, 400), thumbnail().viewport) == (128, 32)
    assert size(image({ASPECT: "4\\1"}, 400, 400), thumbnail().viewport) == (32, 128)


def test_the_shape_may_be_said_by_functional_groups() -> None:
    measures = sequence(0x00289110, item(el(SPACING, "DS", "2\\1 ")))
    data = part10(dataset(pixels(4, 4, bytes(16)) | {0x52009229: sequence(0x52009229, item(measures))}))
    assert size(data) == (4, 8)


def test_what_is_stretched_stays_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MOST_STRETCHED", 4000)
    wide, tall = size(image({ASPECT: "8\\1"}))
    assert wide * tall <= 4100
    assert 7 < tall / wide * 60 / 40 < 9
    assert size(image({})) == (60, 40)
    monkeypatch.setattr(drawing, "MOST_STRETCHED", 100)
    wide, tall = size(image({ASPECT: "8\\1"}))  # no more than the image has
    assert wide * tall <= 2500
    assert max(size(image({ASPECT: "1\\16"}, 1, 5000))) <= drawing._LONGEST_SIDE


def test_enough_is_decoded_for_the_longer_side() -> None:
    _, scanned, _ = parts(image({}, 1000, 1000), 0)
    layout, recipe = layout_of(scanned), Recipe(viewport=Viewport(100, 100))
    assert drawing.fit_of(layout, recipe) == (200, 200)
    assert drawing.fit_of(layout, recipe, 4.0) == (200, 200)  # shown as 25 x 100
    assert drawing.fit_of(layout, recipe, 0.25) == (200, 200)


def test_a_region_outside_is_refused_as_ever() -> None:
    with pytest.raises(InvalidRequest):
        size(image({ASPECT: "2\\1"}), Viewport(10, 10, 0, 50))


def test_without_a_word_a_pixel_is_square() -> None:
    assert drawing.oblong(Header({}, {})) == 1.0
