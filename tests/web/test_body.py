"""Request bodies: bounded in size, in memory and in patience; a drop is never an end."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout, ServiceUnavailable

from archive.web import body
from archive.web.body import Body, Dropped, Slots, drain_refused, has_body, take_small
from tests.dimse.fakes import eventually


class Source(io.RawIOBase):
    """Gives blocks; counts how far it was read ahead; may stall or break."""

    def __init__(self, blocks: Iterator[bytes | Exception]) -> None:
        self.blocks = blocks
        self.given = 0

    def read(self, size: int = -1) -> bytes:
        block = next(self.blocks, b"")
        if isinstance(block, Exception):
            raise block
        self.given += len(block)
        return block


def whole(source: Source, content_length: int | None, max_bytes: int = 1000, patience_s: float = 5) -> bytes:
    opened = Body(source, content_length=content_length, max_bytes=max_bytes, patience_s=patience_s)
    try:
        return b"".join(iter(opened.read, b""))
    finally:
        opened.close()


def test_all_of_it() -> None:
    assert whole(Source(iter([b"ab", b"cd"])), 4) == b"abcd"
    assert whole(Source(iter([b"ab", b"cd"])), None) == b"abcd"
    assert whole(Source(iter([])), 0) == b""


def test_a35_fewer_bytes_than_said_is_a_drop() -> None:
    with pytest.raises(Dropped):
        whole(Source(iter([b"ab", b"cd"])), 5)


def test_a_broken_connection_is_a_drop() -> None:
    with pytest.raises(Dropped):
        whole(Source(iter([b"ab", OSError("reset")])), None)


def test_a27_too_much_is_refused_before_or_while_it_comes() -> None:
    with pytest.raises(RequestEntityTooLarge):
        whole(Source(iter([])), 1001)
    with pytest.raises(RequestEntityTooLarge):
        whole(Source(b"x" * 100 for _ in range(11)), None)
    assert len(whole(Source(b"x" * 100 for _ in range(10)), None)) == 1000


def test_a_stalled_sender_is_given_up() -> None:
    gate = threading.Event()

    def blocks() -> Iterator[bytes]:
        yield b"ab"
        gate.wait(60)

    started = time.monotonic()
    with pytest.raises(RequestTimeout):
        whole(Source(blocks()), 100, patience_s=0.2)
    assert time.monotonic() - started < 20
    gate.set()


def test_what_is_drained_is_bounded_in_size_and_time() -> None:
    source = Source(bytes(10) for _ in range(50))
    opened = Body(source, content_length=None, max_bytes=1000)
    opened.drain(for_s=5)
    assert source.given == 500
    endless = Source(bytes(100) for _ in iter(int, 1))
    Body(endless, content_length=None, max_bytes=1000).drain(for_s=5)
    gate = threading.Event()

    def blocks() -> Iterator[bytes]:
        gate.wait(60)
        yield b""

    started = time.monotonic()
    Body(Source(blocks()), content_length=None, max_bytes=1000).drain(for_s=0.2)
    assert time.monotonic() - started < 20
    gate.set()


def test_a_refused_body_is_waited_for_only_when_it_is_small() -> None:
    slots = Slots(4)
    for length, read in ((100, 100), (body.REFUSED_BYTES + 1, 0)):
        source = Source(iter([bytes(100)]))
        drain_refused({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": str(length), "wsgi.input": source}, slots)
        assert source.given == read
    with slots.form():
        drain_refused({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "100", "wsgi.input": source}, slots)
    assert source.given == 0


def test_reading_ahead_is_bounded() -> None:
    source = Source(bytes(1000) for _ in range(1000))
    opened = Body(source, content_length=None, max_bytes=1 << 30)
    opened.read()
    time.sleep(0.2)
    assert source.given <= 1000 * (body.BLOCKS_AHEAD + 3)
    opened.close()


def test_the_reading_thread_ends_when_the_body_is_closed() -> None:
    source = Source(bytes(10) for _ in iter(int, 1))
    opened = Body(source, content_length=None, max_bytes=1 << 30)
    opened.read()
    opened.close()
    deadline = time.monotonic() + 5
    before = -1
    while time.monotonic() < deadline and before != source.given:
        before = source.given
        time.sleep(0.1)
    assert source.given == before
    assert opened.read() == b""


def test_too_many_stalled_senders_do_not_exhaust_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "_readers", threading.BoundedSemaphore(1))
    gate = threading.Event()
    held = Body(Source(iter([b"x"])), content_length=None, max_bytes=10)
    assert held.read() == b"x"
    assert held.read() == b""
    assert eventually(lambda: body._readers._value == 1)  # its thread ends a moment later

    def blocks() -> Iterator[bytes]:
        gate.wait(60)
        yield b""

    stalled = Body(Source(blocks()), content_length=None, max_bytes=10)
    with pytest.raises(ServiceUnavailable):
        Body(Source(iter([])), content_length=None, max_bytes=10)
    gate.set()
    assert stalled.read() == b""


def test_a_form_is_taken_whole_and_given_again() -> None:
    environ = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "3", "wsgi.input": io.BytesIO(b"a=b"), "HTTP_TRANSFER_ENCODING": "chunked"}
    take_small(environ)
    assert environ["wsgi.input"].read() == b"a=b"  # type: ignore[attr-defined]
    assert environ["CONTENT_LENGTH"] == "3"
    assert "HTTP_TRANSFER_ENCODING" not in environ


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"REQUEST_METHOD": "GET"}, False), ({"REQUEST_METHOD": "POST"}, True), ({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "0"}, False),
        ({"REQUEST_METHOD": "GET", "CONTENT_LENGTH": "1"}, True), ({"REQUEST_METHOD": "GET", "HTTP_TRANSFER_ENCODING": "Chunked"}, True),
        ({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "x"}, True),
    ],
)
def test_which_requests_have_a_body(environ: dict[str, str], expected: bool) -> None:
    assert has_body(environ) is expected


def test_some_threads_are_always_left_for_reading() -> None:
    for threads, forms, stores in ((1, 1, 1), (8, 2, 6), (32, 8, 30)):
        slots = Slots(threads)
        for kind, places in ((partial(slots.form, 0.05), forms), (partial(slots.store, 0.05), stores)):
            with ExitStack() as stack:
                for _ in range(places):
                    stack.enter_context(kind())
                with pytest.raises(ServiceUnavailable) as refused, kind():
                    pass
                assert refused.value.retry_after
            with kind():
                pass


class Trickle(io.RawIOBase):
    """Gives a block now and then, until it is told to end."""

    def __init__(self, block: bytes, every_s: float) -> None:
        self.block, self.every_s = block, every_s
        self.over = threading.Event()

    def read(self, size: int = -1) -> bytes:
        return b"" if self.over.wait(self.every_s) else self.block


@contextmanager
def storing(slots: Slots, sources: list[Trickle], became: dict[int, object]) -> Iterator[None]:
    """A request of each source under way, each in a place."""

    def one(number: int, source: Trickle) -> None:
        with slots.store() as place:
            place.body = opened = Body(source, content_length=None, max_bytes=1 << 40)
            begun.release()
            try:
                became[number] = len(b"".join(iter(opened.read, b"")))
            except RequestTimeout as error:
                became[number] = error
            finally:
                opened.close()

    begun = threading.Semaphore(0)
    threads = [threading.Thread(target=one, args=each) for each in enumerate(sources)]
    for thread in threads:
        thread.start()
    try:
        assert all(begun.acquire(timeout=60) for _ in threads)
        yield
    finally:
        for source in sources:
            source.over.set()
        for thread in threads:
            thread.join(60)


def test_who_trickles_gives_their_place_to_who_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "STORE_GRACE_S", 1.0)
    slots, became = Slots(4), dict[int, object]()
    fast, slow = Trickle(bytes(64 << 10), 0.01), Trickle(bytes(4 << 10), 0.1)
    with storing(slots, [fast, slow], became), slots.store(60):
        assert isinstance(became.get(1), RequestTimeout)
        assert 0 not in became
        with pytest.raises(ServiceUnavailable), slots.store(0.5):
            pass
    assert isinstance(became[0], int)


def test_who_finds_no_place_while_another_waits_is_told_at_once() -> None:
    slots, came = Slots(3), list[float]()
    with slots.store():
        waiting = threading.Thread(target=lambda: came.append(0) if _has_place(slots, 60) else None)
        waiting.start()
        assert eventually(lambda: slots._stores._waited_for)
        begun = time.monotonic()
        assert not _has_place(slots, 60)
        assert time.monotonic() - begun < 10
    waiting.join(60)
    assert came, "what became free is for who waits"


def _has_place(slots: Slots, wait_s: float) -> bool:
    try:
        with slots.store(wait_s):
            return True
    except ServiceUnavailable:
        return False
