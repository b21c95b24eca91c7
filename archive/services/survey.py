"""Where each object of the segments lies: one pass over the headers, before rows are made from what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from archive.errors import SealBroken
from archive.services.core import Core
from archive.vault.disk import BLOCK, padded
from archive.vault.vault import Damage, FoundRecord

Progress = Callable[[str, int, int | None], None]
_PLACE_BYTES = 12  # number of the segment, offset in blocks


@dataclass(slots=True)
class Survey:
    """Object ids and their places; small beside what it names, for an archive has millions."""

    segments: list[bytes] = field(default_factory=list)
    ends: dict[bytes, int] = field(default_factory=dict)
    damaged: list[tuple[str, int, str]] = field(default_factory=list)  # segment, offset, verdict
    shredded: int = 0
    _places: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def objects(self) -> int:
        """How many objects were found and not yet taken."""
        return len(self._places)

    def take(self, object_id: bytes) -> list[tuple[bytes, int]]:
        """Return segment and offset of each record of that object, and forget them."""
        return self._unpacked(self._places.pop(object_id, b""))

    def left(self) -> Iterator[tuple[bytes, int]]:
        """Yield the places of what was not taken."""
        for packed in self._places.values():
            yield from self._unpacked(packed)

    def _unpacked(self, packed: bytes) -> list[tuple[bytes, int]]:
        pieces = [packed[at : at + _PLACE_BYTES] for at in range(0, len(packed), _PLACE_BYTES)]
        return [(self.segments[int.from_bytes(one[:4], "big")], int.from_bytes(one[4:], "big") * BLOCK) for one in pieces]

    def add(self, number: int, offset: int, object_id: bytes) -> None:
        """Note one record; of an object that lies in several places, each is kept."""
        place = number.to_bytes(4, "big") + (offset // BLOCK).to_bytes(8, "big")
        self._places[object_id] = self._places.get(object_id, b"") + place


def survey(core: Core, progress: Progress) -> Survey:
    """Look at every segment there is.

    Raises:
        VaultUnavailable, DatabaseUnavailable.
    """
    found = Survey()
    files = core.vault.segments.files()
    for number, file in enumerate(files):
        found.segments.append(file.segment_id)
        end = BLOCK
        try:
            for offset, header in core.vault.headers(file.segment_id):
                if isinstance(header, Damage):
                    found.shredded += header.shredded
                    if not header.shredded:
                        found.damaged.append((file.name, offset, header.verdict))
                    continue
                found.add(number, offset, header.object_id)
                end = max(end, padded(offset + header.record_bytes))
        except SealBroken as error:
            found.damaged.append((file.name, 0, error.verdict))
        found.ends[file.segment_id] = end
        progress("segments looked through", number + 1, len(files))
    return found


def first_sound(core: Core, places: list[tuple[bytes, int]]) -> FoundRecord | Damage | None:
    """Return what the first of these places holds whose trailer verifies, else what is wrong at the last; None of no place."""
    found: FoundRecord | Damage | None = None
    for segment_id, offset in places:
        found = core.vault.find(segment_id, offset)
        if isinstance(found, FoundRecord):
            return found
    return found
