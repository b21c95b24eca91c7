"""C-ECHO out: to dcmtk, to ourselves, to nobody; what is said is what a person needs to know."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from pynetdicom.acse import ACSE

from archive.dimse.scu import EchoResult, call, echo
from tests.dimse.conftest import Identity, Pki, Running, archive_with
from tests.dimse.fakes import eventually
from tests.ports import free_port


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def storescp(program: Callable[[str, str], str], tmp_path: Path) -> Iterator[Callable[..., int]]:
    """`storescp("+tls", ...)`: a real SCP; returns its port."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> int:
        port = free_port()
        command = [program("storescp", "dcmtk"), "-aet", "MODALITY", "-od", str(tmp_path), *options, str(port)]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        assert eventually(lambda: listening(port))
        return port

    yield start
    for process in running:
        process.kill()
        process.wait()


def ask(port: int, **options: object) -> EchoResult:
    arguments: dict[str, object] = {
        "host": "127.0.0.1", "port": port, "calling_ae_title": "STRONGROOM", "called_ae_title": "MODALITY", "files": None, "timeout_s": 30,
    }
    return call(**{**arguments, **options})  # type: ignore[arg-type]


def secure(identity: Identity, pki: Pki) -> list[str]:
    return ["+tls", str(identity.key), str(identity.certificate), "+cf", str(pki.files.authority)]


def test_plain(storescp: Callable[..., int]) -> None:
    port = storescp()
    assert ask(port) == EchoResult(True, f"MODALITY at 127.0.0.1:{port} answered C-ECHO")


def test_tls_with_a_certificate_of_the_built_in_ca(storescp: Callable[..., int], pki: Pki) -> None:
    port = storescp(*secure(pki.ct1, pki))
    result = ask(port, files=pki.files)
    assert result.answered, result.text
    assert result.text.endswith("over TLSv1.3 with a certificate of the built-in CA")


def test_tls_with_the_pinned_certificate(storescp: Callable[..., int], pki: Pki) -> None:
    port = storescp(*secure(pki.foreign, pki))
    assert "neither bound to this peer nor of the built-in CA" in ask(port, files=pki.files).text
    pinned = ask(port, files=pki.files, pinned_sha256=bytes.fromhex(pki.foreign.sha256))
    assert pinned.answered, pinned.text
    assert pinned.text.endswith("with the certificate bound to it")
    wrong = ask(port, files=pki.files, pinned_sha256=bytes.fromhex(pki.other_ca.sha256))
    assert not wrong.answered


def test_tls_with_the_certificate_of_another_peer(storescp: Callable[..., int], pki: Pki) -> None:
    """Of the built-in CA as well, and still not the one that C-MOVE would send to."""
    port = storescp(*secure(pki.unbound, pki))
    result = ask(port, files=pki.files, pinned_sha256=bytes.fromhex(pki.ct1.sha256))
    assert result == EchoResult(False, f"127.0.0.1:{port} shows another certificate than the one bound to this peer")


def test_tls_to_a_plain_listener(storescp: Callable[..., int], pki: Pki) -> None:
    result = ask(storescp(), files=pki.files)
    assert not result.answered
    assert "TLS" in result.text


def test_nobody_there() -> None:
    port = free_port()
    result = ask(port)
    assert not result.answered
    assert result.text.startswith(f"nothing accepts connections at 127.0.0.1:{port}")


def test_a_rejection_is_explained(node: Running) -> None:
    result = ask(node.plain_port, called_ae_title="STRONGROOM", calling_ae_title="UNKNOWN")
    assert result == EchoResult(
        False, f"STRONGROOM at 127.0.0.1:{node.plain_port} rejected the association: it does not know this archive's AE title"
    )


def test_a_rejection_that_comes_at_once_is_explained(node: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library, when it looks only then, finds the connection closed and reports an abort."""
    send_request = ACSE.send_request

    def slowly(acse: ACSE) -> None:
        send_request(acse)
        assert eventually(lambda: acse.dul.to_user_queue.qsize() and not acse.dul.is_alive())

    monkeypatch.setattr(ACSE, "send_request", slowly)
    result = ask(node.plain_port, called_ae_title="STRONGROOM", calling_ae_title="UNKNOWN")
    assert "rejected the association: it does not know this archive's AE title" in result.text


@pytest.fixture
def no_more_associations() -> Iterator[None]:
    """What a test began has ended; what others left is theirs."""
    before = set(threading.enumerate())
    yield
    assert eventually(lambda: not [t for t in set(threading.enumerate()) - before if "Association" in t.name])


@pytest.mark.usefixtures("no_more_associations")
def test_one_that_takes_connections_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        result = ask(mute.getsockname()[1], timeout_s=0.5)
    assert not result.answered


def test_to_ourselves_over_tls(node: Running) -> None:
    result = ask(node.tls_port, called_ae_title="STRONGROOM", calling_ae_title="NOBODY", files=node.pki.files)
    assert not result.answered
    assert "does not know this archive's AE title" in result.text


def test_a_peer_of_the_table(node: Running, pki: Pki, tmp_path: Path) -> None:
    """What `archive peer test NAME` does with a row of `archive peer list`."""
    peer = {"name": "PACS", "host": "127.0.0.1", "port": node.tls_port, "ae_titles": ["STRONGROOM"], "tls": True, "certificate_sha256": ""}
    config = archive_with(pki, tmp_path)
    result = echo(SimpleNamespace(config=config), peer)
    assert (result["ok"], result["peer"]) == (False, "PACS")
    assert "does not know this archive's AE title" in result["text"]
    config = msgspec.structs.replace(config, dimse=msgspec.structs.replace(config.dimse, ae_title="CT1"))
    assert echo(SimpleNamespace(config=config), peer | {"tls": False, "port": node.plain_port})["ok"]
    assert "no address" in echo(SimpleNamespace(config=config), peer | {"host": "", "port": None})["text"]


@pytest.mark.usefixtures("no_more_associations")
@pytest.mark.parametrize("part", [b"\x02\0\0", b"\x02\0\0\0\0\xff"], ids=["header", "body"])
def test_one_that_says_half_of_something_is_not_waited_for(part: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as half:
        def answer() -> None:
            for _ in range(2):  # the probe, and the association
                connection, _ = half.accept()
                taken.append(connection)
                with suppress(OSError):
                    connection.sendall(part)

        taken: list[socket.socket] = []
        thread = threading.Thread(target=answer)
        thread.start()
        leaving = threading.Timer(60, lambda: [connection.close() for connection in taken])
        leaving.start()
        started = time.monotonic()
        result = ask(half.getsockname()[1], timeout_s=0.5)
        assert time.monotonic() - started < 20
        leaving.cancel()
        thread.join(10)
        for connection in taken:
            connection.close()
    assert not result.answered
