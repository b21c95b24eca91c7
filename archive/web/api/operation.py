"""What an operation of the API is: method and path, who may, what it takes, what it answers; one table for routes, rules and OpenAPI.

A request is read into its types and an answer written out of its own, so a body holds what the document says and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_origin

import msgspec
from flask import Response, request
from werkzeug.exceptions import UnsupportedMediaType

from archive.access.permissions import Permission
from archive.errors import InvalidQuery, InvalidRequest, NotFound
from archive.web.api import paging
from archive.web.context import node, subject
from archive.web.permissions import Rule

JSON = "application/json"
LONGEST_TEXT = 4096
DIGITS = 15
"""How long a text of the query string and a number in a path may be."""

_UNSAFE = "\0"
_PAGES = (paging.LIMIT, paging.CURSOR)


class Taken(msgspec.Struct, forbid_unknown_fields=True):
    """The base of what a request says in its body or its query string: a name that is not known is refused."""


class Told(msgspec.Struct):
    """The base of what an answer says."""


class NoQuery(Taken):
    """No parameter."""


class Text(msgspec.Struct):
    """An answer that is a text of its own type, not JSON."""

    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its body (None where the operation takes none) and its query string, read as the operation says."""

    body: Any
    query: Any


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the API; `answer` None means 204, `media_type` the type of a `Text`."""

    method: str
    path: str
    name: str
    summary: str
    need: Permission
    """What the service asks for; of several, it says which it needs."""
    view: Callable[..., Any]
    answer: Any = None
    body: Any = None
    query: type[Taken] = NoQuery
    status: int = 200
    media_type: str = JSON
    tag: str = ""
    refuses: tuple[int, ...] = ()
    """Statuses beside 400 (of what it takes), 401, 403 and 503 that it may answer with a problem."""

    @property
    def rule(self) -> Rule:
        """The row of the permission table."""
        return Rule(self.need)

    def __call__(self, **parts: str) -> Response:
        """Read, do, and answer.

        Raises:
            InvalidRequest, InvalidQuery, UnsupportedMediaType, and what the view raises.
        """
        asked = Asked(None if self.body is None else _body(self.body), _query(self.query, besides=_PAGES if self.paged_by else ()))
        named = {name: _part(name, text) for name, text in parts.items()}
        key = request.headers.get("Idempotency-Key")
        if key is None or not self.creates:
            return self._do(asked, named)
        said = b"\0".join((self.name.encode(), request.full_path.encode(), request.get_data()))
        replay, before = node().idempotency.run(subject(), key, said, lambda: _kept(self._do(asked, named)))
        return _answered(replay, before=before)

    @property
    def paged_by(self) -> str:
        """The field by which its list comes a page at a time; nothing: it does not."""
        return paging.key_of(self.method, self.answer, self.query)

    @property
    def creates(self) -> bool:
        """Whether it makes something, and so takes an Idempotency-Key."""
        return self.status == HTTPStatus.CREATED

    def _do(self, asked: Asked, named: dict[str, str | int]) -> Response:
        limit, after = paging.taken(request.args) if self.paged_by else (None, None)
        done = self.view(asked, **named)
        if isinstance(done, Response):
            return done
        if self.answer is None:
            return Response(status=HTTPStatus.NO_CONTENT)
        told = msgspec.convert(done, self.answer, from_attributes=True)
        if isinstance(told, Text):
            return Response(told.text, status=self.status, content_type=self.media_type)
        response = Response(status=self.status, content_type=JSON)
        response.data = msgspec.json.encode(paging.paged(told, self.paged_by, limit, after, response) if limit else told)
        return response


def _kept(response: Response) -> bytes:
    """Return an answer as it is kept for the same call made again."""
    told = [response.status_code, response.content_type, response.headers.get("Location", ""), response.get_data()]
    return msgspec.msgpack.encode(told)


def _answered(kept: bytes, *, before: bool) -> Response:
    status, content_type, location, body = msgspec.msgpack.decode(kept, type=tuple[int, str, str, bytes])
    response = Response(body, status=status, content_type=content_type)
    if location:
        response.headers["Location"] = location
    if before:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _body(kind: Any) -> Any:
    """Return the request's body.

    Raises:
        UnsupportedMediaType: it says to be something else than JSON.
        InvalidRequest: it is no JSON, or not what `kind` takes.
    """
    if request.mimetype not in ("", JSON) and not request.mimetype.endswith("+json"):
        raise UnsupportedMediaType("send application/json")
    try:
        return msgspec.json.decode(request.get_data(), type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body is not what is taken here: {_plain(error)}", remedy="see /api/openapi.json") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("the body is no JSON", remedy="see /api/openapi.json") from error


def _query(kind: type[Taken], *, besides: Collection[str] = ()) -> Taken:
    """Return the query string: each name once, but for those that take a list.

    Raises:
        InvalidQuery: a name that is not known, one that comes twice, a value of another kind.
    """
    lists = {one.encode_name for one in msgspec.structs.fields(kind) if get_origin(one.type) is tuple}
    given: dict[str, Any] = {}
    for name, values in request.args.lists():
        if name in besides and len(values) == 1:
            continue
        if any(len(value) > LONGEST_TEXT or _UNSAFE in value for value in values):
            raise InvalidQuery("a parameter is too long or holds a NUL")
        if len(values) != 1 and name not in lists:
            raise InvalidQuery(f"the parameter {name[:40]!r} comes twice")
        given[name] = values if name in lists else values[0]
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(one.encode_name for one in msgspec.structs.fields(kind)) or "none"
        raise InvalidQuery(f"the query is not what is taken here: {_plain(error)}", remedy=f"known parameters: {known}") from error


def _plain(error: msgspec.ValidationError) -> str:
    """Return what is wrong and where, without a value."""
    text = str(error)
    return "a word that is not one of those taken" + text[text.rfind(" - "):] if text.startswith("Invalid enum value") else text[:200]


def _part(name: str, text: str) -> str | int:
    """Return a part of the path: `number` is one, others are names.

    Raises:
        NotFound: no number, or no name that could be.
    """
    if name != "number":
        if _UNSAFE in text or len(text) > 256:
            raise NotFound("there is nothing here")
        return text
    if not (text.isascii() and text.isdigit()) or len(text) > DIGITS:
        raise NotFound("there is nothing of that number")
    return int(text)

