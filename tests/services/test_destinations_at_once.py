"""Two first deliveries to one destination at the same moment: neither fails by the other."""

from __future__ import annotations

from pathlib import Path
from time import sleep
from typing import Any

import pytest
import sqlalchemy as sa

from archive.db.tables import delivery_destination
from archive.services import deliveries
from tests.services import archives
from tests.services.together import LOOKS_S, at_once


@pytest.mark.parametrize("usually", ["sqlite", "postgresql"], indirect=True)
def test_both_find_their_destination(tmp_path: Path, usually: dict[str, Any]) -> None:
    with archives.opened(archives.made(tmp_path, **usually)) as node:

        def first() -> None:
            with node.core.database.begin() as tx:
                deliveries.need_destination(tx, 7)
                sleep(2 * LOOKS_S)

        assert at_once(first, first, first) == [None] * 3
        with node.core.database.read() as tx:
            assert list(tx.execute(sa.select(delivery_destination.c.peer_id)).scalars()) == [7]
