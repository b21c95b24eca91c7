"""Checkpoints on paper and in mail, and tiles: taken apart by hand, compared when they come back."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from archive.config import Syslog
from archive.db.tables import ledger_leaf
from archive.errors import Forbidden, InvalidRequest, NotFound
from archive.ledger.audit import Event, Kind
from archive.node import Node
from archive.services.audit_feed import AuditFeed
from archive.services.outgoing import Undeliverable
from archive.services.printed import Printed
from tests.services import archives

MONDAY = datetime(2031, 3, 3, 12, 0, tzinfo=UTC)


class Clock:
    """A clock that stands until it is moved."""

    at = MONDAY

    def __call__(self) -> datetime:
        return self.at


class Postman:
    """Keeps what it is given, or refuses it."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, str, tuple[str, ...]]] = []
        self.refuses = False

    def send(self, subject: str, text: str, *, to: tuple[str, ...] = ()) -> None:
        if self.refuses:
            raise Undeliverable("no connection")
        self.mails.append((subject, text, tuple(to)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(tmp_path: Path, clock: Clock) -> Iterator[Node]:
    settings: dict[str, Any] = {"alerts": {"smtp_host": "mail.example", "mail_from": "a@example"}, "witness": {"mail_to": ["boss@example"]}}
    with archives.opened(archives.made(tmp_path, **settings), clock=clock) as opened:
        archives.store(opened, archives.instance(1))
        opened.upkeep.checkpoint()
        yield opened


def fill(node: Node, count: int) -> None:
    with node.core.database.begin() as tx:
        for _ in range(count):
            node.core.ledger.record(tx, Event(Kind.READ), at=node.core.clock())
    node.upkeep.checkpoint()


def test_a_page_holds_a_signed_note(node: Node) -> None:
    page = node.printed.page(archives.the_console(node))
    text, signature = page["note"].split("\n\n")
    assert text.split("\n") == [page["origin"], str(page["size"]), base64.b64encode(bytes.fromhex(page["root"])).decode()]
    [name, key_id, key] = node.oversight.public_keys()[0].split("+", 2)
    dash, signer, encoded = signature.rstrip("\n").split(" ")
    data = base64.b64decode(encoded)
    assert (dash, signer, data[:4].hex()) == ("\N{EM DASH}", name, key_id)
    Ed25519PublicKey.from_public_bytes(base64.b64decode(key)[1:]).verify(data[4:], f"{text}\n".encode())
    assert len(page["note"]) < 260, "short enough for a code that a telephone reads"
    assert page["picture"].startswith("<svg")
    read = node.oversight.search(archives.the_console(node), kinds=["audit-read"])
    assert [row["body"]["detail"]["what"] for row in read] == ["checkpoint page"]


def test_what_comes_back_is_compared(node: Node) -> None:
    console = archives.the_console(node)
    note, line = node.printed.page(console)["note"], node.printed.checkpoint_line()
    fill(node, 5)
    size = int(note.split("\n")[1])
    text = note.split("\n\n")[0]
    for given, signed in (
        (note, True), (line, True), (f"Nov 21 clinic strongroom: {line} and more", True), (text + "\n", False), (text, False),
        ("> " + note.replace("\n", "\n> "), True), (note.replace("\n", "\r\n"), True),
        (f"Hello,\n\n  {text}\n".replace("\n", "\n  "), False), (note + note, True), (f"{line}\n{note}", True),
    ):
        found = node.printed.compare(console, given)
        assert found == {"consistent": True, "why": "", "size": size, "now": found["now"], "signed": signed}, given
    assert found["now"] > size


def test_what_does_not_fit_is_told(node: Node) -> None:
    console = archives.the_console(node)
    note = node.printed.page(console)["note"]
    origin, size, root = note.split("\n")[:3]
    later = node.printed.compare(console, f"{origin}\n{10**6}\n{root}\n")
    assert (later["consistent"], "rolled back" in later["why"], later["signed"]) == (False, True, False)
    other = base64.b64encode(bytes(32)).decode()
    assert "not the ones" in node.printed.compare(console, f"{origin}\n{size}\n{other}\n")["why"]
    with pytest.raises(NotFound):
        node.printed.compare(console, f"strongroom/{'0' * 8}-0000-0000-0000-{'0' * 12}\n{size}\n{root}\n")
    with pytest.raises(InvalidRequest):
        node.printed.compare(console, note.replace(f"\n{size}\n", f"\n{int(size) - 1}\n"))
    two = note + note.replace(f"\n{size}\n", f"\n{int(size) - 1}\n")
    for nothing in ("", "nothing here", origin, f"{origin}\n{size}\n", two, "x" * (1 << 21)):
        with pytest.raises(InvalidRequest):
            node.printed.compare(console, nothing)
    with node.core.database.begin() as tx:  # the first event says something else now
        tx.execute(sa.update(ledger_leaf).where(ledger_leaf.c.n == 0).values(hash=bytes(32)))
        tx.execute(sa.text("DELETE FROM ledger_node"))
    assert not node.printed.compare(console, note)["consistent"]


def test_it_is_mailed_once_a_day(node: Node, clock: Clock) -> None:
    postman = Postman()
    printed = Printed(node.core, postman)  # type: ignore[arg-type]
    postman.refuses = True
    printed.tick()
    postman.refuses = False
    printed.tick()
    assert postman.mails == [], "not again at once"
    clock.at += timedelta(minutes=10)
    for _ in range(3):
        printed.tick()
    [(subject, text, to)] = postman.mails
    assert (to, "checkpoint over" in subject) == (("boss@example",), True)
    assert "recovery kit" in text
    assert node.printed.compare(archives.the_console(node), text)["signed"]
    clock.at += timedelta(hours=23, minutes=59)
    printed.tick()
    assert len(postman.mails) == 1
    clock.at += timedelta(minutes=1)
    Printed(node.core, postman).tick()  # type: ignore[arg-type]
    assert len(postman.mails) == 2
    assert "mailed each day" in next(check.detail for check in node.health.checks() if check.name == "outside witness")


def test_the_collector_of_syslog_hears_of_it_each_hour(node: Node, clock: Clock) -> None:
    sent: list[bytes] = []
    feed = AuditFeed(node.core, lambda messages, _collector: sent.extend(messages))
    feed._settings = Syslog(host="syslog.example")
    printed = Printed(node.core, Postman(), feed)  # type: ignore[arg-type]
    for minutes in (0, 1, 58, 1):
        clock.at += timedelta(minutes=minutes)
        printed.tick()
    assert len(sent) == 2
    assert b" CHECKPOINT - " in sent[0]
    assert node.printed.compare(archives.the_console(node), sent[1].decode())["signed"]


def root_by_hand(fetch: Any, size: int) -> bytes:
    """The root of a log from its tiles of entries alone: RFC 6962 2.1, written down here once more."""
    leaves: list[bytes] = []
    for index in range(-(-size // 256)):
        width = min(256, size - 256 * index)
        data = fetch(f"{index:03d}" + (f".p/{width}" if width < 256 else ""))
        while data:
            length = int.from_bytes(data[:2], "big")
            leaves.append(hashlib.sha256(b"\0" + data[2:2 + length]).digest())
            data = data[2 + length:]

    def tree(hashes: list[bytes]) -> bytes:
        if len(hashes) == 1:
            return hashes[0]
        half = 1 << ((len(hashes) - 1).bit_length() - 1)
        return hashlib.sha256(b"\1" + tree(hashes[:half]) + tree(hashes[half:])).digest()

    assert len(leaves) == size
    return tree(leaves)


def test_tiles_give_the_root_to_who_recomputes_it(node: Node) -> None:
    console = archives.the_console(node)
    fill(node, 600)
    origin, count, root = node.tiles.checkpoint(console).decode().split("\n")[:3]
    size = int(count)
    assert size > 512
    entries = {path: node.tiles.entries(console, path) for path in ("000", "001", f"002.p/{size - 512}")}
    assert root_by_hand(lambda path: entries[path], size) == base64.b64decode(root)
    full = node.tiles.hashes(console, "0", "001")
    assert len(full) == 8192
    above = node.tiles.hashes(console, "1", "000.p/2")
    assert above[32:] == root_by_hand(lambda _path: entries["001"], 256), "level 1 holds the roots of full tiles"
    narrower = node.tiles.hashes(console, "0", "002.p/1")
    assert node.tiles.hashes(console, "0", f"002.p/{size - 512}").startswith(narrower)
    for level, path in (
        ("0", "003"), ("0", "002"), ("0", f"002.p/{size - 511}"), ("1", "000"), ("1", "000.p/3"), ("2", "000.p/1"), ("0", "000.p/256"),
        ("0", "000.p/0"), ("0", "000.p/01"), ("0", "0"), ("0", "0000"), ("0", "x000/001"), ("0", "../000"), ("00", "000"), ("8", "000"),
        ("-1", "000"), ("a", "000"), ("0", "000/"), ("0", "x00/000"), ("0", "000.p/"), ("0", "٠٠٠"), ("0", "x999/x999/x999/x999/x999/999"),
    ):
        with pytest.raises(NotFound):
            node.tiles.hashes(console, level, path)
    with pytest.raises(NotFound):
        node.tiles.entries(console, "003")
    assert origin in node.oversight.public_keys()[0]


def test_leaves_that_nothing_signs_yet_stay(node: Node) -> None:
    console = archives.the_console(node)
    size = int(node.tiles.checkpoint(console).split(b"\n")[1])
    with node.core.database.begin() as tx:
        node.core.ledger.record(tx, Event(Kind.READ), at=node.core.clock())
    assert node.tiles.entries(console, f"000.p/{size}")
    with pytest.raises(NotFound):
        node.tiles.entries(console, f"000.p/{size + 1}")


def test_taking_leaves_is_an_event_once_an_hour(node: Node, clock: Clock) -> None:
    console = archives.the_console(node)
    for _ in range(3):
        node.tiles.entries(console, "000.p/1")
    clock.at += timedelta(hours=1)
    node.tiles.entries(console, "000.p/1")
    said = [row["body"]["detail"].get("what") for row in node.oversight.search(console, kinds=["audit-read"])]
    assert said == ["ledger entries", "ledger entries"]


def test_only_auditors(node: Node) -> None:
    node.accounts.add_user(archives.the_console(node), "mia", roles=["radiologist"])
    mia = archives.user(node, "mia")
    for work in (
        lambda: node.printed.page(mia), lambda: node.printed.compare(mia, "x"), lambda: node.tiles.checkpoint(mia),
        lambda: node.tiles.hashes(mia, "0", "000.p/1"), lambda: node.tiles.entries(mia, "000.p/1"),
    ):
        with pytest.raises(Forbidden):
            work()
