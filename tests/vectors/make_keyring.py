"""Write tests/vectors/keyring/keys_that_change.json: a keyring with every kind of slot and state, and what it opens to.

Its keys are drawn at random, so it is written once and never again: what a release wrote opens for ever. `first_release.json` beside it
was written by the release before the first that knows passphrases and keys to come, and cannot be made again.

    python tests/vectors/make_keyring.py
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from archive.config import Archive, Config
from archive.keys.keyring import Keyring

FILE = Path(__file__).parent / "keyring" / "keys_that_change.json"
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
CLINICAL = b"clinical-16bytes"
PASSPHRASE = "kq7vw mh3xz pp2ra tn8bd"


def made(folder: Path) -> dict[str, object]:
    """Bring a keyring through every kind of change."""
    config = Config(archive=Archive(storage=str(folder / "storage")))
    ring = Keyring.create(config, at=AT, recovery_kit=folder / "kit.txt")
    for hour in (3, 4):
        ring.add_kek(CLINICAL, at=AT.replace(hour=hour))
    ring.prepare(["instance"], at=AT.replace(hour=5))
    ring.activate(["instance"])
    ring.retire(["instance"], at=AT.replace(hour=5))
    for day in (3, 4):
        ring.prepare(["pepper"], at=AT.replace(day=day))
        ring.activate(["pepper"])
    ring.prepare(["pepper"], at=AT.replace(day=6))
    ring.prepare(["log", "log-pq"], at=AT.replace(day=5))
    ring.activate(["log", "log-pq"])
    ring.prepare(["index"], at=AT.replace(day=5))
    ring.slot_add(at=AT, passphrase=PASSPHRASE, label="safe")
    ring.rotate_audit_key(at=AT.replace(hour=6))
    return {
        "what": "a keyring with a passphrase, three peppers and one to come, rotations of checkpoint and index keys cut short",
        "keyring": (config.keys_dir / "keyring.json").read_text(), "key_file": config.key_file.read_text(),
        "kit": (folder / "kit.txt").read_text(), "passphrase": PASSPHRASE,
        "expect": {
            "archive": ring.archive_uuid, "generation": ring.generation,
            "index_sha256": hashlib.sha256(ring.index_key).hexdigest(), "keystore_sha256": hashlib.sha256(ring.keystore_key).hexdigest(),
            "audit_sha256": hashlib.sha256(ring.current_audit_key.key).hexdigest(),
            "keks": [[kek.id.hex(), kek.active] for kek in ring.keks()], "pseudonym": ring.pseudonym("ledger/study", "1.2.3").hex(),
            "api_token": ring.pseudonym("api-token", "aaaaaaaa_b").hex(),
            "api_tokens": [one.hex() for one in ring.pseudonyms("api-token", "aaaaaaaa_b")], "waiting": sorted(ring.waiting()),
            "signature": ring.instance_signer.sign(b"data").hex(),
            "public_keys": [[key.kid, key.purpose, key.not_after.isoformat() if key.not_after else ""] for key in ring.public_keys()],
        },
    }


if __name__ == "__main__" and not FILE.exists():
    with tempfile.TemporaryDirectory() as name:
        FILE.write_text(json.dumps(made(Path(name)), indent=1) + "\n")
