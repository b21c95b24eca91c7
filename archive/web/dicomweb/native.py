"""Data sets in the Native DICOM Model, one part each (PS3.18 8.7.3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flask import Response

from archive.dicom.xml import native
from archive.web.dicomweb.media import DICOM_XML
from archive.web.dicomweb.multipart import Writer
from archive.web.streaming import stream


def answer(documents: Callable[[], Iterator[dict[str, Any]]]) -> Response:
    """Answer data sets as they come; none at all is a body of nothing but its end."""
    writer = Writer(DICOM_XML)

    def chunks() -> Iterator[bytes]:
        for document in documents():
            made = native(document)
            yield writer.part_head(content_type=DICOM_XML, content_length=str(len(made))) + made + writer.part_tail
        yield writer.end

    return stream(chunks, content_type=writer.content_type, length=None)
