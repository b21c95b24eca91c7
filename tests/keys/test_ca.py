"""The built-in CA: what it issues satisfies openssl, Python's ssl and dcmtk, on both TLS versions."""

from __future__ import annotations

import shutil
import socket
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from archive.config import Archive, Config, Http
from archive.errors import InvalidRequest, KeysUnavailable
from archive.keys import ca
from archive.keys.keyring import Keyring
from tests.ports import free_port


@pytest.fixture
def today() -> datetime:
    """Real peers look at the real clock."""
    return datetime.now(UTC)


def san(path: Path) -> set[str]:
    names = x509.load_pem_x509_certificate(path.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def verify(program: Callable[[str, str], str], authority: Path, certificate: Path, purpose: str) -> None:
    subprocess.run(
        [program("openssl", "openssl"), "verify", "-x509_strict", "-purpose", purpose, "-CAfile", authority, certificate],
        check=True, capture_output=True, timeout=60,
    )


def test_openssl_accepts_what_is_issued(
    config: Config, keyring: Keyring, tmp_path: Path, today: datetime, program: Callable[[str, str], str]
) -> None:
    ca.ensure_server_certificate(config, keyring, at=today)
    ca.issue_peer(config, keyring, "CT1", tmp_path / "ct1", at=today, hosts=["ct1.example", "10.0.0.7"])
    for certificate in (config.tls_dir / "server.pem", tmp_path / "ct1" / "cert.pem"):
        for purpose in ("sslserver", "sslclient"):
            verify(program, config.tls_dir / "ca.pem", certificate, purpose)
    assert san(tmp_path / "ct1" / "cert.pem") == {"ct1.example", "10.0.0.7"}
    assert (tmp_path / "ct1" / "ca.pem").read_bytes() == (config.tls_dir / "ca.pem").read_bytes()


def test_files_and_lives(config: Config, keyring: Keyring, tmp_path: Path, now: datetime) -> None:
    server = ca.ensure_server_certificate(config, keyring, at=now)
    peer = ca.issue_peer(config, keyring, "CT1", tmp_path / "ct1", at=now)
    for key in (config.tls_dir / "server.key", tmp_path / "ct1" / "key.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert key.read_text().startswith("-----BEGIN PRIVATE KEY-----\n")  # PKCS#8
    assert timedelta(days=396) < server.not_after - now < timedelta(days=397)
    assert timedelta(days=729) < peer.not_after - now < timedelta(days=730)
    assert timedelta(days=3649) < ca.not_after((config.tls_dir / "ca.pem").read_bytes()) - now < timedelta(days=3650)
    assert ca.read((tmp_path / "ct1" / "cert.pem").read_bytes()) == ca.Issued(peer.fingerprint, peer.not_after, renewed=False)
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "ct1" / "cert.pem").read_text())
    assert ca.fingerprint(der) == peer.fingerprint
    assert ca.read(der).fingerprint == peer.fingerprint
    with pytest.raises(InvalidRequest):
        ca.read(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(InvalidRequest):
        ca.read(b"")
    secret = keyring.ca_key
    assert secret is not None
    for path in (*config.storage_dir.rglob("*"), *(tmp_path / "ct1").iterdir()):
        assert path.is_dir() or secret.secret not in path.read_bytes()


def test_names_of_the_server(keyring: Keyring, config: Config, today: datetime) -> None:
    named = msgspec.structs.replace(
        config, archive=Archive(storage=config.archive.storage, public_url="https://Archive.clinic.example:8443"),
        http=Http(host="0.0.0.0"),  # names nobody
    )
    ca.ensure_server_certificate(named, keyring, at=today, hosts=["192.168.7.9", "pacs.straße.example"])
    names = san(config.tls_dir / "server.pem")
    assert {"archive.clinic.example", "localhost", "127.0.0.1", "::1", "192.168.7.9", "pacs.strasse.example"} <= names
    assert "0.0.0.0" not in names
    with pytest.raises(InvalidRequest):
        ca.ensure_server_certificate(named, keyring, at=today, hosts=["a..b"])


def test_kept_until_thirty_days_before_its_end(config: Config, keyring: Keyring, now: datetime) -> None:
    first = ca.ensure_server_certificate(config, keyring, at=now)
    assert first.renewed
    kept = ca.ensure_server_certificate(config, keyring, at=first.not_after - timedelta(days=30, seconds=1))
    assert (kept.fingerprint, kept.renewed) == (first.fingerprint, False)
    renewed = ca.ensure_server_certificate(config, keyring, at=first.not_after - timedelta(days=30))
    assert renewed.renewed
    assert renewed.fingerprint != first.fingerprint
    assert renewed.not_after > first.not_after


def _other_key(config: Config, tmp_path: Path) -> None:
    shutil.copyfile(tmp_path / "peer" / "key.pem", config.tls_dir / "server.key")


def _other_certificate(config: Config, tmp_path: Path) -> None:
    shutil.copyfile(tmp_path / "peer" / "cert.pem", config.tls_dir / "server.pem")


def _garbage(config: Config, tmp_path: Path) -> None:
    (config.tls_dir / "server.pem").write_text("garbage")


def _no_key(config: Config, tmp_path: Path) -> None:
    (config.tls_dir / "server.key").unlink()


def _open_key(config: Config, tmp_path: Path) -> None:
    (config.tls_dir / "server.key").chmod(0o644)


@pytest.mark.parametrize("harm", [_other_key, _other_certificate, _garbage, _no_key, _open_key])
def test_made_again_when_not_good_enough(
    config: Config, keyring: Keyring, tmp_path: Path, now: datetime, harm: Callable[[Config, Path], None]
) -> None:
    first = ca.ensure_server_certificate(config, keyring, at=now)
    ca.issue_peer(config, keyring, "peer", tmp_path / "peer", at=now)
    harm(config, tmp_path)
    assert ca.ensure_server_certificate(config, keyring, at=now).renewed
    assert not ca.ensure_server_certificate(config, keyring, at=now).renewed
    assert ca.ensure_server_certificate(config, keyring, at=now, hosts=["new.example"]).fingerprint != first.fingerprint


def test_a_lost_ca_certificate_comes_back(
    config: Config, keyring: Keyring, tmp_path: Path, today: datetime, program: Callable[[str, str], str]
) -> None:
    ca.create(config, keyring, at=today)
    ca.issue_peer(config, keyring, "CT1", tmp_path / "ct1", at=today)
    (config.tls_dir / "ca.pem").unlink()
    ca.create(config, Keyring.open(config), at=today)
    verify(program, config.tls_dir / "ca.pem", tmp_path / "ct1" / "cert.pem", "sslclient")
    verify(program, tmp_path / "ct1" / "ca.pem", tmp_path / "ct1" / "cert.pem", "sslclient")


@pytest.mark.parametrize("late", [timedelta(days=1), timedelta(days=-100)])
def test_the_ca_is_made_anew_before_and_after_its_end(
    config: Config, keyring: Keyring, tmp_path: Path, now: datetime, today: datetime, late: timedelta
) -> None:
    began = today - ca.CA_LIFE - late
    peer = ca.issue_peer(config, keyring, "CT1", tmp_path / "ct1", at=today - timedelta(days=300))
    (config.tls_dir / "ca.pem").unlink()
    ca.create(config, keyring, at=began)
    before = (config.tls_dir / "ca.pem").read_bytes()
    server = ca.ensure_server_certificate(config, keyring, at=today)
    after = (config.tls_dir / "ca.pem").read_bytes()
    assert ca.not_after(after) > today + ca.CA_LIFE - timedelta(days=1)
    assert server.not_after > today + ca.SERVER_LIFE - timedelta(days=1)
    assert ca.issue_peer(config, keyring, "CT2", tmp_path / "ct2", at=today).not_after > today + ca.PEER_LIFE - timedelta(days=1)
    assert (config.tls_dir / "ca.pem").read_bytes() == after
    for authority in (before, after):  # what was issued before holds under both
        issued = x509.load_pem_x509_certificate((tmp_path / "ct1" / "cert.pem").read_bytes())
        issued.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    assert peer.not_after > today


def test_a_ca_of_a_clock_that_was_ahead_is_made_anew(config: Config, keyring: Keyring, now: datetime) -> None:
    ca.create(config, keyring, at=now + timedelta(days=1000))
    ca.ensure_server_certificate(config, keyring, at=now)
    authority = x509.load_pem_x509_certificate((config.tls_dir / "ca.pem").read_bytes())
    assert authority.not_valid_before_utc <= now


def test_another_ca_in_its_place_is_refused(config: Config, keyring: Keyring, tmp_path: Path, now: datetime) -> None:
    other = Config(archive=Archive(storage=str(tmp_path / "other")))
    ca.create(other, Keyring.create(other, at=now), at=now)
    ca.create(config, keyring, at=now)
    shutil.copyfile(other.tls_dir / "ca.pem", config.tls_dir / "ca.pem")
    with pytest.raises(KeysUnavailable, match="another certificate authority"):
        ca.ensure_server_certificate(config, keyring, at=now)


def test_a_worker_issues_nothing(config: Config, keyring: Keyring, tmp_path: Path, now: datetime) -> None:
    ca.ensure_server_certificate(config, keyring, at=now)
    worker = Keyring.from_bytes(keyring.to_bytes())
    assert not ca.ensure_server_certificate(config, worker, at=now).renewed
    with pytest.raises(KeysUnavailable, match="worker process"):
        ca.issue_peer(config, worker, "CT1", tmp_path / "ct1", at=now)
    assert not (tmp_path / "ct1").exists()


def test_a_peers_key_is_not_overwritten_unasked(config: Config, keyring: Keyring, tmp_path: Path, now: datetime) -> None:
    first = ca.issue_peer(config, keyring, "CT1", tmp_path / "ct1", at=now)
    with pytest.raises(KeysUnavailable, match="already"):
        ca.issue_peer(config, keyring, "CT1", tmp_path / "ct1", at=now)
    assert ca.read((tmp_path / "ct1" / "cert.pem").read_bytes()).fingerprint == first.fingerprint
    assert ca.issue_peer(config, keyring, "CT1", tmp_path / "ct1", at=now, replace=True).fingerprint != first.fingerprint


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_mutual_handshake(config: Config, keyring: Keyring, tmp_path: Path, today: datetime, version: ssl.TLSVersion) -> None:
    ca.ensure_server_certificate(config, keyring, at=today)
    peer = ca.issue_peer(config, keyring, "CT1", tmp_path / "ct1", at=today)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(config.tls_dir / "ca.pem"))
    server.load_cert_chain(config.tls_dir / "server.pem", config.tls_dir / "server.key")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(tmp_path / "ct1" / "ca.pem"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_cert_chain(tmp_path / "ct1" / "cert.pem", tmp_path / "ct1" / "key.pem")
    client.minimum_version = client.maximum_version = version
    seen: list[bytes | None] = []

    def serve(listener: socket.socket) -> None:
        raw, _ = listener.accept()
        with server.wrap_socket(raw, server_side=True) as connection:
            seen.append(connection.getpeercert(binary_form=True))
            connection.sendall(b"hello")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with (
            socket.create_connection(listener.getsockname(), timeout=30) as raw,
            client.wrap_socket(raw, server_hostname="localhost") as connection,
        ):
            assert connection.version() == version.name.replace("_", ".")
            assert connection.recv(5) == b"hello"
        thread.join(30)
    assert seen[0] is not None
    assert ca.fingerprint(seen[0]) == peer.fingerprint


def test_dcmtk_over_mutual_tls(
    config: Config, keyring: Keyring, tmp_path: Path, today: datetime, program: Callable[[str, str], str]
) -> None:
    ca.ensure_server_certificate(config, keyring, at=today)
    ca.issue_peer(config, keyring, "CT1", tmp_path / "ct1", at=today)
    port = free_port()
    receiver = subprocess.Popen(
        [program("storescp", "dcmtk"), "+tls", config.tls_dir / "server.key", config.tls_dir / "server.pem",
         "+cf", config.tls_dir / "ca.pem", "-rc", "-od", str(tmp_path), str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        echo = [program("echoscu", "dcmtk"), "+tls", tmp_path / "ct1" / "key.pem", tmp_path / "ct1" / "cert.pem",
                "+cf", tmp_path / "ct1" / "ca.pem", "-rc", "127.0.0.1", str(port)]
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(echo, check=False, capture_output=True, timeout=60)
            if done.returncode == 0 or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        assert done.returncode == 0, done.stderr
    finally:
        receiver.terminate()
        receiver.wait(20)
