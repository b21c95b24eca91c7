"""Tokens made with tokens, as the command line and the API use them."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.access.bounds import MOST_NAMED
from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db import tables
from archive.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated
from archive.services.tokens import LONGEST_LABEL
from tests.access import rows
from tests.services.office import Office

FROM = "192.0.2.7"


@pytest.fixture
def ada(office: Office) -> Subject:
    """A user who sees patient P1, signed in with the browser."""
    office.accounts.add_user(office.console, "ada", roles=["technologist"], password="kq7vw mh3xz pp2ra tn8bd")
    office.accounts.add_grant(office.console, to="ada", role="technologist", target=Target("patient", "P1"))
    return office.signin.password("ada", "kq7vw mh3xz pp2ra tn8bd", address=FROM, user_agent="").subject


def enter(office: Office, made: dict[str, object], address: str = FROM) -> Subject:
    return office.signin.bearer(str(made["token"]), address=address)


def test_a_token_makes_one_that_carries_less(office: Office, ada: Subject) -> None:
    a = office.accounts
    first = enter(office, a.create_token(ada, owner=ada.principal_id, studies=["1.1"], until="8h", label="viewer"))
    made = a.create_token(first, owner="ada", series=["1.1.2"], permissions=["search", "pixels"], label="one series")
    second = enter(office, made)
    assert (office.seen(first), office.seen(second)) == ({"1.1.1", "1.1.2"}, {"1.1.2"})
    assert (made["parent"], made["made_by"], made["user"], made["label"]) == (first.token_id, "ada", "ada", "one series")
    assert made["until"] == office.at + timedelta(hours=8)
    assert made["permissions"] == ["search", "pixels"]
    # what its maker does not see is not there for it, seen by its user or not
    for named in ({"studies": ["1.2"]}, {"series": ["1.2.1"]}, {"series": ["2.1.1"]}, {"studies": ["9.9"]}, {"patients": ["P2"]}):
        with pytest.raises(NotFound):
            a.create_token(first, owner="ada", **named)  # type: ignore[arg-type]
    for named in ({"permissions": ["user-manage"]}, {"permissions": ["store"]}, {"owner": "admin"}, {"parent": second.token_id}):
        with pytest.raises(Forbidden):
            a.create_token(first, **{"owner": "ada", **named})  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        a.create_token(first, owner="ada", until="9h")
    # the user's own rights end everything that was made of them
    (grant,) = a.list_grants(office.console, to="ada")
    a.revoke_grant(office.console, grant["id"])
    assert office.seen(first) == office.seen(second) == set()


def test_one_ends_with_those_it_stands_on_and_one_event_says_so(office: Office, ada: Subject) -> None:
    a = office.accounts
    root = a.create_token(ada, owner="ada")
    left, right = (a.create_token(enter(office, root), owner="ada") for _ in range(2))
    below = a.create_token(enter(office, left), owner="ada")
    entered = [enter(office, made) for made in (root, left, right, below)]
    before = len(office.events())
    assert a.revoke_token(office.console, left["id"])["ended"] == 2
    assert [bool(office.seen(subject)) for subject in entered] == [True, False, True, False]
    for made in (left, below):
        with pytest.raises(Unauthenticated):
            enter(office, made)
    events = office.events()
    assert len(events) == before + 2  # and the refused sign-ins of one address
    assert [event.kind for event in events[:2]] == ["signin-failed", "token-changed"]
    assert events[1].body is not None
    assert events[1].body["detail"] == {"what": "revoked", "id": left["id"], "user": "ada", "besides": [below["id"]]}
    states = {row["id"]: row["state"] for row in a.list_tokens(ada)}
    assert states == {root["id"]: "active", left["id"]: "revoked", right["id"]: "active", below["id"]: "revoked"}
    # with a token: itself and what was made with it
    assert [row["id"] for row in a.list_tokens(entered[2])] == [right["id"]]
    assert len(a.list_tokens(entered[0])) == 4
    with pytest.raises(NotFound):
        a.revoke_token(entered[2], root["id"])
    assert a.revoke_token(entered[0], right["prefix"])["ended"] == 1
    assert a.revoke_token(entered[0], root["id"])["ended"] == 1
    assert a.revoke_token(office.console, root["id"])["ended"] == 0


def test_a_disabled_user_and_a_past_end_leave_nothing(office: Office, ada: Subject) -> None:
    a = office.accounts
    root = enter(office, a.create_token(ada, owner="ada", until="1h"))
    child = a.create_token(root, owner="ada")
    office.at += timedelta(hours=1) - timedelta(microseconds=1)
    live = enter(office, child)
    assert office.seen(live)
    office.at += timedelta(microseconds=1)
    assert office.seen(live) == set()
    with pytest.raises(Unauthenticated):
        enter(office, child)
    with pytest.raises(Forbidden):
        a.create_token(live, owner="ada")
    lasting = enter(office, a.create_token(office.console, owner="ada"))
    below = enter(office, a.create_token(lasting, owner="ada"))
    a.disable_user(office.console, "ada")
    assert office.seen(below) == set()
    with pytest.raises(Forbidden):
        a.create_token(below, owner="ada")


def test_patients_and_whole_datastores(office: Office, ada: Subject) -> None:
    a, at = office.accounts, office.at
    with office.place.database.begin() as tx:
        other = rows.insert(tx, tables.datastore, uid=bytes(16), name="research", created_at=at)
        for store, issuer, uid in ((other, "", "3.1"), (office.place.first.datastore_id, "ELSEWHERE", "4.1")):
            pt = rows.insert(tx, tables.patient, datastore_id=store, patient_id="P1", issuer=issuer, created_at=at)
            st = rows.insert(tx, tables.study, datastore_id=store, patient_pk=pt, study_instance_uid=uid, key_id=bytes(16), study_date="",
                             attributes={}, created_at=at, updated_at=at, n_series=1, n_instances=1)
            rows.insert(tx, tables.series, datastore_id=store, patient_pk=pt, study_pk=st, study_date="", series_instance_uid=f"{uid}.1",
                        modality="CT", attributes={}, n_instances=1, created_at=at, updated_at=at)
    mine = enter(office, a.create_token(ada, owner="ada", patients=["P1"]))  # the other P1 is not seen, so this is the one
    assert office.seen(mine) == {"1.1.1", "1.1.2", "1.2.1"}
    with pytest.raises(NotFound) as unseen:
        a.create_token(ada, owner="ada", datastores=["research"])
    with pytest.raises(NotFound) as absent:
        a.create_token(ada, owner="ada", studies=["3.1"], datastore="nowhere")
    assert unseen.value.message == absent.value.message
    a.add_grant(office.console, to="ada", role="referrer", target=Target("everything"))
    a.add_grant(office.console, to="ada", role="referrer", target=Target("everything"), datastore="research")
    with pytest.raises(InvalidRequest, match="several"):
        a.create_token(ada, owner="ada", patients=["P1"])
    made = a.create_token(ada, owner="ada", patients=["P1"], issuer="ELSEWHERE", datastores=["research"])
    assert (made["bounded_to"], office.seen(enter(office, made))) == (2, {"4.1.1", "3.1.1"})
    assert office.seen(enter(office, a.create_token(ada, owner="ada", patients=["P1"], datastore="research"))) == {"3.1.1"}
    narrow = a.create_token(enter(office, made), owner="ada", datastores=["clinical"])
    assert office.seen(enter(office, narrow)) == {"4.1.1"}
    said = next(event.body for event in office.events() if event.body is not None)
    assert (said["detail"]["datastores"], said["objects"]) == (["clinical"], [])
    for wrong in ({"patients": [""]}, {"patients": ["P\0"]}, {"studies": ["\0"]}, {"datastores": ["\0"]}):
        with pytest.raises(NotFound):
            a.create_token(ada, owner="ada", **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        a.create_token(ada, owner="ada", studies=["1.1"] * (MOST_NAMED + 1))


def test_networks_last_use_and_label(office: Office, ada: Subject) -> None:
    a = office.accounts
    made = a.create_token(ada, owner="ada", networks=["192.0.2.0/24"], label="\0x" * 300)
    assert (made["networks"], len(made["label"])) == (["192.0.2.0/24"], LONGEST_LABEL)
    live = enter(office, made)
    with pytest.raises(Unauthenticated):
        enter(office, made, "198.51.100.1")
    child = a.create_token(live, owner="ada")
    with pytest.raises(Unauthenticated):
        enter(office, child, "198.51.100.1")
    (row,) = [row for row in a.list_tokens(ada) if row["id"] == made["id"]]
    assert (row["last_used_at"], row["last_address"]) == (office.at, FROM)
    enter(office, made, "192.0.2.9")
    assert {row["last_address"] for row in a.list_tokens(ada)} == {FROM, ""}  # noted once a minute
    office.at += timedelta(minutes=1)
    enter(office, made, "192.0.2.9")
    assert {row["last_address"] for row in a.list_tokens(ada)} == {"192.0.2.9", ""}
    with pytest.raises(InvalidRequest):
        a.create_token(ada, owner="ada", networks=["everywhere"])


def test_the_console_makes_one_below_any(office: Office, ada: Subject) -> None:
    a = office.accounts
    root = a.create_token(ada, owner="ada", series=["1.1.2"])
    made = a.create_token(office.console, owner="ada", parent=root["prefix"])
    assert (made["parent"], made["made_by"]) == (root["id"], "console")
    assert office.seen(enter(office, made)) == {"1.1.2"}
    for wrong in ({"owner": "admin"}, {"parent": 999}, {"studies": ["1.2"]}):
        with pytest.raises(NotFound):
            a.create_token(office.console, **{"owner": "ada", "parent": root["id"], **wrong})  # type: ignore[arg-type]


def test_who_acts_for_another_within_a_boundary_makes_no_token(office: Office, ada: Subject) -> None:
    a = office.accounts
    bound = enter(office, a.create_token(ada, owner="ada", studies=["1.1"])).boundary_ids
    shared = dataclasses.replace(ada, boundary_ids=bound)
    assert office.seen(shared) == {"1.1.1", "1.1.2"}
    for subject in (shared, dataclasses.replace(ada, session_id=None), dataclasses.replace(shared, session_id=None)):
        with pytest.raises(Forbidden):
            a.create_token(subject, owner="ada")


def test_a_bounded_token_asks_for_what_it_may_and_no_more(office: Office, ada: Subject) -> None:
    """Every object permission of a token with its own, as one that is made with it names it."""
    a = office.accounts
    root = enter(office, a.create_token(ada, owner="ada", studies=["1.1"], permissions=["search", "metadata"]))
    child = enter(office, a.create_token(root, owner="ada"))
    for need, seen in ((Permission.SEARCH, True), (Permission.METADATA, True), (Permission.PIXELS, False), (Permission.SEND, False)):
        with office.place.database.read() as tx:
            scope = policy.scope_of(child, need, office.at)
            assert bool(scope.run(tx, sa.select(rows.SE.c.id).where(scope.series(rows.SE))).all()) == seen


def test_asking_for_anothers_tokens_does_not_tell_who_is_there(office: Office, ada: Subject) -> None:
    a = office.accounts
    a.create_token(ada, owner="ada")
    assert [a.list_tokens(ada, owner=name) for name in ("admin", "nobody")] == [[], []]
    assert len(a.list_tokens(ada, owner="ada")) == 1
    with pytest.raises(NotFound):
        a.list_tokens(office.console, owner="nobody")
