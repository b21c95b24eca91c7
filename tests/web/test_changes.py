"""G05, G06 and T14: the change feed over HTTP: in order, resumable, filtered by scope, and the webhooks that send it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.errors import ArchiveError, DatabaseUnavailable, Forbidden, InvalidRequest, NotFound
from archive.ledger.log import Ledger
from archive.services import outgoing
from archive.services.clock import utc_now
from archive.services.outgoing import Limits, Undeliverable
from archive.services.webhooks import Webhooks
from tests.services import archives
from tests.web import real
from tests.web.real import HIDDEN, SEEN, Place


@contextmanager
def changing(folder: Path) -> Iterator[Place]:
    config = archives.made(folder, archive={"public_url": real.ORIGIN}, webhooks={"networks": ["127.0.0.0/8"]})
    with archives.opened(config) as node:
        yield real.place(node)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with changing(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Shared by what changes no instance."""
    with changing(tmp_path_factory.mktemp("changes")) as found:
        yield found


def feed(place: Place, query: str = "", **more: Any) -> dict[str, Any]:
    answer = place.ask("GET", f"/api/changes?{query}", **more)
    assert answer.status_code == 200, answer.text
    return dict(json.loads(answer.data))


def told(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["kind"], one["sop_instance_uid"], one["state"]) for one in found["changes"]]


def owner(place: Place) -> dict[str, str]:
    return {"Authorization": f"Bearer {place.node.accounts.create_token(archives.the_console(place.node), owner='admin')['token']}"}


def test_g06_what_came_and_went_in_order(place: Place) -> None:
    first, second = f"{SEEN}.1.1", f"{SEEN}.1.2"
    assert told(feed(place)) == [("stored", first, "current"), ("stored", second, "current")]
    console = archives.the_console(place.node)
    here = feed(place, "since=latest")
    assert (here["changes"], here["more"]) == ([], False)
    place.node.remove.reject(console, "clinical", "instance", first, reason="test")
    data = archives.instance(1, study=SEEN, PatientID=f"P{SEEN}", PatientName="Canary^Hidden")
    assert told(feed(place, f"since={here['next']}")) == [("rejected", first, "rejected")]
    archives.store(place.node, data)
    archives.store(place.node, archives.instance(3, study=SEEN, PatientID=f"P{SEEN}", PatientName="Canary^Hidden"))
    assert told(feed(place, f"since={here['next']}")) == [
        ("rejected", first, "current"), ("restored", first, "current"), ("stored", f"{SEEN}.1.3", "current"),
    ]
    assert told(feed(place))[:2] == [("stored", first, "current"), ("stored", second, "current")]


def test_a_whole_series_that_is_rejected_is_told_to_who_saw_it(place: Place) -> None:
    here = feed(place, "since=latest")["next"]
    place.node.remove.reject(archives.the_console(place.node), "clinical", "study", SEEN, reason="test")
    place.node.remove.reject(archives.the_console(place.node), "clinical", "study", HIDDEN, reason="test")
    # The instances of one event come in any order, and in the same one each time.
    found = told(feed(place, f"since={here}"))
    assert sorted(found) == [("rejected", f"{SEEN}.1.1", "rejected"), ("rejected", f"{SEEN}.1.2", "rejected")]
    assert told(feed(place, f"since={here}")) == found


def test_pages_put_together_are_the_whole(place: Place) -> None:
    headers = owner(place)
    for number in range(3, 12):
        archives.store(place.node, archives.instance(number, study=SEEN, PatientID=f"P{SEEN}", PatientName="Canary^Hidden"))
    place.node.remove.reject(archives.the_console(place.node), "clinical", "study", SEEN, reason="test")
    whole = feed(place, headers=headers)["changes"]
    assert len(whole) == 4 + 9 + 11
    for limit in (1, 2, 3, 7):
        found, cursor, more = [], "", True
        while more:
            answer = feed(place, f"limit={limit}&since={cursor}", headers=headers)
            found += answer["changes"]
            assert len(answer["changes"]) <= limit
            cursor, more = answer["next"], answer["more"]
        assert [(one["kind"], one["sop_instance_uid"]) for one in found] == [(one["kind"], one["sop_instance_uid"]) for one in whole]
    middle = whole[10]["cursor"]
    rest = feed(place, f"since={middle}", headers=headers)["changes"]
    assert [one["sop_instance_uid"] for one in rest] == [one["sop_instance_uid"] for one in whole[11:]]


def test_t14_the_feed_shows_what_a_search_shows(place: Place) -> None:
    console = archives.the_console(place.node)

    def searched() -> set[str]:
        rows = json.loads(place.ask("GET", "/dicomweb/instances").data)
        return {row["00080018"]["Value"][0] for row in rows}

    def fed() -> set[str]:
        return {uid for _, uid, state in told(feed(place)) if state == "current"}

    assert fed() == searched() == {f"{SEEN}.1.1", f"{SEEN}.1.2"}
    grant = place.node.accounts.add_grant(console, to="mia", role="referrer", target=Target("study", HIDDEN))
    assert fed() == searched()
    assert len(fed()) == 4
    place.node.accounts.revoke_grant(console, grant["id"])
    assert fed() == searched()
    place.node.accounts.add_grant(console, to="mia", role="researcher", target=Target("everything"), deny=True)
    assert fed() == searched() == set()


def test_a_cursor_is_its_readers_alone(still: Place) -> None:
    mine = feed(still)["next"]
    assert still.ask("GET", f"/api/changes?since={mine}", headers=owner(still)).status_code == 400
    for cursor in ("0", "x" * 60, mine[:-2] + "AA", mine + "A", "1", "%00", "-1"):
        assert still.ask("GET", f"/api/changes?since={cursor}").status_code == 400, cursor
    assert feed(still, f"since={mine}")["changes"] == []


def test_g05_what_is_not_understood(still: Place) -> None:
    for query in (
        "limit=0", "limit=-1", "limit=x", "limit=1&limit=2", "offset=-1", "wait=-1", "wait=long", "includemetadata=true", "since=1&since=2",
    ):
        assert still.ask("GET", f"/api/changes?{query}").status_code == 400, query


def test_waiting_ends_when_something_comes(place: Place) -> None:
    here = feed(place, "since=latest")["next"]
    assert feed(place, f"since={here}&wait=1")["changes"] == []
    late = threading.Timer(0.5, lambda: archives.store(
        place.node, archives.instance(8, study=SEEN, PatientID=f"P{SEEN}", PatientName="Canary^Hidden")))
    late.start()
    assert told(feed(place, f"since={here}&wait=20")) == [("stored", f"{SEEN}.1.8", "current")]
    late.join()


def test_another_datastore_without_a_right_to_it(still: Place) -> None:
    assert still.ask("GET", "/api/changes?datastore=research").status_code == 404


def test_t10_no_audit_no_feed(still: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> int:
        message = "the database is busy"
        raise DatabaseUnavailable(message)

    monkeypatch.setattr(Ledger, "record", refuse)
    answer = still.ask("GET", "/api/changes")
    assert answer.status_code == 503
    assert SEEN.encode() not in answer.data


# --- webhooks ---


class Receiver:
    """An HTTP server that keeps what it gets and answers what it is told to."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((dict(self.headers.items()), body))
                self.send_response(outer.status)
                self.send_header("Location", "https://example.org/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def uids(self) -> list[str]:
        return [one["sop_instance_uid"] for _, body in self.got for one in json.loads(body)["changes"]]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_webhook_tells_what_its_owner_sees_signed(place: Place, receiver: Receiver) -> None:
    console = archives.the_console(place.node)
    made = place.node.webhooks.add(console, url=receiver.url, owner="mia", everything=True)
    assert place.node.webhooks.tick() == 1
    assert receiver.uids() == [f"{SEEN}.1.1", f"{SEEN}.1.2"]
    [(headers, body)] = receiver.got
    assert b"Canary" not in body
    assert f"P{SEEN}".encode() not in body
    key = base64.b64decode(made["secret"].removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    assert headers["webhook-signature"] == "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert place.node.webhooks.tick() == 0
    place.node.remove.reject(console, "clinical", "instance", f"{SEEN}.1.1", reason="test")
    place.node.remove.reject(console, "clinical", "instance", f"{HIDDEN}.1.1", reason="test")
    assert place.node.webhooks.tick() == 1
    assert receiver.uids()[2:] == [f"{SEEN}.1.1"]
    place.node.accounts.disable_user(console, "mia")
    place.node.remove.reject(console, "clinical", "instance", f"{SEEN}.1.2", reason="test")
    assert place.node.webhooks.tick() == 0


def test_a_receiver_that_fails_loses_nothing(place: Place, receiver: Receiver) -> None:
    console = archives.the_console(place.node)
    at = [utc_now()]
    core = place.node.core
    hooks = Webhooks(core.database, core.ledger, lambda: at[0], core.config)
    hooks.add(console, url=receiver.url, owner="mia", everything=True)
    receiver.status = 302
    pauses = []
    for attempt in range(1, 14):
        assert hooks.tick() == 0
        [row] = hooks.list(console)
        assert (row["state"], row["attempts"], row["problem"]) == ("failing", attempt, "answered 302")
        pauses.append((row["due_at"] - at[0]).total_seconds())
        assert hooks.tick() == 0
        assert len(receiver.got) == attempt
        at[0] = row["due_at"]
    assert pauses[:4] == [5, 10, 20, 40]
    assert pauses[-1] == 3600
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    receiver.status = 204
    again = Webhooks(core.database, core.ledger, lambda: at[0], core.config)  # a worker started anew
    assert again.tick() == 1
    assert receiver.uids()[-2:] == [f"{SEEN}.1.1", f"{SEEN}.1.2"]
    [row] = hooks.list(console)
    assert (row["state"], row["attempts"], row["problem"]) == ("delivering", 0, "")


def test_a_webhook_of_now_tells_nothing_old_and_ends_when_removed(place: Place, receiver: Receiver) -> None:
    console = archives.the_console(place.node)
    made = place.node.webhooks.add(console, url=receiver.url, owner="mia")
    assert place.node.webhooks.tick() == 0
    assert place.node.webhooks.test(console, made["id"])["status"] == 200
    assert json.loads(receiver.got[0][1])["type"] == "test"
    place.node.webhooks.remove(console, made["id"])
    archives.store(place.node, archives.instance(9, study=SEEN, PatientID=f"P{SEEN}", PatientName="Canary^Hidden"))
    assert place.node.webhooks.tick() == 0
    assert place.node.webhooks.list(console) == []
    for call in (place.node.webhooks.remove, place.node.webhooks.test):
        with pytest.raises(NotFound):
            call(console, made["id"])


def test_t10_no_audit_no_webhook(place: Place, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    place.node.webhooks.add(archives.the_console(place.node), url=receiver.url, owner="mia", everything=True)

    def refuse(*_arguments: object, **_options: object) -> int:
        message = "the database is busy"
        raise DatabaseUnavailable(message)

    monkeypatch.setattr(Ledger, "record", refuse)
    with pytest.raises(ArchiveError):
        place.node.webhooks.tick()
    assert receiver.got == []


def test_who_may_manage_webhooks(still: Place, receiver: Receiver) -> None:
    with pytest.raises(Forbidden):
        still.node.webhooks.add(archives.user(still.node, "mia"), url=receiver.url, owner="mia")
    for method, path, body in (("GET", "", None), ("POST", "", {"url": receiver.url, "owner": "mia"}), ("DELETE", "/1", None)):
        assert still.ask(method, f"/api/webhooks{path}", json=body).status_code == 403
    headers = {"Authorization": "Bearer " + still.node.accounts.create_token(
        archives.the_console(still.node), owner="admin", permissions=["configure", "search"])["token"]}
    made = still.ask("POST", "/api/webhooks", json={"url": receiver.url, "owner": "admin"}, headers=headers)
    assert made.status_code == 201
    [row] = json.loads(still.ask("GET", "/api/webhooks", headers=headers).data)
    assert row["id"] == json.loads(made.data)["id"]
    assert "secret" not in row
    assert still.ask("POST", f"/api/webhooks/{row['id']}/test", headers=headers).status_code == 200
    assert still.ask("DELETE", f"/api/webhooks/{row['id']}", headers=headers).status_code == 204
    assert still.ask("DELETE", f"/api/webhooks/{row['id']}", headers=headers).status_code == 404
    for wrong in ([], {"url": receiver.url}, {"url": 1, "owner": "mia"}, {"url": receiver.url, "owner": "mia", "more": 1}):
        assert still.ask("POST", "/api/webhooks", json=wrong, headers=headers).status_code == 400


def test_nobody_lets_a_webhook_tell_them_what_another_sees(still: Place, receiver: Receiver) -> None:
    """Also not by a token that shows less than its user sees; others list, test and remove a webhook, and learn no secret."""
    console = archives.the_console(still.node)

    def token(*permissions: str, **bounds: Any) -> dict[str, str]:
        made = still.node.accounts.create_token(console, owner="admin", permissions=list(permissions), **bounds)
        return {"Authorization": f"Bearer {made['token']}"}

    def add(owner: str, headers: dict[str, str]) -> Any:
        return still.ask("POST", "/api/webhooks", json={"url": receiver.url, "owner": owner, "everything": True}, headers=headers)

    whole = token("configure", "search")
    another, nobody = add("mia", whole), add("nobody", whole)
    assert (another.status_code, nobody.status_code) == (403, 403)
    assert {k: v for k, v in another.json.items() if k != "instance"} == {k: v for k, v in nobody.json.items() if k != "instance"}
    for bound in (token("configure"), token("configure", "search", studies=[SEEN])):
        assert add("admin", bound).status_code == 403
    with pytest.raises(Forbidden):
        still.node.webhooks.add(archives.user(still.node, "admin"), url=receiver.url, owner="mia")
    assert still.node.webhooks.list(console) == []
    made = still.node.webhooks.add(console, url=receiver.url, owner="mia")
    [row] = still.ask("GET", "/api/webhooks", headers=whole).json
    assert row["owner"] == "mia"
    assert "secret" not in row
    assert still.ask("POST", f"/api/webhooks/{made['id']}/test", headers=whole).status_code == 200
    assert "changes" not in json.loads(receiver.got[-1][1])
    for method in ("PUT", "PATCH"):
        assert still.ask(method, f"/api/webhooks/{made['id']}", json={"url": receiver.url}, headers=whole).status_code == 405
    assert still.ask("DELETE", f"/api/webhooks/{made['id']}", headers=whole).status_code == 204


# --- T25: where requests may go ---

LOOPBACK = Limits(("127.0.0.0/8",))


@pytest.mark.parametrize("url", [
    "http://example.org/", "ftp://example.org/", "https://", "https://user:word@example.org/", "https://example.org/#x", "gopher://x", "",
    "https://exa mple.org/", "https://example.org:port/", "file:///etc/passwd", "https://[::1", "https://example.org/\r\nX: y",
])
def test_t25_addresses_that_are_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidRequest):
        outgoing.check(url, Limits())


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "::1", "::",
    "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "255.255.255.255", "240.0.0.1",
])
def test_t25_no_name_leads_inside(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def leads(*_args: object, **_more: object) -> list[Any]:
        return [(2, 1, 6, "", ("93.184.216.34", 443)), (2, 1, 6, "", (address, 443))]

    monkeypatch.setattr(outgoing.socket, "getaddrinfo", leads)
    monkeypatch.setattr(outgoing.socket, "create_connection", lambda *_a, **_k: pytest.fail("it connected"))
    with pytest.raises(Undeliverable, match="not allowed"):
        outgoing.post("https://example.org/", b"", {}, Limits())


def test_t25_the_connection_goes_to_the_address_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["93.184.216.34", "127.0.0.1"])
    asked: list[Any] = []

    def connects(address: Any, *_args: object) -> Any:
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(outgoing.socket, "getaddrinfo", lambda *_a, **_k: [(2, 1, 6, "", (next(answers), 443))])
    monkeypatch.setattr(outgoing.socket, "create_connection", connects)
    with pytest.raises(Undeliverable):
        outgoing.post("https://example.org/", b"", {}, Limits())
    assert asked == [("93.184.216.34", 443)]


def test_t25_plain_http_goes_to_loopback_alone(receiver: Receiver) -> None:
    assert outgoing.post(receiver.url, b"{}", {}, LOOPBACK) == 200
    for other in (Limits(), Limits(("10.0.0.0/8",))):
        with pytest.raises(InvalidRequest):
            outgoing.post(receiver.url, b"{}", {}, other)
    with pytest.raises(Undeliverable, match="not allowed"):
        outgoing.post("http://10.0.0.1/", b"", {}, Limits(("127.0.0.0/8", "10.0.0.0/8")))


def test_t25_a_certificate_nobody_vouches_for(tmp_path: Path) -> None:
    import ssl

    from tests.web.dicomweb.test_granian import certificate

    cert, key = certificate(tmp_path)
    made = Receiver()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    made.server.socket = context.wrap_socket(made.server.socket, server_side=True)
    url = made.url.replace("http:", "https:")
    try:
        assert outgoing.post(url, b"{}", {}, Limits(("127.0.0.0/8",), str(cert))) == 200
        with pytest.raises(Undeliverable, match="TLS"):
            outgoing.post(url, b"{}", {}, LOOPBACK)
    finally:
        made.server.shutdown()
        made.server.server_close()
