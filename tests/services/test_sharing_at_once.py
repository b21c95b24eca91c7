"""Links and albums with several at them at once: no more codes than may be, and what was ended is not given again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from archive.access import albums, share_codes
from archive.db.tables import share_code
from archive.errors import ArchiveError
from tests.services.office import Office
from tests.services.shares_world import BROWSER, World
from tests.services.together import at_once, slowly


def codes(world: World) -> int:
    with world.office.place.database.read() as tx:
        return int(tx.execute(sa.select(sa.func.count()).select_from(share_code).where(share_code.c.ended_at.is_(None))).scalar_one())


def test_a_link_asked_for_by_several_at_once_mails_one_code(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(office, mail=True)
    made = world.create(email="otto@praxis.example")
    word = world.word(made)
    slowly(monkeypatch, share_codes, "may_mail")
    came = at_once(*[lambda: world.door.ask(word)] * 4)
    assert sorted(one.sent for one in came) == [False, False, False, True]  # type: ignore[attr-defined]
    assert (len(world.post.sent), codes(world)) == (1, 1)
    assert world.door.enter(word, world.post.code, **BROWSER)


def test_codes_drawn_at_once_leave_one_and_are_no_more_than_a_day_has(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(office)
    made = world.create()
    slowly(monkeypatch, share_codes, "require_rest")
    for _ in range(2 * share_codes.A_DAY - 3):
        world.shares.new_code(world.doc, made["id"])
    came = at_once(*[lambda: world.shares.new_code(world.doc, made["id"])["code"]] * 4)
    assert (sum(isinstance(one, str) for one in came), sum(isinstance(one, ArchiveError) for one in came)) == (2, 2)
    assert codes(world) == 1


def test_one_code_opens_once(office: Office) -> None:
    world = World(office)
    made = world.create(max_views=2)
    came = at_once(*[lambda: world.door.enter(world.word(made), made["code"], **BROWSER)] * 4)
    assert sum(isinstance(one, str) for one in came) == 1


ALBUM: dict[str, Callable[[World, int], object]] = {
    "an item taken out": lambda w, album: w.albums.remove(w.doc, album, "study", "1.1"),
    "the album ended": lambda w, album: w.albums.end(w.doc, album),
}


@pytest.mark.parametrize("ending", ALBUM)
def test_what_leaves_an_album_while_it_is_shared_is_not_shared(office: Office, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    world = World(office)
    friend = office.user("friend")
    album = world.albums.create(world.doc, "rounds")["id"]
    world.albums.add(world.doc, album, studies=["1.1"])
    slowly(monkeypatch, albums, "items")
    at_once(lambda: world.albums.share(world.doc, album, "friend"), lambda: ALBUM[ending](world, album))
    monkeypatch.undo()
    left = [one["uid"] for one in world.albums.show(world.doc, album)["items"]] if "item" in ending else []
    assert (left, world.seen(friend)) == ([], set())


def test_what_is_put_in_while_it_is_unshared_is_not_shared(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(office)
    friend = office.user("friend")
    album = world.albums.create(world.doc, "rounds")["id"]
    world.albums.share(world.doc, album, "friend")
    slowly(monkeypatch, albums, "shares")
    at_once(
        lambda: world.albums.add(world.doc, album, studies=["1.1"]), lambda: world.albums.unshare(world.doc, album, "friend"),
    )
    assert world.seen(friend) == set()
