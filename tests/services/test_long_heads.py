"""What lies before the pixel data, or instead of them, may be as long as it likes: metadata, frames and pictures take no memory by it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator

import pytest

from archive.access.subject import Subject
from archive.dicom.recipe import Recipe
from archive.node import Node
from tests import memory
from tests.services import archives

STUDY, SERIES = "1.2.3", "1.2.3.1"
LONG_BYTES = 96 << 20
MOST_BYTES = 32 << 20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path_factory.mktemp("heads"))) as opened:
        for number, more in ((1, {"EncapsulatedDocument": bytes(5000)}), (2, {"EncapsulatedDocument": bytes(LONG_BYTES)})):
            archives.store(opened, archives.instance(1, sop=f"{SERIES}.{number}", **more), pieces=1 << 20)
        yield opened


def metadata(node: Node, admin: Subject, number: int) -> bytes:
    answer = node.retrieve.metadata(admin, "clinical", STUDY, SERIES, f"{SERIES}.{number}")
    return gzip.decompress(b"".join(answer.gzip())).replace(f"{SERIES}.{number}".encode(), b"?")


def picture(node: Node, admin: Subject, number: int) -> bytes:
    return node.pictures.of_instance(admin, "clinical", STUDY, SERIES, f"{SERIES}.{number}", [1], Recipe("png"))[0].data()


def frame(node: Node, admin: Subject, number: int) -> bytes:
    return node.retrieve.frames(admin, "clinical", STUDY, SERIES, f"{SERIES}.{number}", [1]).explicit_le(1)


@pytest.mark.parametrize("asked", [metadata, picture, frame])
def test_a_long_value_before_the_pixel_data_costs_no_memory(node: Node, asked: Callable[[Node, Subject, int], bytes]) -> None:
    admin = archives.user(node)
    expected = asked(node, admin, 1)
    memory.forget_peak()
    before = memory.peak_bytes()
    assert asked(node, admin, 2) == expected
    assert memory.peak_bytes() - before < MOST_BYTES
    if asked is metadata:
        assert json.loads(expected)[0]["00420011"]["BulkDataURI"].endswith("/bulk/00420011")
