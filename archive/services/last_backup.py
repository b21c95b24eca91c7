"""How old the last backup is, and whether that is too old: asked of the opened archive, and of the file alone that a backup leaves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

STAMP = "last-backup"
"""The file in the folder of the running archive that says when the last one was made."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `archive doctor`."""

    name: str
    state: Literal["ok", "warning", "problem"]
    detail: str
    remedy: str = ""


def check(last: str | None, at: datetime, warn_days: int) -> Check:
    """Return how old the last backup is, and whether that is too old."""
    remedy = "make one with 'archive backup DIR', on another disk"
    if last is None:
        return Check("backup", "warning", "no backup has been made", remedy)
    made = datetime.fromisoformat(last)
    detail = f"the last one is of {made:%Y-%m-%d %H:%M} UTC"
    if at - made > timedelta(days=warn_days):
        return Check("backup", "warning", f"{detail}, more than {warn_days} days ago", remedy)
    return Check("backup", "ok", detail)
