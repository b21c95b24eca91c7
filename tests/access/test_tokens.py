"""API tokens: form, life, bounds."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
import sqlalchemy as sa

from archive.access import policy, principals, token_text, tokens
from archive.access.permissions import ADMINISTRATIVE, OBJECT, Permission
from archive.access.subject import Subject
from archive.db import tables
from archive.errors import Forbidden, InvalidRequest, Unauthenticated
from archive.keys.keyring import Keyring
from tests.access.rows import Place

P = Permission


def test_the_form_is_what_scanners_look_for(place: Place, keyring: Keyring) -> None:
    with place.database.begin() as tx:
        key, text = tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at)
        assert re.fullmatch(r"sr_[0-9A-Za-z]{8}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", text)
        found = tokens.find(tx, keyring, text, at=place.at)
        assert (found.id, found.principal_id, found.name) == (key, place.first.owner_id, "admin")
        stored = tx.execute(sa.select(tables.api_token)).mappings().one()
        assert text.split("_")[2] not in str(dict(stored))
        assert stored["not_after"] == place.at + timedelta(days=30)


def test_every_changed_character_is_refused(place: Place, keyring: Keyring) -> None:
    with place.database.begin() as tx:
        _, text = tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at)
        for n in range(len(text)):
            wrong = text[:n] + ("a" if text[n] != "a" else "b") + text[n + 1:]
            with pytest.raises(Unauthenticated):
                tokens.find(tx, keyring, wrong, at=place.at)
        for wrong in ("", "sr_", text + "x", text[:-1], " " + text, text + "\n", "sr_" + "é" * 59, "admin"):
            with pytest.raises(Unauthenticated):
                tokens.find(tx, keyring, wrong, at=place.at)


def test_a_right_checksum_of_a_wrong_secret_is_refused(place: Place, keyring: Keyring) -> None:
    with place.database.begin() as tx:
        _, text = tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at)
        prefix, secret = text.split("_")[1], "0" * 43
        with pytest.raises(Unauthenticated):
            tokens.find(tx, keyring, f"sr_{prefix}_{secret}_{token_text.check(prefix, secret)}", at=place.at)


def test_life(place: Place, keyring: Keyring) -> None:
    with place.database.begin() as tx:
        end = place.at + timedelta(hours=8)
        key, text = tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at, not_after=end)
        tokens.find(tx, keyring, text, at=end - timedelta(microseconds=1))
        with pytest.raises(Unauthenticated):
            tokens.find(tx, keyring, text, at=end)
        assert tokens.revoke(tx, key, at=place.at)
        assert not tokens.revoke(tx, key, at=place.at)
        with pytest.raises(Unauthenticated):
            tokens.find(tx, keyring, text, at=place.at)
        tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at, not_after=place.at + timedelta(days=365))
        for wrong in (place.at, place.at + timedelta(days=365, microseconds=1)):
            with pytest.raises(InvalidRequest):
                tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at, not_after=wrong)


def test_a_disabled_user_has_no_token(place: Place, keyring: Keyring) -> None:
    with place.database.begin() as tx:
        _, text = tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at)
        principals.set_enabled(tx, place.first.owner_id, enabled=False, at=place.at)
        with pytest.raises(Unauthenticated):
            tokens.find(tx, keyring, text, at=place.at)


def subject_of(_place: Place, live: tokens.Live) -> Subject:
    return live.subject("192.0.2.7")


def test_administration_only_when_named(place: Place, keyring: Keyring) -> None:
    with place.database.begin() as tx:
        plain = tokens.find(tx, keyring, tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at)[1], at=place.at)
        assert not plain.permissions & ADMINISTRATIVE
        policy.require(tx, subject_of(place, plain), P.STORE, place.at)
        with pytest.raises(Forbidden):
            policy.require(tx, subject_of(place, plain), P.USER_MANAGE, place.at)
        _, text = tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at, permissions=P.USER_MANAGE)
        named = tokens.find(tx, keyring, text, at=place.at)
        policy.require(tx, subject_of(place, named), P.USER_MANAGE, place.at)
        with pytest.raises(Forbidden):
            policy.require(tx, subject_of(place, named), P.STORE, place.at)
    assert place.seen(subject_of(place, plain)) == {"1.1.1", "1.1.2", "1.2.1", "2.1.1"}
    assert place.seen(subject_of(place, named)) == set()


def test_a_bounded_token_reaches_its_objects_only_and_ends_with_its_users_rights(place: Place, keyring: Keyring) -> None:
    with place.database.begin() as tx:
        series = tables.series
        key = policy.run_as(tx, policy.system("access"), sa.select(series.c.id).where(series.c.series_instance_uid == "1.1.2")).scalar()
        _, text = tokens.create(tx, keyring, place.first.owner_id, by=1, at=place.at, scope_keys=[key * 4 + 3])
        live = tokens.find(tx, keyring, text, at=place.at)
    assert live.permissions == OBJECT
    me = subject_of(place, live)
    assert place.seen(me) == {"1.1.2"}
    assert place.seen(me, at=place.at + timedelta(days=30)) == set()
    assert place.seen(place.subject(live.principal_id, token_id=live.id, limit=live.permissions)) == set()
    with place.database.begin() as tx:
        tx.execute(sa.update(tables.grants).values(revoked_at=place.at))
    assert place.seen(me) == set()
