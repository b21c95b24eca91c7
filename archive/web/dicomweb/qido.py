"""QIDO-RS: the six search resources (PS3.18 10.6).

A parameter that is not understood is an error that names it; a search is never wider than what was asked. A short list of what
clients add to every address is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from flask import Response, request

from archive.dicom import clocks
from archive.dicom.attributes import BY_TAG, Attribute, Level, lookup
from archive.dicom.zones import TIMEZONE_OFFSET
from archive.errors import InvalidQuery
from archive.services.query import SearchAnswer, SearchRequest
from archive.web.context import archive, subject
from archive.web.dicomweb import native, query_paths, urls
from archive.web.dicomweb.media import DICOM_JSON, document_form

NOISE = frozenset({"_", "token", "access_token", "accept"})
MAX_ROWS = 10_000
"""More rows than this are never answered at once; a Warning header tells that there are more."""

Row = dict[str, dict[str, object]]

_ORDER = {Level.PATIENT: 0, Level.STUDY: 1, Level.SERIES: 2, Level.IMAGE: 3}
_WORD = re.compile(r"[A-Za-z0-9_.]{1,256}")
_UID_SEPARATORS = re.compile(r"[\\,\s\0]+")


def search(level: Level, datastore: str, study: str | None = None, series: str | None = None) -> Response:
    """Answer one of the six resources.

    Raises:
        InvalidQuery: a parameter that is not understood; the message names it, never its value.
        NotAcceptable, InvalidRequest, NotFound, Unavailable.
    """
    form = document_form(request)
    asked = parse(request.args.lists(), level, datastore, urls.optional_uid(study), urls.optional_uid(series))
    answer = archive().query.find(subject(), asked)
    rows = [located(row, asked) for row in answer.rows]
    xml = form == "xml"
    response = native.answer(lambda: iter(rows)) if xml else Response(msgspec.json.encode(rows), content_type=DICOM_JSON)
    response.headers["Vary"] = "Accept"
    if answer.total is not None:
        response.headers["X-Total-Count"] = str(answer.total)
    if _cut(asked, answer):
        response.headers["Warning"] = f'299 {urls.base(datastore)} "There are additional results that can be requested"'
    return response


def parse(
    parameters: Iterable[tuple[str, list[str]]], level: Level, datastore: str, study: str | None = None, series: str | None = None
) -> SearchRequest:
    """Read a query string.

    Raises:
        InvalidQuery.
    """
    keys: dict[int, tuple[Attribute, str]] = {}
    include: dict[int, Attribute] | None = {}
    paths: dict[tuple[int, ...], str] = {}
    single: dict[str, str] = {}
    for name, values in parameters:
        if name in NOISE:
            continue
        if name == "includefield":
            include = _include(values, include)
            continue
        if len(values) != 1:
            raise _twice(name)
        if name in {"limit", "offset", "fuzzymatching"}:
            single[name] = values[0]
            continue
        if "." in name:
            path = query_paths.read(name)
            _of_level(path, name, level)
            if path in paths:
                raise _twice(name)
            paths[path] = values[0]
            continue
        attribute = _key(name, level)
        if attribute.tag in keys:
            raise _twice(name)
        keys[attribute.tag] = (attribute, _value(attribute, values[0]))
    # Where the clock of whoever asks hangs: how its times are meant, not what is looked for.
    there = keys.pop(TIMEZONE_OFFSET, None)
    zone = "" if there is None else clocks.asked(there[1])
    filters = tuple(clocks.timed(key, zone) for key in query_paths.keys(paths))
    if include is not None:
        include |= {} if there is None else {TIMEZONE_OFFSET: there[0]}
        include |= {path[0]: BY_TAG[path[0]] for path in paths}
        include |= {tag: attribute for tag, (attribute, _) in keys.items() if not attribute.returned}
    limit = _number("limit", single["limit"], lowest=1) if "limit" in single else MAX_ROWS
    return SearchRequest(
        level=level, datastore=datastore, keys=tuple(keys.values()), study_instance_uid=study, series_instance_uid=series,
        include="all" if include is None else tuple(include.values()), limit=min(limit, MAX_ROWS),
        offset=_number("offset", single["offset"], lowest=0) if "offset" in single else 0,
        fuzzy=_flag("fuzzymatching", single.get("fuzzymatching", "false")), filters=filters, zone=zone,
    )


def located(row: Row, asked: SearchRequest) -> Row:
    """Return a row with its RetrieveURL, in order of tags."""
    study = _uid_of(row, "0020000D") or asked.study_instance_uid
    series = sop = None
    if asked.level is not Level.STUDY:
        series = _uid_of(row, "0020000E") or asked.series_instance_uid
    if asked.level is Level.IMAGE:
        sop = _uid_of(row, "00080018")
    if study is None:
        return row
    url = urls.address(asked.datastore, study, series, sop)
    whole: Row = {**row, "00081190": {"vr": "UR", "Value": [url]}}
    return dict(sorted(whole.items()))


def _cut(asked: SearchRequest, answer: SearchAnswer) -> bool:
    """Return whether the archive's own bound, not the caller's, ended the answer."""
    if asked.limit != MAX_ROWS or len(answer.rows) < MAX_ROWS:
        return False
    return answer.total is None or answer.total > asked.offset + len(answer.rows)


def _uid_of(row: Row, tag: str) -> str | None:
    value = row.get(tag, {}).get("Value")
    return str(value[0]) if isinstance(value, list) and value else None


def _key(name: str, level: Level) -> Attribute:
    attribute = lookup(name)
    if attribute is None:
        raise _unknown(name)
    if _ORDER[attribute.level] > _ORDER[level] or attribute.keyword in {"RetrieveURL", "InstanceAvailability"}:
        message = f"{attribute.keyword} is not a key of this resource"
        raise InvalidQuery(message, remedy="search at the level it belongs to")
    return attribute


def _of_level(path: tuple[int, ...], name: str, level: Level) -> None:
    attribute = BY_TAG.get(path[0]) if path else None
    if attribute is None or attribute.vr != "SQ":
        raise _unknown(name)
    if _ORDER[attribute.level] > _ORDER[level]:
        message = f"{attribute.keyword} is not a key of this resource"
        raise InvalidQuery(message, remedy="search at the level it belongs to")


def _value(attribute: Attribute, text: str) -> str:
    # A list of nothing but separators would match everything.
    if attribute.vr == "UI" and text and not _UID_SEPARATORS.sub("", text):
        message = f"{attribute.keyword} holds no UID"
        raise InvalidQuery(message)
    # No code has a comma: it is how clients write several modalities.
    return text.replace(",", "\\") if attribute.vr == "CS" else text


def _include(values: list[str], include: dict[int, Attribute] | None) -> dict[int, Attribute] | None:
    """Collect includefield; None means all. What the archive does not index is passed over: there is nothing to add for it."""
    for text in values:
        for name in filter(None, (part.strip() for part in text.split(","))):
            if name == "all":
                return None
            attribute = lookup(name.partition(".")[0])  # of a path, its sequence is answered whole
            if attribute is None and not _WORD.fullmatch(name):
                raise _unknown("includefield")
            if attribute is not None and include is not None:
                include[attribute.tag] = attribute
    return include


def _number(name: str, text: str, *, lowest: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 12 or int(text) < lowest:
        message = f"{name} is not a whole number from {lowest} up"
        raise InvalidQuery(message)
    return int(text)


def _flag(name: str, text: str) -> bool:
    if text not in {"true", "false"}:
        message = f"{name} is neither true nor false"
        raise InvalidQuery(message)
    return text == "true"


def _unknown(name: str) -> InvalidQuery:
    told = name if _WORD.fullmatch(name) else "a parameter"
    return InvalidQuery(f"{told} is not known here", remedy="docs/conformance.md lists the keys of each resource")


def _twice(name: str) -> InvalidQuery:
    told = name if _WORD.fullmatch(name) else "a parameter"
    return InvalidQuery(f"{told} is given more than once")
