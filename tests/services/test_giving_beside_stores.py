"""Whoever gives a patient or study does not stand in the way of what is stored or changed of it, nor is undone by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy
from archive.access.grants import Target
from archive.access.subject import Subject
from archive.db.tables import patient, study
from archive.index import catalog
from archive.services.album_watch import AlbumWatch
from archive.services.albums import Albums
from archive.services.break_glass import KIND
from tests.services import ward
from tests.services.together import LOOKS_S, at_once, slowly
from tests.services.ward import FIRST, SECOND, Ward

GIVEN: dict[str, Callable[[Ward, dict[str, Subject]], object]] = {
    "a grant": lambda w, _: w.node.accounts.add_grant(w.console, to="kim", role="referrer", target=Target("patient", f"P{FIRST}")),
    "break-glass": lambda w, by: w.node.break_glass.open(
        by["kim"], level="patient", value=f"P{SECOND}", reason_code="emergency", reason="nobody else is here"),
    "passed on": lambda w, by: w.node.delegation.delegate(by["mia"], to="kim", target=Target("patient", f"P{FIRST}")),
    "asked for": lambda w, by: w.node.access_requests.decide(by["olga"], 1, approve=True),
}


def stored(place: Ward) -> None:
    """As a store does: its event first, then the rows of its patient and study."""
    core = place.node.core
    with core.database.begin() as tx:
        core.ledger.alone(tx)
        sleep(2 * LOOKS_S)
        policy.run_as(tx, policy.system("access"), sa.select(patient.c.id).with_for_update(read=True, key_share=True)).all()
        policy.run_as(tx, policy.system("access"), sa.select(study.c.id).order_by(study.c.id).with_for_update()).all()


@pytest.mark.parametrize("usually", ["postgresql"], indirect=True)
def test_a_patient_is_given_while_something_of_them_is_stored(tmp_path: Path, usually: dict[str, Any]) -> None:
    with ward.opened(tmp_path, **usually) as place:
        by = {name: place.by_session(name) for name in ("kim", "mia", "olga")}
        place.node.access_requests.ask(by["kim"], level="patient", value=f"P{SECOND}", reason="for the tumour board")
        for what, give in GIVEN.items():
            came = at_once(lambda: stored(place), lambda give=give: sleep(LOOKS_S) or give(place, by))  # type: ignore[misc]
            assert not [one for one in came if isinstance(one, Exception)], what
        assert KIND in {row["kind"] for row in place.node.accounts.list_grants(place.console, to="kim")}


@pytest.mark.parametrize("usually", ["postgresql"], indirect=True)
def test_an_album_is_filled_and_shared_while_something_in_it_is_stored(
    tmp_path: Path, usually: dict[str, Any]
) -> None:
    with ward.opened(tmp_path, **usually) as place:
        mia, albums = place.by_session("mia"), Albums(place.node.core)
        rounds, board = (albums.create(mia, name)["id"] for name in ("rounds", "board"))
        albums.add(mia, rounds, studies=[FIRST])
        albums.share(mia, board, "ole")
        changes: dict[str, Callable[[], object]] = {
            "shared": lambda: albums.share(mia, rounds, "kim"),
            "filled": lambda: albums.add(mia, board, studies=[FIRST]),
            "both": lambda: at_once(lambda: albums.share(mia, rounds, "olga"), lambda: albums.end(mia, board), lambda: albums.unshare(
                mia, rounds, "kim"), lambda: AlbumWatch(place.node.core).tick(place.clock.at)),
        }
        for what, change in changes.items():
            came = at_once(lambda: stored(place), lambda change=change: sleep(LOOKS_S) or change())  # type: ignore[misc]
            told = [*came, *(one for some in came if isinstance(some, list) for one in some)]
            assert not [one for one in told if isinstance(one, Exception)], what


@pytest.mark.parametrize("usually", ["postgresql"], indirect=True)
def test_a_study_is_given_while_something_of_it_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usually: dict[str, Any]
) -> None:
    with ward.opened(tmp_path, **usually) as place:
        slowly(monkeypatch, catalog, "reject")
        accounts, remove = place.node.accounts, place.node.remove
        came = at_once(
            lambda: remove.reject(place.console, "clinical", "series", f"{FIRST}.2", reason="test"),
            lambda: sleep(LOOKS_S / 2) or accounts.add_grant(place.console, to="kim", role="referrer", target=Target("study", FIRST)),
        )
        assert not [one for one in came if isinstance(one, Exception)]
