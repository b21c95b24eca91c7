"""As many values as a statement takes at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
AT_ONCE = 500


def batches(values: Sequence[T]) -> Iterator[list[T]]:
    """Yield them in their order, so many at a time."""
    for start in range(0, len(values), AT_ONCE):
        yield list(values[start : start + AT_ONCE])
