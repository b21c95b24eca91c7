"""Write tests/vectors/container/*.json, the frozen vectors of the record format.

Each file: `study_key` and `record` (base64), what must happen (`expect`: ok, header, commitment, key, chunk, trailer, size or hash;
`chunk`: which), the verdict, and for sound ones SHA-256 of the Part 10 bytes. Written once, with a fixed seed, by code that shares
nothing with archive/vault: a released record opens for ever. Files that exist are kept.

    python tests/vectors/make_container.py
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import struct
import zlib
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FOLDER = Path(__file__).parent / "container"
RANDOM = random.Random(20260102)


def expand(key: bytes, info: bytes, length: int = 32) -> bytes:
    out, block, number = b"", b"", 1
    while len(out) < length:
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        out += block
        number += 1
    return out[:length]


class Record:
    """A record whose every field can be made wrong."""

    def __init__(self, plaintext: bytes, *, log2: int = 18, kind: int = 1, **fields: object) -> None:
        self.key = RANDOM.randbytes(32)
        self.fields = {
            "magic": b"\x89SRM\r\n\x1a\n", "version": 1, "suite": 1, "log2": log2, "flags": 0, "key_id": RANDOM.randbytes(16),
            "object_id": RANDOM.randbytes(16), "salt": RANDOM.randbytes(32), "datastore": RANDOM.randbytes(16), "kind": kind,
            "zero1": bytes(15), "length": len(plaintext), "zero2": bytes(8), "label": b"strongroom/v1/file\0", **fields,
        }
        self.plaintext = plaintext
        self.order: list[int] | None = None
        self.last: int | None = None

    def bytes(self) -> bytes:
        f = self.fields
        bound = struct.pack(
            ">8sHBBI16s16s32s16sB15s", f["magic"], f["version"], f["suite"], f["log2"], f["flags"], f["key_id"], f["object_id"], f["salt"],
            f["datastore"], f["kind"], f["zero1"],
        )
        file_key = expand(self.key, f["label"] + bound)  # type: ignore[operator]
        head = bound + struct.pack(">Q8s", f["length"], f["zero2"])
        head += expand(file_key, b"strongroom/v1/commit\0" + head)
        size = 1 << int(f["log2"])  # type: ignore[call-overload]
        pieces = [self.plaintext[at : at + size] for at in range(0, len(self.plaintext), size)]
        last = len(pieces) - 1 if self.last is None else self.last
        sealed = [AESGCM(file_key).encrypt(struct.pack(">7xIB", n, n == last), one, None) for n, one in enumerate(pieces)]
        return head + b"".join(sealed[n] for n in (self.order or range(len(sealed))))


def sections(part10: bytes, meta: bytes = b'{"a":1}', statement: bytes = b'{"payload":""}', **wrong: object) -> bytes:
    packed = zlib.compress(meta, 1) if meta else b""
    f = {"magic": b"SRMTRLR1", "p10": len(part10), "offset": len(part10), "meta": len(packed), "stmt": len(statement),
         "sha": hashlib.sha256(part10).digest(), "zero": bytes(24), **wrong}
    return part10 + packed + statement + struct.pack(">8sQQQQ32s24s", *f.values())


def flip(data: bytes, at: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


def save(name: str, record: Record, data: bytes, expect: str, verdict: str = "", part10: bytes | None = None, **more: object) -> None:
    path = FOLDER / f"{name}.json"
    if path.exists():
        return
    content = {"study_key": base64.b64encode(more.pop("key", record.key)).decode(), "record": base64.b64encode(data).decode(),  # type: ignore[arg-type]
               "expect": expect, "verdict": verdict, **more}
    if part10 is not None:
        content["part10_sha256"] = hashlib.sha256(part10).hexdigest()
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="ascii")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    small = RANDOM.randbytes(300)
    exact = RANDOM.randbytes(3 * 4096 - len(sections(b"")))
    several = RANDOM.randbytes(3 * 4096 + 77)
    # sound
    for name, part10, log2, kind in (
        ("ok_small", small, 18, 1), ("ok_empty_part10", b"", 18, 1), ("ok_held", small, 18, 2), ("ok_chunk_log2_12", several, 12, 1),
        ("ok_chunk_log2_22", small, 22, 1), ("ok_ends_with_chunk", exact, 12, 1), ("ok_one_byte_more", exact + b"x", 12, 1),
        ("ok_one_byte_less", exact[:-1], 12, 1), ("ok_trailer_across_chunks", RANDOM.randbytes(4096 - 60), 12, 1),
    ):
        record = Record(sections(part10), log2=log2, kind=kind)
        save(name, record, record.bytes(), "ok", part10=part10)
    record = Record(sections(b'{"change":"rejected"}', b"", b""), kind=3)
    save("ok_event", record, record.bytes(), "ok", part10=b'{"change":"rejected"}')
    # header: refused before any key
    for name, wrong in (
        ("magic", {"magic": b"\x89SRM\n\x1a\n\0"}), ("version_2", {"version": 2}), ("version_0", {"version": 0}), ("suite_2", {"suite": 2}),
        ("chunk_log2_11", {"log2": 11}), ("chunk_log2_23", {"log2": 23}), ("flags", {"flags": 1}), ("flags_high", {"flags": 1 << 31}),
        ("kind_0", {"kind": 0}), ("kind_4", {"kind": 4}), ("kind_pack", {"kind": 16}), ("zero_97", {"zero1": b"\x01" + bytes(14)}),
        ("zero_111", {"zero1": bytes(14) + b"\x01"}), ("zero_120", {"zero2": b"\x01" + bytes(7)}),
        ("zero_127", {"zero2": bytes(7) + b"\x01"}),
        ("length_0", {"length": 0}), ("length_huge", {"length": 1 << 63}),
    ):
        record = Record(sections(small), **wrong)  # type: ignore[arg-type]
        save(f"header_{name}", record, record.bytes(), "header", "V04")
    record = Record(sections(small))
    data = record.bytes()
    save("header_cut", record, data[:159], "header", "V04")
    # commitment
    for name, at in (("key_id", 16), ("object_id", 32), ("salt", 48), ("datastore", 80), ("length", 119), ("itself", 159)):
        save(f"commitment_{name}", record, flip(data, at), "commitment", "V06")
    save("commitment_kind_changed", record, data[:96] + b"\x02" + data[97:], "commitment", "V06")
    save("commitment_other_key", record, data, "commitment", "V06", key=RANDOM.randbytes(32))
    record = Record(sections(small), label=b"strongroom/v1/pack\0")
    save("commitment_pack_label", record, record.bytes(), "commitment", "V06")
    record = Record(sections(small))
    save("key_missing", record, record.bytes(), "key", "V05")
    # chunks
    def many() -> Record:
        return Record(sections(several), log2=12)

    record = many()
    data = record.bytes()
    stride = 4096 + 16
    save("chunk_0_flipped", record, flip(data, 160), "chunk", "V07", chunk=0)
    save("chunk_1_tag", record, flip(data, 160 + 2 * stride - 1, 7), "chunk", "V07", chunk=1)
    save("chunk_last_flipped", record, flip(data, len(data) - 1), "chunk", "V07", chunk=3)
    save("chunk_zeroed", record, data[: 160 + stride] + bytes(stride) + data[160 + 2 * stride :], "chunk", "V07", chunk=1)
    swapped = data[:160] + data[160 + stride : 160 + 2 * stride] + data[160 : 160 + stride] + data[160 + 2 * stride :]
    save("chunk_swapped", record, swapped, "chunk", "V07", chunk=0)
    doubled = data[: 160 + stride] + data[160 : 160 + stride] + data[160 + 2 * stride :]
    save("chunk_doubled", record, doubled, "chunk", "V07", chunk=1)
    other = many()
    save("chunk_spliced", record, data[: 160 + stride] + other.bytes()[160 + stride : 160 + 2 * stride] + data[160 + 2 * stride :],
         "chunk", "V07", chunk=1)
    for name, last in (("early", 1), ("never", 99)):
        record = many()
        record.last = last
        save(f"chunk_last_flag_{name}", record, record.bytes(), "chunk", "V07", chunk=1 if last == 1 else 3)
    # size
    record = many()
    data = record.bytes()
    save("size_cut_by_one", record, data[:-1], "size", "V02")
    save("size_cut_by_chunk", record, data[: 160 + 3 * stride], "size", "V02")
    save("size_header_alone", record, data[:160], "size", "V02")
    save("size_extended", record, data + b"\0", "size", "V02")
    # trailer and hash
    for name, wrong in (("magic", {"magic": b"SRMTRLR2"}), ("meta_offset", {"offset": 299}), ("part10_long", {"p10": 301, "offset": 301}),
                        ("overflow", {"p10": (1 << 64) - 1, "offset": (1 << 64) - 1}), ("zero", {"zero": bytes(23) + b"\x01"})):
        record = Record(sections(small, **wrong))  # type: ignore[arg-type]
        save(f"trailer_{name}", record, record.bytes(), "trailer", "V04")
    record = Record(RANDOM.randbytes(95))
    save("trailer_absent", record, record.bytes(), "trailer", "V04")
    record = Record(sections(small, sha=hashlib.sha256(small + b"x").digest()))
    save("hash_differs", record, record.bytes(), "hash", "V08")
    # cached objects, which are no records
    for name, kind in (("pack", 0x10), ("picture", 0x11)):
        record = Record(several, log2=12, kind=kind, label=f"strongroom/v1/{name}\0".encode())
        save(f"cached_{name}", record, record.bytes(), "cached", "V04", part10=several)


if __name__ == "__main__":
    main()
