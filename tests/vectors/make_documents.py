"""Write tests/vectors/documents/*.json, the frozen vectors of announcements and receipts (docs/format.md 8.1).

Each file: the document, the leaf of its event, the keys a checker trusts, and what must happen (`expect`: "ok" or the verdict). Keys come
from fixed seeds; the ML-DSA-44 signatures are randomised, so a file is written once and never again. Nothing is shared with archive/ledger.

    python tests/vectors/make_documents.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from tests.vectors.make_ledger import INSTANCE, KEYS, LOG, ORIGIN, QUANTUM, STRANGER, b64, canonical, kid, raw, seed

FOLDER = Path(__file__).parent / "documents"
AT = "2026-01-02T03:04:05.678901Z"
ARCHIVE = ORIGIN.removeprefix("strongroom/")
NEXT = {
    "instance": Ed25519PrivateKey.from_private_bytes(seed("instance 2")), "log": Ed25519PrivateKey.from_private_bytes(seed("log 2")),
    "log-pq": MLDSA44PrivateKey.from_seed_bytes(seed("log-pq 2")),
}
NOW: dict[str, Any] = {"instance": INSTANCE, "log": LOG, "log-pq": QUANTUM}
Change = Callable[[dict[str, Any]], object]


def signed(what: str, said: dict[str, Any], keys: list[Any], *, over: dict[str, Any] | None = None) -> str:
    kind = f"application/vnd.strongroom.{what}.v1+json"
    payload, body = canonical(said), canonical(said if over is None else over)
    pae = f"DSSEv1 {len(kind)} {kind} {len(body)} ".encode() + body
    signatures = [{"keyid": kid(key), "sig": b64(key.sign(pae))} for key in keys]
    return canonical({"payload": b64(payload), "payloadType": kind, "signatures": signatures}).decode()


def announcement(*purposes: str, **changes: Any) -> dict[str, Any]:
    sides = {"old": NOW, "new": NEXT}
    keys = [
        {"purpose": one, **{side: {"kid": kid(by[one]), "public": b64(raw(by[one]))} for side, by in sides.items()}} for one in purposes
    ]
    return {"v": 1, "type": "key-announcement", "archive": ARCHIVE, "at": AT, "after": 7, "keys": keys, **changes}


def receipt(**changes: Any) -> dict[str, Any]:
    return {
        "v": 1, "type": "shred", "archive": ARCHIVE, "at": AT, "study": "1.2.3", "reason": "asked by the patient",
        "instances": 3, "objects": "11" * 32, "keys": ["22" * 32], "purge": [6], "checkpoint": {"size": 6, "root": "33" * 32},
        "kid": kid(INSTANCE), **changes,
    }


def pairs(*purposes: str) -> list[Any]:
    return [key for one in purposes for key in (NOW[one], NEXT[one])]


def cases() -> dict[str, tuple[str, str]]:
    one, both = announcement("instance"), announcement("log", "log-pq")
    swapped = announcement("instance")
    swapped["keys"][0]["new"]["public"] = b64(raw(STRANGER))
    alien = json.loads(signed("announcement", one, pairs("instance")))
    return {
        "announcement_of_a_signing_key": (signed("announcement", one, pairs("instance")), "ok"),
        "announcement_of_log_keys": (signed("announcement", both, pairs("log", "log-pq")), "ok"),
        "announcement_by_the_old_key_alone": (signed("announcement", one, [INSTANCE]), "V13"),
        "announcement_by_the_new_key_alone": (signed("announcement", one, [NEXT["instance"]]), "V13"),
        "announcement_in_the_other_order": (signed("announcement", one, [NEXT["instance"], INSTANCE]), "V13"),
        "announcement_by_three": (signed("announcement", one, [*pairs("instance"), STRANGER]), "V13"),
        "announcement_changed_after": (signed("announcement", announcement("instance", after=0), pairs("instance"), over=one), "V13"),
        "announcement_of_another_archive": (signed("announcement", announcement("instance", archive="x"), pairs("instance")), "V13"),
        "announcement_of_a_key_under_anothers_id": (signed("announcement", swapped, pairs("instance")), "V13"),
        "announcement_of_nothing": (signed("announcement", announcement(), []), "V13"),
        "announcement_version_2": (signed("announcement", announcement("instance", v=2), pairs("instance")), "V13"),
        "announcement_not_canonical": (json.dumps(alien, sort_keys=True), "V13"),
        "receipt_sound": (signed("receipt", receipt(), [INSTANCE]), "ok"),
        "receipt_by_a_stranger": (signed("receipt", receipt(kid=kid(STRANGER)), [STRANGER]), "V13"),
        "receipt_by_a_stranger_posing": (signed("receipt", receipt(), [STRANGER]), "V13"),
        "receipt_changed": (signed("receipt", receipt(instances=4), [INSTANCE], over=receipt()), "V13"),
        "receipt_of_another_archive": (signed("receipt", receipt(archive="x"), [INSTANCE]), "V13"),
        "receipt_as_announcement": (signed("announcement", receipt(), [INSTANCE]), "V13"),
        "receipt_lacks_keys": (signed("receipt", {k: v for k, v in receipt().items() if k != "keys"}, [INSTANCE]), "V13"),
        "receipt_unsigned": (signed("receipt", receipt(), []), "V13"),
        "of_an_unknown_kind": (signed("permit", receipt(), [INSTANCE]), "V13"),
        "no_document": ("{}", "V13"),
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, (document, expect) in cases().items():
        path = FOLDER / f"{name}.json"
        if not path.exists():
            leaf = {"v": 1, "n": 8, "doc": hashlib.sha256(document.encode()).hexdigest()}
            path.write_text(json.dumps({"document": document, "leaf": leaf, "keys": KEYS, "expect": expect}, indent=1) + "\n")
