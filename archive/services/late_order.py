"""In which order a catch-up does what it found: by time, but nothing before what it was made of, whatever a clock that was set back says.

Records of one segment stand in their order; between segments of several processes only times and what changes name are there to tell.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from archive.dicom import scheduled
from archive.services import mpps, state_events, worklist_rows
from archive.vault.vault import FoundRecord

Mark = tuple[Any, ...]
"""Something that one record makes and another is made of."""


@dataclass(frozen=True, slots=True)
class Late:
    """A record that the index does not know; what it holds is read again when its turn comes, for there may be millions."""

    at: datetime
    record: FoundRecord
    rekeyed: dict[str, Any] = field(default_factory=dict)  # what the change says, where it is the end of a re-keying
    makes: tuple[Mark, ...] = ()
    needs: tuple[Mark, ...] = ()
    instead: Mark | None = None  # of those with the same one at most one was ever committed
    hides: tuple[bytes, ...] = ()  # objects that go out of sight by it
    shows: tuple[bytes, ...] = ()  # objects that come back into it
    destroys: tuple[bytes, ...] = ()  # objects that are purged by it


def of_arrival(at: datetime, record: FoundRecord, study_instance_uid: str) -> Late:
    """Return an arrival; the key it is sealed under is still there, so it came after every purge that destroyed the key of its study."""
    return Late(at, record, needs=_emptied(record, study_instance_uid))


def of_change(at: datetime, record: FoundRecord, change: dict[str, Any]) -> Late:
    """Return a change of state, with what it makes and what it is made of."""
    what, place = change["change"], record.ref.datastore
    if what in _WORK:
        try:
            makes, needs, instead = _WORK[what](change, (what, place))
        except (KeyError, IndexError, TypeError, AttributeError):
            return Late(at, record)  # in a form that is not known here: told when its turn comes
        return Late(at, record, {}, tuple(makes), tuple(needs), instead)
    objects = [bytes.fromhex(one) for one in change["objects"]]
    arrived, changed, decided = (tuple((word, one) for one in objects) for word in ("object", "changed", "decided"))
    if what == "purged":  # nothing of these comes after it
        emptied = _emptied(record, change["study"]) if change["keys"] and "fresh" not in change else ()
        destroys = () if "fresh" in change else tuple(objects)
        return Late(at, record, change if "fresh" in change else {}, emptied, (*arrived, *changed), destroys=destroys)
    if what not in ("rejected", "restored"):
        return Late(at, record, {}, (*changed, *decided), arrived)
    hides, shows = (tuple(objects) if what == word else () for word in ("rejected", "restored"))
    return Late(at, record, {}, changed, (*arrived, *decided), hides=hides, shows=shows)


def _emptied(record: FoundRecord, study_instance_uid: str) -> tuple[Mark, ...]:
    return (("emptied", record.ref.datastore, study_instance_uid),)


Said = tuple[list[Mark], list[Mark], Mark | None]


def _step(change: dict[str, Any], what: Mark) -> Said:
    begun, changed = ((*what, change["uid"], when) for when in ("begun", "changed"))
    if change["what"] == "begun":
        return [begun], [], None
    if scheduled.text(change["set"], mpps.STATUS) in ("", "IN PROGRESS"):
        return [changed], [begun], None
    return [], [begun, changed], None  # nothing comes after its end


def _entry(change: dict[str, Any], what: Mark) -> Said:
    if change["what"] == "entered":
        return [(*what, *worklist_rows.name_of(entry)) for entry in change["entries"]], [], None
    return [], [(*what, change["study"], change["step"])], None


def _workitem(change: dict[str, Any], what: Mark) -> Said:
    made = (*what, change["uid"], change["at"])
    made_of = (*what, change["uid"], change["after"]) if "after" in change else None
    return [made], [] if made_of is None else [made_of], made_of


def _commitment(change: dict[str, Any], what: Mark) -> Said:
    asked = (*what, change["by"], change["uid"], change["at" if change["what"] == "asked" else "asked_at"])
    return ([asked], [], None) if change["what"] == "asked" else ([], [asked], None)


_WORK: dict[str, Callable[[dict[str, Any], Mark], Said]] = {
    state_events.STEP: _step, state_events.ENTRY: _entry, state_events.WORKITEM: _workitem, state_events.COMMITMENT: _commitment,
}


def in_order(late: Sequence[Late], when: Callable[[Late], datetime], out: Collection[bytes] = ()) -> Iterator[Late]:
    """Yield records in the order of `when`, and of their places, each after what it is made of; `out` are objects out of sight now."""
    order = _Order([when(one) for one in late])
    needed = {mark for one in late for mark in one.needs}
    made: dict[Mark, list[int]] = {}
    rivals: dict[Mark, list[int]] = {}
    for number, one in enumerate(late):
        for mark in needed.intersection((("object", one.record.ref.object_id), *one.makes)):
            made.setdefault(mark, []).append(number)
        if one.instead is not None:
            rivals.setdefault(one.instead, []).append(number)
    for number, one in enumerate(late):
        for other in (other for mark in one.needs for other in made.get(mark, ())):
            order.after(other, number)
    for some in rivals.values():
        # What something was made of was committed; of others the later one.
        some.sort(key=lambda number: (not needed.isdisjoint(late[number].makes), order.times[number]), reverse=True)
        for first, second in pairwise(some):
            order.after(first, second)
    _alternate(late, order, out)
    yield from (late[number] for number in order.run())


def _alternate(late: Sequence[Late], order: _Order, out: Collection[bytes]) -> None:
    """Let nothing be restored that was never rejected, nor rejected again before it was restored: the first of the other comes before."""
    turns: dict[bytes, list[tuple[bool, int]]] = {}  # of each object, whether it is hidden and by which change, in the order of times
    for number in sorted((n for n, one in enumerate(late) if one.hides or one.shows), key=lambda number: order.times[number]):
        for one in (*late[number].hides, *late[number].shows):
            turns.setdefault(one, []).append((bool(late[number].hides), number))
    for one, some in turns.items():
        hidden = one in out
        first = next((number for hides, number in some if hides != hidden), None)
        for hides, number in some:
            if first is None or hides != hidden:
                break
            order.after(first, number)


class _Order:
    """Numbers in the order of their times, but each after those it waits for."""

    def __init__(self, times: list[datetime]) -> None:
        self.times = times
        self._waits = [0] * len(times)
        self._then: dict[int, list[int]] = {}

    def after(self, first: int, second: int) -> None:
        """Let the second wait for the first."""
        if first != second:
            self._then.setdefault(first, []).append(second)
            self._waits[second] += 1

    def run(self) -> Iterator[int]:
        """Yield them; of those that wait for each other the earliest goes first."""
        times, waits = self.times, self._waits
        earliest = iter(sorted(range(len(times)), key=lambda number: times[number]))
        ready = [(times[number], number) for number, count in enumerate(waits) if not count]
        heapq.heapify(ready)
        done: set[int] = set()
        while len(done) < len(times):
            number = heapq.heappop(ready)[1] if ready else next(number for number in earliest if number not in done)
            if number in done:
                continue
            done.add(number)
            yield number
            for other in self._then.get(number, ()):
                waits[other] -= 1
                if not waits[other]:
                    heapq.heappush(ready, (times[other], other))
