"""`archive grant delegate`, `archive request` and `archive break-glass` against a real archive."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from archive.cli import main
from archive.cli.session import Session
from tests.services import ward
from tests.services.ward import FIRST, Ward

WHY = "unconscious in the emergency room"
Run = Callable[..., Any]


class Staying(Session):
    """A session that leaves the archive open."""

    def close(self) -> None:
        """Close nothing."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    with ward.opened(tmp_path_factory.mktemp("cli-temporary")) as made:
        yield made


@pytest.fixture
def run(place: Ward, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(status: int, *arguments: str) -> Any:
        capsys.readouterr()
        session = Staying(lambda *_given, **_named: place.node)
        session.use(place.node.config)
        assert main.run([*arguments, "--json"], session) == status, capsys.readouterr()
        out = capsys.readouterr().out
        return json.loads(out) if out.strip() else None

    return call


def test_delegate(run: Run, place: Ward) -> None:
    made = run(0, "grant", "delegate", "--as", "mia", "--to", "ole", "--study", FIRST, "--delegable", "1", "--until", "2d")
    assert (made["kind"], made["subject"], made["delegable"]) == ("delegated", "ole", 1)
    further = run(0, "grant", "delegate", "--as", "ole", "--to", "kim", "--series", f"{FIRST}.1", "--permission", "search")
    assert place.seen(place.by_session("kim")) == {f"{FIRST}.1"}
    assert run(1, "grant", "delegate", "--as", "kim", "--to", "mia", "--series", f"{FIRST}.1", "--permission", "search") is None
    assert run(2, "grant", "delegate", "--as", "mia", "--to", "ole") is None
    assert run(0, "grant", "revoke", str(made["id"]))["state"] == "revoked"
    listed = {row["id"]: row["state"] for row in run(0, "grant", "list", "--to", "kim", "--all")}
    assert listed[further["id"]] == "revoked"
    explained = run(0, "explain", "kim", FIRST)
    assert explained["allowed"] is False


def test_requests(run: Run, place: Ward) -> None:
    kim = place.by_session("kim")
    asked = [place.node.access_requests.ask(kim, level="study", value=FIRST, reason=WHY)["id"] for _ in range(2)]
    assert [row["id"] for row in run(0, "request", "list")] == asked
    assert run(0, "request", "approve", str(asked[0]), "--until", "8h", "--permission", "search")["state"] == "granted"
    assert run(0, "request", "refuse", str(asked[1]), "--note", "once is enough")["state"] == "refused"
    assert run(0, "request", "list") in ([], None)
    assert {row["state"] for row in run(0, "request", "list", "--all")} == {"granted", "refused"}
    assert run(1, "request", "refuse", "99999") is None


def test_break_glass(run: Run, place: Ward) -> None:
    opened = place.node.break_glass.open(
        place.by_session("ole"), level="patient", value=f"P{FIRST}", reason_code="emergency", reason=WHY
    )
    assert [(row["id"], row["who"]) for row in run(0, "break-glass", "list")] == [(opened["id"], "ole")]
    review = "break-glass", "review", str(opened["id"]), "--verdict", "justified", "--note", "the ward confirms"
    assert run(0, *review)["verdict"] == "justified"
    assert run(1, *review) is None
    assert [row["verdict"] for row in run(0, "break-glass", "list", "--all")] == ["justified"]
