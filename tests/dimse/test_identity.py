"""Who gets in over TLS and plain: certificate and AE title together, never one alone."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Callable

import pytest

from archive.errors import DatabaseUnavailable
from tests.dimse.conftest import Identity, Running, StartNode
from tests.dimse.fakes import eventually
from tests.dimse.rawpeer import AC, IMPLICIT, RJ, VERIFICATION, RawPeer, associate_rq, p_data

CONTEXTS = [(VERIFICATION, [IMPLICIT])]
UNRECOGNISED = bytes((0, 1, 1, 3))


def identity(node: Running, name: str) -> Identity:
    found = getattr(node.pki, name)
    assert isinstance(found, Identity)
    return found


@pytest.mark.parametrize(("certificate", "title"), [("ct1", "CT1"), ("ct1", "CT1B"), ("foreign", "FOREIGN")])
def test_the_right_certificate_with_its_title(node: Running, certificate: str, title: str) -> None:
    with RawPeer(node.connect_tls(identity(node, certificate))) as peer:
        assert peer.associate(CONTEXTS, calling=title) == AC
        assert peer.echo() == 0
        peer.release()


@pytest.mark.parametrize(
    ("certificate", "title"),
    [
        ("ct1", "CT2"),  # right certificate, wrong title
        ("ct1", "FOREIGN"),  # another peer's title
        ("unbound", "CT1"),  # the built-in CA's, bound to nobody
        ("other_ca", "CT1"),  # another CA's
        ("foreign", "CT1"),
        ("ct1", "ECHO"),  # a title of the plain listener
    ],
)
def test_any_other_pair_gets_a_clean_rejection_and_is_pending(node: Running, certificate: str, title: str) -> None:
    shown = identity(node, certificate)
    with RawPeer(node.connect_tls(shown)) as peer:
        assert peer.associate(CONTEXTS, calling=title) == RJ
        assert peer.answer == UNRECOGNISED
    assert node.peers.pending == [(title, "127.0.0.1", shown.der)]
    assert eventually(lambda: node.listener.visitors == 0)
    assert node.store.opened == 0


def test_a_rejection_waits_until_a_requestor_looks_for_it(node: Running) -> None:
    """And what the peer has sent meanwhile does not reset the connection over it."""
    with RawPeer(node.connect()) as peer:
        begun = time.monotonic()
        peer.send(associate_rq(CONTEXTS, calling="NOBODY") + p_data(1, 2, bytes(1 << 16)))
        assert peer.read_pdu() == (RJ, UNRECOGNISED)
        assert time.monotonic() - begun >= 0.02
        peer.send(p_data(1, 2, bytes(1 << 16)))
        assert peer.at_end()
    assert eventually(lambda: node.listener.visitors == 0)


@pytest.mark.parametrize("certificate", ["expired", "server_only", None])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_use_of_a_certificate_ends_in_an_alert(node: Running, certificate: str | None, version: ssl.TLSVersion) -> None:
    """Even one that is enrolled: the expired one is bound to OLD."""
    context = node.pki.client_context(identity(node, certificate) if certificate else None)
    context.maximum_version = version
    def attempt() -> None:
        plain = socket.create_connection(("127.0.0.1", node.tls_port), timeout=60)
        with plain, context.wrap_socket(plain) as secured, RawPeer(secured) as peer:
            peer.associate(CONTEXTS, calling="OLD")

    with pytest.raises(OSError):  # noqa: PT011 # an alert, or a reset after it
        attempt()
    assert eventually(lambda: len(node.peers.away) == 1)
    address, reason, shown = node.peers.away[0]
    assert address == "127.0.0.1"
    assert reason == {"expired": "certificate refused: certificate has expired", None: "no client certificate"}.get(
        certificate, "certificate refused: unsuitable certificate purpose"
    )
    assert shown == (identity(node, certificate).der if certificate else None)
    assert node.peers.pending == []


def test_a_certificate_without_its_key(node: Running) -> None:
    """Whoever saw CT1's certificate on the wire cannot use it."""
    context = node.pki.client_context(None)
    with pytest.raises(ssl.SSLError):
        context.load_cert_chain(node.pki.ct1.certificate, node.pki.unbound.key)


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_tls_is_refused(node: Running, version: str) -> None:
    with RawPeer(node.connect_raw_tls()) as peer:
        minor = {"TLSv1": 1, "TLSv1_1": 2}[version]
        random = bytes(range(32))
        hello = bytes((3, minor)) + random + b"\0" + b"\x00\x04\xc0\x13\xc0\x14" + b"\x01\x00"
        handshake = b"\x01" + len(hello).to_bytes(3, "big") + hello
        peer.send(bytes((22, 3, 1)) + len(handshake).to_bytes(2, "big") + handshake)
        content, *_ = peer.read(5)
        assert content == 21  # alert
        assert peer.read(2) == bytes((2, 70))  # fatal, protocol_version
        assert peer.at_end()
    assert eventually(lambda: [reason for _, reason, _ in node.peers.away] == ["not TLS 1.2 or 1.3"])


@pytest.mark.parametrize("cipher", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"])
def test_other_ciphers_are_refused(node: Running, cipher: str) -> None:
    """No forward secrecy, no authenticated encryption, and one outside the profile."""
    context = node.pki.client_context(node.pki.ct1)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(cipher)
    plain = socket.create_connection(("127.0.0.1", node.tls_port), timeout=60)
    with plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)


@pytest.mark.parametrize("cipher", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"])
def test_the_profile_of_tls_1_2(node: Running, cipher: str) -> None:
    context = node.pki.client_context(node.pki.ct1)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(cipher)
    with RawPeer(context.wrap_socket(socket.create_connection(("127.0.0.1", node.tls_port), timeout=60))) as peer:
        assert peer.connection.cipher()[0] == cipher  # type: ignore[attr-defined]
        assert peer.associate(CONTEXTS) == AC
        peer.release()


def test_plaintext_to_the_tls_port(node: Running) -> None:
    with RawPeer(node.connect_raw_tls()) as peer, pytest.raises((ConnectionError, EOFError)):
        peer.associate(CONTEXTS)  # what comes back, if anything, is a TLS alert: too short for a PDU
    assert node.peers.pending == []


def test_dcmtk_without_tls_to_the_tls_port(node: Running, program: Callable[[str, str], str]) -> None:
    done = subprocess.run(
        [program("echoscu", "dcmtk"), "-to", "5", "-ta", "5", "-aet", "CT1", "127.0.0.1", str(node.tls_port)],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode != 0


def test_tls_to_the_plain_port_is_aborted(node: Running) -> None:
    context = node.pki.client_context(node.pki.ct1)
    plain = socket.create_connection(("127.0.0.1", node.plain_port), timeout=60)
    with plain, pytest.raises(OSError):  # noqa: PT011 # an A-ABORT is no TLS record
        context.wrap_socket(plain)


def test_dcmtk_shows_the_rejection(node: Running, program: Callable[[str, str], str]) -> None:
    """What a technician reads: the calling AE title is not recognised."""
    options = ["+tls", str(node.pki.unbound.key), str(node.pki.unbound.certificate), "+cf", str(node.pki.files.authority)]
    done = subprocess.run(
        [program("echoscu", "dcmtk"), *options, "-aet", "CT1", "127.0.0.1", str(node.tls_port)],
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode != 0
    assert "Calling AE Title Not Recognized" in done.stderr


def test_an_unknown_title_on_the_plain_listener(node: Running) -> None:
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS, calling="FOREIGN") == RJ
        assert peer.answer == UNRECOGNISED
        assert peer.at_end()
    assert node.peers.pending == [("FOREIGN", "127.0.0.1", None)]


def test_a_title_of_the_tls_listener_does_not_work_plain(node: Running) -> None:
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS, calling="CT1B") == RJ


def test_the_called_title(start_node: StartNode) -> None:
    lenient = start_node()
    with RawPeer(lenient.connect()) as peer:
        assert peer.associate(CONTEXTS, called="WHATEVER") == AC
        peer.release()
    strict = start_node(called_ae_strict=True, aliases=("PACS",))
    for called, answer in (("WHATEVER", RJ), ("PACS", AC), ("STRONGROOM", AC)):
        with RawPeer(strict.connect()) as peer:
            assert peer.associate(CONTEXTS, called=called) == answer
            if answer == RJ:
                assert peer.answer == bytes((0, 1, 1, 7))
            else:
                peer.release()
    with RawPeer(strict.connect()) as peer:  # who is not known learns nothing about titles
        assert peer.associate(CONTEXTS, calling="NOBODY", called="WHATEVER") == RJ
        assert peer.answer == UNRECOGNISED


def test_versions_and_application_contexts(node: Running) -> None:
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS, version=2) == RJ
        assert peer.answer == bytes((0, 1, 2, 2))
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS, application="1.2.3") == RJ
        assert peer.answer == bytes((0, 1, 1, 2))


def test_an_archive_that_cannot_decide_says_try_again(node: Running) -> None:
    node.peers.trouble = DatabaseUnavailable("down")
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS) == RJ
        assert peer.answer == bytes((0, 2, 3, 1))
    node.peers.trouble = None
    with RawPeer(node.connect()) as peer:
        assert peer.associate(CONTEXTS) == AC
        peer.release()
