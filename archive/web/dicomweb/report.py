"""The answer to a store request: one DICOM JSON object (PS3.18 10.5.3 and I.2).

An object, not an array, and Content-Type without parameters: one client compares it by equality, another fails on an array.
"""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Response

from archive.dicom.part10 import Finding
from archive.services.store import Outcome
from archive.web.dicomweb import urls
from archive.web.dicomweb.head import Head
from archive.web.dicomweb.media import DICOM_JSON

COERCED = 45056
"""Warning Reason B000H: kept, with a coercion or a reservation."""

NOT_CONFORMING = 45063
"""Warning Reason B007H: kept, although the data set does not match its SOP class."""

_COMMENT_CHARACTERS = 64

Item = dict[str, dict[str, Any]]


class Report:
    """What became of each part of a request."""

    def __init__(self) -> None:
        """Start with none."""
        self._referenced: list[Item] = []
        self._failed: list[Item] = []
        self._studies: set[str] = set()
        self._warned = False

    @property
    def parts(self) -> int:
        """How many parts have been reported."""
        return len(self._referenced) + len(self._failed)

    @property
    def stored(self) -> int:
        """How many parts are kept."""
        return len(self._referenced)

    def kept(self, datastore: str, outcome: Outcome, *, coerced: list[str]) -> None:
        """Note an instance that is safe; one that is held cannot be retrieved, so it gets an empty RetrieveURL."""
        url = ""
        if outcome.status != "held":
            self._studies.add(outcome.study_instance_uid)
            url = urls.address(datastore, outcome.study_instance_uid, outcome.series_instance_uid, outcome.sop_instance_uid)
        item = _item(outcome.sop_class_uid, outcome.sop_instance_uid)
        item["00081190"] = _value("UR", url)
        if coerced or outcome.findings:
            self._warned = True
            why = [*(_comment(text) for text in coerced), *(_finding(one) for one in outcome.findings)]
            item["00081196"] = {"vr": "US", "Value": [COERCED if coerced else NOT_CONFORMING]}
            item["00741048"] = {"vr": "SQ", "Value": why}
        self._referenced.append(item)

    def failed(self, head: Head, reason: int, outcome: Outcome | None = None) -> None:
        """Note an instance that is not stored, under the UIDs it came with."""
        uids = (outcome.sop_class_uid, outcome.sop_instance_uid) if outcome is not None else head.uids
        self._failed.append({**_item(*uids), "00081197": {"vr": "US", "Value": [reason]}})

    def response(self, datastore: str, study: str | None) -> Response:
        """Return the answer: 200 all kept, 202 some failed or with warnings, 409 none kept."""
        body: Item = {}
        studies = self._studies | ({study} if study is not None and self._referenced else set())
        if len(studies) == 1:
            body["00081190"] = _value("UR", urls.address(datastore, *studies))
        if self._failed:
            body["00081198"] = {"vr": "SQ", "Value": self._failed}
        if self._referenced:
            body["00081199"] = {"vr": "SQ", "Value": self._referenced}
        status = 409 if not self._referenced else 202 if self._failed or self._warned else 200
        return Response(msgspec.json.encode(body), status=status, content_type=DICOM_JSON)


def _item(sop_class_uid: str, sop_instance_uid: str) -> Item:
    return {"00081150": _value("UI", sop_class_uid), "00081155": _value("UI", sop_instance_uid)}


def _value(vr: str, text: str) -> dict[str, Any]:
    return {"vr": vr, "Value": [text]} if text else {"vr": vr}


def _comment(text: str) -> Item:
    return {"00000902": {"vr": "LO", "Value": [text[:_COMMENT_CHARACTERS]]}}


def _finding(finding: Finding) -> Item:
    tag = finding.tag.upper()
    known = len(tag) == 8 and set(tag) <= set("0123456789ABCDEF")
    offending: Item = {"00000901": {"vr": "AT", "Value": [tag]}} if known else {}
    return {**offending, **_comment(f"{tag} {finding.text}".strip())}
