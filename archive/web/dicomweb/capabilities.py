"""What DICOMweb offers here, as a WADL document: OPTIONS on the base address (PS3.18 8.9).

It is made from the table of routes and says nothing of any object, so it needs no credential, as OPTIONS elsewhere.

Source: the W3C member submission Web Application Description Language.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.sax.saxutils import quoteattr

from flask import Response, request

from archive.errors import NotAcceptable
from archive.web.dicomweb import media, urls
from archive.web.dicomweb.download import ZIP
from archive.web.dicomweb.media import DICOM, DICOM_JSON, DICOM_XML, OCTETS

WADL = "application/vnd.sun.wadl+xml"
NAMESPACE = "http://wadl.dev.java.net/2009/02"

_PARAMETER = re.compile(r"<(?:path:)?([a-z]+)>")
_SETS = (DICOM_JSON, f"multipart/related; type={DICOM_XML}")
_PICTURES = ("image/jpeg", "image/png", "multipart/related; type=image/jpeg", "multipart/related; type=image/png")
_INSTANCES = (f"multipart/related; type={DICOM}",)
_OCTETS = (f"multipart/related; type={OCTETS}", OCTETS)
_FRAMES = (*_OCTETS, *(f"multipart/related; type={kind}" for kind in media.ENCODED), *media.ENCODED)
_RANGES = ("Range", "If-Range", "If-None-Match")

_ANSWERS: dict[str, tuple[str, ...]] = {
    "retrieve_study": (*_INSTANCES, ZIP), "retrieve_series": (*_INSTANCES, ZIP), "retrieve_instance": (*_INSTANCES, DICOM),
    "store": (DICOM_JSON,), "store_study": (DICOM_JSON,), "frames": _FRAMES, "bulk": _OCTETS, "capabilities": (WADL,),
    "wado_uri": (*_PICTURES[:2], DICOM), "wado_uri_root": (*_PICTURES[:2], DICOM),
    "ups_search": (DICOM_JSON,), "ups_retrieve": (DICOM_JSON,),
    **{f"search_{what}": _SETS for what in ("studies", "series", "instances", "study_series", "study_instances", "series_instances")},
    **{f"rendered_{what}": _PICTURES for what in ("study", "series", "instance", "frames")},
}  # fmt: skip
_ENDINGS = (("_metadata", _SETS), ("_thumbnail", _PICTURES), ("_zip", (ZIP,)))

Row = tuple[str, str, str]


def answered(endpoint: str) -> tuple[str, ...]:
    """Return the media types of an endpoint's answers, the default first."""
    return _ANSWERS.get(endpoint) or next((kinds for end, kinds in _ENDINGS if endpoint.endswith(end)), ())


def taken(endpoint: str) -> tuple[str, ...]:
    """Return the media types of an endpoint's requests."""
    if endpoint.startswith("store"):
        return (*_INSTANCES, DICOM, f"multipart/related; type={DICOM_JSON}", f"multipart/related; type={DICOM_XML}")
    return (DICOM_JSON, DICOM_XML) if endpoint in {"ups_create", "ups_update", "ups_change_state", "ups_request_cancel"} else ()


def document(base: str, rows: Iterable[Row]) -> bytes:
    """Return the WADL document of a table of method, rule and endpoint."""
    resources: dict[str, list[tuple[str, str]]] = {}
    for method, rule, endpoint in rows:
        resources.setdefault(rule, []).append((method, endpoint))
    out = [f'<?xml version="1.0" encoding="UTF-8"?>\n<application xmlns="{NAMESPACE}"><resources base={quoteattr(base)}>']
    for rule, methods in resources.items():
        path = _PARAMETER.sub(r"{\1}", rule).lstrip("/")
        out.append(f"<resource path={quoteattr(path)}>")
        out += [f'<param name="{name}" style="template" required="true"/>' for name in _PARAMETER.findall(rule)]
        for method, endpoint in methods:
            out.append(f'<method name="{method}" id="{endpoint}">')
            out.append(_request(endpoint))
            kinds = "".join(f"<representation mediaType={quoteattr(kind)}/>" for kind in answered(endpoint))
            out.append(f"<response>{kinds}</response></method>")
        out.append("</resource>")
    return "".join([*out, "</resources></application>\n"]).encode()


def _request(endpoint: str) -> str:
    heads = ("Accept", *(_RANGES if endpoint in {"retrieve_instance", "frames", "bulk"} else ())) if answered(endpoint) else ()
    queries: tuple[str, ...] = ("limit", "offset", "includefield", "fuzzymatching") if endpoint.startswith("search_") else ()
    if endpoint.startswith("rendered"):
        queries = ("window", "viewport", "quality")
    parameters = "".join(
        f'<param name="{name}" style="{style}"/>' for style, names in (("header", heads), ("query", queries)) for name in names
    )
    kinds = "".join(f"<representation mediaType={quoteattr(kind)}/>" for kind in taken(endpoint))
    return f"<request>{parameters}{kinds}</request>"


def capabilities(datastore: str) -> Response:
    """Answer the document.

    Raises:
        NotAcceptable.
    """
    from archive.web.dicomweb.routes import ROUTES  # the table names this view

    accepted = media.of_request(request)
    if not any(True for kind in (WADL, "application/xml", "text/xml") for _ in accepted.singles(kind)):
        message = f"capabilities are {WADL}"
        raise NotAcceptable(message, remedy=f"accept {WADL}")
    rows = [(method, rule, endpoint) for method, rule, endpoint, _ in ROUTES]
    response = Response(document(urls.base(datastore), rows), content_type=WADL)
    response.allow.update(("GET", "HEAD", "OPTIONS"))
    response.headers["Vary"] = "Accept"
    return response
