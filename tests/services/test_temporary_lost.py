"""What was passed on, asked for and opened in an emergency, after a lost index: nobody sees more, and no review is forgotten."""

from __future__ import annotations

from pathlib import Path

from archive.access.grants import Target
from archive.services.clock import utc_now
from archive.services.snapshot import Snapshots
from tests.services import archives, ward
from tests.services.test_rebuild import lose, rebuild
from tests.services.ward import FIRST, SECOND, Ward

WHY = {"reason_code": "emergency", "reason": "unconscious in the emergency room"}
BOTH = {f"{FIRST}.1", f"{FIRST}.2"}


def test_after_a_lost_index(tmp_path: Path) -> None:
    with ward.opened(tmp_path) as place:
        node, mia, kim, ole = place.node, place.by_session("mia"), place.by_session("kim"), place.by_session("ole")
        given = node.delegation.delegate(mia, to="kim", target=Target("study", FIRST), depth=1)
        node.delegation.delegate(kim, to="olga", target=Target("series", f"{FIRST}.1"), until="6d")
        ended = node.delegation.delegate(mia, to="ole", target=Target("study", FIRST))
        first = node.break_glass.open(ole, level="patient", value=f"P{SECOND}", **WHY)
        asked = node.access_requests.ask(ole, level="study", value=SECOND, reason=WHY["reason"])
        Snapshots(node.core).write()
        node.accounts.revoke_grant(mia, ended["id"])
        late = node.delegation.delegate(kim, to="ole", target=Target("series", f"{FIRST}.2"))
        second = node.break_glass.open(ole, level="study", value=FIRST, **WHY)
        third = node.break_glass.open(ole, level="study", value="1.2.99", **WHY)
        node.break_glass.review(place.console, first["id"], verdict="justified", note="the ward confirms it")
        assert place.seen(ole) == BOTH | {f"{SECOND}.1"}
        node.upkeep.checkpoint()
        clock = place.clock
    config = node.config
    lose(config)
    report = rebuild(config)
    assert report.ok, report.problems
    clock.at = utc_now()
    with archives.opened(config, clock=clock) as node:
        place = Ward(node, clock)
        assert place.findings() == []
        assert place.seen(kim) == BOTH
        assert place.seen(place.by_session("olga")) == {f"{FIRST}.1"}
        assert place.seen(ole) == {f"{SECOND}.1"}, "what was opened or given since the snapshot does not come back"
        waiting = node.break_glass.to_review(place.console, every=True)
        assert [(row["id"], row["verdict"], row["reason"]) for row in waiting] == [
            (third["id"], "", WHY["reason"]), (second["id"], "", WHY["reason"]), (first["id"], "justified", WHY["reason"])
        ]
        assert [row["id"] for row in node.access_requests.waiting(place.console)] == [asked["id"]]
        states = {row["id"]: row["state"] for row in node.accounts.list_grants(place.console, ended=True)}
        assert (states[given["id"]], states[ended["id"]], states[late["id"]]) == ("active", "revoked", "revoked")
        node.accounts.revoke_grant(place.by_session("mia"), given["id"])
        assert place.seen(kim) == place.seen(place.by_session("olga")) == set()
        again = node.break_glass.open(place.by_session("ole"), level="patient", value=f"P{FIRST}", **WHY)
        assert again["id"] > third["id"]
        assert place.findings() == []
