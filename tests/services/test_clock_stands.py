"""What has ended does not count again because the clock was set back: grants, tokens, sessions and share links, after a restart too."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.access import policy, throttle, totp
from archive.access.grants import Target
from archive.access.permissions import Permission
from archive.db.tables import series
from archive.errors import NotFound, Unauthenticated
from archive.keys.keyring import Keyring
from archive.ledger import checkpoints, nodes
from archive.ledger.audit import Event, Kind
from archive.node import Node, open_node
from archive.serve import start
from archive.serve.handover import Handover
from archive.services import last_known
from archive.services.alerts import Alerts
from archive.services.clock import STANDS, SteadyClock, utc_now
from archive.services.mail import Mail
from archive.services.outgoing import Undeliverable
from archive.services.shares import Wanted
from tests.services import archives

BROWSER: dict[str, Any] = {"address": "192.0.2.9", "user_agent": "x"}
SE = series.alias("se")
HOUR = timedelta(hours=1)


class Machine:
    """A machine's clock that is set by hand."""

    def __init__(self) -> None:
        self.at = utc_now()

    def __call__(self) -> datetime:
        return self.at


class Rights:
    """What somebody holds for half an hour: a grant, a token, a session, and a link that was opened."""

    def __init__(self, node: Node, at: datetime) -> None:
        console, until = archives.the_console(node), at + HOUR / 2
        archives.store(node, archives.instance(1))
        archives.store(node, archives.instance(1, study="1.2.4", PatientID="P2"))
        node.accounts.add_user(console, "ann", roles=["radiologist"], password=archives.PASSWORD)
        node.accounts.add_grant(console, to="ann", role="radiologist", target=Target("study", "1.2.3"), until=until)
        node.accounts.add_grant(console, to="ann", role="radiologist", target=Target("study", "1.2.4"))
        self.ann = archives.user(node, "ann")
        self.token = str(node.accounts.create_token(console, owner="ann", until=until)["token"])
        begun: Any = node.signin.password("ann", archives.PASSWORD, **BROWSER)
        self.session = begun.token
        link = node.shares.create(self.ann, Wanted(studies=["1.2.4"], until=until))
        self.word = str(link["url"]).partition("#")[2]
        self.visit = node.share_door.enter(self.word, link["code"], **BROWSER)

    def held(self, node: Node) -> set[str]:
        """What of it counts."""
        found = set()
        scope = policy.scope_of(self.ann, Permission.SEARCH, node.core.clock())
        with node.core.database.read() as tx:
            seen = set(scope.run(tx, sa.select(SE.c.series_instance_uid).where(scope.series(SE))).scalars())
        if "1.2.3.1" in seen:
            found.add("grant")
        for what, ask in (
            ("token", lambda: node.signin.bearer(self.token, address="192.0.2.9")),
            ("session", lambda: node.signin.session(self.session, address="192.0.2.9")),
            ("link", lambda: node.share_door.ask(self.word)),
            ("visit", lambda: node.share_door.visit(self.visit, **BROWSER)),
        ):
            try:
                ask()
            except (Unauthenticated, NotFound):
                continue
            found.add(what)
        return found


ALL = {"grant", "token", "session", "link", "visit"}


@pytest.fixture
def machine() -> Machine:
    return Machine()


@contextmanager
def opened(folder: Path, machine: Machine, **options: Any) -> Iterator[Node]:
    with archives.opened(archives.configured(folder), role="serve", clock=SteadyClock(machine), **options) as node:
        yield node


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    archives.made(tmp_path)
    return tmp_path


def test_what_has_ended_does_not_count_again(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        rights = Rights(node, machine.at)
        assert rights.held(node) == ALL
        machine.at += HOUR
        assert rights.held(node) == set()
        for back in (HOUR, timedelta(hours=3), STANDS - HOUR):
            machine.at -= back
            assert rights.held(node) == set(), back
            machine.at += back


def test_nor_after_a_restart(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        rights = Rights(node, machine.at)
        machine.at += HOUR
        node.accounts.add_group(archives.the_console(node), "team")
        node.upkeep.checkpoint()
    machine.at -= HOUR
    with opened(folder, machine) as node:
        assert rights.held(node) == set()
    node = open_node(archives.configured(folder), clock=SteadyClock(machine))  # a command
    assert rights.held(node) == set()
    node.close()


def test_a_checkpoint_alone_tells_how_late_it_was(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        rights = Rights(node, machine.at)
        node.upkeep.checkpoint()
        machine.at += 2 * HOUR
        assert node.upkeep.checkpoint()
    machine.at -= 2 * HOUR
    with opened(folder, machine) as node:
        assert rights.held(node) == set()


def test_set_back_by_more_than_the_bound_the_machine_is_believed(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        rights = Rights(node, machine.at)
        began = machine.at
        machine.at += STANDS + HOUR
        assert rights.held(node) == set()
        node.accounts.add_group(archives.the_console(node), "team")
        machine.at = began
        assert node.core.clock() == began
        assert rights.held(node) == ALL
        node.accounts.add_group(archives.the_console(node), "others")
        node.upkeep.checkpoint()
        found = node.verify.run(archives.the_console(node), "quick").findings
        assert "V16" in {one.code for one in found}
    machine.at += HOUR / 4
    with opened(folder, machine) as node:
        assert node.core.clock() == machine.at


def test_within_the_bound_the_log_does_not_run_backwards(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        console = archives.the_console(node)
        node.accounts.add_group(console, "team")
        machine.at -= HOUR
        node.accounts.add_group(console, "others")
        assert node.upkeep.checkpoint()
    with opened(folder, machine) as node:
        node.upkeep.checkpoint()
        assert "V16" not in {one.code for one in node.verify.run(archives.the_console(node), "quick").findings}


def test_while_it_stands_codes_of_an_authenticator_are_those_of_now(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        node.accounts.add_user(archives.the_console(node), "ann", password=archives.PASSWORD)
        machine.at -= 2 * HOUR
        begun: Any = node.signin.password("ann", archives.PASSWORD, **BROWSER)
        factor = node.factors.begin_totp(begun.subject, "phone")
        secret = base64.b32decode(factor.secret.replace(" ", ""))
        node.factors.confirm_totp(begun.subject, factor.id, totp.code(secret, totp.step_of(machine.at)))
        machine.at += timedelta(minutes=1)
        half: Any = node.signin.password("ann", archives.PASSWORD, **BROWSER)
        made = node.signin.second(half.half, totp.code(secret, totp.step_of(machine.at)), **BROWSER)
        assert node.signin.session(made.token, address="192.0.2.9").name == "ann"


def test_while_it_stands_nobody_waits_longer_after_failures(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        node.accounts.add_user(archives.the_console(node), "ann", password=archives.PASSWORD)
        node.core.clock()
        machine.at -= STANDS
        for _ in range(throttle.FREE_HERE + 3):
            with pytest.raises(Unauthenticated):
                node.signin.password("ann", "wrong", **BROWSER)
        node.upkeep.tick()
        with pytest.raises(Unauthenticated):
            node.signin.password("ann", archives.PASSWORD, **BROWSER)
        machine.at += throttle.LONGEST
        node.signin.password("ann", archives.PASSWORD, **BROWSER)


def test_while_it_stands_who_tries_many_accounts_is_told_of(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        node.alerts.tick()
        node.core.clock()
        machine.at -= 3 * HOUR
        for number in range(node.config.alerts.accounts_from_one_network):
            with pytest.raises(Unauthenticated):
                node.signin.password(f"user{number}", "wrong", **BROWSER)
        machine.at += timedelta(seconds=5)
        node.alerts.tick()
        assert "spraying" in {row["rule"] for row in node.alerts.list(archives.the_console(node))}


def test_while_it_stands_alerts_are_told_again_and_states_looked_at(
    folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def away(_self: Mail, subject: str, _text: str, **_to: object) -> None:
        tried.append(subject)
        message = "away"
        raise Undeliverable(message)

    with opened(folder, machine) as node:
        monkeypatch.setattr(Mail, "wanted", True)
        monkeypatch.setattr(Mail, "send", away)
        alerts, looked = Alerts(node.core), []
        monkeypatch.setattr(alerts, "_lasting", lambda at: looked.append(at) or 0)
        alerts.tick()
        machine.at -= 20 * HOUR
        with node.core.database.begin() as tx:
            node.core.ledger.record(tx, Event(Kind.VERIFIED, outcome=8), at=node.core.clock())
        alerts.tick()
        before = len(looked)
        machine.at += HOUR
        alerts.tick()
        assert (len(tried), len(looked)) == (2, before + 1)


def test_while_it_stands_the_head_is_signed(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        node.upkeep.tick()
        machine.at -= 20 * HOUR
        node.upkeep.tick()
        node.accounts.add_group(archives.the_console(node), "team")
        machine.at += timedelta(seconds=2)
        node.upkeep.tick()
        with node.core.database.read() as tx:
            signed = checkpoints.latest(tx)
            assert signed is not None
            assert signed.size == nodes.size(tx)
            assert signed.at == node.core.clock() > machine.at


def test_a_worker_nobody_asks_sees_what_others_saw(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node, closing(open_node(archives.configured(folder), role="web", clock=SteadyClock(machine))) as idle:
        rights = Rights(node, machine.at)
        machine.at += HOUR
        node.accounts.add_group(archives.the_console(node), "team")
        machine.at -= HOUR
        assert rights.held(idle) == ALL, "it was not asked meanwhile, and has not looked yet"
        last_known.hear(idle.core.clock, idle.core.database)
        assert rights.held(idle) == set()


def test_workers_look_by_themselves(folder: Path, machine: Machine) -> None:
    with opened(folder, machine) as node:
        stop = last_known.keep_hearing(node.core.clock, node.core.database, every_s=0.01)
        latest = machine.at + HOUR
        for _ in range(500):
            machine.at = latest
            time.sleep(0.02)
            machine.at = latest - HOUR
            if node.core.clock() == latest:
                break
        else:
            pytest.fail("nobody looked")
        stop.set()


def test_each_worker_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[object] = []
    monkeypatch.setattr(last_known, "keep_hearing", lambda clock, database: heard.append((clock, database)))
    config = archives.configured(folder)
    with closing(start.node_of(Handover(keyring=Keyring.open(config).to_bytes(), config=config), "web")) as node:
        assert isinstance(node.core.clock, SteadyClock)
        assert heard == [(node.core.clock, node.core.database)]


@pytest.mark.parametrize("back", [2 * HOUR, STANDS + HOUR])
def test_the_ledger_tells_that_the_clock_was_set_back(folder: Path, machine: Machine, back: timedelta) -> None:
    def told(node: Node) -> list[int]:
        said = [row["body"]["detail"] for row in node.oversight.search(archives.the_console(node), kinds=["configured"])]
        return [one["back_s"] for one in said if one["what"] == "clock set back"]

    with opened(folder, machine) as node:
        node.upkeep.tick()
        machine.at -= timedelta(seconds=20)
        node.upkeep.tick()
        assert told(node) == []
        machine.at -= back
        node.upkeep.tick()
        node.upkeep.tick()
        assert told(node) == [int(back.total_seconds())]
    machine.at += timedelta(seconds=1)
    with opened(folder, machine) as node:
        assert len(told(node)) == (2 if back < STANDS else 1), "at a start it stands still"
