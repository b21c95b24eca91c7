"""Write tests/vectors/ledger/*.json, the frozen vectors of statements, checkpoints and proofs.

Each file: the public keys, what to read (base64), and what must happen (`expect`: "ok", "not-a-proof" or the verdict of the failure).
Keys come from fixed seeds; the ML-DSA-44 signatures are randomised, so a file is written once and never again: what a release signed
verifies for ever. Files that exist are kept. Nothing is shared with archive/ledger.

    python tests/vectors/make_ledger.py
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

FOLDER = Path(__file__).parent / "ledger"
ORIGIN = "strongroom/0b5d4c0e-5a0f-4d3b-8e55-20260102dead"
TYPE = "application/vnd.strongroom.statement.v1+json"
NOT_BEFORE = "2026-01-01T00:00:00.000000Z"


def seed(name: str) -> bytes:
    return hashlib.sha256(b"strongroom ledger vectors 1 " + name.encode()).digest()


INSTANCE = Ed25519PrivateKey.from_private_bytes(seed("instance"))
LOG = Ed25519PrivateKey.from_private_bytes(seed("log"))
QUANTUM = MLDSA44PrivateKey.from_seed_bytes(seed("log-pq"))
STRANGER = Ed25519PrivateKey.from_private_bytes(seed("stranger"))
STRANGER_QUANTUM = MLDSA44PrivateKey.from_seed_bytes(seed("stranger-pq"))


def b64(data: bytes) -> str:
    return base64.standard_b64encode(data).decode()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def raw(key: Any) -> bytes:
    return key.public_key().public_bytes_raw()


def kid(key: Any) -> str:
    return hashlib.sha256(raw(key)).digest()[:16].hex()


def vkey(name: str, kind: int, key: Any) -> str:
    return f"{name}+{key_id(name, kind, key).hex()}+{b64(bytes([kind]) + raw(key))}"


def key_id(name: str, kind: int, key: Any) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + raw(key)).digest()[:4]


KEYS = [vkey(ORIGIN, 1, LOG), vkey(ORIGIN, 6, QUANTUM), vkey(ORIGIN + "/instance", 1, INSTANCE)]

# --- statements ----------------------------------------------------------------------------------------------------------------------


def statement(**changes: Any) -> dict[str, Any]:
    return {
        "v": 1, "type": "instance", "ds": "11" * 16, "obj": "22" * 16, "ver": 1, "prev": "", "sop": "1.2.3.4",
        "cls": "1.2.840.10008.5.1.4.1.1.2", "study": "1.2", "series": "1.2.3", "ts": "1.2.840.10008.1.2.1", "size": 526000,
        "sha256": "33" * 32, "ds_off": 372, "coerced": [], "recv": "2026-01-02T03:04:05.678901Z",
        "src": {"via": "dimse", "peer": 3, "user": 7, "aet": "CT1", "called": "STRONGROOM", "cert": "sha256:" + "44" * 32},
        "sw": "0.1.0", "kid": kid(INSTANCE), **changes,
    }


def envelope(payload: bytes, *, key: Ed25519PrivateKey = INSTANCE, kind: str = TYPE, signed: bytes | None = None) -> bytes:
    body = payload if signed is None else signed
    signature = key.sign(f"DSSEv1 {len(kind)} {kind} {len(body)} ".encode() + body)
    return canonical({"payload": b64(payload), "payloadType": kind, "signatures": [{"keyid": kid(key), "sig": b64(signature)}]})


def statements() -> dict[str, tuple[bytes, str]]:
    sound = canonical(statement())
    whole = json.loads(envelope(sound))
    return {
        "statement_sound": (envelope(sound), "ok"),
        "statement_with_original": (envelope(canonical(statement(orig={"sha256": "55" * 32, "size": 526001}, coerced=["preamble"]))), "ok"),
        "statement_unicode_software": (envelope(canonical(statement(sw="0.1.0 größer"))), "ok"),
        "statement_other_hash": (envelope(canonical(statement(sha256="34" * 32)), signed=sound), "V09"),
        "statement_stranger": (envelope(canonical(statement(kid=kid(STRANGER))), key=STRANGER), "V09"),
        "statement_stranger_posing": (
            canonical({**json.loads(envelope(sound, key=STRANGER)), "signatures": [
                {**json.loads(envelope(sound, key=STRANGER))["signatures"][0], "keyid": kid(INSTANCE)}]}), "V09"),
        "statement_other_type": (envelope(sound, kind="application/json"), "V09"),
        "statement_kid_differs": (envelope(canonical(statement(kid="00" * 16))), "V09"),
        "statement_version_2": (envelope(canonical(statement(v=2))), "V09"),
        "statement_float": (envelope(canonical(statement(size=526000.5))), "V09"),
        "statement_null": (envelope(canonical(statement(src=None))), "V09"),
        "statement_missing_field": (envelope(canonical({k: v for k, v in statement().items() if k != "sha256"})), "V09"),
        "statement_not_sorted": (envelope(json.dumps(statement(), separators=(",", ":")).encode()), "V09"),
        "statement_spaces": (envelope(json.dumps(statement(), sort_keys=True).encode()), "V09"),
        "statement_doubled_key": (envelope(sound[:-1] + b',"v":1}'), "V09"),
        "statement_before_key": (envelope(canonical(statement(recv="2025-12-31T23:59:59.999999Z"))), "V09"),
        "statement_envelope_spaces": (json.dumps(whole, sort_keys=True).encode(), "V09"),
        "statement_two_signatures": (canonical({**whole, "signatures": whole["signatures"] * 2}), "V09"),
        "statement_no_signature": (canonical({**whole, "signatures": []}), "V09"),
        "statement_truncated": (envelope(sound)[:-40], "V09"),
    }


# --- checkpoints ---------------------------------------------------------------------------------------------------------------------


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\0" + leaf).digest()


def mth(hashes: list[bytes]) -> bytes:
    if not hashes:
        return hashlib.sha256().digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1 << ((len(hashes) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + mth(hashes[:k]) + mth(hashes[k:])).digest()


def path(m: int, hashes: list[bytes]) -> list[bytes]:
    if len(hashes) == 1:
        return []
    k = 1 << ((len(hashes) - 1).bit_length() - 1)
    if m < k:
        return [*path(m, hashes[:k]), mth(hashes[k:])]
    return [*path(m - k, hashes[k:]), mth(hashes[:k])]


def classic(text: bytes, name: str = ORIGIN, key: Ed25519PrivateKey = LOG) -> bytes:
    return f"\u2014 {name} {b64(key_id(name, 1, key) + key.sign(text))}\n".encode()


def quantum(size: int, root: bytes, name: str = ORIGIN, key: MLDSA44PrivateKey = QUANTUM, seconds: int = 1767323045) -> bytes:
    named = bytes([len(name)]) + name.encode()
    message = b"subtree/v1\n\0" + named + seconds.to_bytes(8, "big") + named + bytes(8) + size.to_bytes(8, "big") + root
    return f"\u2014 {name} {b64(key_id(name, 6, key) + seconds.to_bytes(8, 'big') + key.sign(message))}\n".encode()


def text_of(size: int | str, root: bytes, origin: str = ORIGIN) -> bytes:
    return f"{origin}\n{size}\n{b64(root)}\n".encode()


def checkpoints(hashes: list[bytes]) -> dict[str, tuple[bytes, str]]:
    root, size = mth(hashes), len(hashes)
    text = text_of(size, root)
    first, second = classic(text), quantum(size, root)
    other = mth(hashes[:-1])
    extended = text + b"extension\n"
    return {
        "checkpoint_sound": (text + b"\n" + first + second, "ok"),
        "checkpoint_other_order": (text + b"\n" + second + first, "ok"),
        "checkpoint_with_witness": (text + b"\n" + first + second + classic(text, "witness.example/w1", STRANGER), "ok"),
        "checkpoint_empty_tree": (text_of(0, mth([])) + b"\n" + classic(text_of(0, mth([]))) + quantum(0, mth([])), "ok"),
        "checkpoint_ed25519_only": (text + b"\n" + first, "V13"),
        "checkpoint_ml_dsa_only": (text + b"\n" + second, "V13"),
        "checkpoint_ml_dsa_of_other_root": (text + b"\n" + first + quantum(size, other), "V13"),
        "checkpoint_ml_dsa_of_other_size": (text + b"\n" + first + quantum(size - 1, root), "V13"),
        "checkpoint_ed25519_of_other_root": (text + b"\n" + classic(text_of(size, other)) + second, "V13"),
        "checkpoint_strangers": (
            text + b"\n" + classic(text, key=STRANGER) + quantum(size, root, key=STRANGER_QUANTUM), "V13"),
        "checkpoint_one_wrong_among_right": (text + b"\n" + first + second + classic(text_of(1, root)), "V13"),
        "checkpoint_other_origin": (
            text_of(size, root, ORIGIN + "x") + b"\n" + classic(text_of(size, root, ORIGIN + "x")) + second, "V13"),
        "checkpoint_leading_zero": (
            text_of(f"0{size}", root) + b"\n" + classic(text_of(f"0{size}", root)) + second, "V13"),
        "checkpoint_extension_line": (extended + b"\n" + classic(extended) + second, "V13"),
        "checkpoint_crlf": ((text + b"\n" + first + second).replace(b"\n", b"\r\n"), "V13"),
        "checkpoint_no_newline_at_end": ((text + b"\n" + first + second)[:-1], "V13"),
        "checkpoint_no_signature": (text, "V13"),
    }


# --- proofs --------------------------------------------------------------------------------------------------------------------------


def leaves() -> list[bytes]:
    bound = hashlib.sha256(envelope(canonical(statement()))).hexdigest()
    made = []
    for n in range(11):
        leaf = {
            "v": 1, "n": n, "t": f"2026-01-02T03:04:{n:02d}.000000Z", "k": "stored", "ev": "110104", "a": "C", "o": 0,
            "c": f"{n:02x}" * 32, "p": "66" * 16, "ob": ["77" * 32], "i": 1, "len": 526288,
        }
        made.append(canonical({**leaf, "stmt": bound if n == 6 else "88" * 32, "obj": "22" * 16}))
    return made


def proof(
    index: int, data: list[bytes], *, leaf: bytes | None = None, stmt: bytes | None = None, said: int | str | None = None,
    parts: list[bytes] | None = None, head: str = "c2sp.org/tlog-proof@v1", keys: list[str] = KEYS, note: bytes | None = None,
) -> bytes:
    hashes = [leaf_hash(one) for one in data]
    extra = {"keys": keys, "leaf": b64(leaf if leaf is not None else data[index])}
    if stmt is not None:
        extra["statement"] = b64(stmt)
    root, size = mth(hashes), len(hashes)
    lines = [head, "extra " + b64(canonical(extra)), f"index {index if said is None else said}"]
    lines += [b64(part) for part in (path(index, hashes) if parts is None else parts)]
    text = text_of(size, root)
    return "\n".join(lines).encode() + b"\n\n" + (note if note is not None else text + b"\n" + classic(text) + quantum(size, root))


def proofs() -> dict[str, tuple[bytes, str]]:
    data = leaves()
    hashes = [leaf_hash(one) for one in data]
    sound = envelope(canonical(statement()))
    root = mth(hashes)
    forged = text_of(11, root)
    return {
        "proof_sound": (proof(6, data, stmt=sound), "ok"),
        "proof_without_statement": (proof(4, data), "ok"),
        "proof_of_one": (proof(0, data[:1]), "ok"),
        "proof_last": (proof(10, data), "ok"),
        "proof_other_leaf": (proof(6, data, leaf=data[5]), "V11"),
        "proof_leaf_number": (proof(6, [*data[:6], data[7], *data[7:]]), "V11"),
        "proof_other_statement": (proof(6, data, stmt=envelope(canonical(statement(size=1)))), "V11"),
        "proof_strangers_statement": (
            proof(0, [canonical({**json.loads(data[0]), "stmt": hashlib.sha256(
                envelope(canonical(statement(kid=kid(STRANGER))), key=STRANGER)).hexdigest()})],
                stmt=envelope(canonical(statement(kid=kid(STRANGER))), key=STRANGER)), "V09"),
        "proof_other_index": (proof(6, data, said=7), "V11"),
        "proof_index_outside": (proof(6, data, said=11), "V11"),
        "proof_part_missing": (proof(6, data, parts=path(6, hashes)[1:]), "V11"),
        "proof_part_too_many": (proof(6, data, parts=[*path(6, hashes), bytes(32)]), "V11"),
        "proof_part_short": (proof(6, data, parts=[path(6, hashes)[0][:31], *path(6, hashes)[1:]]), "V11"),
        "proof_parts_swapped": (proof(6, data, parts=path(6, hashes)[::-1]), "V11"),
        "proof_forged_checkpoint": (
            proof(6, data, note=forged + b"\n" + classic(forged, key=STRANGER) + quantum(11, root, key=STRANGER_QUANTUM)), "V13"),
        "proof_checkpoint_ed25519_only": (proof(6, data, note=forged + b"\n" + classic(forged)), "V13"),
        "proof_leading_zero": (proof(6, data, said="06"), "not-a-proof"),
        "proof_version_2": (proof(6, data, head="c2sp.org/tlog-proof@v2"), "not-a-proof"),
        "proof_bad_key": (proof(6, data, keys=[KEYS[0].replace("+", "+0", 1)]), "not-a-proof"),
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (data, expect) in {**statements(), **checkpoints([leaf_hash(one) for one in leaves()]), **proofs()}.items():
        file = FOLDER / f"{name}.json"
        if not file.exists():
            vector = {"keys": KEYS, "not_before": NOT_BEFORE, "data": b64(data), "expect": expect}
            file.write_text(json.dumps(vector, indent=1) + "\n")


if __name__ == "__main__":
    main()
