"""One-time codes against the test vectors of RFC 6238 appendix B."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from archive.access import totp

SECRET = b"12345678901234567890"


@pytest.mark.parametrize(("second", "code"), [
    (59, "94287082"), (1111111109, "07081804"), (1111111111, "14050471"), (1234567890, "89005924"), (2000000000, "69279037"),
    (20000000000, "65353130"),
])
def test_the_vectors_of_the_rfc(second: int, code: str) -> None:
    at = datetime.fromtimestamp(second, UTC)
    assert totp.code(SECRET, totp.step_of(at)) == code[-totp.DIGITS:]


@pytest.mark.parametrize("off", [-2, -1, 0, 1, 2])
def test_the_window_is_one_step_either_way(off: int) -> None:
    at = datetime.fromtimestamp(1_800_000_000, UTC)
    step = totp.step_of(at) + off
    found = totp.matching(SECRET, totp.code(SECRET, step), at=at, after=-1)
    assert found == (step if abs(off) <= 1 else None)


@pytest.mark.parametrize("typed", ["", "1", "0000000", "\ud800", "abcdef", "٣٣٣٣٣٣"])
def test_what_is_no_code_is_none(typed: str) -> None:
    assert totp.matching(SECRET, typed, at=datetime.fromtimestamp(0, UTC), after=-1) is None


def test_no_step_counts_twice_nor_one_before_it() -> None:
    at = datetime.fromtimestamp(1_800_000_000, UTC)
    now = totp.step_of(at)
    for after in (now, now + 1):
        assert totp.matching(SECRET, totp.code(SECRET, now), at=at, after=after) is None


def test_the_address_is_what_apps_read() -> None:
    told = totp.address(SECRET, account="mia @ward", issuer="Strongroom clinic")
    assert told == (
        "otpauth://totp/Strongroom%20clinic%3Amia%20%40ward?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Strongroom%20clinic"
        "&digits=6&period=30"
    )
