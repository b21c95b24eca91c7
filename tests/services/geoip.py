"""A MaxMind DB file of a few networks, as the format's specification 2.0 says."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from typing import Any

_MARK = b"\xab\xcd\xefMaxMind.com"


def written(places: Mapping[str, Any]) -> bytes:
    """Return the file for IPv4 networks and what is said of each."""
    data, offsets = b"", {}
    for network, said in places.items():
        offsets[network] = len(data)
        data += _value(said)
    nodes: list[list[int | None]] = [[None, None]]
    leaves: dict[tuple[int, int], str] = {}
    for network in places:
        parsed = ipaddress.IPv4Network(network)
        bits = f"{int(parsed.network_address):032b}"[: parsed.prefixlen]
        at = 0
        for bit in map(int, bits[:-1]):
            following = nodes[at][bit]
            if following is None:
                following = nodes[at][bit] = len(nodes)
                nodes.append([None, None])
            at = following
        leaves[at, int(bits[-1])] = network
    count = len(nodes)
    tree = b""
    for at, pair in enumerate(nodes):
        for bit, following in enumerate(pair):
            number = count if following is None else following
            if (at, bit) in leaves:
                number = count + 16 + offsets[leaves[at, bit]]
            tree += number.to_bytes(3, "big")
    about = {
        "node_count": count, "record_size": 24, "ip_version": 4, "binary_format_major_version": 2, "binary_format_minor_version": 0,
        "build_epoch": 1, "database_type": "Test-City", "languages": [], "description": {},
    }
    return tree + bytes(16) + data + _MARK + _value(about)


def _value(value: Any) -> bytes:
    if isinstance(value, dict):
        return _head(7, len(value)) + b"".join(_value(name) + _value(one) for name, one in value.items())
    if isinstance(value, str):
        return _head(2, len(value.encode())) + value.encode()
    if isinstance(value, float):
        return _head(3, 8) + struct.pack(">d", value)
    if isinstance(value, list):
        return _head(11, len(value)) + b"".join(map(_value, value))
    data = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return _head(6, len(data)) + data


def _head(kind: int, size: int) -> bytes:
    assert size < 29
    return bytes([kind << 5 | size]) if kind < 8 else bytes([size, kind - 7])
