"""In which order records without rows arrived: by their times, and in one segment by their places (docs/format.md 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate


def never_backwards(times: Sequence[datetime]) -> list[datetime]:
    """Return the times of one segment's records, in the order of their places, as they were if the clock had not been set back between.

    A clock that is set back was ahead before: it is the later times that are believed.
    """
    return list(accumulate(reversed(times), min))[::-1]
