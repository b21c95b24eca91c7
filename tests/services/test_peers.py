"""Peers on the real tables and the real ledger: who gets in, who is pending, what is recorded."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.access import grants, principals, roles
from archive.access.grants import Target, Terms
from archive.access.permissions import Permission
from archive.db.engine import Database
from archive.db.tables import pending_peer
from archive.errors import Forbidden, InvalidRequest, NotFound
from archive.keys import ca
from archive.ledger.audit import Kind
from archive.services import doorkeeper
from tests.services.peer_world import START, World, der, embedded, foreign, made


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An archive on the embedded database."""
    with embedded(tmp_path) as made_here:
        yield made_here


@pytest.fixture
def anywhere(database: Database, tmp_path: Path) -> World:
    """An archive on each engine in turn."""
    return made(database, tmp_path)


# --- over TLS ------------------------------------------------------------------------------------------------------------------------


def test_an_issued_certificate_admits_with_its_titles_only(anywhere: World, tmp_path: Path) -> None:
    certificate = anywhere.issued("CT1", tmp_path / "ct1", "CT1", "CT1_STORE", issuer="HOSPITAL A")
    assert {path.name for path in (tmp_path / "ct1").iterdir()} == {"key.pem", "cert.pem", "ca.pem"}
    for title in ("CT1", "CT1_STORE", "CT1 "):
        admitted = anywhere.admit(title, certificate)
        assert (admitted.peer_name, admitted.datastore, admitted.issuer, admitted.may_store) == ("CT1", "clinical", "HOSPITAL A", True)
        assert (admitted.subject.kind, admitted.subject.via, admitted.subject.address) == ("device", "dimse", "192.0.2.7")
        assert admitted.subject.peer_id is not None
        assert admitted.subject.limit is None
    assert anywhere.refused("CT2", certificate) == "its certificate belongs to CT1, which has no such AE title"
    assert anywhere.refused("ct1", certificate)
    assert anywhere.refused("", certificate)
    assert anywhere.refused("CT1", der(foreign())) == "its certificate is bound to no peer"
    assert anywhere.refused("CT1", None, tls=True) == "its certificate is bound to no peer"
    assert anywhere.refused("CT1") == "its AE title is unknown here"  # the plain listener knows only plain peers


def test_a_foreign_certificate(world: World) -> None:
    pem = foreign()
    world.peers.add(world.console, "MR", ["MR1"], certificate=b"some text before\n" + pem)
    assert world.admit("MR1", der(pem)).peer_name == "MR"
    world.clock.forward(days=31)
    assert world.refused("MR1", der(pem)) == "its certificate has expired"


def test_renewing_ends_the_old_certificate(world: World, tmp_path: Path) -> None:
    old = world.issued("CT1", tmp_path / "ct1")
    shown = world.peers.renew(world.console, "CT1", issue=tmp_path / "ct1")
    new = ssl.PEM_cert_to_DER_cert((tmp_path / "ct1" / "cert.pem").read_text())
    assert new != old
    assert shown["certificate_sha256"] == ca.fingerprint(new).hex()
    assert world.admit("CT1", new)
    assert world.refused("CT1", old)
    pem = foreign()
    world.peers.renew(world.console, "CT1", certificate=pem)
    assert world.admit("CT1", der(pem))
    assert world.refused("CT1", new)
    with pytest.raises(InvalidRequest):
        world.peers.renew(world.console, "CT1")
    with pytest.raises(InvalidRequest):
        world.peers.renew(world.console, "CT1", certificate=pem)


def test_removing_holds_from_the_next_association(anywhere: World, tmp_path: Path) -> None:
    certificate = anywhere.issued("CT1", tmp_path / "ct1")
    subject = anywhere.admit("CT1", certificate).subject
    anywhere.peers.remove(anywhere.console, "CT1")
    assert anywhere.refused("CT1", certificate) == "its certificate is bound to no peer"
    assert anywhere.peers.list(anywhere.console) == []
    with anywhere.database.read() as tx:
        from archive.access import policy

        assert policy.functions_of(tx, subject, anywhere.clock()) == Permission.NONE
    again = anywhere.issued("CT1", tmp_path / "again")
    assert anywhere.admit("CT1", again).subject.principal_id != subject.principal_id
    with pytest.raises(NotFound):
        anywhere.peers.remove(anywhere.console, "CT2")


def test_a_disabled_principal_is_refused(world: World, tmp_path: Path) -> None:
    certificate = world.issued("CT1", tmp_path / "ct1")
    with world.database.begin() as tx:
        principals.set_enabled(tx, principals.find(tx, "CT1", ("device",))["id"], enabled=False, at=START)
    assert world.refused("CT1", certificate)


def test_a_certificate_binds_one_peer(world: World) -> None:
    pem = foreign()
    world.peers.add(world.console, "A", ["A"], certificate=pem)
    with pytest.raises(InvalidRequest, match="bound to a peer"):
        world.peers.add(world.console, "B", ["B"], certificate=pem)
    world.peers.remove(world.console, "A")
    assert world.peers.add(world.console, "B", ["B"], certificate=pem)["name"] == "B"


# --- plain ---------------------------------------------------------------------------------------------------------------------------


def test_a_plain_peer_is_its_network_and_its_title(anywhere: World) -> None:
    added = anywhere.peers.add(anywhere.console, "US1", ["US1"], address="192.0.2.7:104", plain=True)
    assert (added["tls"], added["networks"], added["host"], added["port"]) == (False, ["192.0.2.7/32"], "192.0.2.7", 104)
    assert anywhere.admit("US1").peer_name == "US1"
    assert anywhere.admit("US1", address="::ffff:192.0.2.7").peer_name == "US1"
    assert anywhere.refused("US2") == "its AE title is unknown here"
    assert anywhere.refused("US1", address="192.0.2.8") == "its address is not in that AE title's network"
    assert anywhere.refused("US1", address="198.51.100.7") == "its address is outside dimse.plain.networks"
    assert anywhere.refused("US1", der(foreign())) == "its certificate is bound to no peer"


def test_the_listeners_networks_bound_every_peers(world: World) -> None:
    world.peers.add(world.console, "ANY", ["ANY"], networks=["0.0.0.0/0", "2001:db8::/32"])
    assert world.admit("ANY", address="192.0.2.200")
    assert world.admit("ANY", address="2001:db8::1")
    assert world.admit("ANY", address="2001:db8::1%eth0")
    assert world.refused("ANY", address="2001:db8:1::1")
    assert world.refused("ANY", address="10.0.0.1")


def test_without_tls_a_peer_stores_and_nothing_else_unless_granted_more(world: World) -> None:
    from archive.access import policy

    world.peers.add(world.console, "US1", ["US1"], networks=["192.0.2.0/25"])
    admitted = world.admit("US1")
    assert (admitted.may_store, admitted.may_query) == (True, False)
    with world.database.read() as tx:
        assert policy.functions_of(tx, admitted.subject, world.clock()) == Permission.STORE
    world.peers.add(world.console, "WS1", ["WS1"], networks=["192.0.2.0/25"], roles=["workstation"])
    station = world.admit("WS1")
    assert (station.may_store, station.may_query, station.subject.limit) == (False, False, None)
    with world.database.begin() as tx:
        grants.give(
            tx, to=station.subject.principal_id, role_row=roles.find(tx, "workstation"), datastore_id=world.datastore_id,
            terms=Terms(not_before=START), by=world.console.principal_id, at=START,
            scope_key=grants.scope_key(tx, world.datastore_id, Target("everything"), at=START, default_issuer=""),
        )
    assert world.admit("WS1").may_query


def test_without_tls_a_grant_of_a_group_counts_as_long_as_it_and_the_membership_do(anywhere: World) -> None:
    anywhere.peers.add(anywhere.console, "WS1", ["WS1"], networks=["192.0.2.0/25"], roles=["workstation"])
    station = anywhere.admit("WS1").subject.principal_id
    with anywhere.database.begin() as tx:
        group = principals.add(tx, "group", "stations", at=START)
        principals.join(tx, station, group, by=None, not_before=START, not_after=START + timedelta(hours=2))
        grants.give(
            tx, to=group, role_row=roles.find(tx, "workstation"), datastore_id=anywhere.datastore_id,
            terms=Terms(not_before=START + timedelta(hours=1)), by=anywhere.console.principal_id, at=START,
            scope_key=grants.scope_key(tx, anywhere.datastore_id, Target("everything"), at=START, default_issuer=""),
        )
    assert not anywhere.admit("WS1").may_query  # the grant does not count yet
    anywhere.clock.now = START + timedelta(hours=1)
    assert anywhere.admit("WS1").may_query
    anywhere.clock.now = START + timedelta(hours=2)
    assert not anywhere.admit("WS1").may_query  # no member any more


def test_one_title_in_one_network_is_one_peer(world: World) -> None:
    world.peers.add(world.console, "A", ["US1"], networks=["192.0.2.0/25"])
    with pytest.raises(InvalidRequest, match="another peer has that AE title"):
        world.peers.add(world.console, "B", ["US2", "US1"], networks=["192.0.2.64/26"])
    world.peers.add(world.console, "B", ["US1"], networks=["192.0.2.128/25", "2001:db8::/64"])
    assert world.admit("US1", address="192.0.2.1").peer_name == "A"
    assert world.admit("US1", address="192.0.2.129").peer_name == "B"


# --- roles ---------------------------------------------------------------------------------------------------------------------------


def test_a_peer_without_the_role_to_store_may_not(world: World, tmp_path: Path) -> None:
    certificate = world.issued("WS1", tmp_path / "ws1", roles=["workstation"])
    assert not world.admit("WS1", certificate).may_store
    with world.database.begin() as tx:
        found = principals.find(tx, "WS1", ("device",))
        roles.assign(tx, found["id"], roles.find(tx, "modality")["id"], by=world.console.principal_id, at=START)
    assert world.admit("WS1", certificate).may_store


def test_who_may_manage_peers(world: World, tmp_path: Path) -> None:
    nobody, manager = world.user("nobody", "radiologist"), world.user("manager", "administrator")
    for attempt in (
        lambda: world.peers.add(nobody, "X", ["X"], networks=["192.0.2.0/24"]),
        lambda: world.peers.list(nobody),
        lambda: world.peers.pending(nobody),
        lambda: world.peers.remove(nobody, "X"),
        lambda: world.peers.add(manager, "X", ["X"], networks=["192.0.2.0/24"], roles=["owner"]),
    ):
        with pytest.raises(Forbidden):
            attempt()
    assert len(world.events(Kind.DENIED)) == 5
    assert world.peers.list(manager) == []
    both = ["modality", "workstation"]
    assert world.peers.add(manager, "X", ["X"], issue=tmp_path / "x", roles=both)["roles"] == both
    assert world.peers.add(world.console, "Y", ["Y"], issue=tmp_path / "y", roles=["technologist"])["roles"] == ["technologist"]


# --- pending -------------------------------------------------------------------------------------------------------------------------


def test_a_refused_caller_is_pending_and_can_be_enrolled(anywhere: World) -> None:
    pem = foreign()
    assert anywhere.refused("MR1", der(pem))
    waiting = anywhere.peers.pending(anywhere.console)
    assert [(row["calling_ae_title"], row["address"], row["attempts"]) for row in waiting] == [("MR1", "192.0.2.7", 1)]
    assert waiting[0]["certificate_sha256"] == ca.fingerprint(der(pem)).hex()
    assert waiting[0]["called_ae_title"] == "STRONGROOM"
    added = anywhere.peers.enrol(anywhere.console, waiting[0]["id"], "MR")
    assert (added["ae_titles"], added["tls"], added["roles"]) == (["MR1"], True, ["modality"])
    assert anywhere.peers.pending(anywhere.console) == []
    assert anywhere.admit("MR1", der(pem)).peer_name == "MR"
    with pytest.raises(NotFound):
        anywhere.peers.enrol(anywhere.console, 12345, "Z")


def test_a_plain_caller_can_be_enrolled(world: World) -> None:
    assert world.refused("US1")
    number = world.peers.pending(world.console)[0]["id"]
    assert world.peers.enrol(world.console, number, "US")["networks"] == ["192.0.2.7/32"]
    assert world.admit("US1").peer_name == "US"
    assert world.peers.pending(world.console) == []


def test_a_failed_handshake_is_recorded_but_cannot_be_enrolled(world: World) -> None:
    world.peers.turned_away(address="198.51.100.9", reason="no client certificate", certificate=None)
    waiting = world.peers.pending(world.console)
    assert [(row["calling_ae_title"], row["address"], row["reason"]) for row in waiting] == [("", "198.51.100.9", "no client certificate")]
    with pytest.raises(InvalidRequest, match="never said its AE title"):
        world.peers.enrol(world.console, waiting[0]["id"], "X")
    assert [event.body["detail"]["reason"] for event in world.events(Kind.ASSOCIATION_REJECTED) if event.body] == ["no client certificate"]


def test_the_same_refusal_again_is_counted_and_recorded_once_a_minute(anywhere: World) -> None:
    for _ in range(10):
        anywhere.refused("US9")
        anywhere.clock.forward(seconds=10)
    waiting = anywhere.peers.pending(anywhere.console)
    assert [row["attempts"] for row in waiting] == [10]
    events = anywhere.events(Kind.ASSOCIATION_REJECTED)
    assert [event.body["detail"]["attempts"] for event in events if event.body] == [7, 1]
    body = events[0].body
    assert body is not None
    assert body["detail"]["calling_ae_title"] == "US9"
    assert events[0].outcome == 8


def test_who_is_refused_under_a_clock_that_was_set_back_is_recorded(world: World) -> None:
    for number in range(doorkeeper.PENDING_PER_ADDRESS):
        assert world.refused(f"X{number}")
    world.clock.forward(days=-400)
    for name in ("X0", "X0", "NEW"):
        assert world.refused(name)
    told = [event.body["detail"]["calling_ae_title"] for event in world.events(Kind.ASSOCIATION_REJECTED) if event.body]
    assert told[:2] == ["NEW", "X0"]
    assert len(told) == doorkeeper.PENDING_PER_ADDRESS + 2, "the second time was within the minute"


def test_an_address_cannot_fill_the_table(world: World) -> None:
    for number in range(doorkeeper.PENDING_PER_ADDRESS + 15):
        with pytest.raises(Forbidden):
            world.admit(f"X{number}")
    assert len(world.peers.pending(world.console)) == doorkeeper.PENDING_PER_ADDRESS
    assert len(world.events(Kind.ASSOCIATION_REJECTED)) == doorkeeper.PENDING_PER_ADDRESS
    with pytest.raises(Forbidden):
        world.admit("OTHER", address="192.0.2.8")
    assert world.peers.pending(world.console)[0]["calling_ae_title"] == "OTHER"


def test_the_table_is_bounded_and_keeps_the_newest(anywhere: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorkeeper, "PENDING_ROWS", 12)
    monkeypatch.setattr(doorkeeper, "PENDING_WITHOUT_NAME", 4)
    first = ip_address("192.0.2.10")
    for number in range(10):
        anywhere.clock.forward(seconds=1)
        anywhere.refused(f"DEVICE{number}", address=str(first + number))
    for number in range(30):
        anywhere.clock.forward(seconds=1)
        anywhere.peers.turned_away(address=str(ip_address("198.51.100.1") + number), reason="no client certificate", certificate=None)
    waiting = anywhere.peers.pending(anywhere.console)
    assert len(waiting) == 12
    assert len([row for row in waiting if not row["calling_ae_title"]]) == 4
    assert "DEVICE9" in {row["calling_ae_title"] for row in waiting}


def test_hostile_words_of_a_stranger_are_kept_as_they_are(world: World) -> None:
    for title in ("' OR 1=1 --", "<script>", "A" * 16):
        world.refused(title)
    assert {row["calling_ae_title"] for row in world.peers.pending(world.console)} == {"' OR 1=1 --", "<script>", "A" * 16}


# --- what is refused at the table, what is recorded ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"networks": ["192.0.2.0/24"], "certificate": b"x"},
        {"certificate": b"no certificate"},
        {"certificate": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        {"networks": ["nonsense"]},
        {"networks": ["192.0.2.0/33"]},
        {"plain": True},
        {"plain": True, "address": "192.0.2.7"},
        {"plain": True, "address": "192.0.2.7:0"},
        {"plain": True, "address": "192.0.2.7:99999"},
        {"plain": True, "address": "host.invalid:104"},
        {"networks": ["192.0.2.0/24"], "datastore": "elsewhere"},
        {"networks": ["192.0.2.0/24"], "roles": ["no-such-role"]},
    ],
)
def test_what_cannot_be_a_peer_leaves_nothing(world: World, options: dict[str, object]) -> None:
    with pytest.raises((InvalidRequest, NotFound)) as raised:
        world.peers.add(world.console, "X", ["X"], **options)  # type: ignore[arg-type]
    assert raised.value.remedy
    assert world.peers.list(world.console) == []
    assert world.events(Kind.PEER_CHANGED) == []
    with world.database.read() as tx:
        assert principals.listed(tx, ("device",)) == []


@pytest.mark.parametrize("host", [
    "a..b", "-a.example", "a-.example", "pacs example", "pacs/x", "x" * 64 + ".example",
    "a." * 127 + "a", "300.1.2.3", "10.1", "pacs.1", ".",
    "[]", "é" * 64, "\u2024", "pacs\0x",
])  # fmt: skip
def test_what_can_be_no_host_is_told_when_a_peer_is_added(world: World, host: str) -> None:
    for options in ({"networks": ["192.0.2.0/24"]}, {"plain": True}):
        with pytest.raises(InvalidRequest):
            world.peers.add(world.console, "X", ["X"], address=f"{host}:104", **options)  # type: ignore[arg-type]
    assert world.peers.list(world.console) == []


@pytest.mark.parametrize("host", [
    "pacs", "pacs.example", "pacs.example.", "pacs_1.example", "3d.example", "192.0.2.7", "2001:db8::7", "fe80::1%eth0", "röntgen.example",
    ".".join(["x" * 63] * 3),
])  # fmt: skip
def test_what_can_be_a_host_may_be_a_peers(world: World, host: str) -> None:
    assert world.peers.add(world.console, "X", ["X"], address=f"{host}:104", networks=["192.0.2.0/24"])["host"] == host
    for port in ("1" * 5000, "-1", "1٠", ""):
        with pytest.raises(InvalidRequest):
            world.peers.add(world.console, "Y", ["Y"], address=f"{host}:{port}", networks=["198.51.100.0/24"])


def test_an_expired_certificate_is_not_taken(world: World) -> None:
    with pytest.raises(InvalidRequest, match="expired"):
        world.peers.add(world.console, "X", ["X"], certificate=foreign(days=-1))


@pytest.mark.parametrize("titles", [[], [""], ["A" * 17], ["BACK\\SLASH"], ["TAB\t"], ["ÜBER"]])
def test_what_cannot_be_an_ae_title(world: World, titles: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="AE title"):
        world.peers.add(world.console, "X", titles, networks=["192.0.2.0/24"])


def test_names_are_shared_with_users(world: World) -> None:
    with pytest.raises(InvalidRequest, match="taken"):
        world.peers.add(world.console, "admin", ["X"], networks=["192.0.2.0/24"])


def test_every_change_is_in_the_ledger(world: World, tmp_path: Path) -> None:
    world.issued("CT1", tmp_path / "ct1", "CT1", "CT1B")
    world.peers.renew(world.console, "CT1", issue=tmp_path / "ct1")
    world.peers.remove(world.console, "CT1")
    events = world.events(Kind.PEER_CHANGED)
    assert [event.body["detail"]["what"] for event in events if event.body] == ["peer removed", "peer renewed", "peer added"]
    body = events[2].body
    assert body is not None
    assert body["detail"]["ae_titles"] == ["CT1", "CT1B"]
    assert body["subject"]["operator"] == "tester"


def test_a_change_that_cannot_be_recorded_does_not_happen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise RuntimeError

    monkeypatch.setattr(world.ledger, "record", broken)
    with pytest.raises(RuntimeError):
        world.peers.add(world.console, "X", ["X"], networks=["192.0.2.0/24"])
    with pytest.raises(RuntimeError):
        world.admit("NOBODY")
    monkeypatch.undo()
    assert world.peers.list(world.console) == []
    assert world.peers.pending(world.console) == []


def test_listing(world: World, tmp_path: Path) -> None:
    world.issued("CT1", tmp_path / "ct1", address="ct1.example:104")
    world.peers.add(world.console, "B", ["B"], networks=["2001:db8::/64"], address="[2001:db8::7]:11112")
    found = {row["name"]: row for row in world.peers.list(world.console)}
    assert list(found) == ["B", "CT1"]
    assert (found["CT1"]["host"], found["CT1"]["port"], found["CT1"]["tls"]) == ("ct1.example", 104, True)
    assert (found["B"]["host"], found["B"]["port"], found["B"]["networks"]) == ("2001:db8::7", 11112, ["2001:db8::/64"])
    assert world.peers.get(world.console, found["B"]["id"]) == found["B"]
    with world.database.read() as tx:
        assert principals.find(tx, found["B"]["id"])["name"] == "B"
    with pytest.raises(NotFound):
        world.peers.get(world.console, "admin")


def test_a_caller_is_told_of_again_once_a_clock_that_was_ahead_is_set_right(world: World) -> None:
    def call(title: str) -> None:
        with pytest.raises(Forbidden):
            world.peers.admit(calling_ae_title=title, called_ae_title="X", address="198.51.100.9", certificate=None, tls=False)

    world.clock.forward(hours=5)
    for number in range(doorkeeper.PENDING_PER_ADDRESS):
        call(f"OLD{number}")
    world.clock.forward(hours=-5)
    told = len(world.events(Kind.ASSOCIATION_REJECTED))
    call("OLD0")
    call("NEW")
    assert len(world.events(Kind.ASSOCIATION_REJECTED)) == told + 2
    assert "NEW" in {one["calling_ae_title"] for one in world.peers.pending(world.console)}


def test_pending_rows_have_the_pem_for_display(world: World) -> None:
    pem = foreign()
    world.refused("MR1", der(pem))
    with world.database.read() as tx:
        kept = tx.execute(sa.select(pending_peer.c.certificate_pem)).scalar_one()
    assert der(kept.encode()) == der(pem)


def test_peer_manage_alone_does_not_become_a_peer_that_sees_images(world: World, tmp_path: Path) -> None:
    world.issued("WS1", tmp_path / "ws1", "WS1", roles=["workstation"])
    clerk, officer = world.user("clerk", "administrator"), world.user("officer", "administrator", "security-officer")
    world.peers.renew(clerk, "WS1", issue=tmp_path / "ws1")
    with world.database.begin() as tx:
        peer, held = principals.find(tx, "WS1")["id"], roles.find(tx, "workstation")
        grants.give(
            tx, to=peer, role_row=held, datastore_id=1, scope_key=0, terms=Terms(not_before=START), by=peer, at=START,
        )
    with pytest.raises(Forbidden):
        world.peers.renew(clerk, "WS1", certificate=foreign())
    assert world.peers.renew(officer, "WS1", certificate=foreign())["name"] == "WS1"
