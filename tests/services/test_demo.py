"""The demo studies."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pydicom
import pytest

from archive.services import demo

UUID = "0b1f3c52-65f8-4d1b-9a57-5a3c0e0f9f11"


@pytest.fixture(scope="module")
def instances() -> list[bytes]:
    return list(demo.instances(UUID))


def test_the_same_archive_makes_the_same_bytes(instances: list[bytes]) -> None:
    assert list(demo.instances(UUID)) == instances


def test_archives_share_no_uid(instances: list[bytes]) -> None:
    other = [pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True) for data in demo.instances("11111111-2222-4333-8444-555555555555")]
    ours = [pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True) for data in instances]
    uids = {one.SOPInstanceUID for one in ours}
    assert len(uids) == len(ours)
    assert not uids & {one.SOPInstanceUID for one in other}
    assert not {one.StudyInstanceUID for one in ours} & {one.StudyInstanceUID for one in other}
    assert all(uid.startswith("2.25.") and len(uid) <= 64 and uid.is_valid for uid in uids)


def test_every_modality_has_an_image_that_decodes(instances: list[bytes]) -> None:
    found = {}
    for data in instances:
        dataset = pydicom.dcmread(io.BytesIO(data))
        pixels = dataset.pixel_array
        assert pixels.min() < pixels.max()
        found.setdefault(dataset.Modality, []).append(dataset)
    assert {name: len(some) for name, some in found.items()} == {"CT": demo.SLICES, "MR": 24, "CR": 1, "US": 4}
    assert found["US"][0].SamplesPerPixel == 3
    positions = [float(one.ImagePositionPatient[2]) for one in found["CT"]]
    assert positions == sorted(set(positions))


def test_names_come_in_three_groups(instances: list[bytes]) -> None:
    names = {pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).PatientName for data in instances}
    chiyo = next(name for name in names if "Chiyo" in str(name))
    assert (chiyo.alphabetic, chiyo.ideographic, chiyo.phonetic) == ("Demo^Chiyo", "試験^千代", "しけん^ちよ")


@dataclass
class Outcome:
    status: str


class Shelf:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.opened = 0

    def open(self) -> Shelf:
        self.opened += 1
        return self

    def write(self, data: bytes) -> None:
        self._next = data

    def finish(self) -> Outcome:
        known = self._next in self.kept
        if not known:
            self.kept.append(self._next)
        return Outcome("duplicate" if known else "stored")


def test_loading_twice_stores_once_and_an_interrupted_load_is_finished(instances: list[bytes]) -> None:
    shelf = Shelf()
    shelf.kept = instances[:5]
    assert demo.load(shelf.open, UUID) == len(instances) - 5
    assert sorted(shelf.kept) == sorted(instances)
    before = shelf.opened
    assert demo.load(shelf.open, UUID) == 0
    assert shelf.opened == before + 1
