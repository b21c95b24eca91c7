"""Passwords that Debian's slapd checks, over TLS on a real socket, and what stands between."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from archive.access import principals, totp
from archive.config import parse
from archive.db import tables
from archive.errors import ConfigurationError, Unauthenticated
from archive.ledger.log import AuditFilter
from archive.node import Node
from archive.sections import Ldap
from archive.services import ldap_client
from archive.services import ldap_messages as messages
from archive.services.directory import Directory, Person, normal
from archive.services.signin import SecondAsked, SignedIn, SignIn
from tests.services import archives, slapd
from tests.services.slapd import BASE, GROUPS, PASSWORD, PEOPLE

DESK = {"address": "192.0.2.7", "user_agent": "test"}
MIA = Person(f"uid=mia,{PEOPLE}", frozenset())
WRONG = "the name or the password is wrong; try again; after several failures wait up to 15 minutes"


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slapd.Directory]:
    with slapd.running(tmp_path_factory.mktemp("slapd")) as running:
        (running.folder / "service").write_text(slapd.SERVICE_PASSWORD + "\n")
        yield running


def directory(there: slapd.Directory, **other: Any) -> Directory:
    return Directory(parse({"ldap": there.section(**other)}, there.folder / "config.toml"))


TEMPLATE = {"bind_dn": "", "bind_password_file": "", "base": "", "user_dn": f"uid={{name}},{PEOPLE}"}


@pytest.mark.parametrize("way", [{}, TEMPLATE])
def test_a_password_is_right_or_it_is_not(there: slapd.Directory, way: dict[str, Any]) -> None:
    asked = directory(there, **way)
    assert asked.check("mia", PASSWORD) == MIA
    assert directory(there, **way, url=there.ldap, starttls=True).check("mia", PASSWORD) == MIA
    for name, password in (
        ("mia", "wrong"), ("mia", ""), ("mia", "\0"), ("mia", PASSWORD + "\0"), ("nobody", PASSWORD), ("", PASSWORD), ("twin", PASSWORD),
        ("away", PASSWORD),
    ):
        assert asked.check(name, password) is None, name
    assert asked.check("mia", PASSWORD) == MIA, "none of them made it think the directory is away"
    assert asked.confirm(MIA.dn, PASSWORD)
    assert not asked.confirm(MIA.dn, "wrong")
    assert not asked.confirm(MIA.dn, "")


@pytest.mark.parametrize("way", [{}, TEMPLATE])
@pytest.mark.parametrize("name", [
    "*", "mi*", "mia)(uid=*", "*)(objectClass=*", "mia))(|(uid=*", "\\2a", "mia\0", f"mia,{PEOPLE}", f"mia,{PEOPLE}\0", "mia+cn=mia",
    "(mia)", "admin,dc=x", "\ud800", "a" * 5000,
])
def test_a_name_is_a_name_and_never_a_filter(there: slapd.Directory, way: dict[str, Any], name: str) -> None:
    assert directory(there, **way).check(name, PASSWORD) is None


def test_a_name_with_all_that_is_special_is_found(there: slapd.Directory) -> None:
    odd = 'o*dd, (one) #"+;<ä>='
    dn = base64.b64encode(f"uid={messages.escaped(odd)},{PEOPLE}".encode()).decode()
    uid = base64.b64encode(odd.encode()).decode()
    there.change(
        f"dn:: {dn}\nchangetype: add\nobjectClass: inetOrgPerson\nuid:: {uid}\ncn: odd\nsn: odd\nuserPassword: {PASSWORD}\n"
    )
    assert directory(there).check(odd, PASSWORD) is not None
    assert directory(there, **TEMPLATE).check(odd, PASSWORD) is not None


def test_groups_are_those_of_the_entry_or_those_that_list_it(there: slapd.Directory) -> None:
    rad, night = f"cn=rad,{GROUPS}", f"cn=night,{GROUPS}"
    there.change(f"dn: {night}\nchangetype: modify\nadd: member\nmember: uid=guard,{PEOPLE}\n")  # the overlay notes changes alone
    mapping = {f"CN=Rad , {GROUPS}": "readers", night: "night"}
    assert directory(there, group_base=GROUPS, groups=mapping).check("mia", PASSWORD) == Person(MIA.dn, frozenset({rad}))
    assert directory(there, **TEMPLATE, group_base=GROUPS, groups=mapping).check("mia", PASSWORD) == Person(MIA.dn, frozenset({rad}))
    found = directory(there, group_attribute="memberOf", groups=mapping).check("guard", PASSWORD)
    assert found is not None
    assert found.groups == {night}
    assert directory(there, group_attribute="memberOf", groups=mapping).groups == {rad: "readers", night: "night"}


def test_groups_that_count_are_found_among_more_than_are_told_at_once(there: slapd.Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever is in many loses what some of them give here, and what others keep from them."""
    late = f"cn=late,{GROUPS}"
    there.change(f"dn: {late}\nchangetype: add\nobjectClass: groupOfNames\ncn: late\nmember: uid=mia,{PEOPLE}\n")
    search = ldap_client.Connection.search

    def limited(self: ldap_client.Connection, *said: Any, **named: Any) -> Any:
        return search(self, *said, **{**named, "limit": 1})

    mapping = {late: "late", f"cn=night,{GROUPS}": "night", f"cn=elsewhere,{BASE}": "none", f"cn=gone,{GROUPS}": "gone"}
    asked = directory(there, group_base=GROUPS, groups=mapping)
    monkeypatch.setattr(ldap_client.Connection, "search", limited)
    assert asked.check("mia", PASSWORD) == Person(MIA.dn, frozenset({late}))
    there.change(f"dn: {late}\nchangetype: delete\n")


@pytest.mark.parametrize(("one", "other", "same"), [
    ("UID=Mia, OU=People", "uid=mia,ou=people", True), ("uid=mia\\, x,ou=p", "uid=mia,x,ou=p", False), (" a = b ", "a=b", True),
])
def test_names_are_compared_as_a_directory_does(one: str, other: str, *, same: bool) -> None:
    assert (normal(one) == normal(other)) is same


def test_whoever_is_named_the_work_is_the_same(there: slapd.Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    send = ldap_client.Connection._send
    monkeypatch.setattr(ldap_client.Connection, "_send", lambda self, data: (asked.append(data[5]), send(self, data))[1])
    seen = set()
    for name in ("mia", "nobody", "twin", "", "*"):
        asked.clear()
        assert directory(there).check(name, "wrong") is None
        seen.add(len(asked))
    assert seen == {3}


@pytest.mark.parametrize("way", [{}, TEMPLATE])
def test_what_somebody_types_does_not_make_the_directory_away(there: slapd.Directory, way: dict[str, Any]) -> None:
    asked = directory(there, **way)
    assert asked.check("mia", "x" * 300_000) is None  # slapd closes the connection on messages as long as that
    assert asked.check("mia", PASSWORD) == MIA
    assert asked.check("mia" * 3000, PASSWORD) is None
    assert asked.check("mia", PASSWORD) == MIA


def test_a_search_that_is_refused_is_of_nobody_else(there: slapd.Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = directory(there)
    real = ldap_client.Connection._receive

    def refused(self: ldap_client.Connection, number: int) -> messages.Message:
        answer = real(self, number)
        if answer.tag == messages.SEARCH_DONE:  # unwilling to perform
            return messages.Message(answer.number, answer.tag, b"\x0a\x01\x35\x04\x00\x04\x00")
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(ldap_client.Connection, "_receive", refused)
        assert asked.check("guard", PASSWORD) is None
    assert asked.check("mia", PASSWORD) == MIA


def test_nobody_guesses_at_the_account_that_looks_users_up(there: slapd.Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    (there.folder / "guard").write_text(PASSWORD)
    asked = directory(there, bind_dn=f"UID=guard, {PEOPLE}", bind_password_file="guard")
    bound: list[tuple[str, str]] = []
    real = ldap_client.Connection.bind
    monkeypatch.setattr(
        ldap_client.Connection, "bind", lambda self, dn, password: (bound.append((dn, password)), real(self, dn, password))[1]
    )
    assert asked.check("guard", "a guess") is None
    assert asked.check("guard", PASSWORD) is None
    assert [normal(dn) for dn, _ in bound].count(f"uid=guard,{PEOPLE}") == 2, "only to look users up"
    assert len(bound) == 4
    assert asked.check("mia", PASSWORD) == MIA


# --- TLS, and servers that are none ---


def test_a_certificate_of_nobody_is_not_spoken_to(there: slapd.Directory, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slapd.certificate(tmp_path)
    for change in ({"ca_file": str(tmp_path / "ca.pem")}, {"ca_file": ""}, {"url": there.ldaps.replace("127.0.0.1", "localhost")}):
        caplog.clear()
        assert directory(there, **change).check("mia", PASSWORD) is None
        assert "TLS" in caplog.text
        assert PASSWORD not in caplog.text
    for change in ({"url": there.ldap, "starttls": True, "ca_file": ""}, {"url": there.ldaps.replace("ldaps", "ldap"), "starttls": True}):
        assert directory(there, **change).check("mia", PASSWORD) is None


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[bytes]]]:
    """A listener that is no directory; what it was told."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve() -> None:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(10)
                try:
                    heard.append(sock.recv(65536))
                    answer(sock)
                    while piece := sock.recv(65536):
                        heard.append(piece)
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"ldap://127.0.0.1:{server.getsockname()[1]}", heard
        finally:
            server.close()
            with socket.socket() as nudge:
                nudge.settimeout(1)
            thread.join(15)
            assert not thread.is_alive()


REFUSED_TLS = bytes.fromhex("300c02010178070a010204000400")
TOOK_TLS = bytes.fromhex("300c02010178070a010004000400")
BOUND = bytes.fromhex("300c02010261070a010004000400")


@pytest.mark.parametrize("said", [
    REFUSED_TLS, TOOK_TLS + BOUND, BOUND, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x30\x84\x7f\xff\xff\xff", b"", b"\x30\x03\x02\x01\x01",
    bytes.fromhex("300c02010061070a010004000400"),
])
def test_a_password_never_goes_to_what_does_not_speak_tls(there: slapd.Directory, said: bytes) -> None:
    def answer(sock: socket.socket) -> None:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)

    with serving(answer) as (url, heard):
        assert directory(there, url=url, starttls=True).check("mia", PASSWORD) is None
    assert b"".join(heard)[:31] == messages.start_tls(1)
    assert PASSWORD.encode() not in b"".join(heard)
    assert slapd.SERVICE_PASSWORD.encode() not in b"".join(heard)


def test_a_silent_server_is_not_waited_for(there: slapd.Directory) -> None:
    stop = threading.Event()
    with serving(lambda sock: (stop.wait(20), None)[1]) as (url, _):
        begun = datetime.now(UTC)
        asked = directory(there, url=url, starttls=True, timeout_s=2)
        assert asked.check("mia", PASSWORD) is None
        assert datetime.now(UTC) - begun < timedelta(seconds=15)
        begun = datetime.now(UTC)
        assert asked.check("mia", PASSWORD) is None
        assert datetime.now(UTC) - begun < timedelta(seconds=1.5), "it is left alone for a while"
        stop.set()


@pytest.mark.parametrize(("change", "why"), [
    ({"url": "ldap://dc.clinic.example"}, "in the clear"), ({"url": "http://dc"}, "address"), ({"url": "ldaps://u:p@dc"}, "address"),
    ({"url": "ldaps://"}, "address"), ({"bind_dn": ""}, "not both"), ({"user_dn": "uid={name}"}, "not both"),
    ({"bind_dn": "", "user_dn": "uid=x"}, "once"), ({"base": ""}, "ldap.base"), ({"groups": {"a": "b"}}, "group_base"),
])
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], why: str) -> None:
    section = {"url": "ldaps://dc", "base": BASE, "bind_dn": "cn=a", "bind_password_file": "f", **change}
    with pytest.raises(ConfigurationError, match=why):
        msgspec.convert(section, Ldap).check()


# --- sign-ins ---


class World:
    def __init__(self, node: Node, there: slapd.Directory) -> None:
        self.node, self.there = node, there
        self.at = datetime.now(UTC)
        self.console = archives.the_console(node)
        self.signin = self.set()

    def set(self, **other: Any) -> SignIn:
        section = self.there.section(**other)
        section["ca_file"], section["bind_password_file"] = str(self.there.folder / "ca.pem"), str(self.there.folder / "service")
        config = msgspec.structs.replace(self.node.config, ldap=msgspec.convert(section, Ldap))
        self.signin = SignIn(self.node.core.database, self.node.core.ledger, self.node.keyring, config, lambda: self.at)
        return self.signin

    def come(self, name: str, password: str = PASSWORD) -> SignedIn:
        done = self.signin.password(name, password, **DESK)
        assert isinstance(done, SignedIn)
        return done

    def refused(self, name: str, password: str = PASSWORD) -> None:
        with pytest.raises(Unauthenticated) as told:
            self.signin.password(name, password, **DESK)
        assert f"{told.value.message}; {told.value.remedy}" == WRONG

    def how(self) -> dict[str, Any]:
        with self.node.core.database.read() as tx:
            row = self.node.core.ledger.search(tx, AuditFilter(limit=1))[0]
        assert row.body is not None
        return dict(row.body["detail"])

    def groups(self, name: str) -> set[str]:
        with self.node.core.database.read() as tx:
            return {row["name"] for row in principals.groups_of(tx, principals.find(tx, name)["id"])}


@pytest.fixture(scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory, there: slapd.Directory) -> Iterator[World]:
    config = archives.made(tmp_path_factory.mktemp("archive"))
    with archives.opened(config) as node:
        console, accounts = archives.the_console(node), node.accounts
        for name in ("mia", "nora"):
            accounts.add_user(console, name, roles=["technologist"])
        accounts.add_user(console, "guard", roles=["auditor"])
        for name in ("readers", "night", "other"):
            accounts.add_group(console, name)
        yield World(node, there)


@pytest.fixture
def world(_place: World) -> World:
    with _place.node.core.database.begin() as tx:
        for table in (tables.external_identity, tables.login_attempt):
            tx.execute(sa.delete(table))
    _place.at = datetime.now(UTC)
    _place.set()
    return _place


def bind(world: World, name: str, dn: str) -> None:
    world.node.identities.bind(world.console, name, issuer=world.there.ldaps, external_subject=dn)


def test_who_is_bound_comes_in_and_nobody_else(world: World) -> None:
    world.refused("mia")
    bind(world, "mia", normal(f"UID=mia, {PEOPLE}"))
    begun = world.come("mia")
    assert begun.subject.name == "mia"
    assert not begun.must_change
    assert world.how()["how"] == "directory"
    for name, password in (("mia", "wrong"), ("mia", ""), ("nora", PASSWORD), ("stranger", PASSWORD), ("nobody", PASSWORD), ("", PASSWORD)):
        world.refused(name, password)
    world.node.accounts.disable_user(world.console, "mia")
    world.refused("mia")
    world.node.accounts.enable_user(world.console, "mia")


def test_who_comes_first_is_bound_by_name_but_nobody_who_administers(world: World) -> None:
    world.set(bind_by="name")
    assert world.come("nora").subject.name == "nora"
    world.refused("guard")
    world.refused("stranger")
    world.set()
    world.come("nora")
    bind(world, "guard", f"uid=guard,{PEOPLE}")
    assert world.come("guard").subject.name == "guard"


def test_accounts_of_the_archive_s_own_go_on_without_it(world: World) -> None:
    """The directory holds an `admin` too: whoever has a password here is never asked there."""
    assert world.signin.password("admin", archives.PASSWORD, **DESK)
    world.refused("admin", PASSWORD)
    world.set(url="ldaps://127.0.0.1:1", bind_by="name")
    assert world.signin.password("admin", archives.PASSWORD, **DESK)
    world.refused("nora")


def test_groups_follow_the_directory(world: World) -> None:
    bind(world, "mia", f"uid=mia,{PEOPLE}")
    world.node.accounts.join_group(world.console, "other", "mia")
    world.node.accounts.join_group(world.console, "night", "mia")
    world.set(group_base=GROUPS, groups={f"cn=rad,{GROUPS}": "readers", f"cn=night,{GROUPS}": "night"})
    world.come("mia")
    assert world.groups("mia") == {"readers", "other"}
    world.there.change(f"dn: cn=night,{GROUPS}\nchangetype: modify\nadd: member\nmember: uid=mia,{PEOPLE}\n")
    world.come("mia")
    assert world.groups("mia") == {"readers", "night", "other"}
    world.refused("mia", "wrong")
    assert world.groups("mia") == {"readers", "night", "other"}


def test_a_second_factor_here_is_asked_for_and_the_password_confirms_where_there_is_none(world: World) -> None:
    bind(world, "mia", f"uid=mia,{PEOPLE}")
    begun = world.come("mia")
    assert world.signin.confirm(begun.subject, password=PASSWORD).subject.session_id == begun.subject.session_id
    assert world.how()["how"] == "directory"
    for wrong in ("wrong", ""):
        with pytest.raises(Unauthenticated):
            world.signin.confirm(begun.subject, password=wrong)
    app = world.node.factors.begin_totp(begun.subject)
    secret = base64.b32decode(app.secret.replace(" ", ""))
    now = datetime.now(UTC)
    world.node.factors.confirm_totp(begun.subject, app.id, totp.code(secret, totp.step_of(now)))
    try:
        asked = world.signin.password("mia", PASSWORD, **DESK)
        assert isinstance(asked, SecondAsked)
        world.at = now + timedelta(seconds=30)
        code = totp.code(secret, totp.step_of(world.at))
        assert world.signin.second(asked.half, code, **DESK).subject.name == "mia"
        assert world.how()["how"] == "directory and totp"
        with pytest.raises(Unauthenticated):
            world.signin.confirm(begun.subject, password=PASSWORD)
    finally:
        world.node.accounts.reset_mfa(world.console, "mia")


def test_guesses_are_slowed_down_as_those_at_other_passwords(world: World) -> None:
    bind(world, "mia", f"uid=mia,{PEOPLE}")
    world.at = datetime.now(UTC)
    for _ in range(4):
        world.refused("mia", "wrong")
    world.refused("mia")
    world.at += timedelta(seconds=2)
    world.come("mia")


def test_a_name_written_as_the_directory_also_takes_it_is_no_other_to_guess_at(world: World) -> None:
    bind(world, "mia", f"uid=mia,{PEOPLE}")
    world.at = datetime.now(UTC) + timedelta(hours=25)
    for written in ("ｍｉａ", "Ｍia", "𝐦𝐢𝐚", "mⅰa"):
        assert world.come(written)
        world.at += timedelta(hours=25)
    for written in ("ｍｉａ", "Ｍia", "𝐦𝐢𝐚", "mⅰa"):
        world.refused(written, "wrong")
    world.refused("mia")
    world.at += timedelta(seconds=2)
    world.come("mia")


def test_the_library_s_own_tls_is_what_the_standard_asks() -> None:
    context = ldap_client._context(None)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
