"""The hook that lets any certificate be shown, and what does not pass with it."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest

from archive.dimse import tls
from archive.dimse.tls import HandshakeFailed
from tests.dimse.conftest import Identity, Pki


def shake(pki: Pki, identity: Identity | None, version: ssl.TLSVersion) -> bytes | HandshakeFailed:
    """Do a handshake over a socket pair; return the certificate the server saw, or why it failed."""
    ours, theirs = socket.socketpair()
    context = pki.client_context(identity)
    context.maximum_version = version

    def client() -> None:
        try:
            with context.wrap_socket(theirs) as secured:
                secured.recv(1)
        except OSError:
            theirs.close()

    thread = threading.Thread(target=client)
    thread.start()
    try:
        with tls.handshake(ours, pki.files, timeout_s=5) as secured:
            assert secured.context.session_stats()["accept_good"] == 1
            found = secured.certificate
        assert found is not None
        return found
    except HandshakeFailed as failure:
        return failure
    finally:
        thread.join(60)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["ct1", "unbound", "foreign", "other_ca"])
def test_any_valid_client_certificate_is_shown(pki: Pki, name: str, version: ssl.TLSVersion) -> None:
    identity = getattr(pki, name)
    assert shake(pki, identity, version) == identity.der


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(("name", "why"), [("expired", "has expired"), ("server_only", "unsuitable certificate purpose")])
def test_what_no_anchor_mends(pki: Pki, name: str, why: str, version: ssl.TLSVersion) -> None:
    failure = shake(pki, getattr(pki, name), version)
    assert isinstance(failure, HandshakeFailed)
    assert why in failure.why
    assert failure.certificate == getattr(pki, name).der


def test_without_the_hook_the_built_in_ca_still_passes(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "_anchor", lambda _context, _presented: None)
    assert shake(pki, pki.ct1, ssl.TLSVersion.TLSv1_3) == pki.ct1.der
    failure = shake(pki, pki.foreign, ssl.TLSVersion.TLSv1_3)
    assert isinstance(failure, HandshakeFailed)
    assert failure.certificate is None


def test_this_interpreter_has_the_hook() -> None:
    assert hasattr(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "_msg_callback")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x0b", b"\x0b\0\0\0", b"\x0b\0\0\x04\0\0\0\0", b"\x0b\0\0\x09\0\0\0\x05\xff\xff\xff\0\0", b"\x0b\0\0\0\xff"],
)
@pytest.mark.parametrize("tls_1_3", [False, True])
def test_certificate_messages_that_hold_none(data: bytes, tls_1_3: bool) -> None:
    assert tls._first_certificate(data, tls_1_3=tls_1_3) == b""


def test_the_archives_own_files_missing(pki: Pki) -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(HandshakeFailed, match="own certificate"):
        tls.handshake(ours, tls.TlsFiles(pki.files.certificate, pki.files.key.with_name("none"), pki.files.authority), timeout_s=1)
