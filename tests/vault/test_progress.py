"""When the replay position of an open segment is worth a write."""

from __future__ import annotations

from archive.vault.open_segment import Progress, Remembered

MIB = 1 << 20


def test_the_position_is_due_every_few_mib_and_never_above_what_waits() -> None:
    progress, end, noted = Progress(), 4096, []
    for number in range(100):
        progress.begin(end, end + MIB)
        due = progress.due({end})
        if due is not None:
            assert due == end + MIB
            noted.append(number)
        progress.settle(end)
        end += MIB
    assert noted == list(range(3, 100, 4))

    waiting = end
    for _ in range(20):
        progress.begin(end, end + MIB)
        end += MIB
    assert progress.due({end - MIB}) is None  # the first of them still waits
    progress.closed = True
    assert progress.due({end - MIB}) == waiting


def test_segments_that_are_over_are_forgotten_and_no_others() -> None:
    known = Remembered()
    waiting, open_one = Progress(), Progress()
    waiting.begin(4096, 8192)
    waiting.closed = True
    known[b"waiting"], known[b"open"] = waiting, open_one
    for number in range(3 * Remembered.KEPT):
        done = Progress()
        done.closed = True
        known[number.to_bytes(16)] = done
    assert len(known) <= Remembered.KEPT + 2
    assert known[b"waiting"] is waiting
    assert known[b"open"] is open_one
    assert (3 * Remembered.KEPT - 1).to_bytes(16) in known


def test_one_that_is_added_while_another_is_does_no_harm() -> None:
    """A large record makes its segment without waiting for the store's lock."""
    known = Remembered()

    class Seen(Progress):
        @property
        def locked(self) -> bool:
            known.setdefault(b"other", Progress())  # another thread, just now
            return False

    known[b"one"] = Seen()
    assert set(known) == {b"one", b"other"}
