"""The log over HTTP: tiles as c2sp.org/tlog-tiles writes them, for auditors alone; witnesses and comparing."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from archive.ledger.audit import Event, Kind
from tests.services import archives
from tests.services.test_printed import root_by_hand
from tests.web import real
from tests.web.real import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("api"))) as node:
        made = real.place(node)
        with node.core.database.begin() as tx:
            for _ in range(300):
                node.core.ledger.record(tx, Event(Kind.READ), at=node.core.clock())
        node.accounts.add_user(archives.the_console(node), "dora", roles=["auditor"], password=archives.PASSWORD)
        node.upkeep.checkpoint()
        yield made


@pytest.fixture(scope="module")
def dora(place: Place) -> dict[str, str]:
    token = place.node.accounts.create_token(archives.the_console(place.node), owner="dora", permissions=["audit"])["token"]
    return {"Authorization": f"Bearer {token}"}


def test_who_recomputes_the_log_from_elsewhere(place: Place, dora: dict[str, str]) -> None:
    def fetch(path: str, **headers: str) -> Any:
        answer = place.ask("GET", f"/api/ledger/{path}", headers={**dora, **headers})
        assert answer.status_code == 200, (path, answer.text)
        return answer

    note = fetch("checkpoint")
    assert note.content_type == "text/plain; charset=utf-8"
    assert note.headers["Cache-Control"] == "private, no-cache"
    _origin, count, root = note.text.split("\n")[:3]
    assert root_by_hand(lambda path: fetch(f"tile/entries/{path}").data, int(count)) == base64.b64decode(root)
    full, partial = fetch("tile/0/000"), fetch(f"tile/0/001.p/{int(count) - 256}")
    assert (len(full.data), len(partial.data)) == (8192, 32 * (int(count) - 256))
    assert full.content_type == partial.content_type == "application/octet-stream"
    assert full.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert "immutable" not in partial.headers["Cache-Control"]
    assert len(fetch("tile/1/000.p/1").data) == 32
    zipped = fetch("tile/entries/000", **{"Accept-Encoding": "gzip"})
    assert (zipped.headers["Content-Encoding"], zipped.headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert len(zipped.data) < len(fetch("tile/entries/000").data)
    again = place.ask("GET", "/api/ledger/tile/0/000", headers={**dora, "If-None-Match": full.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_nothing_else_is_there(place: Place, dora: dict[str, str]) -> None:
    for path in ("tile/0/002", "tile/0/001", "tile/9/000", "tile/x/000", "tile/0/000.p/256", "tile/0/../entries/000", "bodies/000", "tile",
                 "tile/entries/009", "tile/entries/000.p/0", "access/1", "tile/0/0", "tile/0/%2e%2e/checkpoint"):
        answer = place.ask("GET", f"/api/ledger/{path}", headers=dora)
        assert answer.status_code == 404, path
    assert place.ask("POST", "/api/ledger/checkpoint", headers=dora).status_code == 405


def test_only_for_auditors(place: Place) -> None:
    for path in ("checkpoint", "tile/0/000", "tile/entries/000", "tile/entries/999", "witnesses"):
        assert place.ask("GET", f"/api/ledger/{path}").status_code == 403, path
        assert place.ask("GET", f"/api/ledger/{path}", headers={"Authorization": ""}).status_code == 401
        assert place.ask("GET", f"/api/ledger/{path}", browser=True).status_code == 403
    assert place.ask("GET", "/ledger/page", browser=True).status_code == 403


def test_witnesses_and_paper(place: Place, dora: dict[str, str]) -> None:
    assert place.ask("GET", "/api/ledger/witnesses", headers=dora).json == []
    assert place.ask("POST", "/api/ledger/witnesses/ask", headers=dora, json={}).status_code == 403
    signed_in = place.node.signin.password("dora", archives.PASSWORD, address="192.0.2.7", user_agent="test")
    cookie = {"Cookie": f"__Host-session={signed_in.token}", "Sec-Fetch-Site": "same-origin"}  # type: ignore[union-attr]
    page = place.ask("GET", "/ledger/page", browser=True, headers=cookie)
    assert page.status_code == 200
    assert "data:image/svg+xml" in page.text
    text = page.text.partition('<pre id="note">\n')[2].partition("</pre>")[0].replace("&#43;", "+")
    found = place.ask("POST", "/api/ledger/compare", headers=dora, json={"text": text}).json
    assert (found["consistent"], found["signed"]) == (True, True)
    assert place.ask("POST", "/api/ledger/compare", headers=dora, json={"text": "nothing"}).status_code == 400
    assert place.ask("POST", "/api/ledger/compare", json={"text": text}).status_code == 403
