"""The notification connections of the worklist: one WebSocket a subscriber, on a port of their own (PS3.18 11.13).

An ASGI application that granian serves with the archive's certificate. A connection is authenticated as any request is, by token or the
browser's session; each hand-over asks again, so a revoked token, session, permission or grant ends it or silences it at once. Events
are durable until they are out: who was away hears of a week.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

from werkzeug.sansio.http import parse_cookie

from archive.access.subject import Subject
from archive.config import Config
from archive.errors import ArchiveError, Denied, Forbidden, NotFound, Unauthenticated, Unavailable
from archive.services.datastores import DEFAULT
from archive.web import rate
from archive.web.session import CREDENTIAL_BYTES, cookie_name, origin_of, pair_of

log = logging.getLogger("archive.web.events")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOOK_S = 0.5
"""How often one glance at the database is made for all connections together."""
RECHECK_S = 5.0
"""How often a connection asks anew whether it still counts, when nothing happens."""
MOST_MESSAGES = 1000
"""A client has nothing to say here; one that says this much is cut off."""
PER_PRINCIPAL = 16
ADMISSION_S = 5.0
"""How long one who knocks waits: what refuses is written to the ledger, and a database under load lets that wait."""
ADMITTING = 32
"""How many may be asked after at a time; they have threads of their own, so that strangers keep no event from its subscribers."""

_PATH = re.compile(r"/(?:dicomweb|datastores/(?P<datastore>[^/]{1,200})/dicomweb)/subscribers/(?P<title>[^/]{1,64})")
_POLICY, _LATER = 1008, 1013


class Events:
    """The application of the events port."""

    def __init__(
        self, node: Any, config: Config, *, look_s: float = LOOK_S, recheck_s: float = RECHECK_S, admission_s: float = ADMISSION_S
    ) -> None:
        """Use the services of an opened archive."""
        self._signin, self._watch, self._config = node.signin, node.workitem_watch, config
        self._look_s, self._recheck_s, self._admission_s = look_s, recheck_s, admission_s
        self._admitting: set[asyncio.Future[Any]] = set()
        self._admission = ThreadPoolExecutor(4, "admission")
        self._doors = rate.Buckets(rate.DOORS_PER_SECOND) if config.http.requests_per_second else None
        self._open: dict[int, int] = {}
        self._changed = asyncio.Event()
        self._newest: int | None = None
        self._looking: asyncio.Task[None] | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request or serve one connection."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            healthy = scope["path"] == "/healthz"
            await send({"type": "http.response.start", "status": 200 if healthy else 426, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"ok\n" if healthy else b"open a WebSocket here\n"})

    async def _websocket(self, scope: Message, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        found = _PATH.fullmatch(scope["path"])
        if found is None or sum(self._open.values()) >= self._config.events.max_connections:
            await send({"type": "websocket.close", "code": _POLICY if found is None else _LATER})
            return
        if self._knocks_too_often(str((scope.get("client") or ("",))[0])):
            await send({"type": "websocket.close", "code": _LATER})
            return
        datastore, title = unquote(found["datastore"] or DEFAULT), unquote(found["title"]).strip(" ")
        try:
            subject, due = await self._admitted(lambda: self._admit(scope, datastore, title))
        except (Denied, NotFound, Unauthenticated):
            await send({"type": "websocket.close", "code": _POLICY})  # before it is accepted: 403
            return
        except (ArchiveError, TimeoutError):
            await send({"type": "websocket.close", "code": _LATER})
            return
        await send({"type": "websocket.accept"})
        self._open[subject.principal_id] = self._open.get(subject.principal_id, 0) + 1
        listening = asyncio.ensure_future(_until_gone(receive))
        try:
            await self._serve(subject, datastore, title, due, listening, send)
        finally:
            listening.cancel()
            self._open[subject.principal_id] -= 1

    async def _serve(
        self, subject: Subject, datastore: str, title: str, due: Any, gone: asyncio.Future[None], send: Send
    ) -> None:
        """Hand over what is due, then wait for more, until either side ends it."""
        number, seen = 0, None
        try:
            while not gone.done():
                for body in due.bodies:
                    number = number % 0xFFFF + 1
                    numbered = {**body, "00000110": {"vr": "US", "Value": [number]}}
                    await send({"type": "websocket.send", "text": json.dumps(dict(sorted(numbered.items())), ensure_ascii=False)})
                if due.bodies:
                    await asyncio.to_thread(self._watch.told, subject, datastore, title, due.told_until)
                if not due.more:
                    await self._wait(gone, seen)
                seen = self._newest  # before the question: what comes after it wakes this one again
                if not gone.done():
                    due = await asyncio.to_thread(self._due, subject, datastore, title)
        except (Denied, NotFound):
            await _close(gone, send, _POLICY)
        except ArchiveError as error:
            log.warning("a notification connection ended (%s)", error.code)
            await _close(gone, send, _LATER)
        else:
            if gone.exception() is not None:
                await _close(gone, send, _POLICY)

    async def _wait(self, gone: asyncio.Future[None], seen: int | None) -> None:
        """Return when something happened, when it is time to ask anew, or when the client is gone."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        if seen is not None and self._newest != seen:
            return
        changed: asyncio.Future[Any] = asyncio.ensure_future(self._changed.wait())
        watched: set[asyncio.Future[Any]] = {changed, gone}
        await asyncio.wait(watched, timeout=self._recheck_s, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()

    async def _look(self) -> None:
        """Wake all connections when there is an event; ends with the last of them."""
        while sum(self._open.values()):
            try:
                newest = await asyncio.to_thread(self._watch.newest)
            except ArchiveError:
                newest = self._newest
            if newest != self._newest:
                self._newest = newest
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(self._look_s)

    def _knocks_too_often(self, address: str) -> bool:
        whose = rate.network(address)
        return bool(whose) and self._doors is not None and bool(self._doors.take(whose))

    async def _admitted(self, ask: Callable[[], tuple[Subject, Any]]) -> tuple[Subject, Any]:
        """Return what `ask` does, in time; what it writes is written all the same.

        Raises:
            TimeoutError: the answer does not come, or too many wait for theirs. ArchiveError: what it raises.
        """
        if len(self._admitting) >= ADMITTING:
            raise TimeoutError
        asked = asyncio.get_running_loop().run_in_executor(self._admission, ask)
        self._admitting.add(asked)
        asked.add_done_callback(self._answered)
        return await asyncio.wait_for(asyncio.shield(asked), self._admission_s)

    def _answered(self, asked: asyncio.Future[Any]) -> None:
        self._admitting.discard(asked)
        if not asked.cancelled():
            asked.exception()  # whoever asked may be gone

    def _admit(self, scope: Message, datastore: str, title: str) -> tuple[Subject, Any]:
        subject = self._authenticate(scope)
        if self._open.get(subject.principal_id, 0) >= PER_PRINCIPAL:
            message = "this user has as many notification connections as one may have"
            raise Unavailable(message, remedy="close one")
        return subject, self._due(subject, datastore, title)

    def _due(self, subject: Subject, datastore: str, title: str) -> Any:
        """Return what a subscriber is due; a session whose user owes a new password or a second factor is due nothing, as at every page."""
        standing = self._signin.standing(subject)
        if standing is not None and (standing.must_change or standing.must_enrol):
            message = "sign in with the browser, and do first what it asks for"
            raise Forbidden(message)
        return self._watch.due(subject, datastore, title)

    def _authenticate(self, scope: Message) -> Subject:
        fields = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        address = str((scope.get("client") or ("",))[0])
        header = fields.get("authorization")
        if header is not None:
            return self._from_header(header, address)
        token = _cookie(fields.get("cookie", ""), cookie_name(self._config))
        origin = fields.get("origin", "")
        own = {origin_of(url) for url in (self._config.archive.public_url, self._config.viewer_url)}
        if not token or len(token) > CREDENTIAL_BYTES or origin_of(origin) is None or origin_of(origin) not in own:
            message = "sign in first"
            raise Unauthenticated(message)
        subject: Subject = self._signin.session(token, address=address)
        return subject

    def _from_header(self, header: str, address: str) -> Subject:
        scheme, _, credential = header.strip().partition(" ")
        credential = credential.strip()
        found: Subject
        if credential and len(credential) <= CREDENTIAL_BYTES:
            if scheme.lower() == "bearer":
                found = self._signin.bearer(credential, address=address)
                return found
            pair = pair_of(credential) if scheme.lower() == "basic" else None
            if pair is not None:
                found = self._signin.basic(*pair, address=address)
                return found
        message = "the Authorization header holds no credential the archive takes"
        raise Unauthenticated(message)


async def _until_gone(receive: Receive) -> None:
    """Return when the client leaves.

    Raises:
        ValueError: it says too much.
    """
    for _ in range(MOST_MESSAGES):
        if (await receive())["type"] == "websocket.disconnect":
            return
    raise ValueError


async def _close(gone: asyncio.Future[None], send: Send, code: int) -> None:
    gone.cancel()  # granian sends no close frame while somebody waits to receive
    await asyncio.sleep(0)
    await send({"type": "websocket.close", "code": code})


def _cookie(text: str, name: str) -> str:
    # As the application reads them. Those of the standard library take time with the square of their length, and a stranger sends them.
    return parse_cookie(text).get(name, "")
