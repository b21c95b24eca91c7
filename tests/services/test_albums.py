"""Albums: what somebody sees by one, and every way in which they stop; on a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.access.subject import Subject
from archive.db.tables import grants
from archive.errors import Forbidden, InvalidRequest, NotFound
from archive.services.album_watch import AlbumWatch
from archive.services.albums import Albums
from tests.services.office import Office
from tests.services.shares_world import World

P = Permission
BOTH = {"1.1.1", "1.1.2"}
ONE_ENGINE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


class AlbumWorld(World):
    """Doc's album holds study 1.1 and is shared with ann; ben, of the ward, has nothing."""

    def __init__(self, office: Office) -> None:
        super().__init__(office)
        self.albums = Albums(self.core)
        self.ann, self.ben = office.user("ann"), office.user("ben")
        office.accounts.add_group(office.console, "ward")
        office.accounts.join_group(office.console, "ward", "ben")
        self.id = self.albums.create(self.doc, "Tumour board")["id"]
        self.albums.add(self.doc, self.id, studies=["1.1"])

    def share(self, to: str = "ann", **more: Any) -> dict[str, Any]:
        return self.albums.share(self.doc, self.id, to, **more)


@pytest.fixture
def world(office: Office) -> AlbumWorld:
    """An album not shared yet."""
    return AlbumWorld(office)


@ONE_ENGINE
def test_whoever_it_is_shared_with_sees_what_is_in_it_and_later_what_is_added(world: AlbumWorld) -> None:
    assert world.seen(world.ann) == set()
    world.share()
    world.share("ward", download=True)
    for need in (P.SEARCH, P.METADATA, P.PIXELS):
        assert world.seen(world.ann, need) == BOTH
    for need in (P.ORIGINAL, P.SHARE, P.DELEGATE, P.SEND, P.DELETE):
        assert world.seen(world.ann, need) == set()
    assert world.seen(world.ben, P.ORIGINAL) == BOTH
    office = world.office
    office.accounts.add_grant(office.console, to="doc", role="radiologist", target=Target("series", "1.2.1"))
    world.albums.add(world.doc, world.id, series=["1.2.1"], studies=["1.1"])
    assert world.seen(world.ann) == world.seen(world.ben, P.ORIGINAL) == BOTH | {"1.2.1"}
    shown = world.albums.show(world.ann, world.id)
    assert [(one["level"], one["uid"]) for one in shown["items"]] == [("study", "1.1"), ("series", "1.2.1")]
    assert (shown["rights"], shown["shared_with"]) == ("view", [])
    assert [one["principal"] for one in world.albums.show(world.doc, world.id)["shared_with"]] == ["ann", "ward"]
    because = [row for row in office.accounts.explain(office.console, "ann", "1.1")["because"] if row["kind"] == "shared"]
    assert [(row["reason"], row["granted_by"]) for row in because] == [(f"album {world.id}", world.doc.principal_id)]


ENDINGS: dict[str, Callable[[AlbumWorld], object]] = {
    "the item is taken out": lambda w: w.albums.remove(w.doc, w.id, "study", "1.1"),
    "it is shared no more": lambda w: w.albums.unshare(w.doc, w.id, "ann"),
    "she leaves": lambda w: w.albums.unshare(w.ann, w.id, "ann"),
    "the album ends": lambda w: w.albums.end(w.doc, w.id),
    "an administrator ends it": lambda w: w.albums.end(w.office.console, w.id),
    "its time is over": lambda w: w.later(days=1),
    "the sharer loses the grant": lambda w: w.office.accounts.revoke_grant(w.office.console, w.grant["id"]),
    "the sharer is denied": lambda w: w.office.accounts.add_grant(
        w.office.console, to="doc", role="referrer", target=Target("study", "1.1"), deny=True),
    "the sharer is disabled": lambda w: w.office.accounts.disable_user(w.office.console, "doc"),
    "the sharer is removed": lambda w: w.office.accounts.remove_user(w.office.console, "doc"),
    "the grant is revoked": lambda w: [w.office.accounts.revoke_grant(w.office.console, key) for key in _shared(w)],
}


def _shared(w: AlbumWorld) -> list[int]:
    with w.office.place.database.read() as tx:
        return list(tx.execute(sa.select(grants.c.id).where(grants.c.kind == "shared", grants.c.revoked_at.is_(None))).scalars())


def test_every_way_in_which_it_ends(world: AlbumWorld) -> None:
    world.share(until="1d")
    assert world.seen(world.ann) == BOTH
    before = world.office.at
    for what, ending in ENDINGS.items():
        world.office.at = before
        if what == "the sharer is removed":  # for good: the last
            continue
        ending(world)
        assert world.seen(world.ann) == set(), what
        world.office.at = before
        _again(world, what)
        assert world.seen(world.ann) == BOTH, f"after {what}"
    world.office.accounts.remove_user(world.office.console, "doc")
    assert world.seen(world.ann) == set()


def _again(w: AlbumWorld, what: str) -> None:
    """Put things as they were."""
    accounts, console = w.office.accounts, w.office.console
    if what == "the sharer loses the grant":
        w.grant = accounts.add_grant(console, to="doc", role="radiologist", target=Target("study", "1.1"))
    elif what == "the sharer is denied":
        deny = next(row for row in accounts.list_grants(console, to="doc") if row["effect"] == "deny")
        accounts.revoke_grant(console, deny["id"])
    elif what == "the sharer is disabled":
        accounts.enable_user(console, "doc")
    elif what == "the item is taken out":
        w.albums.add(w.doc, w.id, studies=["1.1"])
    elif what in ("the album ends", "an administrator ends it"):
        w.id = w.albums.create(w.doc, "Again")["id"]
        w.albums.add(w.doc, w.id, studies=["1.1"])
        w.share(until="1d")
    elif what != "its time is over":
        w.share(until="1d")


@ONE_ENGINE
def test_nobody_puts_in_what_they_may_not_share(world: AlbumWorld) -> None:
    told = set()
    for uid in ("1.2", "2.1", "9.9", ""):
        with pytest.raises(NotFound) as refused:
            world.albums.add(world.doc, world.id, studies=[uid])
        told.add((refused.value.message, refused.value.remedy))
    assert len(told) == 1
    world.share(rights="add")
    with pytest.raises(NotFound):
        world.albums.add(world.ann, world.id, studies=["1.1"])  # she sees it by this album alone
    with pytest.raises(Forbidden):
        world.share("doc")


@ONE_ENGINE
def test_what_somebody_else_adds_is_theirs_to_give_and_to_take_out(world: AlbumWorld) -> None:
    office = world.office
    office.accounts.add_grant(office.console, to="ann", role="radiologist", target=Target("study", "2.1"))
    world.share(rights="add")
    world.share("ward")
    world.albums.add(world.ann, world.id, studies=["2.1"])
    assert world.seen(world.ben) == BOTH | {"2.1.1"}
    assert world.seen(world.doc) == BOTH | {"1.2.1"}  # its owner is no member
    with pytest.raises(NotFound):
        world.albums.remove(world.ann, world.id, "study", "1.1")
    world.albums.unshare(world.doc, world.id, "ann")
    assert world.seen(world.ben) == BOTH | {"2.1.1"}
    world.albums.remove(world.ann, world.id, "study", "2.1")  # hers still
    assert world.seen(world.ben) == BOTH


@ONE_ENGINE
def test_a_manager_gives_no_more_than_was_given_and_it_ends_with_the_managing(world: AlbumWorld) -> None:
    world.share(rights="manage", until="1d")
    give = world.albums.share
    for wrong in ({"to": "ann"}, {"to": "doc"}, {"to": "ben", "download": True}):
        with pytest.raises(Forbidden):
            give(world.ann, world.id, **wrong)
    world.office.accounts.join_group(world.office.console, "ward", "ann")
    with pytest.raises(Forbidden):
        give(world.ann, world.id, "ward")
    made = give(world.ann, world.id, "ben", rights="manage", until="30d")
    assert made["until"] == world.albums.show(world.doc, world.id)["shared_with"][0]["until"]
    assert world.seen(world.ben) == BOTH
    world.office.user("cyd")
    give(world.ben, world.id, "cyd")
    world.share(rights="view")  # who manages no more shares no more
    assert [one["principal"] for one in world.albums.show(world.doc, world.id)["shared_with"]] == ["ann"]
    world.albums.unshare(world.doc, world.id, "ann")
    assert world.albums.show(world.doc, world.id)["shared_with"] == []
    assert world.seen(world.ben) == set()


@ONE_ENGINE
def test_an_album_of_others_is_not_there(world: AlbumWorld) -> None:
    acts: list[Callable[[Subject, int], object]] = [
        lambda who, key: world.albums.show(who, key), lambda who, key: world.albums.add(who, key, studies=["1.1"]),
        lambda who, key: world.albums.remove(who, key, "study", "1.1"), lambda who, key: world.albums.share(who, key, "ben"),
        lambda who, key: world.albums.unshare(who, key, "ben"), lambda who, key: world.albums.end(who, key),
    ]
    told = set()
    for act in acts:
        for key in (world.id, 999):
            with pytest.raises(NotFound) as refused:
                act(world.ann, key)
            told.add((refused.value.message, refused.value.remedy))
    assert len(told) == 1
    assert world.albums.list(world.ann) == []
    world.share()
    assert [row["id"] for row in world.albums.list(world.ann)] == [world.id]
    for act in acts[3:4]:
        with pytest.raises(Forbidden):
            act(world.ann, world.id)
    assert [row["rights"] for row in world.albums.list(world.office.console)] == [""]
    with pytest.raises(Forbidden):
        world.albums.list(world.ann, everybody=True)


@ONE_ENGINE
def test_who_comes_by_a_link_or_a_bounded_token_reaches_no_album(world: AlbumWorld) -> None:
    world.share()
    visitor = world.visitor(world.enter(world.create()))
    told = world.office.accounts.create_token(world.office.console, owner="doc", studies=["1.1"])
    bounded = world.office.signin.bearer(told["token"], address="")
    for who in (visitor, bounded):
        with pytest.raises(Forbidden):
            world.albums.create(who, "x")
        with pytest.raises(Forbidden):
            world.albums.share(who, world.id, "ben")
        with pytest.raises(Forbidden):
            world.albums.list(who)
        with pytest.raises(Forbidden):
            world.albums.end(who, world.id)
    assert world.seen(world.ann) == BOTH
    with pytest.raises(InvalidRequest):
        world.albums.create(world.office.console, "x")
    assert world.albums.create(world.office.console, "x", owner="ann")["owner"] == "ann"
    with pytest.raises(InvalidRequest):
        world.albums.create(world.doc, " \n")


@ONE_ENGINE
def test_each_change_is_an_event_with_its_grants(world: AlbumWorld) -> None:
    world.share()
    world.albums.unshare(world.doc, world.id, "ann")
    said = [(row.kind, (row.body or {})["detail"].get("what", "")) for row in reversed(world.office.events())]
    assert said[-6:] == [
        ("album-changed", "made"), ("album-changed", "added"), ("granted", ""), ("album-changed", "shared"), ("revoked", ""),
        ("album-changed", "unshared"),
    ]
    given = next(row.body for row in world.office.events() if row.kind == "granted")
    assert given is not None
    assert {name: given["detail"][name] for name in ("kind", "giver", "role", "permissions", "level")} == {
        "kind": "shared", "giver": world.doc.principal_id, "role": "", "permissions": ["search", "metadata", "pixels"], "level": "study",
    }


@ONE_ENGINE
@pytest.mark.parametrize("ends", ["leaves the group", "is switched off", "is removed", "the window"])
def test_what_a_manager_shared_ends_with_their_managing(world: AlbumWorld, ends: str) -> None:
    office, kim, lea = world.office, world.office.user("kim"), world.office.user("lea")
    until = "2h" if ends == "the window" else None
    world.share("ward", rights="manage", until=until)
    world.albums.share(world.ben, world.id, "kim", rights="manage")
    world.albums.share(kim, world.id, "lea")
    world.share("ann")
    assert world.seen(kim) == world.seen(lea) == BOTH
    assert AlbumWatch(world.core).tick(world.core.clock()) == 0
    if ends == "leaves the group":
        office.accounts.leave_group(office.console, "ward", "ben")
    elif ends == "is switched off":
        office.accounts.disable_user(office.console, "ben")
    elif ends == "is removed":
        office.accounts.remove_user(office.console, "ben")
    else:
        world.later(hours=3)
    # Nobody shares for longer than it was given.
    assert AlbumWatch(world.core).tick(world.core.clock()) == (0 if ends == "the window" else 1)
    assert world.seen(kim) == world.seen(lea) == set()
    assert world.seen(world.ann) == BOTH
    assert AlbumWatch(world.core).tick(world.core.clock()) == 0
