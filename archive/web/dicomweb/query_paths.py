"""Keys inside sequences as QIDO-RS writes them: tags or keywords with dots between (PS3.18 8.3.4).

Keys under one sequence are met by one item of it, as the keys of one item of a C-FIND identifier are.
"""

from __future__ import annotations

from archive.dicom import registry
from archive.dicom.attributes import lookup
from archive.dicom.dictionary import vr_of
from archive.dicom.row_keys import Key, check

MOST_STEPS = 8

_HEX = frozenset("0123456789abcdefABCDEF")


def read(name: str) -> tuple[int, ...]:
    """Return the tags of a path, sequences first; nothing where it is none."""
    steps = name.split(".")
    tags = [_tag(step) for step in steps]
    found = tuple(tag for tag in tags if tag is not None)
    if len(found) != len(steps) or not 1 < len(steps) <= MOST_STEPS or any(vr_of(tag) != "SQ" for tag in found[:-1]):
        return ()
    return found if vr_of(found[-1]) != "SQ" else ()


def keys(paths: dict[tuple[int, ...], str]) -> tuple[Key, ...]:
    """Return the keys, those of the same sequence in one.

    Raises:
        InvalidQuery: a value that cannot be matched.
    """
    grouped: dict[int, dict[tuple[int, ...], str]] = {}
    for path, text in paths.items():
        grouped.setdefault(path[0], {})[path[1:]] = text
    made = []
    for tag, below in grouped.items():
        if () in below:
            vr = vr_of(tag)
            made.append(Key(tag, "US" if vr == "xs" else vr, below.pop(())))
        if below:
            made.append(Key(tag, "SQ", items=(keys(below),)))
    for key in made:
        check(key)
    return tuple(key for key in made if not key.universal)


def _tag(step: str) -> int | None:
    known = lookup(step)
    if known is not None:
        return known.tag
    if len(step) == 8 and _HEX.issuperset(step):
        return int(step, 16)
    return registry.tag_of(step) if step.isascii() and step.isalnum() else None
