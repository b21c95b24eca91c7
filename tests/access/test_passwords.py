"""Passwords: what is kept, what is refused, how many are hashed at once."""

from __future__ import annotations

import threading
import time

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from archive.access import passwords
from archive.errors import InvalidRequest, Unauthenticated

GOOD = "four otters row upstream"
pytestmark = pytest.mark.usefixtures("costly")


def test_a_password_is_kept_as_argon2id() -> None:
    phc = passwords.seal(GOOD)
    assert phc.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert phc != passwords.seal(GOOD)
    passwords.verify(GOOD, phc)
    for wrong in ("", GOOD + " ", GOOD.upper(), "x" * 5000):
        with pytest.raises(Unauthenticated):
            passwords.verify(wrong, phc)


def test_composed_and_decomposed_letters_are_the_same_password() -> None:
    passwords.verify("Bu\u0308cher im Regal", passwords.seal("B\u00fccher im Regal"))


def test_nobody_has_no_password_and_costs_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same work, counted and not timed: one hash of the same password with the same parameters, salt and result as long."""
    worked: list[tuple[bytes, list[str], list[int]]] = []

    class Counted:
        @staticmethod
        def verify_phc_encoded(password: bytes, phc: str) -> None:
            *parameters, salt, result = phc.split("$")
            worked.append((password, parameters, [len(salt), len(result)]))
            Argon2id.verify_phc_encoded(password, phc)

    phc = passwords.seal(GOOD)
    passwords._nobody()  # made once: from here on nothing may be derived besides
    monkeypatch.setattr(passwords, "Argon2id", Counted)
    for stored in (phc, None):
        with pytest.raises(Unauthenticated):
            passwords.verify("wrong wrong wrong", stored)
    known, unknown = worked
    assert known == unknown
    assert known[1][1:] == ["argon2id", "v=19", f"m={passwords.MEMORY_KIB},t={passwords.ITERATIONS},p={passwords.LANES}"]


def test_a_damaged_row_lets_nobody_in() -> None:
    for phc in ("", "junk", "$argon2id$v=19$m=19456,t=2,p=1$AAAA$AAAA"):
        with pytest.raises(Unauthenticated):
            passwords.verify(GOOD, phc)


def test_older_parameters_are_noticed() -> None:
    phc = passwords.seal(GOOD)
    assert not passwords.outdated(phc)
    assert passwords.outdated(phc.replace("m=19456", "m=9216"))
    assert passwords.outdated("$2b$12$whatever")


@pytest.mark.parametrize("weak", [
    "", "short", "elevenchars", "aaaaaaaaaaaa", "abababababab", "abcdabcdabcd", "abcdefghijkl", "123456789012", "987654321098",
    "Password2024!", "passwordpassword", "QWERTYUIOP12", "Strongroom!!", "Radiology2026", "correct horse battery staple", "x" * 1025,
    "a" * 2000, "contraseña123", "Röntgen123456",
])
def test_weak_passwords_are_refused(weak: str) -> None:
    with pytest.raises(InvalidRequest):
        passwords.check_new(weak)


@pytest.mark.parametrize("fine", [GOOD, "kq7vw-mh3xz-pp2ra-tn8bd", "ein blauer Rettich am Tor", "レントゲン写真の部屋は二階です"])
def test_other_passwords_are_taken(fine: str) -> None:
    passwords.check_new(fine, name="admin")


def test_the_own_name_is_no_password() -> None:
    with pytest.raises(InvalidRequest, match="name"):
        passwords.check_new("Marie-Curie-1", name="marie-curie")
    passwords.check_new("marie-curie walks to the river", name="marie-curie")


def test_two_are_hashed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock = 0, 0, threading.Lock()

    class Slow:
        @staticmethod
        def verify_phc_encoded(_key: bytes, _phc: str) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.02)
            with lock:
                running -= 1

    monkeypatch.setattr(passwords, "Argon2id", Slow)
    threads = [threading.Thread(target=passwords.verify, args=(GOOD, "x")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


def test_a_password_of_nothing_but_accents_costs_no_more_than_another() -> None:
    began = time.process_time()
    for account in (passwords.seal("a password that somebody has"), None):
        with pytest.raises(Unauthenticated):
            passwords.verify("a" + "\u0301\u0316" * 60_000, account)
    assert time.process_time() - began < 5
