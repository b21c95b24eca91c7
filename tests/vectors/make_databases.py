"""Write tests/vectors/databases/*.db, frozen embedded databases in each way their pages were ever enciphered (docs/format.md 12).

Made by SQLCipher with the settings of the day, without archive/db: what was written once opens for ever. Files that exist are kept.

    python tests/vectors/make_databases.py
"""

from __future__ import annotations

from pathlib import Path

import sqlcipher3.dbapi2 as sqlcipher

FOLDER = Path(__file__).parent / "databases"
KEY = bytes(range(32))
WAYS: dict[str, list[str]] = {
    "4096-sha512": [],  # what SQLCipher 4 does unasked
    "2048-sha256": ["cipher_page_size = 2048", "cipher_hmac_algorithm = HMAC_SHA256"],
}
ROWS = [(number, f"instance {number}") for number in range(40)]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, settings in WAYS.items():
        path = FOLDER / f"{name}.db"
        if path.exists():
            continue
        connection = sqlcipher.connect(str(path), isolation_level=None)
        for pragma in (f"key = \"x'{KEY.hex()}'\"", *settings, "journal_mode = WAL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE instance (id INTEGER PRIMARY KEY, text TEXT)")
        connection.executemany("INSERT INTO instance VALUES (?, ?)", ROWS)
        connection.close()


if __name__ == "__main__":
    main()
