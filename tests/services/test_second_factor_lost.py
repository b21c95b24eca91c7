"""Second factors after a lost index: nobody comes in with less than before."""

from __future__ import annotations

import base64
from datetime import timedelta
from pathlib import Path

import pytest

from archive.access import totp
from archive.errors import Unauthenticated
from archive.node import Node
from archive.services.clock import utc_now
from archive.services.signin import SecondAsked, SignedIn
from archive.services.snapshot import Snapshots
from tests.services import archives
from tests.services.test_rebuild import lose, rebuild

DESK = {"address": "127.0.0.1", "user_agent": "test"}


class Clock:
    """The time, and how far a test is ahead of it."""

    ahead = timedelta(0)

    def __call__(self) -> object:
        return utc_now() + self.ahead


def enrol(node: Node, clock: Clock, name: str) -> tuple[bytes, list[str]]:
    made = node.signin.password(name, archives.PASSWORD, **DESK)
    assert isinstance(made, SignedIn)
    begun = node.factors.begin_totp(made.subject)
    secret = base64.b32decode(begun.secret.replace(" ", ""))
    codes = node.factors.confirm_totp(made.subject, begun.id, totp.code(secret, totp.step_of(clock())))  # type: ignore[arg-type]
    clock.ahead += timedelta(seconds=totp.STEP_S)
    return secret, codes


def half(node: Node, name: str) -> str:
    made = node.signin.password(name, archives.PASSWORD, **DESK)
    assert isinstance(made, SecondAsked)
    return made.half


def test_a_lost_index_lets_nobody_in_with_less(tmp_path: Path) -> None:
    config, clock = archives.made(tmp_path), Clock()
    with archives.opened(config, role="serve", clock=clock) as node:
        console = archives.the_console(node)
        for name in ("early", "late", "gone"):
            node.accounts.add_user(console, name, password=archives.PASSWORD, roles=["technologist"])
        secret, codes = enrol(node, clock, "early")
        enrol(node, clock, "gone")
        Snapshots(node.core).write()
        enrol(node, clock, "late")
        node.signin.second(half(node, "early"), codes[0], **DESK)
        node.accounts.reset_mfa(console, "gone")
        node.accounts.role_signs_in(console, "technologist", second_factor=True, idle_minutes=3)
        assert node.verify.run(console, "quick").findings == []
        node.upkeep.checkpoint()
    lose(config)
    report = rebuild(config)
    assert report.ok, report.problems
    with archives.opened(config, clock=clock) as node:
        console = archives.the_console(node)
        assert node.verify.run(console, "quick").findings == []
        with pytest.raises(Unauthenticated):
            node.signin.password("late", archives.PASSWORD, **DESK)  # its factor is not known any more: not by the password alone
        with pytest.raises(Unauthenticated):
            node.signin.second(half(node, "early"), codes[0], **DESK)
        clock.ahead += timedelta(minutes=15)
        node.signin.second(half(node, "early"), totp.code(secret, totp.step_of(clock())), **DESK)  # type: ignore[arg-type]
        assert isinstance(node.signin.password("gone", archives.PASSWORD, **DESK), SignedIn)
        shown = node.accounts.show_role(console, "technologist")
        assert (shown["second_factor"], shown["idle_minutes"]) == (True, 3)
        node.accounts.remove_user(console, "early")
        assert node.verify.run(console, "quick").findings == []
