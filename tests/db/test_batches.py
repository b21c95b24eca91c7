"""Every value once, in its order, never more than a statement takes."""

from __future__ import annotations

import pytest

from archive.db.batches import AT_ONCE, batches


@pytest.mark.parametrize("count", [0, 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE])
def test_batches(count: int) -> None:
    found = list(batches(range(count)))
    assert [value for some in found for value in some] == list(range(count))
    assert all(0 < len(some) <= AT_ONCE for some in found)
