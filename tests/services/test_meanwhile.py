"""Nothing is handed on before the access is on record, whoever is quicker."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from archive.errors import NotFound, SealBroken, Unavailable
from archive.services import meanwhile
from archive.services.meanwhile import Recorder

WAIT_S = 10.0


def refuse() -> None:
    message = "not recorded"
    raise Unavailable(message)


def one(recorder: Recorder, record: Callable[[], None], read: Callable[[], str], *, worth: bool = True) -> str:
    with recorder.recorded(record, worth=worth):
        return read()


def test_who_is_alone_reads_while_it_is_recorded() -> None:
    began, durable, read = threading.Event(), threading.Event(), []

    def record() -> None:
        began.set()
        assert durable.wait(WAIT_S)

    def ask() -> None:
        one(recorder, record, lambda: "bytes" if began.wait(WAIT_S) else "")
        read.append("handed on")

    recorder = Recorder()
    thread = threading.Thread(target=ask)
    thread.start()
    assert began.wait(WAIT_S)
    thread.join(0.05)
    assert thread.is_alive(), "what was read went out before it was on record"
    assert not read
    durable.set()
    thread.join(WAIT_S)
    assert read == ["handed on"]


@pytest.mark.parametrize("worth", [True, False])
def test_what_could_not_be_recorded_is_not_handed_on(worth: bool) -> None:
    recorder = Recorder()
    with pytest.raises(Unavailable):
        one(recorder, refuse, lambda: "bytes", worth=worth)
    assert one(recorder, lambda: None, lambda: "bytes") == "bytes"


def test_an_error_of_the_record_goes_before_one_of_the_reading() -> None:
    def broken() -> str:
        message = "broken"
        raise SealBroken(message, verdict="V07")

    recorder = Recorder()
    with pytest.raises(Unavailable):
        one(recorder, refuse, broken)
    recorded = []
    with pytest.raises(SealBroken):
        one(recorder, lambda: recorded.append(1), broken)
    assert recorded == [1]


def test_others_record_first_and_in_their_own_thread() -> None:
    recorder, order = Recorder(), []
    with recorder.recorded(lambda: None):
        one(recorder, lambda: order.append(threading.current_thread().name), lambda: order.append("read") or "")
    assert order == [threading.current_thread().name, "read"]
    one(recorder, lambda: order.append(threading.current_thread().name), lambda: "")
    assert order[2:] == ["recorder"]


def test_what_is_not_worth_it_records_first() -> None:
    order = []
    with pytest.raises(NotFound):
        one(Recorder(), lambda: (_ for _ in ()).throw(NotFound("x")), lambda: order.append("read") or "", worth=False)
    assert not order


def test_without_a_thread_to_be_had_it_is_recorded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_thread: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    meanwhile._thread.cache_clear()
    monkeypatch.setattr(threading.Thread, "start", full)
    order: list[str] = []
    assert one(Recorder(), lambda: order.append("recorded"), lambda: order.append("read") or "bytes") == "bytes"
    assert order == ["recorded", "read"]
    with pytest.raises(Unavailable):
        one(Recorder(), refuse, lambda: "bytes")


def test_a_forked_process_has_a_thread_of_its_own() -> None:
    recorder = Recorder()
    assert one(recorder, lambda: None, lambda: "before") == "before"
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if one(recorder, lambda: None, lambda: "after") == "after" else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
