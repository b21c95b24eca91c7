"""How much one address may ask: a frozen clock for the buckets, the test client for the answer."""

from __future__ import annotations

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from archive.web import permissions, rate
from archive.web.rate import BURST_S, MOST_ADDRESSES, Buckets


def test_a_bucket_empties_and_fills() -> None:
    now = [0.0]
    buckets = Buckets(2, lambda: now[0])
    assert [buckets.take("a") for _ in range(2 * BURST_S)] == [0.0] * 2 * BURST_S
    assert buckets.take("a") == pytest.approx(0.5)
    assert buckets.take("b") == 0.0, "another's is its own"
    now[0] += 0.499
    assert buckets.take("a") > 0
    now[0] += 0.002
    assert buckets.take("a") == 0.0
    assert buckets.take("a") > 0
    now[0] += 3600
    assert [buckets.take("a") == 0.0 for _ in range(2 * BURST_S + 1)] == [True] * 2 * BURST_S + [False], "no more than its size"


@given(st.lists(st.floats(0, 3), max_size=200))
def test_never_more_than_the_rate(gaps: list[float]) -> None:
    now = [0.0]
    buckets, taken = Buckets(3, lambda: now[0]), 0
    for gap in gaps:
        now[0] += gap
        taken += buckets.take("a") == 0.0
        assert taken <= 3 * BURST_S + 3 * now[0] + 1e-6


def test_it_remembers_only_so_many() -> None:
    buckets = Buckets(1, lambda: 0.0)
    for number in range(MOST_ADDRESSES + 100):
        buckets.take(str(number))
    assert len(buckets._left) == MOST_ADDRESSES


def test_too_much_is_refused_before_anything_is_looked_up() -> None:
    limited = Flask("limited")
    rate.register(limited, 1)
    limited.extensions[rate.KEY]._clock = lambda: 0.0
    limited.add_url_rule("/", "root", lambda: "here")
    client = limited.test_client()

    def status(address: str) -> int:
        return client.get("/", environ_base={"REMOTE_ADDR": address}).status_code

    assert [status("192.0.2.1") for _ in range(BURST_S + 1)] == [200] * BURST_S + [429]
    assert status("192.0.2.2") == 200
    assert [status(f"2001:db8::{number:x}") for number in range(BURST_S + 1)] == [200] * BURST_S + [429], "a /64 is one"
    assert {status(address) for address in ("127.0.0.1", "::1") for _ in range(BURST_S * 3)} == {200}
    unlimited = Flask("unlimited")
    rate.register(unlimited, 0)
    assert unlimited.before_request_funcs == {}


def test_the_answer_is_a_problem(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Buckets, "take", lambda _self, _key: 0.4)
    answer = app.test_client().get("/dicomweb/studies", environ_base={"REMOTE_ADDR": "192.0.2.1"})
    assert (answer.status_code, answer.headers["Retry-After"], answer.content_type) == (429, "1", "application/problem+json")
    assert answer.headers["Content-Security-Policy"]


def test_who_has_not_signed_in_sends_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these is answered by a row: a stranger's five hundred a second would keep the writers' turn."""
    for endpoint, rule in (("door", permissions.PUBLIC), ("inside", permissions.SIGNED_IN)):
        monkeypatch.setitem(permissions.ENDPOINTS, endpoint, rule)
    limited = Flask("limited")
    rate.register(limited, 500)
    limited.extensions[rate.DOORS]._clock = lambda: 0.0
    for endpoint in ("door", "inside"):
        limited.add_url_rule(f"/{endpoint}", endpoint, lambda: "here", methods=["GET", "POST"])
    client = limited.test_client()

    def status(address: str, path: str = "/door", method: str = "POST") -> int:
        return client.open(path, method=method, environ_base={"REMOTE_ADDR": address}).status_code

    allowed = rate.DOORS_PER_SECOND * BURST_S
    assert [status("192.0.2.1") for _ in range(allowed + 1)] == [200] * allowed + [429]
    assert [status("192.0.2.1", "/door", "GET"), status("192.0.2.1", "/inside"), status("192.0.2.2")] == [200] * 3
