"""The record format against an attacker who owns the disk."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import struct
from unittest import mock

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from archive.errors import SealBroken
from archive.vault import container
from archive.vault.container import HEADER_BYTES, PACK_KINDS, Kind, Opener, Sealer, Trailer
from tests.vault.gcm_collision import ciphertext_for_both

KEY = hashlib.sha256(b"study key").digest()
WHO = {"key_id": b"k" * 16, "object_id": b"o" * 16, "datastore": b"d" * 16, "kind": Kind.INSTANCE}
STRIDE = 4096 + 16


def plaintext(part10: bytes) -> bytes:
    return part10 + Trailer(len(part10), 0, 0, hashlib.sha256(part10).digest()).to_bytes()


def sealed(size: int, seed: int = 1, **more: object) -> bytes:
    data = random.Random(seed).randbytes(size)
    return container.seal(KEY, plaintext(data), chunk_log2=12, **{**WHO, **more})  # type: ignore[arg-type]


def verdict(record: bytes) -> str:
    with pytest.raises(SealBroken) as caught:
        container.open(KEY, record)
    return caught.value.verdict


@pytest.mark.parametrize("size", [0, 1, 3999, 4000, 4001, 4096, 3 * 4096 - 96, 3 * 4096 - 95, 20_000])
def test_what_went_in_comes_out(size: int) -> None:
    record = sealed(size)
    header, opened = container.open(KEY, record)
    assert opened == plaintext(random.Random(1).randbytes(size))
    assert len(record) == header.record_bytes
    assert header.chunks == max(1, -(-(size + 96) // 4096))
    assert (header.key_id, header.object_id, header.datastore, header.kind) == tuple(WHO.values())


def test_every_bit_of_the_header_is_bound() -> None:
    record = sealed(300)
    verdicts = []
    for at in range(HEADER_BYTES):
        for bit in range(8):
            changed = bytearray(record)
            changed[at] ^= 1 << bit
            with mock.patch.object(Opener, "chunk", side_effect=AssertionError("a chunk was touched")):
                found = verdict(bytes(changed))
            verdicts.append(found)
            # Structure is refused without a key, everything else by the commitment.
            assert found in {"V04", "V06"}
            assert (found == "V06") if 16 <= at < 96 or at >= 128 else True
    assert {"V04", "V06"} == set(verdicts)


def test_every_truncation_of_a_small_record_fails() -> None:
    record = sealed(4200)
    for length in range(len(record)):
        assert verdict(record[:length]) == ("V04" if length < HEADER_BYTES else "V02")


@pytest.mark.parametrize("tail", [b"\0", b"x" * 16, b"x" * STRIDE])
def test_extension_fails(tail: bytes) -> None:
    assert verdict(sealed(5000) + tail) == "V02"


def test_every_flipped_byte_of_the_chunks_fails_and_names_its_chunk() -> None:
    record = sealed(9000)
    for at in range(HEADER_BYTES, len(record), 7):
        changed = bytearray(record)
        changed[at] ^= 0x80
        with pytest.raises(SealBroken, match=f"chunk {(at - HEADER_BYTES) // STRIDE} ") as caught:
            container.open(KEY, bytes(changed))
        assert caught.value.verdict == "V07"


def test_every_other_order_of_chunks_fails() -> None:
    record = sealed(4 * 4096 - 96)
    head, chunks = record[:HEADER_BYTES], [record[HEADER_BYTES + n * STRIDE :][:STRIDE] for n in range(4)]
    for order in itertools.product(range(4), repeat=4):
        if order != (0, 1, 2, 3):
            assert verdict(head + b"".join(chunks[n] for n in order)) == "V07"


def test_chunks_and_headers_of_a_twin_do_not_fit() -> None:
    one, two = sealed(9000), sealed(9000)
    assert one != two
    for n in range(2):
        at = HEADER_BYTES + n * STRIDE
        assert verdict(one[:at] + two[at : at + STRIDE] + one[at + STRIDE :]) == "V07"
    assert verdict(one[:HEADER_BYTES] + two[HEADER_BYTES:]) == "V07"
    assert verdict(two[:HEADER_BYTES] + one[HEADER_BYTES:]) == "V07"


def test_a_shorter_length_cannot_be_claimed() -> None:
    """Cutting whole chunks needs another header length, which the commitment holds."""
    record = bytearray(sealed(3 * 4096 - 96))
    record[112:120] = struct.pack(">Q", 4096)
    assert verdict(bytes(record[: HEADER_BYTES + STRIDE])) == "V06"


def test_packs_and_records_do_not_mix() -> None:
    pack = sealed(100, kind=Kind.PACK)
    assert container.open(KEY, pack, PACK_KINDS)[0].kind == Kind.PACK
    assert verdict(pack) == "V04"
    with pytest.raises(SealBroken):
        container.open(KEY, sealed(100), PACK_KINDS)
    # Nor by renaming the kind: the label of the key differs too.
    forged = bytearray(pack)
    forged[96] = Kind.INSTANCE
    assert verdict(bytes(forged)) == "V06"


def test_a_ciphertext_made_for_two_keys_fails_before_it_is_decrypted() -> None:
    """Key commitment: AES-GCM alone would accept it under both."""
    other = hashlib.sha256(b"another study key").digest()
    length = 128
    sealer = Sealer(KEY, **WHO, chunk_log2=12)  # type: ignore[arg-type]
    header = sealer.header(length)
    keys = [container._file_key(one, header[:112], Kind.INSTANCE) for one in (KEY, other)]
    nonce = struct.pack(">7xIB", 0, 1)
    body = ciphertext_for_both(*keys, nonce, length // 16)
    opened = [AESGCM(one).decrypt(nonce, body, None) for one in keys]
    assert opened[0] != opened[1]
    assert container.open(KEY, header + body)[1] == opened[0]
    with mock.patch.object(Opener, "chunk", side_effect=AssertionError("decrypted")), pytest.raises(SealBroken) as caught:
        container.open(other, header + body)
    assert caught.value.verdict == "V06"


def test_salts_differ_though_the_random_generator_repeats_itself() -> None:
    with mock.patch.object(os, "urandom", side_effect=bytes), mock.patch("time.time_ns", return_value=1):
        records = [sealed(10) for _ in range(50)]
    assert len({record[48:80] for record in records}) == 50
    assert len({container._file_key(KEY, record[:112], 1) for record in records}) == 50


def test_two_attempts_never_share_a_file_key() -> None:
    records = [sealed(10) for _ in range(200)]
    assert len({container._file_key(KEY, record[:112], 1) for record in records}) == 200


def test_a_broken_chunk_leaves_no_plaintext_behind() -> None:
    record = bytearray(sealed(4096 - 96))
    record[-1] ^= 1
    opener = Opener(KEY, bytes(record))
    into = memoryview(bytearray(4096))
    with pytest.raises(SealBroken):
        opener.chunk(0, memoryview(record)[HEADER_BYTES:], into)
    assert bytes(into) == bytes(4096)


def test_messages_and_reprs_hold_no_key() -> None:
    from archive.vault.keystore import StudyKey

    assert "1234" not in repr(StudyKey(b"1234" * 4, b"1234" * 8))


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(0, 5 * 4096), start=st.integers(0, 6 * 4096), length=st.integers(0, 6 * 4096),
    batch=st.integers(1, 3), data=st.randoms(use_true_random=False),
)
def test_a_range_is_the_slice_and_opens_only_its_chunks(size: int, start: int, length: int, batch: int, data: random.Random) -> None:
    part10 = data.randbytes(size)
    whole = plaintext(part10)
    record = container.seal(KEY, whole, chunk_log2=12, **WHO)  # type: ignore[arg-type]
    start = min(start, len(whole))
    length = min(length, len(whole) - start)

    def read(at: int, into: memoryview) -> int:
        piece = record[at : at + len(into)]
        into[: len(piece)] = piece
        return len(piece)

    opener = Opener(KEY, record)
    touched: list[int] = []
    real = opener.chunk
    with mock.patch.object(opener, "chunk", lambda index, sealed, into: (touched.append(index), real(index, sealed, into))):
        got = b"".join(
            bytes(view)
            for view in opener.open_range(read, start, length, memoryview(bytearray(batch * STRIDE)), memoryview(bytearray(batch * 4096)))
        )
    assert got == whole[start : start + length]
    expected = range(start // 4096, -(-(start + length) // 4096)) if length else range(0)
    assert touched == list(expected)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_noise_is_never_more_than_a_refusal(noise: bytes) -> None:
    with pytest.raises(SealBroken):
        container.open(KEY, noise)
    with pytest.raises(SealBroken):
        container.open(KEY, container.MAGIC + b"\0\1\1\x12" + bytes(4) + noise)
