"""Checkpoints on paper, in mail and in other logs: short enough to copy, and found again in what was copied; pure.

Source: docs/format.md 7.2.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from archive.errors import InvalidRequest, LedgerBroken
from archive.keys.sealing import decode_base64
from archive.ledger import notes
from archive.ledger.notes import ED25519, Parsed, Verifier

HEADER = "strongroom-checkpoint/v1"
MAX_CHARACTERS = 1 << 20
_DASH = "\N{EM DASH}"
_LEAD = r"[ \t>|]*"
_ROOT = r"[A-Za-z0-9+/]{43}="
_ORIGIN, _SIZE = r"strongroom/[0-9a-f-]{36}", r"0|[1-9][0-9]{0,18}"
_END = r"[ \t]*\r?\n"
_NOTE = re.compile(rf"^{_LEAD}({_ORIGIN}){_END}{_LEAD}({_SIZE}){_END}{_LEAD}({_ROOT})[ \t]*\r?$", re.MULTILINE)
_LINE = re.compile(rf"{HEADER} ({_ORIGIN}) ({_SIZE}) ({_ROOT}) ([A-Za-z0-9+/=]{{92}})")
_SIGNED = re.compile(rf"{_DASH} (\S+) ([A-Za-z0-9+/=]{{92}})(?![A-Za-z0-9+/=])")


@dataclass(frozen=True, slots=True)
class Copied:
    """A checkpoint that was copied; `signed` by the log's Ed25519 key, or as good as the paper it is on."""

    origin: str
    size: int
    root: bytes
    signed: bool


def short(note: bytes) -> str:
    """Return a checkpoint with its Ed25519 signature alone: a signed note of some two hundred characters."""
    parsed = notes.parse(note)
    return parsed.text.decode() + "\n" + f"{_DASH} {parsed.origin} {base64.b64encode(_signature(parsed)).decode()}\n"


def line(note: bytes) -> str:
    """Return a checkpoint as one line of words, for logs of other systems."""
    parsed = notes.parse(note)
    root, signature = (base64.b64encode(one).decode() for one in (parsed.root, _signature(parsed)))
    return f"{HEADER} {parsed.origin} {parsed.size} {root} {signature}"


def find(text: str, known: list[Verifier]) -> Copied:
    """Return the checkpoint somewhere in a text: a note, the start of one, or a line as above.

    Raises:
        InvalidRequest: there is none, or several. LedgerBroken: a signature by a known key that does not verify (V13).
    """
    if len(text) > MAX_CHARACTERS:
        raise _none()
    found = {(one[1], int(one[2]), one[3]): one for pattern in (_LINE, _NOTE) for one in pattern.finditer(text)}
    if len(found) != 1:
        raise _none()
    [((origin, size, root), match)] = found.items()
    parsed = Parsed(origin, size, decode_base64(root), notes.text_of(origin, size, decode_base64(root)), [])
    signatures = [match[4]] if match.re is _LINE else [one[2] for one in _SIGNED.finditer(text) if one[1] == origin]
    return Copied(origin, size, parsed.root, any(_verified(parsed, signature, known) for signature in signatures))


def _verified(parsed: Parsed, encoded: str, known: list[Verifier]) -> bool:
    try:
        data = decode_base64(encoded)
    except ValueError:
        return False
    for key in known:
        if key.kind == ED25519 and (key.name, key.key_id) == (parsed.origin, data[:4]):
            notes.verify(key, data[4:], parsed)
            return True
    return False


def _signature(parsed: Parsed) -> bytes:
    for name, key_id, signature in parsed.signatures:
        if name == parsed.origin and len(signature) == 64:
            return key_id + signature
    message = "the checkpoint is not signed by its log"
    raise LedgerBroken(message, remedy="run 'archive ledger verify'", verdict="V13")


def _none() -> InvalidRequest:
    message = "there is no checkpoint in this text, or more than one"
    return InvalidRequest(message, remedy="give what was mailed or scanned from the page: three lines, beginning with strongroom/")
