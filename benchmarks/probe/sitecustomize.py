"""Put first on the path of a served archive: every 15 s each process writes what its allocators hold; for measuring only.

The archive has no such hook; Python imports this module at its start. STRONGROOM_PROBE names the folder, STRONGROOM_PROBE_TRACE=1 adds
tracemalloc, which makes everything slower.
"""

from __future__ import annotations

import collections
import ctypes
import gc
import json
import os
import sys
import threading
import time
from pathlib import Path

_EVERY_S = 15.0
_FOLDER = os.environ.get("STRONGROOM_PROBE", "")
_TRACE = os.environ.get("STRONGROOM_PROBE_TRACE", "") == "1"


class _Info(ctypes.Structure):
    """Struct mallinfo2 of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in (  # as ctypes wants it
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


def _glibc() -> dict[str, int]:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return {}
    libc.mallinfo2.restype = _Info
    info = libc.mallinfo2()
    return {"glibc_held": info.arena + info.hblkhd, "glibc_used": info.uordblks + info.hblkhd, "glibc_mapped": info.hblkhd,
            "glibc_free": info.fordblks, "glibc_trimmable": info.keepcost}


def _sqlite() -> dict[str, int]:
    module = sys.modules.get("sqlcipher3._sqlite3")
    if module is None or not getattr(module, "__file__", None):
        return {}
    library = ctypes.CDLL(module.__file__)
    library.sqlite3_memory_used.restype = ctypes.c_int64
    connections = sum(type(one).__name__ == "_ConnectionRecord" and one.dbapi_connection is not None for one in gc.get_objects())
    return {"sqlite_used": library.sqlite3_memory_used(), "sqlite_connections": connections}


def _python() -> dict[str, object]:
    counted = collections.Counter(type(one).__qualname__ for one in gc.get_objects())
    return {"blocks": sys.getallocatedblocks(), "objects": sum(counted.values()), "by_type": dict(counted.most_common(25)),
            "threads": threading.active_count()}


def _traced() -> dict[str, object]:
    if not _TRACE:
        return {}
    import tracemalloc

    lines = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, __file__)]).statistics("lineno")[:60]
    return {"traced": tracemalloc.get_traced_memory()[0],
            "lines": {f"{one.traceback[0].filename}:{one.traceback[0].lineno}": one.size for one in lines}}


def _probe() -> None:
    target = Path(_FOLDER) / f"{os.getpid()}.json"
    if _TRACE:
        import tracemalloc

        tracemalloc.start()
    while True:
        try:
            made = json.dumps({**_glibc(), **_sqlite(), **_python(), **_traced()})
            beside = target.with_suffix(".new")
            beside.write_text(made)
            beside.replace(target)
        except Exception:  # noqa: BLE001 # the archive goes on
            pass
        time.sleep(_EVERY_S)


def _start() -> None:
    threading.Thread(target=_probe, name="probe", daemon=True).start()


if _FOLDER:
    os.register_at_fork(after_in_child=_start)
