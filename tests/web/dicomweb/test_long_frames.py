"""A film is one frame of gigabytes: as it is stored it streams, any range of it too, in little memory."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tests import memory
from tests.services import archives
from tests.web import real
from tests.web.dicomweb.test_wado import parts
from tests.web.real import SEEN, Place

SERIES = f"{SEEN}.61"
FRAME = f"/dicomweb/studies/{SEEN}/series/{SERIES}/instances/{SERIES}.1/frames/1"
FILM = np.random.default_rng(1).bytes(1 << 20) * 48
MOST_BYTES = 16 << 20
TOLD = "video/mp4; transfer-syntax=1.2.840.10008.1.2.4.102"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("films"))) as node:
        made = real.place(node)
        found = pydicom.dcmread(io.BytesIO(archives.instance(1, study=SEEN, series=SERIES, PatientID=f"P{SEEN}", NumberOfFrames=900)))
        found.file_meta.TransferSyntaxUID = pydicom.uid.MPEG4HP41
        found.PixelData = encapsulate([FILM[: 20 << 20], FILM[20 << 20 :]])
        found["PixelData"].is_undefined_length = True
        out = io.BytesIO()
        pydicom.dcmwrite(out, found)
        archives.store(node, out.getvalue(), pieces=1 << 20)
        del out, found
        made.ask("GET", FRAME, headers={"Range": "bytes=0-9", "Accept": "video/mp4"})  # what is imported and opened once
        yield made


@pytest.mark.parametrize("accept", ["video/mp4", "video/mp4; transfer-syntax=*", "application/octet-stream; transfer-syntax=*"])
def test_a_range_of_a_film_costs_little_memory(place: Place, accept: str) -> None:
    memory.forget_peak()
    before = memory.peak_bytes()
    for first, last in ((20 << 20) - 5, (20 << 20) + 5), (len(FILM) - 5, len(FILM) - 1):
        answer = place.ask("GET", FRAME, headers={"Accept": accept, "Range": f"bytes={first}-{last}"})
        assert (answer.status_code, answer.headers["Content-Type"]) == (206, TOLD)
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(FILM)}"
        assert answer.data == FILM[first : last + 1]
    assert memory.peak_bytes() - before < MOST_BYTES


def test_the_whole_of_a_film_streams(place: Place) -> None:
    memory.forget_peak()
    before = memory.peak_bytes()
    answer = place.ask("GET", FRAME, headers={"Accept": "video/mp4"}, buffered=False)
    taken = 0
    for chunk in answer.response:
        assert chunk == FILM[taken : taken + len(chunk)]
        taken += len(chunk)
    answer.close()
    assert taken == int(answer.headers["Content-Length"]) == len(FILM)
    assert memory.peak_bytes() - before < MOST_BYTES
    again = place.ask("GET", FRAME, headers={"Accept": "video/mp4", "If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304


def test_the_short_way_leaves_a_film_to_the_application(place: Place) -> None:
    memory.forget_peak()
    before = memory.peak_bytes()
    asked = EnvironBuilder(FRAME, base_url=real.ORIGIN, headers={"Authorization": f"Bearer {place.token}", "Accept": "video/mp4"})
    body, status, headers = run_wsgi_app(place.app.short, asked.get_environ())
    assert (status, headers["Content-Type"]) == ("200 OK", TOLD)
    assert sum(map(len, body)) == int(headers["Content-Length"]) == len(FILM)
    assert memory.peak_bytes() - before < MOST_BYTES


def test_the_whole_of_a_film_in_multipart(place: Place) -> None:
    for accept in ("*/*", "multipart/related; type=video/mp4"):
        [(headers, body)] = parts(place.ask("GET", FRAME, headers={"Accept": accept}))
        assert headers["content-type"] == TOLD
        assert headers["content-length"] == str(len(FILM))
        assert body == FILM
