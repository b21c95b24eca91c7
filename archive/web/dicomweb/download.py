"""A study or series as one zip with a DICOMDIR, at an address of its own that a link can name, or by `Accept: application/zip`."""

from __future__ import annotations

from flask import Response, request

from archive.errors import NotAcceptable
from archive.web.context import archive, subject
from archive.web.dicomweb import media, urls
from archive.web.streaming import stream

ZIP = "application/zip"


def taken() -> bool:
    """Return whether the request takes a zip and says so by name."""
    return any(one.name == ZIP for one in media.of_request(request).ranges)


def download(datastore: str, study: str, series: str | None = None) -> Response:
    """Answer a zip.

    Raises:
        InvalidRequest, NotAcceptable, NotFound, Unavailable.
    """
    uids = urls.uid(study), urls.optional_uid(series)
    if not any(True for _ in media.of_request(request).singles(ZIP)):
        message = f"a download is {ZIP}"
        raise NotAcceptable(message, remedy=f"accept {ZIP}")
    chunks = archive().download.zip(subject(), datastore, *uids)
    response = stream(lambda: chunks, content_type=ZIP, length=None)
    # The name a browser keeps it under tells nothing of the patient.
    response.headers["Content-Disposition"] = f'attachment; filename="{"series" if series else "study"}.zip"'
    response.headers["Vary"] = "Accept"
    return response
