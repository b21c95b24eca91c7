"""Lists a page at a time: every list, every row once, whatever comes and goes meanwhile; cursors nobody was given are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from flask import Flask, Response
from hypothesis import given
from hypothesis import strategies as st

from archive.access import roles
from archive.access.permissions import FUNCTION, Permission
from archive.errors import InvalidQuery
from archive.web.api import OPERATIONS, paging
from tests.services import archives
from tests.web import real
from tests.web.real import Place

NEXT = re.compile(r'<([^>]+)>; rel="next"')


class Row(msgspec.Struct):
    """A row with a number, or a name."""

    id: int | str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with archives.opened(real.config(tmp_path_factory.mktemp("paging"))) as node:
        made = real.place(node)
        console = archives.the_console(node)
        node.accounts.add_role(console, "all", roles.names(FUNCTION))
        node.accounts.add_user(console, "boss", roles=["all"])
        for number in range(7):
            node.accounts.add_user(console, f"user {number} ü&=")
            node.accounts.create_token(console, owner="boss")
        yield made


@pytest.fixture(scope="module")
def token(place: Place) -> str:
    console = archives.the_console(place.node)
    return str(place.node.accounts.create_token(console, owner="boss", permissions=roles.names(FUNCTION | Permission.SHARE))["token"])


def pages(place: Place, token: str, path: str) -> Iterator[list[dict[str, Any]]]:
    following: str | None = path
    while following:
        answer = place.ask("GET", following, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200, answer.get_data()
        yield answer.json  # type: ignore[misc]
        found = NEXT.fullmatch(answer.headers.get("Link", ""))
        following = found[1] if found else None


def alone(one: Any) -> bool:
    """Whether a list can be asked for by a token, without anything named first."""
    return not ("<" in one.path or one.path.startswith("/me/") or any(field.required for field in msgspec.structs.fields(one.query)))


@pytest.mark.parametrize("one", [one for one in OPERATIONS if one.paged_by and alone(one)], ids=lambda one: one.name)
def test_every_list_comes_whole_in_pages(place: Place, token: str, one: Any) -> None:
    path = f"/api{one.path}"
    [whole] = pages(place, token, path)
    found = list(pages(place, token, f"{path}?limit=3"))
    rows = [row for page in found for row in page]
    keys = [row[one.paged_by] for row in rows]
    assert sorted(map(repr, keys)) == sorted(repr(row[one.paged_by]) for row in whole)
    assert all(len(page) == 3 for page in found[:-1])
    assert keys == sorted(keys, reverse=bool(keys) and isinstance(keys[0], int))


def test_lists_there_are() -> None:
    assert {one.name for one in OPERATIONS if one.paged_by} >= {"users", "groups", "roles", "grants", "tokens", "peers", "webhooks"}


def test_a_row_that_goes_hides_no_other(place: Place, token: str) -> None:
    walk = pages(place, token, "/api/users?limit=2")
    first = next(walk)
    place.node.accounts.remove_user(archives.the_console(place.node), "user 0 ü&=")
    rest = [row["name"] for page in walk for row in page]
    [whole] = pages(place, token, "/api/users")
    assert {row["name"] for row in first} | set(rest) == {row["name"] for row in whole + first}
    assert len(rest) == len(set(rest))


@pytest.mark.parametrize("query", [
    "limit=0", "limit=-1", "limit=1001", "limit=x", "limit=", "limit=1&limit=2", "cursor=MQ", "limit=1&cursor=MQ&cursor=MQ",
    "limit=1&cursor=!", "limit=1&cursor=", "limit=1&cursor=bnVsbA", "limit=1&cursor=W10", "limit=1&cursor=Ingi",
    "limit=1&cursor=" + "M" * 600,
])
def test_what_is_no_page(place: Place, token: str, query: str) -> None:
    answer = place.ask("GET", f"/api/users?{query}", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json"), query


@given(st.one_of(st.sets(st.integers(0, 1 << 53), max_size=40), st.sets(st.text(max_size=8), max_size=40)), st.integers(1, 9))
def test_pages_are_the_list(keys: set[Any], limit: int) -> None:
    app = Flask("pages")
    rows, seen, after = [Row(key) for key in keys], [], None
    for _ in range(len(rows) + 2):
        response = Response()
        with app.test_request_context("/list?" + ("limit=1" if after is None else "limit=1&cursor=x")):
            page = paging.paged(rows, "id", limit, after, response)
        seen += [row.id for row in page]
        link = response.headers.get("Link")
        if link is None:
            break
        assert link.startswith("</list?limit=")
        _, after = paging.taken({"limit": "1", "cursor": link.partition("cursor=")[2].partition(">")[0]})
        assert after == page[-1].id
    assert seen == sorted(keys, reverse=bool(keys) and isinstance(next(iter(keys)), int))


def test_a_cursor_of_another_kind_is_refused() -> None:
    with Flask("pages").test_request_context("/list"), pytest.raises(InvalidQuery):
        paging.paged([Row(1)], "id", 1, "a", Response())
