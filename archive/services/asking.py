"""Asking again: may somebody still have the instances that were found, at the moment each of them leaves.

The rule is asked in the database, for some of the instances to come at once, as it is now and as it is at the end of a moment, since
rights also begin and end by the clock. What both say holds for that moment as long as nobody has committed anything, which is looked at
before each instance; an instance of which they do not both say it is asked about alone. In between the processor sends: a statement
for each instance would cost more than opening it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from archive.db import commits
from archive.services.core import Core

HOLDS = timedelta(milliseconds=50)
"""How long an answer about several counts when nothing is committed. No window of a grant is as short."""

AT_ONCE = 64
_SPAN = 4 * AT_ONCE
"""How far apart the keys may be that are asked about in one statement: others lie between them."""

T = TypeVar("T")


class Asking(Generic[T]):
    """About instances that leave one after the other; one thread."""

    def __init__(
        self, core: Core, keys: Sequence[int], one: Callable[[int, datetime], T | None],
        between: Callable[[int, int, datetime], Mapping[int, T]],
    ) -> None:
        """Nothing has been asked yet about the instances of these keys.

        `one` asks the rule about a key at a moment, `between` about all keys from one to another; what it says is only of those inside.
        """
        self._core, self._keys, self._one, self._between = core, keys, one, between
        self._state: commits.State | None = None
        self._at: datetime | None = None
        self._width = 1
        self._answered: range = range(0)
        self._inside: Mapping[int, T] = {}

    def now(self, number: int) -> T | None:
        """Return what the rule says of the instance of that number now: None when it is not inside.

        Raises:
            DatabaseUnavailable.
        """
        at = self._core.clock()
        state = commits.state(self._core.database)
        held = state is not None and state == self._state and self._at is not None and timedelta(0) <= at - self._at < HOLDS
        if not held or number not in self._answered:
            self._width = min(2 * self._width, AT_ONCE) if held else 1
            self._ask(number, at)
            self._state, self._at = state, at  # as they were before the rule was asked
        found = self._inside.get(self._keys[number])
        return self._one(self._keys[number], at) if found is None and len(self._answered) > 1 else found

    def _ask(self, number: int, at: datetime) -> None:
        some = self._keys[number : number + self._width]
        first, last = min(some), max(some)
        if len(some) > 1 and last - first <= _SPAN:
            self._answered = range(number, number + len(some))
            now, then = self._between(first, last, at), self._between(first, last, at + HOLDS)
            self._inside = {key: found for key, found in now.items() if then.get(key) == found}
            return
        found = self._one(some[0], at)
        self._answered = range(number, number + 1)
        self._inside = {} if found is None else {some[0]: found}
