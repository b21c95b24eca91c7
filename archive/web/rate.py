"""How much one address may ask: a bucket of tokens each, so that a script run wild slows down itself alone.

It bounds what is asked, not who signs in: that is `services/signin.py`. Each web process counts for itself. Loopback is this machine, or a
proxy that speaks for everybody and has limits of its own.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from flask import Flask, request
from werkzeug.exceptions import TooManyRequests

from archive.web import permissions
from archive.web.session import SAFE_METHODS

BURST_S = 10
"""How many seconds' worth may come at once: a viewer that opens a study asks for all of it."""

MOST_ADDRESSES = 10_000
KEY, DOORS = "strongroom-rate", "strongroom-rate-doors"

DOORS_PER_SECOND = 10
"""Of what anybody may send who has not signed in: it is answered by writing, and who writes keeps those waiting who store."""


class Buckets:
    """Token buckets by key; those not asked for longest are forgotten, which fills them."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Fill each at `per_second` up to `BURST_S` seconds' worth."""
        self._rate, self._size, self._clock = per_second, per_second * BURST_S, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Take a token: 0.0, or the seconds until there is one."""
        now = self._clock()
        with self._lock:
            left, at = self._left.get(key, (self._size, now))
            left = min(self._size, left + (now - at) * self._rate)
            taken = left >= 1
            self._left[key] = (left - 1 if taken else left, now)
            self._left.move_to_end(key)
            if len(self._left) > MOST_ADDRESSES:
                self._left.popitem(last=False)
        return 0.0 if taken else (1 - left) / self._rate


def register(app: Flask, per_second: int) -> None:
    """Refuse what is too much before anything is looked up for it; 0 refuses nothing."""
    if per_second:
        buckets = app.extensions[KEY] = Buckets(per_second)
        doors = app.extensions[DOORS] = Buckets(min(per_second, DOORS_PER_SECOND))
        app.before_request(lambda: _admit(buckets))
        app.before_request(lambda: _admit(doors) if _knocks() else None)


def admitted(app: Flask, address: str) -> bool:
    """Return whether an address may ask now, outside a request; one that may not is refused by the application, which asks again."""
    buckets: Buckets | None = app.extensions.get(KEY)
    whose = network(address) if buckets is not None else ""
    return not whose or buckets is None or not buckets.take(whose)


def _knocks() -> bool:
    """Whether this is to change something for somebody of whom nothing is known."""
    rule = None if request.method in SAFE_METHODS else permissions.rule_of(request.endpoint or "")
    return rule is not None and rule.public


def _admit(buckets: Buckets) -> None:
    whose = network(request.remote_addr or "")
    if not whose:
        return
    wait_s = buckets.take(whose)
    if wait_s:
        raise TooManyRequests("this address asks more than it may; wait a moment", retry_after=max(1, round(wait_s)))


def network(address: str) -> str:
    """Return whom an address counts to: itself, its /64 where it has so many; nobody for this machine."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if parsed.is_loopback:
        return ""
    return address if parsed.version == 4 else str(ipaddress.ip_network(f"{parsed}/64", strict=False).network_address)
