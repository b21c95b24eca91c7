"""/api/openapi.json: the API in OpenAPI 3.1, made of the table it is served from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, get_origin

import msgspec
from flask import Response

from archive.services.idempotency import LONGEST_KEY
from archive.web.api import paging
from archive.web.api.operation import DIGITS, JSON, Operation, Text
from archive.web.permissions import PUBLIC
from archive.web.problems import title_of

RULES = {"api.openapi": PUBLIC}
"""What is offered, never what is held."""

_ALWAYS = (400, 401, 403, 503)
_PROBLEM = {
    "type": "object", "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"}, "detail": {"type": "string"},
        "code": {"type": "string", "description": "What went wrong, for a program"},
        "remedy": {"type": "string", "description": "What to do next"},
        "request_id": {"type": "string", "description": "By which the operator finds it in the log"},
    },
}
_PART = re.compile(r"<(\w+)>")


def answering(operations: Sequence[Operation]) -> Callable[[], Response]:
    """Return the view that answers the document of these operations."""

    @cache
    def encoded() -> bytes:
        return msgspec.json.encode(document(operations))

    def view() -> Response:
        return Response(encoded(), content_type=JSON)

    return view


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the document."""
    kinds = [kind for one in operations for kind in (one.answer, one.body, one.query) if kind not in (None, Text)]
    shown, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = {_key(kind): schema for kind, schema in zip(kinds, shown, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        path = "/api" + _PART.sub(r"{\1}", one.path)
        paths.setdefault(path, {})[one.method.lower()] = _operation(one, by_kind, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Strongroom", "version": version("strongroom"), "summary": "What programs manage, beside DICOMweb.",
            "description": "Whatever a caller may not see answers exactly like what does not exist.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Problem": _PROBLEM},
            "responses": {
                str(status): {"description": title_of(status), "content": {"application/problem+json": {"schema": {
                    "$ref": "#/components/schemas/Problem",
                }}}}
                for status in sorted({*_ALWAYS, 409, 415, *(status for one in operations for status in one.refuses)})
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "A token of POST /api/tokens or 'archive token create'"},
                "basic": {"type": "http", "scheme": "basic", "description": "User name, and a token as the password"},
            },
        },
        "security": [{"token": []}, {"basic": []}],
    }


def _key(kind: Any) -> str:
    return repr(kind)


def _operation(one: Operation, by_kind: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    refused = {*_ALWAYS, *one.refuses} | ({415} if one.body is not None else set()) | ({409} if one.creates else set())
    responses: dict[str, Any] = {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(refused)}
    if one.answer is None:
        responses["204"] = {"description": "Done"}
    else:
        schema = {"type": "string"} if one.answer is Text else by_kind[_key(one.answer)]
        responses[str(one.status)] = {"description": "Done", "content": {one.media_type: {"schema": schema}}}
    described: dict[str, Any] = {
        "operationId": one.name, "summary": one.summary, "tags": [one.tag], "parameters": _parameters(one, schemas), "responses": responses,
        "x-permissions": [bit.name.lower().replace("_", "-") for bit in one.need if bit.name],
    }
    if one.body is not None:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": by_kind[_key(one.body)]}}}
    return described


def _parameters(one: Operation, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    number = {"type": "string", "pattern": f"^[0-9]{{1,{DIGITS}}}$"}
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": number if name == "number" else {"type": "string", "minLength": 1}}
        for name in _PART.findall(one.path)
    ]
    properties = schemas[one.query.__name__].get("properties", {})
    for member in msgspec.structs.fields(one.query):
        parameter = {"name": member.encode_name, "in": "query", "required": member.required, "schema": properties[member.encode_name]}
        if get_origin(member.type) is tuple:
            parameter |= {"style": "form", "explode": True}
        found.append(parameter)
    if one.paged_by:
        found += paging.PARAMETERS
    if one.creates:
        found.append({
            "name": "Idempotency-Key", "in": "header", "required": False,
            "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY},
            "description": "The same call with the same key is done once and answered alike for a day",
        })
    return found
