"""A rule about where sign-ins come from: two that nobody could have travelled between, by a local GeoIP file when there is one."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import maxminddb
import sqlalchemy as sa

from archive.db.tables import audit_event
from archive.ledger.audit import Kind
from archive.services.alert_look import Found, Look, whence

FASTEST_KMH = 1000
"""Faster than an airliner."""

NEAR_KM = 300
"""What a GeoIP file is wrong by is less than this."""

LATELY = timedelta(hours=24)
_EARTH_KM = 6371.0
_E = audit_event.c


@dataclass(frozen=True, slots=True)
class Place:
    """Where an address is said to be."""

    latitude: float
    longitude: float
    country: str


def impossible_travel(look: Look) -> Iterator[Found]:
    """Two sign-ins of one account, too far apart for the time between them."""
    file = look.settings.geoip_file
    for one in look.of(Kind.SIGNED_IN) if file else ():
        if one.principal_id is None:
            continue
        here = place(file, whence(look.body(one.n))[2])
        before = look.tx.execute(sa.select(_E.n, _E.at).where(
            _E.principal_id == one.principal_id, _E.kind == Kind.SIGNED_IN.label, _E.n < one.n, _E.at > one.at - LATELY
        ).order_by(_E.n.desc()).limit(1)).first()
        there = place(file, whence(look.body(before.n))[2]) if before is not None and here is not None else None
        if before is None or here is None or there is None:
            continue
        far = _apart_km(here, there)
        hours = max((one.at - before.at).total_seconds(), 1.0) / 3600
        if far > NEAR_KM and far / hours > FASTEST_KMH:
            said = {"kilometres": round(far), "minutes": round(hours * 60), "from": there.country, "to": here.country}
            yield Found("impossible-travel", one.n, str(one.principal_id), said, one.principal_id)


def place(file: str, address: str) -> Place | None:
    """Return where an address is by a MaxMind DB file; None when nothing is known of it, or the file cannot be read."""
    try:
        ipaddress.ip_address(address)
        found = _reader(file, Path(file).stat().st_mtime_ns).get(address)
    except (OSError, ValueError, maxminddb.InvalidDatabaseError):
        return None
    located = found.get("location") if isinstance(found, dict) else None
    if not isinstance(located, dict) or not isinstance(found, dict):
        return None
    latitude, longitude, country = located.get("latitude"), located.get("longitude"), found.get("country")
    if not isinstance(latitude, float | int) or not isinstance(longitude, float | int):
        return None
    code = country.get("iso_code") if isinstance(country, dict) else None
    return Place(float(latitude), float(longitude), str(code or "?"))


@lru_cache(maxsize=1)
def _reader(file: str, _changed_ns: int) -> maxminddb.Reader:
    return maxminddb.open_database(file, maxminddb.MODE_MEMORY)


def _apart_km(one: Place, other: Place) -> float:
    """Return the great-circle distance."""
    a, b = math.radians(one.latitude), math.radians(other.latitude)
    across, along = b - a, math.radians(other.longitude - one.longitude)
    half = math.sin(across / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(along / 2) ** 2
    return 2 * _EARTH_KM * math.asin(math.sqrt(min(1.0, half)))
