"""Events of the ledger as DICOM audit messages, for a collector outside.

Several events that say the same of one study, such as the instances of a series arriving one by one, become one message with their
count. Every message names the leaves of the ledger it stands for, so that a collector's copy can be held against the log.

Source: PS3.15 A.5 (message format), A.5.3 (which participants), PS3.16 CID 400-405 (codes).
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from xml.etree import ElementTree as ET

import msgspec

from archive.keys.sealing import format_instant
from archive.ledger.audit import KINDS, Kind

DCM, RFC = "DCM", "RFC-3881"
MEANINGS = {
    "110100": "Application Activity", "110101": "Audit Log Used", "110103": "DICOM Instances Accessed",
    "110104": "DICOM Instances Transferred", "110105": "DICOM Study Deleted", "110106": "Export", "110107": "Import",
    "110108": "Network Entry", "110109": "Order Record", "110110": "Patient Record", "110111": "Procedure Record", "110112": "Query",
    "110113": "Security Alert", "110114": "User Authentication", "110120": "Application Start", "110121": "Application Stop",
    "110122": "Login", "110123": "Logout", "110124": "Attach", "110126": "Node Authentication", "110127": "Emergency Override Started",
    "110128": "Network Configuration", "110129": "Security Configuration", "110132": "Use of Restricted Function",
    "110135": "Object Security Attributes Changed", "110136": "Security Roles Changed", "110137": "User Security Attributes Changed",
    "110138": "Emergency Override Stopped", "110141": "Local Service Operation Started", "110147": "Access Control Decision",
    "110150": "Application", "110151": "Application Launcher", "110152": "Destination Role ID", "110153": "Source Role ID",
    "110037": "URI", "110154": "Destination Media", "110155": "Source Media", "110180": "Study Instance UID", "110181": "SOP Class UID",
    "112002": "Series Instance UID",
}
"""Code -> its meaning in PS3.16."""

_ARRIVING = frozenset({Kind.STORED, Kind.DUPLICATE, Kind.HELD, Kind.CONFLICT, Kind.QUARANTINED, Kind.REPLAYED, Kind.IMPORTED})
_TYPES = {"110108": "110124", "110113": "110132"}
"""The event type of events that have none, where the standard asks for one."""
_ROLES = {
    "110100": ("110151", "110150"), "110104": ("110152", "110153"), "110106": ("110153", "110153"), "110107": ("110152", "110152"),
    "110112": ("110153", "110152"),
}
"""Event -> the role of whoever asked and the role of the archive."""
_MEDIA = {"110106": "110154", "110107": "110155"}
_WITH_STUDIES = frozenset({"110103", "110104", "110105", "110106", "110107", "110110", "110111", "110112", "110113"})
# What XML 1.0 cannot say.
_UNSPEAKABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_OBJECTS_A_MESSAGE = 64


@dataclass(frozen=True, slots=True)
class Occurrence:
    """An event to tell, or several that say the same: `first` and `last` are leaves of the ledger."""

    first: int
    last: int
    at: datetime
    kind: Kind
    outcome: int
    body: dict[str, Any]
    """What `audit.body_of` wrote; empty where it was erased."""
    instances: int
    times: int = 1


@dataclass(frozen=True, slots=True)
class Source:
    """Who tells."""

    name: str
    site: str
    archive_uuid: str
    ae_title: str
    patients: bool
    """False: patients, studies and series stand there as the pseudonyms of the ledger, and questions not at all."""
    pseudonym: Callable[[str, str], bytes]
    """Kind of object and its value -> what stands for it in the ledger."""


def occurrence(n: int, at: datetime, kind: str, outcome: int, instances: int, body: dict[str, Any]) -> Occurrence:
    """Return an event of the audit log as something to tell; one whose kind was changed into none is what its body says, or an alert."""
    known = KINDS.get(kind) or KINDS.get(str(body.get("kind")), Kind.ALERT)
    return Occurrence(n, n, at, known, outcome, body, instances)


def together(events: Iterable[Occurrence]) -> Iterator[Occurrence]:
    """Yield events in the order of their last leaf, arrivals of one study by one way as one."""
    waiting: dict[Any, Occurrence] = {}
    rest: list[Occurrence] = []
    for one in events:
        if one.kind not in _ARRIVING or one.outcome or not one.body:
            rest.append(one)
            continue
        who = one.body.get("subject") or {}
        studies = [value for kind, value in one.body.get("objects", []) if kind == "study"]
        key = (one.kind, msgspec.json.encode([who, studies], order="sorted"))
        before = waiting.get(key)
        waiting[key] = one if before is None else replace(
            before, last=one.last, at=one.at, instances=before.instances + one.instances, times=before.times + one.times
        )
    yield from sorted([*waiting.values(), *rest], key=lambda one: one.last)


def message(one: Occurrence, source: Source) -> bytes:
    """Return the XML of one audit message, without a declaration, in UTF-8."""
    root = ET.Element("AuditMessage")
    event_id, _, type_code = one.kind.event.partition("/")
    event = ET.SubElement(root, "EventIdentification", {
        "EventActionCode": one.kind.action, "EventDateTime": format_instant(one.at), "EventOutcomeIndicator": str(one.outcome),
    })
    _code(event, "EventID", event_id)
    if type_code or event_id in _TYPES:
        _code(event, "EventTypeCode", type_code or _TYPES[event_id])
    if one.outcome:
        reason = one.body.get("detail", {}).get("reason") if source.patients else None
        ET.SubElement(event, "EventOutcomeDescription").text = _text(reason or one.kind.label)
    _participants(root, one, source, event_id)
    sender = ET.SubElement(root, "AuditSourceIdentification", {"AuditSourceID": _text(source.name)})
    if source.site:
        sender.set("AuditEnterpriseSiteID", _text(source.site))
    ET.SubElement(sender, "AuditSourceTypeCode", {"csd-code": "4"})
    if event_id in _WITH_STUDIES:
        _objects(root, one, source)
    if one.kind is Kind.SEARCHED and source.patients:
        _question(root, one)
    if one.kind is Kind.AUDIT_READ:
        _object(root, f"urn:uuid:{source.archive_uuid}", ("12", RFC, "URI"), kind="2", role="13", name="Security Audit Log")
    _leaves(root, one, source)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=False)
    return written


def _participants(root: ET.Element, one: Occurrence, source: Source, event_id: str) -> None:
    theirs, ours = _ROLES.get(event_id, ("", ""))
    if one.kind in _ARRIVING and event_id == "110104":
        theirs, ours = ours, theirs
    who = one.body.get("subject") or {}
    if who:
        attributes = {"UserID": _text(who.get("name") or f"principal {who.get('principal')}"), "UserIsRequestor": "true"}
        if who.get("operator"):
            attributes["AlternativeUserID"] = _text(who["operator"])
        attributes |= _access_point(str(who.get("address") or ""))
        asked = ET.SubElement(root, "ActiveParticipant", attributes)
        if theirs:
            _code(asked, "RoleIDCode", theirs)
    archive = ET.SubElement(root, "ActiveParticipant", {
        "UserID": _text(source.name), "AlternativeUserID": f"AETITLES={_text(source.ae_title)}",
        "UserIsRequestor": "false" if who else "true",
    })
    if ours:
        _code(archive, "RoleIDCode", ours)
    if event_id in _MEDIA:
        medium = ET.SubElement(root, "ActiveParticipant", {"UserID": "file", "UserIsRequestor": "false"})
        _code(medium, "RoleIDCode", _MEDIA[event_id])
        _code(ET.SubElement(medium, "MediaIdentifier"), "MediaType", "110037")


def _access_point(address: str) -> dict[str, str]:
    if not address:
        return {}
    host = address.rpartition(":")[0].strip("[]") if address.count(":") == 1 or address.startswith("[") else address
    try:
        return {"NetworkAccessPointID": str(ipaddress.ip_address(host)), "NetworkAccessPointTypeCode": "2"}
    except ValueError:
        return {"NetworkAccessPointID": _text(address), "NetworkAccessPointTypeCode": "1"}


def _objects(root: ET.Element, one: Occurrence, source: Source) -> None:
    objects = [(str(kind), str(value)) for kind, value in one.body.get("objects", [])]
    studies = sum(kind == "study" for kind, _ in objects)
    for kind, value in objects[:_OBJECTS_A_MESSAGE]:
        shown = value if source.patients else source.pseudonym(kind, value).hex()
        if kind == "patient":
            _object(root, shown, ("2", RFC, "Patient Number"), kind="1", role="1")
        elif kind == "study":
            made = _object(root, shown, ("110180", DCM, MEANINGS["110180"]), kind="2", role="3")
            if one.instances and studies == 1:
                described = ET.SubElement(made, "ParticipantObjectDescription")
                ET.SubElement(described, "SOPClass", {"NumberOfInstances": str(one.instances)})
        else:
            _object(root, shown, ("112002", DCM, MEANINGS["112002"]), kind="2", role="3")


def _question(root: ET.Element, one: Occurrence) -> None:
    """Name what was asked for (A.5.3.10)."""
    made = ET.SubElement(root, "ParticipantObjectIdentification", {
        "ParticipantObjectID": "query", "ParticipantObjectTypeCode": "2", "ParticipantObjectTypeCodeRole": "24",
    })
    ET.SubElement(made, "ParticipantObjectIDTypeCode", {"csd-code": "10", "codeSystemName": RFC, "originalText": "Search Criteria"})
    said = msgspec.json.encode(one.body.get("detail") or {}, order="sorted")
    ET.SubElement(made, "ParticipantObjectQuery").text = base64.b64encode(said).decode()
    _detail(made, "QueryEncoding", "UTF-8")


def _leaves(root: ET.Element, one: Occurrence, source: Source) -> None:
    """Say where in the ledger it stands: an extension of ours, as A.5 allows."""
    place = f"{one.first}" if one.first == one.last else f"{one.first}-{one.last}"
    made = _object(
        root, f"urn:uuid:{source.archive_uuid}#{place}", ("12", RFC, "URI"), kind="2", role="13", name="strongroom ledger"
    )
    _detail(made, "kind", one.kind.label)
    if one.times > 1:
        _detail(made, "events", str(one.times))
    if source.patients or one.kind is Kind.ALERT:
        said = one.body.get("detail")
        if said and one.kind is not Kind.SEARCHED:
            named = "Alert Description" if one.kind.event.startswith("110113") else "detail"
            _detail(made, named, msgspec.json.encode(said, order="sorted"))


def _object(root: ET.Element, value: str, code: tuple[str, str, str], *, kind: str, role: str, name: str = "") -> ET.Element:
    made = ET.SubElement(root, "ParticipantObjectIdentification", {
        "ParticipantObjectID": _text(value), "ParticipantObjectTypeCode": kind, "ParticipantObjectTypeCodeRole": role,
    })
    number, system, meaning = code
    ET.SubElement(made, "ParticipantObjectIDTypeCode", {"csd-code": number, "codeSystemName": system, "originalText": meaning})
    ET.SubElement(made, "ParticipantObjectName").text = name  # asked for by the schema, empty where there is no name
    return made


def _detail(parent: ET.Element, name: str, value: str | bytes) -> None:
    data = value.encode() if isinstance(value, str) else value
    ET.SubElement(parent, "ParticipantObjectDetail", {"type": name, "value": base64.b64encode(data).decode()})


def _code(parent: ET.Element, name: str, code: str) -> None:
    ET.SubElement(parent, name, {"csd-code": code, "codeSystemName": DCM, "originalText": MEANINGS[code]})


def _text(value: object) -> str:
    return _UNSPEAKABLE.sub("?", str(value))
