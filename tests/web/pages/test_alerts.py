"""Alerts by their page: counted for whoever may look, closed with a word, nothing there for anybody else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from archive.ledger.audit import Event, Kind
from archive.web.wsgi import application
from tests.services import archives
from tests.web import real
from tests.web.real import Place


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Place]]:
    """An auditor, and somebody who is none."""
    with archives.opened(real.config(tmp_path_factory.mktemp("alerts"))) as node:
        console = archives.the_console(node)
        node.accounts.add_user(console, "rita", roles=["auditor"], password=archives.PASSWORD)
        node.accounts.add_user(console, "mia", password=archives.PASSWORD)
        app = application(node)
        begun = [node.signin.password(name, archives.PASSWORD, address="192.0.2.7", user_agent="test") for name in ("rita", "mia")]
        node.alerts.tick()
        yield Place(node, app, "", begun[0].token), Place(node, app, "", begun[1].token)  # type: ignore[union-attr] # no second factor


def test_an_alert_is_seen_and_closed(places: tuple[Place, Place]) -> None:
    rita, mia = places
    assert "Nothing waits to be looked at" in rita.ask("GET", "/admin/alerts", browser=True).text
    with rita.node.core.database.begin() as tx:
        rita.node.core.ledger.record(tx, Event(Kind.VERIFIED, outcome=8, detail={"what": "<i>x</i>"}), at=rita.node.core.clock())
    rita.node.alerts.tick()
    assert "Alerts (1)" in rita.ask("GET", "/studies", browser=True).text
    page = rita.ask("GET", "/admin/alerts", browser=True).text
    assert "a verification found something" in page
    assert "&lt;i&gt;x&lt;/i&gt;" in page
    number = rita.node.alerts.list(archives.the_console(rita.node))[0]["id"]
    path = f"/admin/alerts/{number}/acknowledge"
    refused = rita.ask("POST", path, browser=True, data={"note": " "})
    assert (refused.status_code, "Say what it was" in refused.text) == (400, True)
    assert mia.ask("GET", "/admin/alerts", browser=True).status_code == 403
    assert mia.ask("POST", path, browser=True, data={"note": "x"}).status_code in {400, 403}
    assert "Alerts" not in mia.ask("GET", "/studies", browser=True).text
    done = rita.ask("POST", path, browser=True, data={"note": "a disk"})
    assert (done.status_code, done.location) == (303, "/admin/alerts")
    assert "a disk" not in rita.ask("GET", "/admin/alerts", browser=True).text
    assert "a disk" in rita.ask("GET", "/admin/alerts?all=1", browser=True).text
    assert "Alerts (" not in rita.ask("GET", "/studies", browser=True).text
