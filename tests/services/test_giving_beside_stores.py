"""Whoever gives a patient does not stand in the way of what is stored of that patient, nor is undone by it."""

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
from archive.db.tables import patient
from archive.services.break_glass import KIND
from tests.services import ward
from tests.services.together import LOOKS_S, at_once
from tests.services.ward import FIRST, SECOND, Ward

GIVEN: dict[str, Callable[[Ward, dict[str, Subject]], object]] = {
    "a grant": lambda w, _: w.node.accounts.add_grant(w.console, to="kim", role="referrer", target=Target("patient", f"P{FIRST}")),
    "break-glass": lambda w, by: w.node.break_glass.open(
        by["kim"], level="patient", value=f"P{SECOND}", reason_code="emergency", reason="nobody else is here"),
    "passed on": lambda w, by: w.node.delegation.delegate(by["mia"], to="kim", target=Target("patient", f"P{FIRST}")),
    "asked for": lambda w, by: w.node.access_requests.decide(by["olga"], 1, approve=True),
}


def stored(place: Ward) -> None:
    """As a store does: its event first, then the rows of its patient."""
    core = place.node.core
    with core.database.begin() as tx:
        core.ledger.alone(tx)
        sleep(2 * LOOKS_S)
        policy.run_as(tx, policy.system("access"), sa.select(patient.c.id).with_for_update(read=True, key_share=True)).all()


@pytest.mark.parametrize("usually", ["postgresql"], indirect=True)
def test_a_patient_is_given_while_something_of_them_is_stored(tmp_path: Path, usually: dict[str, Any]) -> None:
    with ward.opened(tmp_path, **usually) as place:
        by = {name: place.by_session(name) for name in ("kim", "mia", "olga")}
        place.node.access_requests.ask(by["kim"], level="patient", value=f"P{SECOND}", reason="for the tumour board")
        for what, give in GIVEN.items():
            came = at_once(lambda: stored(place), lambda give=give: sleep(LOOKS_S) or give(place, by))  # type: ignore[misc]
            assert not [one for one in came if isinstance(one, Exception)], what
        assert KIND in {row["kind"] for row in place.node.accounts.list_grants(place.console, to="kim")}
