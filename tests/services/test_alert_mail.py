"""Alerts by mail: once, tried again whatever the mail server answers, and whatever alert it is."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from archive.db.tables import alert
from archive.ledger.audit import Kind
from archive.services import mail
from archive.services.alert_telling import AGAIN
from archive.services.outgoing import Undeliverable
from tests.services import archives
from tests.services.test_alerts import Clock, plant


class Postman(socketserver.StreamRequestHandler):
    """Takes mail as an SMTP server does, or refuses it."""

    got: list[str]
    answers: ClassVar[dict[str, str]] = {}
    refuse = False

    def handle(self) -> None:
        def say(line: str) -> None:
            self.wfile.write(line.encode() + b"\r\n")

        say("220 here")
        while line := self.rfile.readline().decode().strip():
            word = line.split(maxsplit=1)[0].upper()
            if word == "DATA":
                say("354 go on")
                text = ""
                while (part := self.rfile.readline().decode()) != ".\r\n":
                    text += part
                type(self).got.append(text)
                say("250 taken")
            elif word == "QUIT":
                say("221 bye")
                return
            elif word in type(self).answers:
                say(type(self).answers[word])
            else:
                say("550 no" if word == "RCPT" and type(self).refuse else "250 well")


@pytest.fixture
def postman() -> Iterator[tuple[type[Postman], int]]:
    kind = type("OnePostman", (Postman,), {"got": [], "refuse": False, "answers": {}})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield kind, server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def by(port: int) -> dict[str, Any]:
    """Return the settings of mail by way of a server at a port here."""
    return {
        "mail_to": ["dpo@clinic.example"], "mail_from": "archive@clinic.example", "smtp_host": "127.0.0.1", "smtp_port": port,
        "smtp_tls": "off",
    }


def test_mail_is_sent_once_and_tried_again(tmp_path: Path, clock: Clock, postman: tuple[type[Postman], int]) -> None:
    kind, port = postman
    with archives.opened(archives.made(tmp_path, alerts=by(port)), clock=clock) as node:
        node.alerts.tick()
        kind.refuse = True
        plant(node, Kind.VERIFIED, outcome=8)
        node.alerts.tick()
        assert kind.got == []
        kind.refuse = False
        node.alerts.tick()
        assert kind.got == [], "not before its time"
        clock.pass_(seconds=AGAIN[0].total_seconds())
        node.alerts.tick()
        node.alerts.tick()
        [text] = kind.got
        assert "To: dpo@clinic.example" in text
        assert "a verification found something" in text
        node.alerts.test_mail(archives.the_console(node))
        assert "a test" in kind.got[1]


@pytest.mark.parametrize(("answers", "password"), [
    ({"EHLO": "250-here\r\n250 AUTH CRAM-MD5", "AUTH": "334 a"}, "secret"),  # no base64
    ({"EHLO": "250-here\r\n250 AUTH LOGIN", "AUTH": "334 VXNlcm5hbWU6"}, "gehe\u00efm"),  # smtplib knows ASCII alone
])
def test_whatever_a_mail_server_answers_the_mail_is_tried_again(
    tmp_path: Path, clock: Clock, postman: tuple[type[Postman], int], answers: dict[str, str], password: str
) -> None:
    kind, port = postman
    (tmp_path / "password").write_text(password, encoding="utf-8")
    mail = by(port) | {"smtp_user": "archive", "smtp_password_file": "password"}
    with archives.opened(archives.made(tmp_path, alerts=mail), clock=clock) as node:
        node.alerts.tick()
        plant(node, Kind.VERIFIED, outcome=8)
        kind.answers = answers
        node.alerts.tick()
        assert kind.got == []
        kind.answers = {"EHLO": "250-here\r\n250 AUTH PLAIN", "AUTH": "235 in"}
        (tmp_path / "password").write_text("secret")
        clock.pass_(seconds=AGAIN[0].total_seconds())
        node.alerts.tick()
        assert "a verification found something" in kind.got[0]


@pytest.mark.parametrize("tls", ["off", "tls"])
def test_a_mail_server_that_answers_byte_by_byte_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: str) -> None:
    class Dripping(socketserver.BaseRequestHandler):
        """Says hello, or a TLS handshake, for half a minute."""

        def handle(self) -> None:
            with suppress(OSError):
                self.request.sendall(b"\x16\x03\x03\x40\x00" if tls == "tls" else b"220-")
                for _ in range(300):
                    self.request.sendall(b"h")
                    time.sleep(0.1)

    monkeypatch.setattr(mail, "DEADLINE_S", 1.0, raising=False)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dripping) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            config = archives.configured(tmp_path, alerts={
                "mail_to": ["dpo@clinic.example"], "mail_from": "archive@clinic.example", "smtp_host": "127.0.0.1",
                "smtp_port": server.server_address[1], "smtp_tls": tls,
            })
            began = time.monotonic()
            with pytest.raises(Undeliverable):
                mail.Mail(config).send("a test", "of it")
            assert time.monotonic() - began < 10
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("said", [b"250-and so on\r\n", b"250-" + b"x" * 4000 + b"\r\n"])
def test_a_mail_server_that_never_comes_to_an_end_is_not_listened_to_for_long(tmp_path: Path, said: bytes) -> None:
    class Endless(socketserver.BaseRequestHandler):
        """Goes on with its greeting."""

        sent = 0

        def handle(self) -> None:
            with suppress(OSError):
                self.request.sendall(b"220-here\r\n")
                while True:
                    self.request.sendall(said * 100)
                    type(self).sent += len(said) * 100

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            began = time.monotonic()
            with pytest.raises(Undeliverable):
                mail.Mail(archives.configured(tmp_path, alerts=by(server.server_address[1]))).send("a test", "of it")
            assert time.monotonic() - began < 10
            assert Endless.sent < 64 << 20
        finally:
            server.shutdown()
            thread.join()


def test_an_alert_of_a_rule_that_this_release_does_not_have_is_told(
    tmp_path: Path, clock: Clock, postman: tuple[type[Postman], int]
) -> None:
    kind, port = postman
    with archives.opened(archives.made(tmp_path, alerts=by(port)), clock=clock) as node:
        node.alerts.tick()
        plant(node, Kind.VERIFIED, outcome=8)
        kind.refuse = True
        node.alerts.tick()
        kind.refuse = False
        with node.core.database.begin() as tx:
            tx.execute(sa.update(alert).values(rule="of-another-release"))
        clock.pass_(seconds=AGAIN[0].total_seconds())
        plant(node, Kind.VERIFIED, outcome=8)
        node.alerts.tick()
        assert ["of-another-release" in text for text in kind.got] == [True, False]
