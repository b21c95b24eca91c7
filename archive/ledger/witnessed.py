"""What witnesses said, beside the log: the newest checkpoint each cosigned, and what one holds against the log.

Source: docs/format.md 7.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from archive.db.tables import checkpoint, witness_cosignature
from archive.errors import KeysUnavailable, LedgerBroken, VaultUnavailable
from archive.keys import private_files
from archive.ledger import nodes
from archive.ledger.checkpoints import digest

FOLDER = "witness"
AGAINST = ".against"
CLAIM = ".claim"
_CLAIM_HEAD = "strongroom-witness-claim/v1"
_REMEDY = "restore the newest copy; or, if it is lost: archive ledger acknowledge --reason TEXT"


def agreed(directory: Path, name: str) -> bytes | None:
    """Return the newest checkpoint a witness cosigned, unverified, or None."""
    try:
        return (directory / FOLDER / name).read_bytes()
    except OSError:
        return None


def keep(directory: Path, name: str, note: bytes) -> None:
    """Keep a checkpoint that a witness cosigned: what it held against the log before, it does no more.

    Raises:
        VaultUnavailable.
    """
    _write(directory, name, note)
    for kind in (AGAINST, CLAIM):
        with suppress(OSError):
            (directory / FOLDER / f"{name}{kind}").unlink()


def hold_against(directory: Path, name: str, note: bytes) -> None:
    """Keep a checkpoint of this log's own keys that a witness remembers and the log does not continue.

    Raises:
        VaultUnavailable.
    """
    _write(directory, f"{name}{AGAINST}", note)


def claim(name: str, size: int) -> bytes:
    """Return how a witness's word for a larger or another log is written down when it shows no checkpoint for it."""
    return f"{_CLAIM_HEAD}\n{name}\n{size}\n".encode()


def hold_claim(directory: Path, name: str, size: int) -> None:
    """Keep the word of a witness that has no way to show the checkpoint it speaks of.

    Raises:
        VaultUnavailable.
    """
    _write(directory, f"{name}{CLAIM}", claim(name, size))


def forget(directory: Path, name: str) -> None:
    """Remove what was kept of a witness that is asked no more."""
    for kind in ("", AGAINST, CLAIM):
        with suppress(OSError):
            (directory / FOLDER / f"{name}{kind}").unlink()


def anchors(directory: Path) -> list[bytes]:
    """Return every checkpoint kept of witnesses: the log must contain each.

    Raises:
        VaultUnavailable.
    """
    return [data for name, data in files(directory) if not name.endswith(CLAIM)]


def agreeing(directory: Path) -> list[str]:
    """Return the names of witnesses whose newest agreement is kept.

    Raises:
        VaultUnavailable.
    """
    return [name for name, _data in files(directory) if "." not in name]


def claims(directory: Path) -> list[bytes]:
    """Return every claim kept of witnesses.

    Raises:
        VaultUnavailable.
    """
    return [data for name, data in files(directory) if name.endswith(CLAIM)]


def check_claims(tx: sa.Connection, found: Iterable[bytes], *, acknowledged: frozenset[str]) -> None:
    """Refuse a log that a witness speaks against.

    Raises:
        LedgerBroken: V14.
    """
    for one in found:
        if digest(one) not in acknowledged:
            lines = one.decode(errors="replace").split("\n")
            said = f"{lines[1]} remembers {lines[2]} events" if lines[0] == _CLAIM_HEAD and len(lines) == 4 else "one remembers another log"
            message = f"the ledger holds {nodes.size(tx)} events and is not what a witness outside agreed to: {said}"
            raise LedgerBroken(message, remedy=_REMEDY, verdict="V14")


def lines(tx: sa.Connection, size: int) -> list[str]:
    """Return the cosignature lines over the checkpoint of a size."""
    c = witness_cosignature.c
    return list(tx.execute(sa.select(c.line).where(c.size == size).order_by(c.witness)).scalars())


def newest_over(tx: sa.Connection, n: int) -> int | None:
    """Return the size of the newest checkpoint over event `n` that a witness cosigned, or None."""
    c = witness_cosignature.c
    there = sa.select(sa.func.max(c.size)).join(checkpoint, checkpoint.c.size == c.size).where(c.size > n, checkpoint.c.root == c.root)
    found = tx.execute(there).scalar()
    return None if found is None else int(found)


def files(directory: Path) -> list[tuple[str, bytes]]:
    """Return name and content of everything kept of witnesses.

    Raises:
        VaultUnavailable.
    """
    folder = directory / FOLDER
    try:
        return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        message = f"what witnesses said cannot be read: {error.strerror}"
        raise VaultUnavailable(message, remedy="give the archive's user the right to read storage/ledger/witness") from error


def _write(directory: Path, name: str, data: bytes) -> None:
    try:
        folder = directory / FOLDER
        private_files.make_directory(folder)
        private_files.write(folder / name, data)
    except (OSError, KeysUnavailable) as error:
        message = "what a witness said cannot be written down"
        raise VaultUnavailable(message, remedy="free space on the storage disk, then restart the archive") from error
