"""Metadata that are kept of a series are those that would be made now, whichever version of the archive made them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from archive.node import Node
from archive.services import packs
from archive.services.retrieve import MetadataAnswer
from tests.services import archives

STUDY = "1.2.3"
ANOTHER = b'{"0020000D":{"vr":"UI","Value":["another"]}}'


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path)) as node:
        archives.store(node, archives.instance(1, study=STUDY))
        yield node


def metadata(node: Node) -> tuple[MetadataAnswer, bytes]:
    answer = node.retrieve.metadata(archives.user(node), "clinical", STUDY)
    return answer, gzip.decompress(b"".join(answer.gzip()))


def test_what_was_kept_before_metadata_became_others_is_made_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = metadata(node)
    monkeypatch.setattr(packs.Packs, "_json", lambda *_args, **_more: ANOTHER)
    assert ANOTHER not in metadata(node)[1]
    monkeypatch.setattr(packs, "METADATA_VERSION", packs.METADATA_VERSION + 1)
    after, body = metadata(node)
    assert ANOTHER in body
    assert after.etag != before.etag
    assert metadata(node)[0].etag == after.etag
    assert sum(1 for path in node.config.cache_dir.glob("??/*") if path.is_file()) == 1
