"""The witness over HTTP, against the words of c2sp.org/tlog-witness and tlog-cosignature; signatures are checked by hand."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from archive.errors import ConfigurationError, InvalidRequest, KeysUnavailable, Unavailable
from archive.ledger import tree
from archive.ledger.notes import Verifier
from archive.witness import memory, service
from archive.witness.__main__ import address_of, main

AT = datetime(2031, 3, 3, 12, 0, 0, 250_000, tzinfo=UTC)
ORIGIN = "example.com/log"
NAME = "nas.example/witness"
DASH = "\N{EM DASH}"


class Log:
    """A log made by hand."""

    def __init__(self, count: int, *, origin: str = ORIGIN, seed: bytes = b"k" * 32, twist: int | None = None) -> None:
        self.origin = origin
        self.key = Ed25519PrivateKey.from_private_bytes(seed)
        self.tree = tree.Tree(tree.leaf_hash(b"%d" % (n if n != twist else -1)) for n in range(count))

    @property
    def vkey(self) -> str:
        public = self.key.public_key().public_bytes_raw()
        return f"{self.origin}+{self.key_id.hex()}+{base64.b64encode(bytes([1]) + public).decode()}"

    @property
    def key_id(self) -> bytes:
        return hashlib.sha256(self.origin.encode() + b"\n\x01" + self.key.public_key().public_bytes_raw()).digest()[:4]

    def text(self, size: int, *extensions: str) -> str:
        lines = [self.origin, str(size), base64.b64encode(self.tree.root(size)).decode(), *extensions]
        return "".join(f"{line}\n" for line in lines)

    def note(self, size: int, *extensions: str) -> str:
        text = self.text(size, *extensions)
        return f"{text}\n{DASH} {self.origin} {base64.b64encode(self.key_id + self.key.sign(text.encode())).decode()}\n"

    def proof(self, old: int, new: int) -> list[str]:
        return [base64.b64encode(part).decode() for part in tree.consistency_proof(self.tree.lookup, old, new)]

    def body(self, old: int, new: int) -> str:
        return "\n".join([f"old {old}", *self.proof(old, new)]) + "\n\n" + self.note(new)


@dataclass
class Running:
    """A witness that answers in this process."""

    server: service.Server
    memory: memory.Memory

    def ask(self, method: str, path: str, body: str | bytes | None = None, **headers: str) -> tuple[int, str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_address[1], timeout=10)
        try:
            connection.request(method, path, body.encode() if isinstance(body, str) else body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers.get_content_type(), answer.read().decode()
        finally:
            connection.close()

    def add(self, body: str | bytes) -> tuple[int, str, str]:
        return self.ask("POST", "/add-checkpoint", body)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    memory.make(tmp_path / "state", NAME)
    return tmp_path / "state"


@pytest.fixture
def running(state: Path) -> Iterator[Running]:
    held = memory.Memory(state)
    logs = service.read_logs([Log(0).vkey, Log(0, origin="other.example/log").vkey])
    server = service.Server(("127.0.0.1", 0), service.Witness(held, logs, lambda: AT))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Running(server, held)
    finally:
        server.shutdown()
        server.server_close()
        held.close()


def cosigned(running: Running, line: str, text: str) -> int:
    """Check a cosignature line by hand, and return its time."""
    [name, _hex, key] = str(running.memory.cosigner.verifier).split("+", 2)
    public = base64.b64decode(key)
    dash, signer, encoded = line.rstrip("\n").split(" ")
    data = base64.b64decode(encoded)
    assert (dash, signer, name, public[0], len(data)) == (DASH, NAME, NAME, 4, 4 + 8 + 64)
    assert data[:4] == hashlib.sha256(NAME.encode() + b"\n\x04" + public[1:]).digest()[:4]
    seconds = int.from_bytes(data[4:12], "big")
    Ed25519PublicKey.from_public_bytes(public[1:]).verify(data[12:], f"cosignature/v1\ntime {seconds}\n{text}".encode())
    return seconds


def test_it_cosigns_what_goes_on(running: Running) -> None:
    log = Log(300)
    old = 0
    for size in (1, 1, 2, 7, 256, 300):
        status, content_type, line = running.add(log.body(old, size))
        assert (status, content_type) == (200, "text/plain")
        assert line.endswith("\n")
        assert cosigned(running, line, log.text(size)) == int(AT.timestamp())
        old = size
    with pytest.raises(InvalidSignature):
        cosigned(running, line, log.text(299))
    assert running.ask("GET", "/")[2].strip() == str(running.memory.cosigner.verifier)


def test_it_shows_what_it_cosigned_last(running: Running) -> None:
    log = Log(5)
    path = f"/checkpoint/{hashlib.sha256(ORIGIN.encode()).hexdigest()}"
    assert running.ask("GET", path)[0] == 404
    line = running.add(log.body(0, 5))[2]
    assert running.ask("GET", path)[2] == log.note(5) + line
    again = running.add("old 5\n\n" + log.note(5) + line)  # the sender had put the last cosignature into it
    assert (again[0], running.ask("GET", path)[2].count(NAME)) == (200, 1)
    assert running.ask("GET", "/checkpoint/../key.json")[0] == 404
    assert running.ask("GET", f"/checkpoint/{'0' * 64}")[0] == 404


def test_another_old_size_is_told_which_is_known(running: Running) -> None:
    log = Log(20)
    assert running.add(log.body(3, 9)) == (409, "text/x.tlog.size", "0\n")
    assert running.add(log.body(0, 9))[0] == 200
    for old, new in ((0, 9), (0, 20), (8, 20), (10, 20), (3, 5), (5, 5)):
        assert running.add(log.body(old, new)) == (409, "text/x.tlog.size", "9\n")
    assert running.add(log.body(9, 20))[0] == 200


def test_another_history_is_refused(running: Running) -> None:
    log, forged = Log(20), Log(20, twist=4)
    assert running.add(log.body(0, 9))[0] == 200
    assert running.add(forged.body(9, 20))[0] == 422
    assert running.add(forged.body(9, 9)) == (409, "text/x.tlog.size", "9\n")
    assert running.add(forged.body(0, 20))[0] == 409
    true = log.body(9, 20).split("\n")
    for body in (
        "\n".join([true[0], *true[2:]]), "\n".join([true[0], true[1], *true[1:]]),
        "\n".join([true[0], base64.b64encode(bytes(32)).decode(), *true[2:]]),
    ):
        assert running.add(body)[0] == 422
    assert running.add("old 9\n" + base64.b64encode(bytes(32)).decode() + "\n\n" + log.note(9))[0] == 422
    assert running.add("\n".join(true))[0] == 200


def test_who_signs(running: Running) -> None:
    log = Log(9)
    assert running.add(Log(9, origin="unknown.example/log").body(0, 9))[0] == 404
    assert running.add(Log(9, seed=b"x" * 32).body(0, 9))[0] == 403
    other = Log(9, origin="other.example/log")
    swapped = log.text(9) + "\n" + other.note(9).split("\n\n")[1]
    assert running.add("old 0\n\n" + swapped)[0] == 403
    wrong = log.text(9) + "\n" + log.note(8).split("\n\n")[1]
    assert running.add("old 0\n\n" + wrong)[0] == 403
    stranger = Log(9, seed=b"x" * 32).note(9).split("\n\n")[1]
    assert running.add("old 0\n\n" + log.note(9) + stranger)[0] == 200, "signatures by unknown keys are ignored"
    assert running.add(other.body(0, 4))[0] == 200, "each log has its own memory"
    assert [known.size for known in running.memory.logs()] == [9, 4]


def test_extension_lines_are_signed_with_the_rest(running: Running) -> None:
    log = Log(9)
    status, _type, line = running.add("old 0\n\n" + log.note(9, "extension one", "two"))
    assert status == 200
    cosigned(running, line, log.text(9, "extension one", "two"))


@pytest.mark.parametrize("body", [
    b"", b"\n", b"old 0", b"old 0\n", b"old 0\n\n", b"old 00\n\nNOTE", b"old -1\n\nNOTE", b"old 1 \n\nNOTE", b"Old 0\n\nNOTE",
    b"old 0\nzz\n\nNOTE", b"old 0\nAAAA\n\nNOTE", b"old 10\n\nNOTE", b"old 0\n\n\xff\xfe", b"old 0\r\n\r\nNOTE",
    b"old 0\n" + b"AAAA\n" * 64 + b"\nNOTE", b"old 99999999999999999999\n\nNOTE",
])
def test_what_is_no_request(running: Running, body: bytes) -> None:
    note = Log(9).note(9).encode()
    assert running.add(body.replace(b"NOTE", note))[0] == 400
    assert running.memory.logs() == []


def test_a_request_is_bounded(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running.ask("POST", "/add-checkpoint", b"x" * (service.MAX_BODY_BYTES + 1))[0] == 413
    assert running.ask("POST", "/elsewhere", b"")[0] == 404
    assert running.ask("DELETE", "/")[0] == 501
    with socket.create_connection(("127.0.0.1", running.server.server_address[1]), 5) as raw:
        raw.sendall(b"POST /add-checkpoint HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 411")
    monkeypatch.setattr(service, "A_MINUTE", 5)
    running.server.rate._used.clear()
    assert [running.ask("GET", "/")[0] for _ in range(7)] == [200] * 5 + [429] * 2


def test_a_silent_connection_holds_up_nobody(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.server.server_address[1]), 5):
        assert running.add(Log(9).body(0, 9))[0] == 200


def test_one_address_does_not_take_every_connection(running: Running) -> None:
    address = ("127.0.0.1", int(running.server.server_address[1]))
    with ExitStack() as held:
        for _ in range(service.CONNECTIONS):
            held.enter_context(socket.create_connection(address, 5))
        with socket.create_connection(address, 5, source_address=("127.0.0.2", 0)) as other:
            other.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b" 200 " in other.recv(100)
    deadline = time.monotonic() + 60
    while True:  # what was given back counts no more
        with suppress(OSError), socket.create_connection(address, 5) as again:
            again.sendall(b"GET / HTTP/1.0\r\n\r\n")
            if b" 200 " in again.recv(100):
                return
        assert time.monotonic() < deadline


def test_one_that_sends_byte_by_byte_is_cut_off(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CONNECTION_S", 0.3)
    with socket.create_connection(("127.0.0.1", running.server.server_address[1]), 10) as slow:
        slow.sendall(b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
        slow.settimeout(10)
        answered = slow.recv(1000)  # nothing, or that it was cut short
    assert answered == b"" or answered.startswith(b"HTTP/1.1 400")


def test_what_is_remembered_outlives_the_process(state: Path) -> None:
    log = Log(20)
    for old, new in ((0, 4), (4, 20)):
        held = memory.Memory(state)
        witness = service.Witness(held, service.read_logs([log.vkey]), lambda: AT)
        assert witness.add_checkpoint(log.body(new, new).encode())[0] == 409
        assert witness.add_checkpoint(log.body(old, new).encode())[0] == 200
        held.close()
    with pytest.raises(Unavailable):
        _both(state)


def test_a_second_name_of_its_key_that_an_earlier_release_left_goes(state: Path) -> None:
    (state / ".key.json.0123456789ab").hardlink_to(state / "key.json")
    memory.Memory(state).close()
    assert not list(state.glob(".key.json*"))


def _both(state: Path) -> None:
    first = memory.Memory(state)
    try:
        memory.Memory(state)
    finally:
        first.close()


def test_nothing_is_answered_that_is_not_kept(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = memory.Memory(state)
    witness = service.Witness(held, service.read_logs([Log(0).vkey]), lambda: AT)
    log = Log(20)
    assert witness.add_checkpoint(log.body(0, 4).encode())[0] == 200

    def full(*_args: object, **_named: object) -> None:
        raise KeysUnavailable("no room")

    with monkeypatch.context() as disk:
        disk.setattr(memory.private_files, "write", full)
        with pytest.raises(KeysUnavailable):
            witness.add_checkpoint(log.body(4, 20).encode())
    assert witness.add_checkpoint(log.body(0, 20).encode())[2] == "4\n"
    held.close()


def test_a_witness_that_would_forget_does_not_start(state: Path) -> None:
    held = memory.Memory(state)
    held.add(0, [], Log(4).note(4).encode(), AT)
    held.close()
    [path] = [one for one in (state / "logs").iterdir() if not one.name.startswith(".")]
    said = path.read_bytes()
    other = [(b'"size":4', b'"size":3'), (b'"v":1', b'"v":2'), (b"example.com", b"example.org")]
    for damaged in (b"", said[:-1], *(said.replace(*one) for one in other)):
        assert damaged != said
        path.write_bytes(damaged)
        with pytest.raises(ConfigurationError):
            memory.Memory(state)
    path.write_bytes(said)
    path.rename(path.with_name("0" * 64))
    with pytest.raises(ConfigurationError):
        memory.Memory(state)
    for one in (state / "logs").iterdir():
        one.unlink()
    (state / "logs").rmdir()
    with pytest.raises(ConfigurationError):
        memory.Memory(state)
    os.chmod(state / "key.json", 0o644)
    with pytest.raises(KeysUnavailable):
        memory.Memory(state)


@pytest.mark.parametrize("release", ["this", "an earlier one"])
def test_a_witness_misses_a_log_that_was_removed(state: Path, capsys: pytest.CaptureFixture[str], release: str) -> None:
    held = memory.Memory(state)
    for origin in (ORIGIN, "other.example/log"):
        held.add(0, [], Log(4, origin=origin).note(4).encode(), AT)
    held.close()
    if release != "this":
        (state / "known.json").unlink()
        memory.Memory(state).close()
    path = state / "logs" / hashlib.sha256(ORIGIN.encode()).hexdigest()
    said = path.read_bytes()
    path.unlink()
    with pytest.raises(ConfigurationError, match=f"{path} is missing"):
        memory.Memory(state)
    assert main(["remembered", "--state", str(state)]) == 1
    assert main(["forget", "--state", str(state), "--origin", "other.example/log"]) == 1, "which is lost must be said"
    path.write_bytes(said)
    assert main(["remembered", "--state", str(state)]) == 0
    path.unlink()
    capsys.readouterr()
    assert main(["forget", "--state", str(state), "--origin", ORIGIN]) == 0
    held = memory.Memory(state)
    assert [(one.origin, one.size) for one in held.logs()] == [(ORIGIN, 0), ("other.example/log", 4)]
    held.add(0, [], Log(3).note(3).encode(), AT)
    held.close()
    for damaged in (b"", b"{}", b'{"logs":[],"v":2}'):
        (state / "known.json").write_bytes(damaged)
        with pytest.raises(ConfigurationError, match=r"known\.json"):
            memory.Memory(state)


def test_a_log_counts_as_remembered_before_anybody_is_answered(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = memory.Memory(state)
    write = memory.private_files.write

    def full(path: Path, data: bytes) -> None:
        if path.name == "known.json":
            raise KeysUnavailable("no room")
        write(path, data)

    with monkeypatch.context() as disk:
        disk.setattr(memory.private_files, "write", full)
        with pytest.raises(KeysUnavailable):
            held.add(0, [], Log(4).note(4).encode(), AT)
    held.add(0, [], Log(4).note(4).encode(), AT)
    held.close()
    memory.Memory(state).close()


def test_two_at_once_never_go_back(state: Path) -> None:
    """The race of the specification: of requests over one old size, one is cosigned and the others are told."""
    held = memory.Memory(state)
    witness = service.Witness(held, service.read_logs([Log(0).vkey]), lambda: AT)
    log = Log(40)
    assert witness.add_checkpoint(log.body(0, 4).encode())[0] == 200
    answers: list[int] = []
    bodies = [log.body(4, size).encode() for size in range(5, 40)]
    threads = [threading.Thread(target=lambda body=body: answers.append(witness.add_checkpoint(body)[0])) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] + [409] * 34
    held.close()


def test_forgetting_is_on_record(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = memory.Memory(state)
    held.add(0, [], Log(9).note(9).encode(), AT)
    held.close()
    assert main(["remembered", "--state", str(state)]) == 0
    assert capsys.readouterr().out == f"{ORIGIN} 9\n"
    assert main(["forget", "--state", str(state), "--origin", "no.such/log"]) == 1
    assert main(["forget", "--state", str(state), "--origin", ORIGIN]) == 0
    held = memory.Memory(state)
    [known] = held.logs()
    assert (known.size, len(known.given_up), Log(9).text(9) in known.given_up[0]) == (0, 1, True)
    held.add(0, [], Log(3).note(3).encode(), AT)
    assert [(one.size, len(one.given_up)) for one in held.logs()] == [(3, 1)]
    with pytest.raises(InvalidRequest):
        held.forget("x")
    held.close()


def test_what_is_given_on_the_command_line(tmp_path: Path, state: Path) -> None:
    log = Log(0)
    keys = tmp_path / "keys"
    instance = Log(0, origin=f"{ORIGIN}/instance").vkey
    keys.write_text(f"# of the archive\n{log.vkey}\n\n{instance}\n")
    assert service.read_logs([str(keys)]) == [Verifier.parse(log.vkey)]
    for wrong in ([], [str(tmp_path / "none")], ["a+b"], [log.vkey[:-4]], [instance]):
        with pytest.raises(ConfigurationError):
            service.read_logs(wrong)
    assert address_of("127.0.0.1:7373") == ("127.0.0.1", 7373)
    assert address_of("[::1]:1") == ("::1", 1)
    for text in ("7373", "x:y", "x:70000"):
        with pytest.raises(ConfigurationError):
            address_of(text)
    for name in ("", "a b", "a+b", "x" * 101, "a\n"):
        with pytest.raises(InvalidRequest):
            memory.make(tmp_path / "other", name)
    with pytest.raises(KeysUnavailable):
        memory.make(state, "again")
    assert service.tls_context(None, None) is None
    for pair in ((keys, None), (None, keys), (keys, keys)):
        with pytest.raises(ConfigurationError):
            service.tls_context(*pair)


def test_as_a_program_of_its_own(tmp_path: Path) -> None:
    """Made, served, killed and served again by `python -m archive.witness`; it brings none of the archive's heavy rooms."""
    program = [sys.executable, "-m", "archive.witness"]
    init = [*program, "init", "--state", str(tmp_path / "w"), "--name", NAME]
    made = subprocess.run(init, capture_output=True, text=True, check=True, timeout=60)
    log = Log(9)
    for old, new in ((0, 4), (4, 9)):
        serve = [*program, "serve", "--state", str(tmp_path / "w"), "--listen", "127.0.0.1:0", "--log", log.vkey]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == made.stdout
                port = int(process.stdout.readline().rpartition(":")[2])
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                connection.request("POST", "/add-checkpoint", log.body(old, new).encode())
                assert connection.getresponse().status == 200
                connection.close()
            finally:
                process.kill() if new == 4 else process.terminate()
                assert process.wait(20) == (-9 if new == 4 else 0)
    heavy = "import sys, archive.witness.__main__; print([m for m in ('flask', 'pydicom', 'numpy', 'sqlalchemy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, timeout=60).stdout == "[]\n"
