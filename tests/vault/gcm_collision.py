"""One AES-GCM ciphertext that two keys accept: what a format without key commitment would let through."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_POLYNOMIAL = 0xE1 << 120


def _times(x: int, y: int) -> int:
    """Multiply in GF(2^128) as GCM writes it (NIST SP 800-38D 6.3)."""
    product = 0
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            product ^= y
        y = (y >> 1) ^ (_POLYNOMIAL if y & 1 else 0)
    return product


def _power(x: int, exponent: int) -> int:
    result = 1 << 127  # the one of this field
    while exponent:
        if exponent & 1:
            result = _times(result, x)
        x = _times(x, x)
        exponent >>= 1
    return result


def _block(key: bytes, block: bytes) -> int:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # the raw block function
    return int.from_bytes(encryptor.update(block), "big")


def ciphertext_for_both(first: bytes, second: bytes, nonce: bytes, blocks: int) -> bytes:
    """Return `blocks` blocks of ciphertext and a tag that authenticate under both keys with empty AAD."""
    lengths = (blocks * 128).to_bytes(16, "big")
    body = [int.from_bytes(bytes([n]) * 16, "big") for n in range(blocks)]
    body[-1] = 0

    def tag(key: bytes) -> int:
        h = _block(key, bytes(16))
        y = 0
        for one in [*body, int.from_bytes(lengths, "big")]:
            y = _times(y ^ one, h)
        return y ^ _block(key, nonce + b"\0\0\0\1")

    # The last block counts h^2 times in each tag, so it can level the difference.
    spread = _power(_block(first, bytes(16)), 2) ^ _power(_block(second, bytes(16)), 2)
    body[-1] = _times(tag(first) ^ tag(second), _power(spread, (1 << 128) - 2))
    assert tag(first) == tag(second)
    return b"".join(one.to_bytes(16, "big") for one in body) + tag(first).to_bytes(16, "big")
