"""Answers as people and programs read them: tables on a terminal, plain lines elsewhere, JSON when asked."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol

LINE_EVERY_S = 5.0


class Tracker(Protocol):
    """Shows how far long work is."""

    def __call__(self, text: str, done: int, total: int | None = None) -> None:
        """Say that `done` of `total` is done (None: the total is not known)."""


def to_json(value: Any) -> str:
    """Return one line of JSON."""
    import msgspec

    return msgspec.json.encode(_hexed(value), enc_hook=str).decode()


def _hexed(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): _hexed(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hexed(one) for one in value]
    if isinstance(value, (str, int, float, bool, datetime)) or value is None:
        return value
    import msgspec

    return _hexed(msgspec.to_builtins(value, builtin_types=(bytes, datetime), enc_hook=str))


def text(value: Any) -> str:
    """Return a value for people: times local with their zone, nothing that could steer a terminal."""
    if isinstance(value, str):
        value = _instant(value) or value
    if value is None or value in ("", [], ()):
        shown = "-"
    elif isinstance(value, bool):
        shown = "yes" if value else "no"
    elif isinstance(value, datetime):
        shown = "always" if value.year == 9999 else value.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    elif isinstance(value, bytes):
        shown = value.hex()
    elif isinstance(value, Mapping):
        shown = ", ".join(f"{key}={text(one)}" for key, one in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        shown = ", ".join(text(one) for one in value)
    else:
        shown = "".join(one if unicodedata.category(one)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for one in str(value))
    return shown


def _instant(value: str) -> datetime | None:
    if len(value) < 20 or value[10:11] != "T":
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print rows: a table on a terminal, tab-separated lines under a heading elsewhere."""
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for row in rows:
            print("\t".join(text(row.get(name)) for name in columns))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        drawn.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        drawn.add_row(*(text(row.get(name)) for name in columns))
    Console(highlight=False, markup=False).print(drawn)


def record(row: Mapping[str, Any]) -> None:
    """Print one record, a line a field."""
    width = max((len(name) for name in row), default=0)
    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            print(f"{name.replace('_', ' ')}:")
            for one in value:
                print("  " + text(one))
        else:
            print(f"{name.replace('_', ' '):<{width}}  {text(value)}")


@contextmanager
def progress(*, quiet: bool) -> Iterator[Tracker]:
    """Give a tracker: a bar on a terminal, a line now and then elsewhere, nothing when `quiet`."""
    if quiet:
        yield lambda _text, _done, _total=None: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        bar = Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                       console=Console(stderr=True))
        with bar:
            task = bar.add_task("", total=None)

            def draw(text: str, done: int, total: int | None = None) -> None:
                bar.update(task, description=text, completed=done, total=total)

            yield draw
        return
    last = time.monotonic()

    def line(text: str, done: int, total: int | None = None) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            print(f"{text} {done}" + (f" of {total}" if total else ""), file=sys.stderr)

    yield line
