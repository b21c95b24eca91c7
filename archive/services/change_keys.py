"""Whether what a rebuild needs besides instances still opens: changes of state have a key of their own (V05; docs/format.md 2.5).

No row names where their records lie: they are what lies between the instances.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress

import sqlalchemy as sa

from archive.access import policy
from archive.db.tables import data_key, datastore, held, instance, segment
from archive.errors import SealBroken
from archive.services.core import Core
from archive.services.retrace import Found
from archive.services.state_events import NO_STUDY
from archive.vault.disk import padded
from archive.vault.vault import Damage

_TOKEN = policy.system("verify")


def opening(core: Core, tx: sa.Connection) -> Iterator[Found]:
    """Yield segments with records of no instance whose key is missing or does not open, and keys of changes said to be destroyed."""
    wanted = [
        core.keyring.pseudonym("keystore/study", bytes(uid) + NO_STUDY.encode()) for uid in tx.execute(sa.select(datastore.c.uid)).scalars()
    ]
    with core.keystore.reading() as keys:
        shredded = sa.select(data_key.c.key_id).where(data_key.c.study_ref.in_(wanted), data_key.c.state == "shredded")
        for _ in keys.execute(shredded).all():
            yield "V05", "the key of what was deleted, held and decided is said to be destroyed, and nothing does that", ""
    for row in tx.execute(sa.select(segment.c.id, segment.c.name).order_by(segment.c.name)).all():
        shut = []
        with suppress(SealBroken):  # there is no such file: told
            for offset, found in core.vault.between(bytes(row.id), _known(tx, bytes(row.id))):
                if isinstance(found, Damage) and found.verdict == "V05" and not found.shredded:
                    shut.append((offset, found.detail))
        if shut:
            where, why = shut[0]
            yield "V05", f"{len(shut)} records of no instance in segment {row.name}, the first at {where}, do not open: {why}", ""


def _known(tx: sa.Connection, segment_id: bytes) -> Callable[[int], int]:
    places = sorted(
        (int(row.record_offset), padded(row.record_offset + row.record_bytes)) for table in (instance, held) for row in policy.run_as(
            tx, _TOKEN, sa.select(table.c.record_offset, table.c.record_bytes).where(table.c.segment_id == segment_id)
        )
    )
    starts = [start for start, _ in places]

    def past(offset: int) -> int:
        before = bisect_right(starts, offset) - 1
        return max(offset, places[before][1]) if before >= 0 else offset

    return past
