"""The study list and the page of one study."""

from __future__ import annotations

import re
from urllib.parse import urlencode

from flask import make_response, redirect, render_template, request
from werkzeug.wrappers import Response

from archive.dicom.attributes import Attribute, Level, lookup
from archive.errors import InvalidQuery, NotFound
from archive.services import viewers
from archive.services.query import SearchRequest
from archive.web.context import archive, node, subject
from archive.web.pages.shown import SeriesLine, StudyLine

DATASTORE = "clinical"
PAGE = 50
UID = re.compile(r"[0-9]+(\.[0-9]+)*")
FIELDS = ("name", "id", "accession", "description", "modality", "from", "to")
MODALITIES = ("CT", "MR", "US", "CR", "DX", "MG", "NM", "PT", "XA", "RF", "OT", "SR")


def studies() -> Response:
    """Search and page through the studies the user may see, newest first."""
    asked = {field: request.args.get(field, "").strip()[:200] for field in FIELDS}
    page = _page(request.args.get("page", "1"))
    refusal, lines, total = "", [], None
    try:
        answer = archive().query.find(
            subject(),
            SearchRequest(level=Level.STUDY, datastore=DATASTORE, keys=_keys(asked), limit=PAGE + 1, offset=(page - 1) * PAGE),
        )
        lines, total = [StudyLine.of(row) for row in answer.rows], answer.total
    except InvalidQuery as error:
        refusal = error.message
    more = len(lines) > PAGE
    shown = lines[:PAGE]
    query = {field: value for field, value in asked.items() if value}
    return make_response(
        render_template(
            "studies.html", lines=shown, total=total, first=(page - 1) * PAGE + 1, last=(page - 1) * PAGE + len(shown), asked=asked,
            searched=bool(query), modalities=MODALITIES, refusal=refusal, banners=node().health.banners(),
            previous=_link(query, page - 1) if page > 1 else "", following=_link(query, page + 1) if more else "", user=subject().name,
        ),
        400 if refusal else 200,
    )


def study(study: str) -> Response:
    """One study: who, when, and its series with a picture each."""
    line = find_study(study)
    series = series_of(study)
    steps = node().steps.of_study(subject(), DATASTORE, study)
    elsewhere = viewers.installed(archive().config) is not None
    work = node().study_work.of(subject(), DATASTORE, study)
    return make_response(render_template(
        "study.html", study=line, series=series, user=subject().name, elsewhere=elsewhere, steps=steps, work=work,
        shareable=node().shares.may_share(subject(), DATASTORE, study),
    ))


def ohif(study: str) -> Response:
    """Go on to the study in OHIF, at its own origin."""
    line = find_study(study)
    if viewers.installed(archive().config) is None:
        message = "no such viewer is installed"
        raise NotFound(message)
    return redirect(f"{archive().config.viewer_url}/viewer?StudyInstanceUIDs={line.uid}")


def series_of(uid: str, datastore: str = DATASTORE) -> list[SeriesLine]:
    """Return the visible series of a study."""
    asked = SearchRequest(level=Level.SERIES, datastore=datastore, keys=(), study_instance_uid=uid, limit=1000, offset=0)
    return [SeriesLine.of(row) for row in archive().query.find(subject(), asked).rows]


def find_study(uid: str, datastore: str = DATASTORE) -> StudyLine:
    """Return the study.

    Raises:
        NotFound: absent, or nothing of it is visible: the same.
    """
    rows = []
    if UID.fullmatch(uid) and len(uid) <= 64:
        wanted = ((_attribute("StudyInstanceUID"), uid),)
        asked = SearchRequest(level=Level.STUDY, datastore=datastore, keys=wanted, limit=1, total=False)
        rows = archive().query.find(subject(), asked).rows
    if not rows:
        message = "there is no such study"
        raise NotFound(message)
    return StudyLine.of(rows[0])


def _keys(asked: dict[str, str]) -> tuple[tuple[Attribute, str], ...]:
    keys: list[tuple[str, str]] = []
    if asked["name"]:
        keys.append(("PatientName", _contains(asked["name"])))
    if asked["id"]:
        keys.append(("PatientID", asked["id"]))
    if asked["accession"]:
        keys.append(("AccessionNumber", asked["accession"]))
    if asked["description"]:
        keys.append(("StudyDescription", _contains(asked["description"])))
    if asked["modality"]:
        keys.append(("ModalitiesInStudy", asked["modality"]))
    start, end = (asked[field].replace("-", "") for field in ("from", "to"))
    if start or end:
        keys.append(("StudyDate", f"{start}-{end}"))
    return tuple((_attribute(keyword), text) for keyword, text in keys)


def _contains(text: str) -> str:
    """People type parts of names; who writes wildcards means them."""
    return text if "*" in text or "?" in text else f"*{text}*"


def _attribute(keyword: str) -> Attribute:
    found = lookup(keyword)
    assert found is not None
    return found


def _page(text: str) -> int:
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 8 else 1


def _link(query: dict[str, str], page: int) -> str:
    return "/studies?" + urlencode({**query, "page": page})
