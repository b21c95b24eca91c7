"""UPS-RS: the unified worklist (PS3.18 11).

A refusal by the state of a workitem is 409 with the Warning header of PS3.18; what the request itself lacks is 400. Workitems the
caller may not see are 404 in every way; a UID that is taken is 409 at creation, seen or not: UIDs are unique in a datastore. Nothing
is answered otherwise because the archive holds something of a patient or study whom the caller may not see.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from flask import Response, request
from werkzeug.exceptions import UnsupportedMediaType

from archive.dicom import native_model
from archive.dicom import workitem as rules
from archive.dicom.workitem_keys import Key, key, path_of, read
from archive.errors import InvalidInstance, InvalidQuery, InvalidRequest, StateConflict, Unavailable
from archive.web import problems
from archive.web.context import archive, node, subject
from archive.web.dicomweb import media, parameters, urls
from archive.web.dicomweb.media import DICOM_JSON

MAX_ROWS = 1000
NOISE = frozenset({"_", "accept"})
_AE_TITLE = re.compile(r"[ -\[\]-~]{1,16}")
DICOM_XML = "application/dicom+xml"
_TAKEN = {DICOM_JSON, "application/json"}


def create(datastore: str) -> Response:
    """Add a workitem; its UID is the bare query string, or stands in the body, or is made.

    Raises:
        InvalidRequest, Forbidden, NotFound, ReadOnly, Unavailable; werkzeug's 415.
    """
    uid = _query_uid("workitem", "AffectedSOPInstanceUID")

    def work() -> Response:
        made = node().workitems.create(subject(), datastore, uid, _dataset())
        response = Response(status=201)
        response.headers["Location"] = response.headers["Content-Location"] = _address(datastore, made.uid)
        return _warned(response, datastore, 0xB300 if made.modified else 0)

    return _state_checked(datastore, work)


def search(datastore: str) -> Response:
    """Answer the workitems that match.

    Raises:
        InvalidQuery, NotAcceptable, Forbidden, NotFound, Unavailable.
    """
    media.require_json(request)
    keys, limit, offset = _search_parameters()
    page = node().workitems.search(subject(), datastore, keys, limit=min(limit or MAX_ROWS, MAX_ROWS), offset=offset)
    if not page.found:
        return Response(status=204)
    cut = page.more and (limit is None or limit > MAX_ROWS)
    response = Response(msgspec.json.encode(page.found), status=206 if cut else 200, content_type=DICOM_JSON)
    if cut:
        response.headers["Warning"] = f'299 {urls.base(datastore)} "There are additional results that can be requested"'
    return response


def retrieve(datastore: str, workitem: str) -> Response:
    """Answer one workitem, without its Transaction UID.

    Raises:
        InvalidRequest, NotAcceptable, Forbidden, NotFound, Unavailable.
    """
    media.require_json(request)
    found = node().workitems.retrieve(subject(), datastore, urls.uid(workitem))
    response = Response(msgspec.json.encode([found]), content_type=DICOM_JSON)
    response.headers["Content-Location"] = _address(datastore, urls.uid(workitem))
    return response


def update(datastore: str, workitem: str) -> Response:
    """Replace attributes of a workitem; its Transaction UID is the bare query string, or stands in the body.

    Raises:
        InvalidRequest, Forbidden, NotFound, ReadOnly, Unavailable.
    """
    lock = _query_uid("transaction-uid", "transaction", "TransactionUID") or ""

    def work() -> Response:
        node().workitems.update(subject(), datastore, urls.uid(workitem), lock, _dataset())
        response = Response(status=200)
        response.headers["Content-Location"] = _address(datastore, urls.uid(workitem))
        return response

    return _state_checked(datastore, work)


def change_state(datastore: str, workitem: str) -> Response:
    """Claim, complete or cancel a workitem.

    Raises:
        InvalidRequest, Forbidden, NotFound, ReadOnly, Unavailable.
    """

    def work() -> Response:
        warning = node().workitems.change_state(subject(), datastore, urls.uid(workitem), _dataset())
        response = Response(status=200)
        response.headers["Content-Location"] = _address(datastore, urls.uid(workitem))
        return _warned(response, datastore, warning)

    return _state_checked(datastore, work)


def request_cancel(datastore: str, workitem: str) -> Response:
    """Ask for a workitem to be canceled; a body with the reason is optional.

    Raises:
        InvalidRequest, Forbidden, NotFound, ReadOnly, Unavailable.
    """

    def work() -> Response:
        asked = _dataset() if request.get_data(cache=True) else {}
        warning = node().workitems.request_cancel(subject(), datastore, urls.uid(workitem), asked)
        return _warned(Response(status=202), datastore, warning)

    return _state_checked(datastore, work)


def subscribe(datastore: str, workitem: str, aetitle: str) -> Response:
    """Watch one workitem, all, or all that match; the answer names the WebSocket that tells.

    Raises:
        InvalidRequest, InvalidQuery, Forbidden, NotFound, ReadOnly, Unavailable.
    """
    title, uid = _ae_title(aetitle), urls.uid(workitem)
    where = channel(datastore, title)
    if where is None:
        message = "this archive serves no notification connections"
        raise Unavailable(message, remedy="set [events] enabled = true and restart")
    filters, lock = _subscription_parameters(uid)
    node().workitem_watch.subscribe(subject(), datastore, uid, title, deletion_lock=lock, filters=filters)
    response = Response(status=201)
    response.headers["Content-Location"] = where
    return response


def unsubscribe(datastore: str, workitem: str, aetitle: str) -> Response:
    """Watch one workitem, or any, no more.

    Raises:
        InvalidRequest, Forbidden, NotFound, ReadOnly, Unavailable.
    """
    node().workitem_watch.unsubscribe(subject(), datastore, urls.uid(workitem), _ae_title(aetitle))
    return Response(status=200)


def suspend(datastore: str, workitem: str, aetitle: str) -> Response:
    """Do not begin to watch workitems that come from now on.

    Raises:
        InvalidRequest, Forbidden, NotFound, ReadOnly, Unavailable.
    """
    uid = urls.uid(workitem)
    if uid not in {rules.GLOBAL, rules.FILTERED}:
        message = "only a subscription to all workitems is suspended"
        raise InvalidRequest(message)
    node().workitem_watch.suspend(subject(), datastore, uid, _ae_title(aetitle))
    return Response(status=200)


def connect(datastore: str, aetitle: str) -> Response:
    """Say where the notification connection is opened: it is a WebSocket, on a port of its own."""
    where = channel(datastore, _ae_title(aetitle))
    response = problems.problem(
        HTTPStatus.UPGRADE_REQUIRED, code="upgrade-required", detail="the notification connection is a WebSocket", upgrade="websocket",
    )
    if where is not None:
        response.headers["Content-Location"] = where
    return response


def channel(datastore: str, ae_title: str) -> str | None:
    """Return the address of a subscriber's WebSocket, None when this archive serves none."""
    config = archive().config
    if not config.events.enabled:
        return None
    path = "dicomweb" if datastore == urls.DEFAULT_DATASTORE else f"datastores/{quote(datastore, safe='')}/dicomweb"
    return f"{config.events_url}/{path}/subscribers/{quote(ae_title, safe='')}"


def _state_checked(datastore: str, work: Callable[[], Response]) -> Response:
    try:
        return work()
    except StateConflict as error:
        return _warned(problems.answer(error), datastore, error.status)


def _warned(response: Response, datastore: str, status: int) -> Response:
    if status:
        response.headers["Warning"] = f'299 {urls.base(datastore)} "{rules.WARNINGS[status]}"'
    return response


def _address(datastore: str, uid: str) -> str:
    return f"{urls.base(datastore)}/workitems/{uid}"


def _dataset() -> Any:
    """Return the one data set of the body.

    Raises:
        InvalidRequest; werkzeug's 415.
    """
    sent = parameters.parse(request.headers.get("Content-Type", ""))
    if sent is None or sent.name not in {*_TAKEN, DICOM_XML}:
        raise UnsupportedMediaType("a workitem is sent as application/dicom+json or application/dicom+xml")
    data = request.get_data(cache=True)
    try:
        value = native_model.to_json(data) if sent.name == DICOM_XML else msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidInstance) as error:
        message = "the body is not a data set in JSON or XML"
        raise InvalidRequest(message, remedy="send one data set as PS3.18 F or PS3.19 A say") from error
    if isinstance(value, list):
        if len(value) != 1:
            message = "the body holds one workitem"
            raise InvalidRequest(message)
        value = value[0]
    return value


def _query_uid(*names: str) -> str | None:
    """Return the UID of a query string that is one, bare or under one of these names; "" is none.

    Raises:
        InvalidRequest.
    """
    text = unquote(request.query_string.decode("ascii", "replace"))
    if not text:
        return None
    name, equals, value = text.partition("=")
    if equals and name in names:
        return urls.uid(value)
    if not equals:
        return urls.uid(name)
    message = "the address takes a UID as its query string and nothing else"
    raise InvalidRequest(message)


def _ae_title(text: str) -> str:
    title = text.strip(" ")
    if not _AE_TITLE.fullmatch(title):
        message = "the address names no AE title"
        raise InvalidRequest(message, remedy="an AE title has 1 to 16 characters and no backslash")
    return title


def _search_parameters() -> tuple[tuple[Key, ...], int | None, int]:
    single: dict[str, str] = {}
    texts: dict[str, str] = {}
    for name, values in request.args.lists():
        if name in NOISE:
            continue
        if name == "includefield":  # every attribute is answered
            for one in (part.strip() for text in values for part in text.split(",")):
                if one not in {"", "all"}:
                    path_of(one)
            continue
        if len(values) != 1:
            message = "a parameter is given more than once"
            raise InvalidQuery(message)
        (single if name in {"limit", "offset", "fuzzymatching"} else texts)[name] = values[0]
    if single.get("fuzzymatching", "false") not in {"true", "false"}:
        message = "fuzzymatching is neither true nor false"
        raise InvalidQuery(message)
    fuzzy = single.get("fuzzymatching") == "true"
    return read(texts, fuzzy=fuzzy), _number(single, "limit", 1), _number(single, "offset", 0) or 0


def _number(single: dict[str, str], name: str, lowest: int) -> int | None:
    text = single.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) < lowest:
        message = f"{name} is not a whole number from {lowest} up"
        raise InvalidQuery(message)
    return int(text)


def _subscription_parameters(uid: str) -> tuple[tuple[Key, ...], bool]:
    """Read `deletionlock` and, of a filtered subscription, `filter` (`tag=value`, separated by commas) or keys by name."""
    lock = request.args.get("deletionlock", "false")
    if lock not in {"true", "false"}:
        message = "deletionlock is neither true nor false"
        raise InvalidQuery(message)
    pairs = [(name, text) for name, text in request.args.items(multi=True) if name not in {"deletionlock", "filter", *NOISE}]
    for text in request.args.getlist("filter"):
        pairs += [(name, value) for name, _, value in (one.partition("=") for one in text.split(",") if one)]
    filters = tuple(key(name, text) for name, text in pairs)
    if filters and uid != rules.FILTERED:
        message = "only a filtered subscription takes keys"
        raise InvalidQuery(message)
    if uid == rules.FILTERED and not filters:
        message = "a filtered subscription needs a filter"
        raise InvalidQuery(message, remedy="name keys in filter=, or subscribe to all workitems")
    return filters, lock == "true"
