"""Alerts by webhook: signed, once, tried again, on its own beside the mail."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db.tables import alert
from archive.ledger.audit import Event, Kind
from archive.node import Node
from archive.services.alert_telling import AGAIN
from tests.services import archives

SECRET = b"a secret of thirty-two characters"


class Receiver(BaseHTTPRequestHandler):
    """Keeps what is posted, or refuses it."""

    status = 204
    got: list[tuple[dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(type(self).status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the name in http.server
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[tuple[type[Receiver], int]]:
    kind = type("OneReceiver", (Receiver,), {"got": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield kind, server.server_address[1]
        server.shutdown()
        thread.join()


def found(node: Node) -> None:
    with node.core.database.begin() as tx:
        node.core.ledger.record(tx, Event(Kind.VERIFIED, outcome=8), at=node.core.clock())
    node.alerts.tick()


@pytest.mark.parametrize("kept", [SECRET, b"whsec_" + base64.b64encode(SECRET)])
def test_a_webhook_is_told_once_and_tried_again(tmp_path: Path, receiver: tuple[type[Receiver], int], kept: bytes) -> None:
    kind, port = receiver
    now = [datetime(2031, 3, 3, 12, tzinfo=UTC)]
    (tmp_path / "secret").write_bytes(kept + b"\n")
    config = archives.made(
        tmp_path, alerts={"webhook_url": f"http://127.0.0.1:{port}/alerts", "webhook_secret_file": "secret"},
        webhooks={"networks": ["127.0.0.0/8"]},
    )
    with archives.opened(config, clock=lambda: now[0]) as node:
        node.alerts.tick()
        kind.status = 503
        found(node)
        kind.status = 204
        node.alerts.tick()
        assert len(kind.got) == 1, "not before its time"
        now[0] += AGAIN[0]
        node.alerts.tick()
        now[0] += timedelta(days=1)
        node.alerts.tick()
        assert len(kind.got) == 2
        for headers, body in kind.got:
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
            assert headers["webhook-signature"] == f"v1,{expected}"
            said = json.loads(body)
            assert (said["type"], said["rule"], said["severity"]) == ("alert", "integrity", "urgent")
        assert kind.got[0][0]["webhook-id"] == kind.got[1][0]["webhook-id"], "one alert, one id"
        with node.core.database.read() as tx:
            row = tx.execute(sa.select(alert)).one()
        assert (row.hook_attempts, row.hook_due_at, row.hook_told_at is not None, row.told_at) == (2, None, True, None)


def test_without_a_readable_secret_nothing_is_posted(tmp_path: Path, receiver: tuple[type[Receiver], int]) -> None:
    kind, port = receiver
    config = archives.made(
        tmp_path, alerts={"webhook_url": f"http://127.0.0.1:{port}/", "webhook_secret_file": "secret"},
        webhooks={"networks": ["127.0.0.0/8"]},
    )
    with archives.opened(config) as node:
        node.alerts.tick()
        found(node)
        assert kind.got == []
        (tmp_path / "secret").write_text("whsec_not base 64")
        node.alerts.tick()
        assert kind.got == []
        assert len(node.alerts.list(archives.the_console(node))) == 1


def test_an_alert_that_is_closed_is_not_told(tmp_path: Path, receiver: tuple[type[Receiver], int]) -> None:
    kind, port = receiver
    now = [datetime(2031, 3, 3, 12, tzinfo=UTC)]
    (tmp_path / "secret").write_bytes(SECRET)
    config = archives.made(
        tmp_path, alerts={"webhook_url": f"http://127.0.0.1:{port}/", "webhook_secret_file": "secret"},
        webhooks={"networks": ["127.0.0.0/8"]},
    )
    with archives.opened(config, clock=lambda: now[0]) as node:
        node.alerts.tick()
        kind.status = 500
        found(node)
        kind.status = 204
        console = archives.the_console(node)
        node.alerts.acknowledge(console, node.alerts.list(console)[0]["id"], note="a test")
        now[0] += timedelta(days=1)
        node.alerts.tick()
        assert len(kind.got) == 1
