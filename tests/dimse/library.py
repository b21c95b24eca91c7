"""pynetdicom as these tests ask with it; also its applications: `python -m tests.dimse.library storescu HOST PORT …`."""

from __future__ import annotations

import runpy
from typing import Any

from pynetdicom import AE

from archive.dimse import turns

_associate = AE.associate


def _settled(ae: AE, *arguments: Any, **options: Any) -> Any:
    association = _associate(ae, *arguments, **options)
    turns.settle(association)
    return association


def guard() -> None:
    """Guard each association of this process: on a busy machine the library takes one answer in some hundred away from who waits for it."""
    AE.associate = _settled  # type: ignore[method-assign]


if __name__ == "__main__":
    guard()
    runpy.run_module("pynetdicom", run_name="__main__", alter_sys=True)
