"""Large frames are decoded one after the other, whatever they are asked for as."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pydicom
import pytest
from pydicom.uid import RLELossless

from archive.access.subject import Subject
from archive.dicom import pixels, transcode
from archive.dicom.encode import JPEG_LS
from archive.dicom.recipe import Recipe
from archive.node import Node
from archive.services import turns
from tests.services import archives

PLACE = ("clinical", "1.2.3", "1.2.3.1", "1.2.3.1.1")
AT_ONCE = 4


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    found = pydicom.dcmread(io.BytesIO(archives.instance(1, NumberOfFrames=8, PixelData=bytes(16 * 16 * 2 * 8))))
    found.compress(RLELossless, generate_instance_uid=False)
    out = io.BytesIO()
    pydicom.dcmwrite(out, found)
    with archives.opened(archives.made(tmp_path_factory.mktemp("turns"))) as opened:
        archives.store(opened, out.getvalue())
        yield opened


def explicit(node: Node, admin: Subject, number: int) -> bytes:
    return node.retrieve.frames(admin, *PLACE, [number]).explicit_le(number)


def encoded(node: Node, admin: Subject, number: int) -> bytes:
    return node.retrieve.frames(admin, *PLACE, [number]).encoded(number, JPEG_LS)


def picture(node: Node, admin: Subject, number: int) -> bytes:
    return node.pictures.of_instance(admin, *PLACE, [number], Recipe("png"))[0].data()


@pytest.mark.parametrize("asked", [explicit, encoded, picture])
def test_large_frames_are_decoded_one_after_the_other(
    node: Node, monkeypatch: pytest.MonkeyPatch, asked: Callable[[Node, Subject, int], bytes]
) -> None:
    admin, held, most = archives.user(node), threading.Lock(), [0, 0]

    def watched(really: Callable[..., Any]) -> Callable[..., Any]:
        def decode(*given: Any) -> Any:
            with held:
                most[0] += 1
                most[1] = max(most)
            time.sleep(0.05)
            with held:
                most[0] -= 1
            return really(*given)

        return decode

    monkeypatch.setattr(pixels, "frame_explicit_le", watched(pixels.frame_explicit_le))
    monkeypatch.setattr(pixels, "render", watched(pixels.render))
    monkeypatch.setattr(transcode, "frame_in", watched(transcode.frame_in))

    def most_at_once(first: int) -> int:
        most[:] = [0, 0]
        with ThreadPoolExecutor(AT_ONCE) as threads:
            assert all(threads.map(lambda number: asked(node, admin, number), range(first, first + AT_ONCE)))
        return most[1]

    assert most_at_once(1) > 1
    monkeypatch.setattr(turns, "LARGE_SAMPLES", 16 * 16 - 1)
    assert most_at_once(1 + AT_ONCE) == 1
