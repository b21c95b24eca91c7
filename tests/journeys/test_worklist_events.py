"""UPS-RS end to end: subscribers told over real WebSockets with TLS, until what they came with is revoked."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import requests
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from archive.access.grants import Target
from archive.config import load
from archive.services import setup
from tests.dimse.fakes import eventually
from tests.journeys.running import RunningArchive
from tests.services import archives
from tests.web.dicomweb.test_ups import LOCK, el, item, performed
from tests.web.test_changes import Receiver

GLOBAL, FILTERED = "1.2.840.10008.5.1.4.34.5", "1.2.840.10008.5.1.4.34.5.1"
NUMBERS = iter(range(1, 1000))
TOKENS: dict[str, str] = {}
TO_REVOKE: dict[str, Any] = {}
SETTINGS = """[events]
enabled = true
port = 0
max_connections = 3
[webhooks]
networks = ["127.0.0.0/8"]
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningArchive]:
    running = RunningArchive(tmp_path_factory.mktemp("events"), settings=SETTINGS)
    config = load(running.config)
    setup.initialise(config, password=archives.PASSWORD)
    with archives.opened(config) as node:  # who is there before it is served costs no process for each
        console = archives.the_console(node)
        for name in ("mia", "ole"):
            node.accounts.add_user(console, name, roles=["technologist"], password=archives.PASSWORD)
        node.accounts.add_grant(console, to="ole", role="researcher", target=Target("everything"))
        for name, more in (("mia", {}), ("ole", {}), ("admin", {"permissions": ["configure"]})):
            TOKENS[name] = node.accounts.create_token(console, owner=name, **more)["token"]
        TO_REVOKE.update(node.accounts.create_token(console, owner="mia"))
    running.start("serve")
    try:
        yield running
    finally:
        running.stop()


class Channel:
    """A notification connection as a plain call sees it.

    The library's own client of that kind reads and writes one TLS connection from two threads, which OpenSSL does not allow: one request
    in a thousand never left it on a busy machine.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, inner: ClientConnection) -> None:
        self._loop, self._inner = loop, inner

    def recv(self, *, timeout: float) -> str | bytes:
        async def within() -> str | bytes:
            async with asyncio.timeout(timeout):
                return await self._inner.recv()

        return self._loop.run_until_complete(within())

    def send(self, text: str) -> None:
        self._loop.run_until_complete(self._inner.send(text))


class Door:
    """DICOMweb as one user."""

    def __init__(self, archive: RunningArchive, user: str) -> None:
        self.archive, self.token = archive, TOKENS[user]

    def ask(self, method: str, path: str, body: object = None) -> requests.Response:
        return requests.request(
            method, f"{self.archive.url}/dicomweb{path}", data=None if body is None else json.dumps([body]), timeout=30,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/dicom+json"}, verify=str(self.archive.ca),
        )

    def made(self, **more: Any) -> str:
        uid = f"1.2.840.98.{next(NUMBERS)}"
        assert self.ask("POST", f"/workitems?{uid}", item(**more)).status_code == 201
        return uid

    def subscribe(self, uid: str, title: str, query: str = "") -> str:
        answer = self.ask("POST", f"/workitems/{uid}/subscribers/{title}{query}")
        assert answer.status_code == 201, answer.text
        return answer.headers["Content-Location"]

    @contextmanager
    def listening(self, url: str, token: str | None = None, headers: dict[str, str] | None = None) -> Iterator[Channel]:
        fields = {"Authorization": f"Bearer {token or self.token}"} if headers is None else headers
        context = ssl.create_default_context(cafile=str(self.archive.ca))
        with asyncio.Runner() as runner:
            async def opened() -> ClientConnection:
                return await connect(url, ssl=context, additional_headers=fields, open_timeout=30, proxy=None)

            inner = runner.run(opened())
            try:
                yield Channel(runner.get_loop(), inner)
            finally:
                runner.run(inner.close())


@pytest.fixture(scope="module")
def mia(archive: RunningArchive) -> Door:
    return Door(archive, "mia")


def heard(channel: Channel) -> dict[str, Any]:
    return dict(json.loads(channel.recv(timeout=60)))


def told(event: dict[str, Any]) -> tuple[str, int, str]:
    state = event.get("00741000", {}).get("Value", [""])[0]
    return event["00001000"]["Value"][0], event["00001002"]["Value"][0], state


def to_the_end(channel: Channel, *, chatter: int = 0) -> None:
    for _ in range(chatter):
        channel.send("x")
    while True:
        channel.recv(timeout=60)


def quiet(channel: Channel, seconds: float = 1.2) -> None:
    with pytest.raises(TimeoutError):
        channel.recv(timeout=seconds)


def test_one_workitem_from_first_to_last(mia: Door) -> None:
    uid, other = mia.made(), mia.made()
    url = mia.subscribe(uid, "WATCH1")
    assert url.startswith("wss://127.0.0.1:")
    with mia.listening(url) as channel:
        first = heard(channel)
        assert told(first) == (uid, 1, "SCHEDULED")
        assert first["00000002"]["Value"] == ["1.2.840.10008.5.1.4.34.6.4"]
        claim = {"00741000": el("CS", "IN PROGRESS"), "00081195": el("UI", LOCK)}
        assert mia.ask("PUT", f"/workitems/{uid}/state", claim).status_code == 200
        assert told(heard(channel)) == (uid, 1, "IN PROGRESS")
        assert mia.ask("POST", f"/workitems/{other}/cancelrequest").status_code == 202  # nobody watches that one
        assert mia.ask("POST", f"/workitems/{uid}/cancelrequest", {"00741238": el("LT", "moved")}).status_code == 202
        asked = heard(channel)
        assert (told(asked)[:2], asked["00741238"]["Value"]) == ((uid, 2), ["moved"])
        progress = {"00741002": el("SQ", {"00741004": el("DS", 50)}), "00404041": el("CS", "READY")}
        assert mia.ask("POST", f"/workitems/{uid}?{LOCK}", {**progress, **performed()}).status_code == 200
        assert told(heard(channel)) == (uid, 3, "")
        assert mia.ask("PUT", f"/workitems/{uid}/state", {**claim, "00741000": el("CS", "COMPLETED")}).status_code == 200
        assert told(heard(channel)) == (uid, 1, "COMPLETED")


def test_all_workitems_and_what_was_missed(mia: Door) -> None:
    url = mia.subscribe(GLOBAL, "WATCH2")
    first = mia.made()
    with mia.listening(url) as channel:
        assert [told(heard(channel)) for _ in range(2)] == [(first, 1, "SCHEDULED"), (first, 5, "")]
    second = mia.made()
    with mia.listening(url) as channel:  # what it was told it is not told again, what it missed it is
        assert told(heard(channel)) == (second, 1, "SCHEDULED")
        assert told(heard(channel)) == (second, 5, "")
        assert mia.ask("DELETE", f"/workitems/{second}/subscribers/WATCH2").status_code == 200
        assert mia.ask("POST", f"/workitems/{second}/cancelrequest").status_code == 202
        assert mia.ask("POST", f"/workitems/{GLOBAL}/subscribers/WATCH2/suspend").status_code == 200
        mia.made()
        assert mia.ask("POST", f"/workitems/{first}/cancelrequest").status_code == 202
        assert told(heard(channel)) == (first, 1, "CANCELED")
        assert mia.ask("DELETE", f"/workitems/{GLOBAL}/subscribers/WATCH2").status_code == 200
        third = mia.made()
        assert third
        quiet(channel)
    assert mia.ask("DELETE", f"/workitems/{second}/subscribers/NOBODY").status_code == 404


def test_a_filter(mia: Door) -> None:
    assert mia.ask("POST", f"/workitems/{FILTERED}/subscribers/WATCH3").status_code == 400
    url = mia.subscribe(FILTERED, "WATCH3", "?filter=00741202=liver*,ProcedureStepState=SCHEDULED")
    mia.made(x00741202=el("LO", "heart"))
    wanted = mia.made(x00741202=el("LO", "liver first"))
    with mia.listening(url) as channel:
        assert told(heard(channel)) == (wanted, 1, "SCHEDULED")


def test_another_user_with_the_same_title_hears_nothing_of_it(archive: RunningArchive, mia: Door) -> None:
    ole = Door(archive, "ole")
    url = mia.subscribe(GLOBAL, "WATCH4")
    with pytest.raises(InvalidStatus) as refused, ole.listening(url):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("headers", [
    {}, {"Authorization": "Bearer sr_x"}, {"Authorization": "Negotiate x"}, {"Cookie": "__Host-session=guess"},
    {"Cookie": "__Host-session=guess", "Origin": "https://evil.example"},
])
def test_strangers_are_not_let_in(mia: Door, headers: dict[str, str]) -> None:
    url = mia.subscribe(GLOBAL, "WATCH5")
    with pytest.raises(InvalidStatus) as refused, mia.listening(url, headers=headers):
        pass
    assert refused.value.response.status_code == 403


def test_a_browsers_session_from_our_own_pages_alone(archive: RunningArchive, mia: Door) -> None:
    session = requests.Session()
    session.verify, session.trust_env = str(archive.ca), False
    own = str(archive.status["http"]["public_url"])
    signed_in = session.post(f"{archive.url}/login", data={"name": "mia", "password": archives.PASSWORD}, headers={
        "Origin": own, "Sec-Fetch-Site": "same-origin"}, timeout=30, allow_redirects=False)
    assert signed_in.status_code == 303, signed_in.text
    name, value = next(iter(session.cookies.items()))
    url = mia.subscribe(GLOBAL, "WATCH6")
    uid = mia.made()
    for origin in (None, "https://evil.example", "null"):
        headers = {"Cookie": f"{name}={value}"} | ({"Origin": origin} if origin else {})
        with pytest.raises(InvalidStatus), mia.listening(url, headers=headers):
            pass
    with mia.listening(url, headers={"Cookie": f"{name}={value}", "Origin": own}) as channel:
        assert told(heard(channel))[0] == uid


def test_a_revoked_token_ends_the_connection(archive: RunningArchive, mia: Door) -> None:
    url = mia.subscribe(GLOBAL, "WATCH7")
    with mia.listening(url, TO_REVOKE["token"]) as channel:
        quiet(channel, 0.5)
        archive.json("token", "revoke", str(TO_REVOKE["id"]))
        started = time.monotonic()
        mia.made()
        with pytest.raises(ConnectionClosed) as closed:
            to_the_end(channel)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        assert time.monotonic() - started < 30


def test_not_more_than_allowed_and_a_chatterer_is_cut_off(mia: Door) -> None:
    url = mia.subscribe(GLOBAL, "WATCH8")
    channels: list[Channel] = []
    with ExitStack() as held:

        def let_in() -> bool:
            try:
                channels.append(held.enter_context(mia.listening(url)))
            except InvalidStatus:
                return False
            return True

        for _ in range(3):
            assert eventually(let_in), "whoever left before gives their place back a moment later"
        assert not let_in()
        with pytest.raises(ConnectionClosed):
            to_the_end(channels[-1], chatter=3000)
        assert eventually(let_in), "a place is free again"


def test_the_door_says_where_the_channel_is(mia: Door) -> None:
    answer = mia.ask("GET", "/subscribers/WATCH1")
    assert answer.status_code == 426
    assert answer.headers["Content-Location"].startswith("wss://")


def test_a_webhook_of_the_served_archive(archive: RunningArchive) -> None:
    receiver = Receiver()

    def hooks(method: str, path: str = "", **more: Any) -> requests.Response:
        return requests.request(method, f"{archive.url}/api/webhooks{path}", timeout=30, verify=str(archive.ca),
                                headers={"Authorization": f"Bearer {TOKENS['admin']}"}, **more)

    try:
        made = archive.json("webhook", "add", receiver.url, "--as", "ole")
        assert made["secret"].startswith("whsec_")
        assert hooks("POST", f"/{made['id']}/test").json()["status"] == 200
        stored = requests.post(
            f"{archive.url}/dicomweb/studies", data=archives.instance(1, study="1.2.77"), timeout=30, verify=str(archive.ca),
            headers={"Authorization": f"Bearer {TOKENS['ole']}", "Content-Type": "application/dicom"},
        )
        assert stored.status_code == 200
        assert eventually(lambda: len(receiver.got) >= 2)
        [change] = json.loads(receiver.got[1][1])["changes"]
        assert (change["kind"], change["sop_instance_uid"]) == ("stored", "1.2.77.1.1")
        assert eventually(lambda: [(row["state"], row["id"]) for row in hooks("GET").json()] == [("delivering", made["id"])])
        assert hooks("DELETE", f"/{made['id']}").status_code == 204
        assert hooks("GET").json() == []
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
