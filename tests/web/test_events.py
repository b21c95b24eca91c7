"""Who knocks at the events port is answered in time, whatever the database does meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from archive.access.subject import Subject
from archive.config import Config
from archive.errors import NotFound, Unauthenticated, Unavailable
from archive.services.workitem_watch import Due
from archive.web import events, rate
from archive.web.events import Events
from tests.dimse.fakes import eventually

POLICY, LATER = 1008, 1013
HEADERS = [(b"authorization", b"Bearer x")]
SCOPE = {"type": "websocket", "path": "/dicomweb/subscribers/WATCH", "client": ("192.0.2.7", 1), "headers": HEADERS}


class SignIn:
    """Answers when it is let, with a subject or an error."""

    def __init__(self, answer: Subject | Exception) -> None:
        self.answer, self.go, self.asked = answer, threading.Event(), 0

    def bearer(self, _token: str, *, address: str) -> Subject:
        assert address
        self.asked += 1
        assert self.go.wait(20)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def standing(self, _subject: Subject) -> None:
        """They come by a token."""


def application(signin: SignIn, *, due: Any = None, **options: Any) -> Events:
    def watched(*_args: object) -> Any:
        if isinstance(due, Exception):
            raise due
        return due

    return Events(SimpleNamespace(signin=signin, workitem_watch=SimpleNamespace(due=watched)), Config(), **options)


async def knock(app: Events) -> tuple[list[dict[str, Any]], float]:
    """What one client is sent, and after how long; it leaves as soon as it is let in."""
    sent: list[dict[str, Any]] = []
    said = [{"type": "websocket.connect"}, {"type": "websocket.disconnect"}]

    async def receive() -> dict[str, Any]:
        return said.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    started = time.monotonic()
    await app(dict(SCOPE), receive, send)
    return sent, time.monotonic() - started


@pytest.mark.parametrize(("answer", "due", "code"), [
    (Unauthenticated("no"), None, POLICY), (Subject(1, "mia", "user", "token"), NotFound("no"), POLICY),
    (Unavailable("no"), None, LATER), (Subject(1, "mia", "user", "token"), Unavailable("no"), LATER),
])
def test_why_one_is_not_let_in(answer: Subject | Exception, due: Any, code: int) -> None:
    signin = SignIn(answer)
    signin.go.set()
    sent, _took = asyncio.run(knock(application(signin, due=due)))
    assert sent == [{"type": "websocket.close", "code": code}]


def test_let_in() -> None:
    signin = SignIn(Subject(1, "mia", "user", "token"))
    signin.go.set()
    sent, _took = asyncio.run(knock(application(signin, due=Due([], 0, False), look_s=0.01, recheck_s=0.01)))
    assert sent[0] == {"type": "websocket.accept"}


def test_a_refusal_waits_for_no_database() -> None:
    """What is written is written all the same; who knocks meanwhile is answered, and those beyond the most at once."""
    signin = SignIn(Unauthenticated("no"))

    async def all_of_them() -> None:
        app = application(signin, admission_s=1.5)
        answers = await asyncio.gather(*(knock(app) for _ in range(events.ADMITTING + 3)))
        assert [sent for sent, _ in answers] == [[{"type": "websocket.close", "code": LATER}]] * len(answers)
        assert [took < 1.2 for _, took in answers].count(True) == 3
        assert max(took for _, took in answers) < 20
        signin.go.set()
        assert await asyncio.to_thread(eventually, lambda: signin.asked == events.ADMITTING)
        sent, _ = await knock(app)
        assert sent == [{"type": "websocket.close", "code": POLICY}]

    asyncio.run(all_of_them())


def test_a_strangers_cookies_cost_next_to_nothing() -> None:
    """Of which every one is looked at before anybody is known."""
    for text in ('session="' + "\\" * 20_000 + '"', 'session="' + '\\"' * 10_000 + '"', "a=;" * 7_000):
        began = time.process_time()
        events._cookie(text, "session")
        assert time.process_time() - began < 0.5
    assert events._cookie("other=1; session=word; more", "session") == "word"
    assert events._cookie("other=1", "session") == events._cookie("\xff\xfe", "session") == ""


def test_one_address_keeps_nobody_else_from_being_asked_after() -> None:
    signin = SignIn(Unauthenticated("no"))
    signin.go.set()
    app = application(signin)
    allowed = rate.DOORS_PER_SECOND * rate.BURST_S
    app._doors = rate.Buckets(rate.DOORS_PER_SECOND, lambda: 0.0)

    async def many() -> list[int]:
        return [(await knock(app))[0][0]["code"] for _ in range(allowed + 1)]

    assert asyncio.run(many()) == [POLICY] * allowed + [LATER]
    assert signin.asked == allowed
