"""The short way to what viewers ask for by the thousand: one instance, a frame, a picture of it, its thumbnail, a series' metadata.

It does what the application does with the same request, in the same order, without building a Flask request first, which costs as much
as the search for the instance. Only plain ones go this way: GET with a bearer token, no query, body, range or condition. Whatever is to
be answered otherwise than with the whole object is answered by the application, and so is every error and every large answer.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flask import Flask, Response, g

from archive.access.subject import Subject
from archive.errors import NotAcceptable
from archive.services.pictures import RENDERED, THUMBNAIL
from archive.services.retrieve import Found
from archive.web import headers, permissions, probes, rate, session, streaming
from archive.web.context import KEY, Node
from archive.web.dicomweb import accept, frames, media, picture_parameters, rendered, urls, wado
from archive.web.dicomweb.media import Container, FrameChoice
from archive.web.dicomweb.multipart import Writer

access_log = logging.getLogger("archive.web.access")

Fields = list[tuple[str, str]]
StartResponse = Callable[..., Any]

_UID = r"([0-9]+(?:\.[0-9]+)*)"
_OF_INSTANCE = rf"/instances/{_UID}(?:(|/thumbnail|/rendered)|(/frames)/([1-9][0-9]{{0,8}}))"
_PATH = re.compile(rf"/dicomweb/studies/{_UID}/series/{_UID}(?:/metadata|{_OF_INSTANCE})")
_METADATA = "/metadata"
_ENDPOINTS = {
    "": "retrieve_instance", "/thumbnail": "instance_thumbnail", "/rendered": "rendered_instance", "/frames": "frames",
    _METADATA: "series_metadata",
}
_NOT_PLAIN = (
    "QUERY_STRING", "SCRIPT_NAME", "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_RANGE", "HTTP_IF_NONE_MATCH", "HTTP_ORIGIN",
)
_UID_CHARACTERS = 64
_ACCEPT_CHARACTERS = 512
_AROUND_BYTES = 4096  # what a multipart answer has besides
_ALWAYS: Fields = [*headers.ALWAYS.items(), ("Cache-Control", headers.PRIVATE)]
_WISHES = {"/thumbnail": picture_parameters.of_thumbnail({}), "/rendered": picture_parameters.of_rendered({})}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A plain request."""

    study: str
    series: str
    sop: str
    tail: str
    frame: str
    endpoint: str
    credential: str
    address: str
    accept: str
    request_id: str
    started_s: float


class _Otherwise(Exception):
    """The application goes on with what was found."""

    def __init__(self, subject: Subject, answer: Callable[[], Response]) -> None:
        super().__init__()
        self.subject, self.answer = subject, answer


class Direct:
    """Answers plain requests itself and hands every other one to the application."""

    def __init__(self, app: Flask) -> None:
        """Stand before `app`, whose endpoints are registered."""
        self._app = app
        self._answers: dict[str, Callable[[_Asked, Subject], tuple[Fields, list[bytes]]]] = {
            "": self._instance, "/thumbnail": self._picture, "/rendered": self._picture, "/frames": self._frame, _METADATA: self._metadata,
        }
        self._routes = {name: next(app.url_map.iter_rules(f"dicomweb.{name}")).rule for name in _ENDPOINTS.values()}
        self._vary = "Accept, Origin" if self._node.config.http.cors_origins else "Accept"

    @property
    def _node(self) -> Node:
        found: Node = self._app.extensions[KEY]
        return found

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        asked = self._plain(environ)
        if asked is None or not rate.admitted(self._app, asked.address):
            return self._app.wsgi_app(environ, start_response)
        subject: Subject | None = None
        try:
            subject = self._node.signin.bearer(asked.credential, address=asked.address)
            fields, body = self._answers[asked.tail](asked, subject)
        except _Otherwise as other:
            return self._under_flask(environ, start_response, asked, subject, other.answer)
        except Exception as error:  # noqa: BLE001 # as the application does
            fault = error
            return self._under_flask(environ, start_response, asked, subject, lambda: self._app.handle_user_exception(fault))
        fields += _ALWAYS
        self._end(asked)
        start_response("200 OK", fields)
        return body

    def _plain(self, environ: dict[str, Any]) -> _Asked | None:
        found = _PATH.fullmatch(environ["PATH_INFO"]) if environ["REQUEST_METHOD"] == "GET" else None
        if found is None or any(environ.get(name) for name in _NOT_PLAIN):
            return None
        study, series, sop, whole, part, frame = found.groups("")
        tail = whole or part if sop else _METADATA
        scheme, _, credential = environ.get("HTTP_AUTHORIZATION", "").strip().partition(" ")
        credential, accepted, codings = credential.strip(), environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", "")
        rule = permissions.rule_of(f"dicomweb.{_ENDPOINTS[tail]}")
        if (
            rule is None or rule.public or rule.share or scheme.lower() != "bearer" or max(len(accepted), len(codings)) > _ACCEPT_CHARACTERS
            or not 0 < len(credential) <= session.CREDENTIAL_BYTES or max(len(study), len(series), len(sop)) > _UID_CHARACTERS
            or not _TAKEN[tail](accepted) or (tail == _METADATA and not _gzip(codings))
        ):
            return None
        return _Asked(
            study, series, sop, tail, frame, _ENDPOINTS[tail], credential, environ.get("REMOTE_ADDR") or "", accepted,
            secrets.token_hex(8), time.monotonic(),
        )

    def _instance(self, asked: _Asked, subject: Subject) -> tuple[Fields, list[bytes]]:
        datastore, ways, retrieve = urls.DEFAULT_DATASTORE, _ways(asked.accept), self._node.retrieve

        def answered(one: Found) -> tuple[Fields, list[bytes]] | None:
            stored = one.transfer_syntax_uid
            if one.part10_bytes > streaming.AT_ONCE_BYTES - _AROUND_BYTES or not wado.is_stored(ways[0].for_stored(stored)[0], stored):
                return None
            return self._whole(asked, subject, one, ways[0])

        one, answer = retrieve.reading(subject, datastore, asked.study, asked.series, asked.sop, answered)
        if answer is None:
            raise _Otherwise(subject, lambda: wado.answer(datastore, [one], list(ways)))
        return answer

    def _whole(self, asked: _Asked, subject: Subject, one: Found, way: Container) -> tuple[Fields, list[bytes]]:
        datastore, stored, retrieve = urls.DEFAULT_DATASTORE, one.transfer_syntax_uid, self._node.retrieve
        location = urls.address(datastore, asked.study, asked.series, asked.sop, config=self._node.config)
        if way.multipart:
            writer = Writer(media.DICOM)
            head = wado.part_head(writer, one, stored, location)
            length = len(head) + one.part10_bytes + len(writer.part_tail) + len(writer.end)
            content_type, around = writer.content_type, (head, writer.part_tail + writer.end)
            told: Fields = []
        else:
            length, content_type, around = one.part10_bytes, wado.content_type_of(stored), (b"", b"")
            told = [("Content-Location", location), ("Accept-Ranges", "bytes"), ("Repr-Digest", wado.digest_of(one))]
        body = streaming.whole(_around(retrieve.open(subject, one, just_found=True), *around), length)
        etag = f'"{wado.etag_of([one], way, [stored])}"'
        return [("Content-Type", content_type), ("Content-Length", str(length)), *told, ("ETag", etag), ("Vary", self._vary)], body

    def _frame(self, asked: _Asked, subject: Subject) -> tuple[Fields, list[bytes]]:
        datastore, uids, number = urls.DEFAULT_DATASTORE, (asked.study, asked.series, asked.sop), int(asked.frame)
        found = self._node.retrieve.frames(subject, datastore, *uids, [number])
        choices = _choices(asked.accept, found.transfer_syntax_uid)
        where = f"{urls.address(datastore, *uids, config=self._node.config)}/frames"
        otherwise = _Otherwise(subject, lambda: frames.answer(found, choices, [number], asked.frame, where))
        if not choices:
            raise otherwise
        choice, location = choices[0], f"{where}/{number}"
        if choice.stored and found.long(number) is not None:
            raise otherwise
        try:
            value = frames.value_of(found, choice, number)
        except NotAcceptable:  # there may be another way, else it is said why there is none
            raise otherwise from None
        if choice.multipart:
            content_type, head, tail = frames.part(value, choice, location)
            value, told = b"".join((head, value, tail)), []
        else:
            content_type, told = frames.content_type_of(choice), [("Accept-Ranges", "bytes"), ("Content-Location", location)]
        etag = frames.etag_of(found, choice, asked.frame)
        return [("Content-Type", content_type), ("Content-Length", str(len(value))), *told, ("ETag", etag), ("Vary", self._vary)], [value]

    def _metadata(self, asked: _Asked, subject: Subject) -> tuple[Fields, list[bytes]]:
        answer = self._node.retrieve.metadata(subject, urls.DEFAULT_DATASTORE, asked.study, asked.series)
        pieces, rest = streaming.short(answer.gzip())
        if rest is not None:
            raise _Otherwise(subject, lambda: wado.packed(answer, rest))
        return [
            ("Content-Type", media.DICOM_JSON), ("Content-Length", str(sum(map(len, pieces)))), ("Content-Encoding", "gzip"),
            ("ETag", wado.document_etag(answer, xml=False)), ("Vary", self._vary.replace("Accept", "Accept, Accept-Encoding", 1)),
        ], pieces

    def _picture(self, asked: _Asked, subject: Subject) -> tuple[Fields, list[bytes]]:
        form = _forms(asked.accept)
        assert form is not None
        datastore, (what, number) = urls.DEFAULT_DATASTORE, (THUMBNAIL, 0) if asked.tail == "/thumbnail" else (RENDERED, 1)
        picture = self._node.pictures.of_instance(
            subject, datastore, asked.study, asked.series, asked.sop, [number], _WISHES[asked.tail].as_form(form), what=what
        )[0]
        data = picture.data()
        return [
            ("Content-Type", picture.media_type), ("Content-Length", str(len(data))),
            ("Content-Location", rendered.location_of(datastore, picture, self._node.config)), ("ETag", picture.etag),
            ("Vary", self._vary),
        ], [data]

    def _end(self, asked: _Asked) -> None:
        """Count and log it as the application does."""
        taken_s = time.monotonic() - asked.started_s
        probes.count(f"dicomweb.{asked.endpoint}", 200, taken_s)
        access_log.info("request", extra={
            "method": "GET", "route": self._routes[asked.endpoint], "status": 200, "request_id": asked.request_id,
            "ms": round(taken_s * 1000, 1),
        })

    def _under_flask(
        self, environ: dict[str, Any], start_response: StartResponse, asked: _Asked, subject: Subject | None, answer: Callable[[], Any]
    ) -> Iterable[bytes]:
        """Let the application answer, without doing again what has been done."""
        with self._app.request_context(environ):
            g.request_id, g.started_s, g.subject, g.standing = asked.request_id, asked.started_s, subject, None
            try:
                made = answer()
            except Exception as error:  # noqa: BLE001 # as the application does
                made = self._app.handle_user_exception(error)
            response = self._app.finalize_request(made)
            return response(environ, start_response)


@lru_cache(maxsize=256)
def _ways(accepted: str) -> tuple[Container, ...]:
    """Return the ways in which an Accept header takes one instance, best first."""
    return tuple(media.containers(accept.parse(accepted or None), single_allowed=True))


@lru_cache(maxsize=256)
def _forms(accepted: str) -> Any:
    """Return the form of a single picture, None where an Accept header takes another answer."""
    chosen = rendered.choice(accept.parse(accepted or None), several=False)
    return chosen[0] if chosen is not None and not chosen[1] else None


@lru_cache(maxsize=256)
def _choices(accepted: str, transfer_syntax_uid: str) -> tuple[FrameChoice, ...]:
    """Return the ways in which an Accept header takes one frame of an instance stored in that transfer syntax, best first."""
    return tuple(media.frame_choices(accept.parse(accepted or None), transfer_syntax_uid, single_allowed=True))


@lru_cache(maxsize=256)
def _json(accepted: str) -> bool:
    return media.form_of(accept.parse(accepted or None)) == "json"


@lru_cache(maxsize=256)
def _gzip(codings: str) -> bool:
    return wado.takes_gzip(codings)


_TAKEN: dict[str, Callable[[str], Any]] = {
    "": _ways, "/thumbnail": _forms, "/rendered": _forms, "/frames": lambda _accepted: True, _METADATA: _json,
}


def _around(views: Iterator[memoryview], head: bytes, tail: bytes) -> Iterator[bytes | memoryview]:
    yield b"".join((head, next(views, b"")))
    yield from views
    if tail:
        yield tail
