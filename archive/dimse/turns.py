"""Whose turn it is on a pynetdicom association that asks: its reactor's, or the caller's who waits for an answer.

The library pauses its reactor before it sends a request, by an event and a flag. Between the reactor's look at the event and its change of
the flag a caller may take it for paused: the reactor then takes the answer away, and the caller waits until its time is up.
"""

from __future__ import annotations

import threading

from pynetdicom.association import Association

_SEEN_S = 5.0


class Turns(threading.Event):
    """The event the reactor waits for; who comes out of `wait` has taken the flag down and looked again."""

    def __init__(self, association: Association) -> None:
        """Let the reactor go on at first."""
        super().__init__()
        self._association = association
        self.seen = threading.Event()
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait as an event does, and be sure that no caller still believes the reactor to be paused."""
        while True:
            there = super().wait(timeout)
            self._association._is_paused = False  # noqa: SLF001 # the library's flag
            self.seen.set()
            if self.is_set() or not there:
                return there
            self._association._is_paused = True  # noqa: SLF001


def settle(association: Association) -> None:
    """Make an association that was just established safe to ask; one that was not is left alone."""
    if association.is_established:
        turns = Turns(association)
        association._reactor_checkpoint = turns  # noqa: SLF001
        turns.seen.wait(_SEEN_S)  # until then the reactor may still stand at the event before
