"""Who may what after a lost index: nothing counts that was used up, narrowed, or given in a history that was given up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from archive.access.grants import Target
from archive.errors import NotFound, StateConflict
from archive.ledger.audit import Event, Kind
from archive.services.alert_look import Found
from archive.services.audit_feed import AuditFeed
from archive.services.shares import Wanted
from archive.services.snapshot import Snapshots
from tests.services import archives, catalogs, ward
from tests.services.test_rebuild import lose, rebuild

BROWSER: dict[str, Any] = {"address": "192.0.2.9", "user_agent": "x"}


def test_a_link_that_was_used_up_after_the_last_snapshot_opens_nothing(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1))
        node.accounts.add_user(console, "doc", password=archives.PASSWORD)
        node.accounts.add_grant(console, to="doc", role="radiologist", target=Target("study", "1.2.3"))
        doc = archives.user(node, "doc")
        once, twice = (node.shares.create(doc, Wanted(studies=["1.2.3"], recipient="Dr Ott", max_views=views)) for views in (1, 2))
        Snapshots(node.core).write()
        words = [str(link["url"]).partition("#")[2] for link in (once, twice)]
        for word, link in zip(words, (once, twice), strict=True):
            node.share_door.enter(word, link["code"], **BROWSER)
        before = [(row["id"], row["views"], row["state"]) for row in node.shares.list(console, everybody=True)]
        assert before == [(2, 1, "active"), (1, 1, "used up")]
        node.upkeep.checkpoint()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert [(row["id"], row["views"], row["state"]) for row in node.shares.list(archives.the_console(node), everybody=True)] == before
        with pytest.raises(NotFound):
            node.share_door.ask(words[0])
        node.share_door.ask(words[1])


def test_a_peer_is_as_it_was_set_after_the_last_snapshot(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        node.peers.add(console, "CT1", ["CT1"], networks=["127.0.0.1/32"], roles=["modality"])
        node.peers.set(console, "CT1", {"modality_without_tls": True, "whole_worklist": True})
        Snapshots(node.core).write()
        settings = {"modality_without_tls": False, "transfer_syntaxes": ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]}
        before = node.peers.set(console, "CT1", settings)
        node.upkeep.checkpoint()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert node.peers.get(archives.the_console(node), "CT1") == before
        assert node.verify.run(archives.the_console(node), "quick").findings == []


def test_a_snapshot_of_events_that_are_lost_is_never_taken(tmp_path: Path) -> None:
    """It says what was given in a history that was given up; the log that goes on otherwise comes to be as long."""
    config = archives.made(tmp_path)
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1))
        for name in ("reader", "other"):
            node.accounts.add_user(console, name, password=archives.PASSWORD)
        node.upkeep.finish()
        for _ in range(60):
            node.oversight.search(console)  # an event too
        node.accounts.add_grant(console, to="reader", role="radiologist", target=Target("everything"))
        Snapshots(node.core).write()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        assert catalogs.visible(node, "reader", "1.2.3") == {}
        node.accounts.add_grant(console, to="other", role="radiologist", target=Target("everything"))
        for _ in range(80):
            node.oversight.search(console)
        node.upkeep.finish()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert catalogs.visible(node, "reader", "1.2.3") == {}
        assert set(catalogs.visible(node, "other", "1.2.3")) == {"1.2.3.1.1"}
        assert node.verify.run(archives.the_console(node), "quick").findings == []


def test_that_two_people_decided_until_the_index_was_lost_is_known(tmp_path: Path) -> None:
    config = archives.made(tmp_path, policy={"two_person": True})
    with archives.opened(config) as node:
        assert said(node) == [True]
        node.upkeep.finish()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        assert said(node) == [True]
    with archives.opened(archives.configured(tmp_path)) as node:
        assert said(node) == [True, False]


def said(node: Any) -> list[bool]:
    """What the ledger says of the rule of two, oldest first."""
    found = node.oversight.search(archives.the_console(node), kinds=("configured",))
    return [row["body"]["detail"]["on"] for row in reversed(found) if row["body"]["detail"].get("what") == "two_person"]


def test_what_was_decided_after_the_last_snapshot_does_not_wait_again(tmp_path: Path) -> None:
    with ward.opened(tmp_path) as place:
        node, ole = place.node, place.by_session("ole")
        asked = [node.access_requests.ask(ole, level="study", value=one, reason="for the round today")["id"] for one in ("1.2.3", "1.2.4")]
        asked += [node.access_requests.ask(ole, level="study", value=one, reason="for the round today")["id"] for one in ("1.2.5", "1.2.6")]
        Snapshots(node.core).write()
        node.access_requests.decide(place.console, asked[0], approve=False, note="no")
        node.access_requests.decide(place.console, asked[1], approve=True)
        node.access_requests.withdraw(ole, asked[2])
        before = node.access_requests.mine(ole)
        node.upkeep.checkpoint()
        clock = place.clock
    config = node.config
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config, clock=clock) as node:
        place = ward.Ward(node, clock)
        assert node.access_requests.mine(archives.user(node, "ole")) == before
        assert [row["id"] for row in node.access_requests.waiting(place.console)] == asked[3:]
        assert place.findings() == []


def test_a_collector_is_told_what_it_had_not_got_when_the_index_was_lost(tmp_path: Path) -> None:
    config, got = archives.made(tmp_path, syslog={"host": "192.0.2.1"}), []

    def feed(node: Any) -> AuditFeed:
        return AuditFeed(node.core, lambda lines, _to: got.extend(lines))

    with archives.opened(config, role="serve") as node:
        console = archives.the_console(node)
        feed(node).tick()
        Snapshots(node.core).write()
        node.accounts.add_user(console, "untold", password=archives.PASSWORD)
        untold = node.oversight.search(console, kinds=("user-changed",))[0]["id"]
        node.upkeep.checkpoint()
    lose(config)
    assert rebuild(config).ok
    with archives.opened(config) as node:
        feed(node).tick()
    assert f'#{untold}"'.encode() in b"".join(got)


def test_holds_and_alerts_need_no_snapshot(tmp_path: Path) -> None:
    config = archives.made(tmp_path)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1))
        node.holds.add(console, "clinical", "1.2.3", reason="a trial")
        with node.core.database.begin() as tx:
            n = node.core.ledger.record(tx, Event(Kind.READ, subject=archives.user(node)), at=node.core.clock())
            node.alerts.raise_at_once(tx, Found("watched-record", n, "2", {}, archives.user(node).principal_id), node.core.clock())
        before = node.holds.list(console), [(row["id"], row["rule"]) for row in node.alerts.list(console)]
        assert len(before[0]) == len(before[1]) == 1
        node.upkeep.checkpoint()
    shutil.rmtree(config.ledger_dir / "access", ignore_errors=True)
    lose(config)
    assert "there is no access snapshot" in rebuild(config).problems[0]
    with archives.opened(config) as node:
        console = archives.the_console(node)
        assert (node.holds.list(console), [(row["id"], row["rule"]) for row in node.alerts.list(console)]) == before
        with pytest.raises(StateConflict):
            node.remove.reject(console, "clinical", "study", "1.2.3", reason="test")
