"""The audit log's way to a collector, over the API: how far it is, a test, everything once more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archive.access import roles
from archive.access.permissions import FUNCTION
from tests.services import archives
from tests.services.collector import Collector
from tests.web import real
from tests.web.real import Place


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    config = archives.made(tmp_path)
    made = Collector(config.tls_dir / "server.pem", config.tls_dir / "server.key")
    yield made
    made.close()


@pytest.fixture
def place(tmp_path: Path, collector: Collector) -> Iterator[Place]:
    section = {"host": "127.0.0.1", "port": collector.port, "ca_file": "storage/tls/ca.pem"}
    with archives.opened(archives.configured(tmp_path, syslog=section, archive={"public_url": real.ORIGIN})) as node:
        yield real.place(node)


def test_how_far_it_is(place: Place, collector: Collector) -> None:
    node, console = place.node, archives.the_console(place.node)
    node.accounts.add_role(console, "all", roles.names(FUNCTION))
    node.accounts.add_user(console, "boss", roles=["all"])
    token = node.accounts.create_token(console, owner="boss", permissions=roles.names(FUNCTION))["token"]

    def asked(method: str, path: str, **more: Any) -> Any:
        answer = place.ask(method, f"/api/audit/syslog{path}", headers={"Authorization": f"Bearer {token}"}, **more)
        return answer.status_code, answer.json

    node.audit_feed.tick()
    assert asked("GET", "")[1]["collector"] == f"127.0.0.1:{collector.port}"
    status, told = asked("POST", "/again", json={"first": 0})
    assert (status, told["first"]) == (200, 0)
    assert asked("GET", "")[1]["behind"] == told["events"] + 1
    assert asked("POST", "/again", json={"first": told["events"] * 2})[0] == 400
    while node.audit_feed.tick():
        pass
    assert asked("GET", "")[1]["behind"] == 0
    before = len(collector.got)
    assert asked("POST", "/test") == (200, {"sent": True})
    assert len(collector.got) == before + 1
    collector.manner = "refuses"
    status, problem = asked("POST", "/test")
    assert (status, problem["code"]) == (503, "undeliverable")
