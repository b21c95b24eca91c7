"""Second factors that are taken away, and recovery codes that are drawn, by two requests of their user at once."""

from __future__ import annotations

import pytest

from archive.access import factors, recovery
from archive.errors import Forbidden
from tests.services.office import Office
from tests.services.test_second_factor import User
from tests.services.together import at_once, slowly


def test_who_needs_a_second_factor_keeps_one(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    mia = User(office)
    me = mia.sign_in().subject
    mia.enrol(me)
    mia.enrol(me)
    office.accounts.role_signs_in(office.console, "technologist", second_factor=True)
    office.accounts.assign_role(office.console, "mia", "technologist")
    both = [one["id"] for one in office.factors.listed(me)["factors"]]
    slowly(monkeypatch, factors, "of")
    came = at_once(*(lambda one=one: office.factors.remove(me, one) for one in both))  # type: ignore[misc]
    assert [isinstance(one, Forbidden) for one in came].count(True) == 1, came
    assert len(office.factors.listed(me)["factors"]) == 1


def test_the_recovery_codes_that_were_drawn_last_are_all_there_are(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    mia = User(office)
    me = mia.sign_in().subject
    mia.enrol(me)
    slowly(monkeypatch, recovery, "clear")
    slowly(monkeypatch, factors, "of")
    at_once(lambda: office.factors.renew_codes(me), lambda: office.factors.renew_codes(me))
    assert office.factors.listed(me)["recovery_codes_left"] == 10
