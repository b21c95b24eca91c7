"""How the pages of an embedded database are enciphered, and which of two ways a file is (docs/format.md 12)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_JOURNAL, _LOG = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7", (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")


@dataclass(frozen=True)
class Pages:
    """One way: bytes of a page, and the hash whose HMAC authenticates it. No two ways have pages of one size."""

    size: int
    digest: str

    @property
    def settings(self) -> tuple[str, ...]:
        """What SQLCipher is told after the key."""
        return f"cipher_page_size = {self.size}", f"cipher_hmac_algorithm = HMAC_{self.digest.upper()}"

    def unlock(self, connection: Any, key: bytes) -> None:
        """Tell a connection of the driver's that has read nothing yet the raw 32-byte key, and this way."""
        for pragma in (f"key = \"x'{key.hex()}'\"", "cipher_memory_security = OFF", *self.settings):
            connection.execute(f"PRAGMA {pragma}").close()

    def opens(self, path: Path, key: bytes) -> bool:
        import sqlcipher3.dbapi2 as dbapi

        with closing(dbapi.connect(str(path), isolation_level=None)) as connection:
            self.unlock(connection, key)
            try:
                with in_silence(connection):  # that it may be the other way is nothing to tell
                    connection.execute("PRAGMA schema_version").close()
            except dbapi.DatabaseError as error:
                if error.sqlite_errorcode != dbapi.SQLITE_NOTADB:
                    raise
                return False
        return True


PRESENT = Pages(2048, "sha256")
"""How new files are made: a commit of 17 pages takes 0.6 of the processor time, reading one that another process changed 0.57."""

WAYS = (PRESENT, Pages(4096, "sha512"))
"""All that is read: the second is what SQLCipher does unasked, and how files were made before."""


@contextmanager
def in_silence(connection: Any) -> Iterator[None]:
    """Let SQLCipher say nothing on the standard error of a file that a key does not open: that is what is asked."""
    connection.execute("PRAGMA cipher_log_level = NONE").close()
    try:
        yield
    finally:
        connection.execute("PRAGMA cipher_log_level = ERROR").close()


def of(path: Path, key: bytes) -> Pages:
    """Return which way the file at `path` is; the present one where it has no page yet, or none that this key opens.

    A journal or a log that lies beside it and has begun says so first: its first page may be half written, and a journal is rolled
    back by the first who opens the file. SQLite alone opens the file itself: whoever closes it gives up every lock on it that the
    process has.

    Raises:
        An error of the driver's: it is in use, or cannot be read.
    """
    for beside, magic, at in ((f"{path}-journal", (_JOURNAL,), 24), (f"{path}-wal", _LOG, 8)):
        head = _beginning(Path(beside), at + 4)
        if len(head) == at + 4 and head.startswith(magic):
            size = int.from_bytes(head[at:], "big")
            return next((way for way in WAYS if way.size == size), PRESENT)
    if not path.exists() or not path.stat().st_size:
        return PRESENT
    return next((way for way in WAYS if way.opens(path, key)), PRESENT)


def at_hand(connection: Any) -> Pages:
    """Return which way a connection of the driver's was told."""
    (size,) = connection.execute("PRAGMA cipher_page_size").fetchone()
    return next(way for way in WAYS if way.size == int(size))


def _beginning(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""  # what is not there, or cannot be read, is for SQLite to say
