"""What the conformance statement says, taken from the tables the code works by.

Source: PS3.2 (2021e and later: annex N), PS3.18 annex on conformance.
"""

from __future__ import annotations

from typing import Any

from pydicom.uid import UID

from archive import __version__
from archive.access import roles
from archive.access.permissions import Permission
from archive.cli import statement_modality
from archive.config import Config
from archive.dicom import charsets, transcode, workitem
from archive.dicom.attributes import ATTRIBUTES
from archive.dicom.decode import DECODABLE
from archive.dimse import contexts, models, pdus, status, tls
from archive.dimse import permissions as dimse_permissions
from archive.web import permissions, problems
from archive.web.api import ROUTES, RULES
from archive.web.dicomweb import capabilities, choices, media, routes, stow

Row = dict[str, Any]



def of(config: Config) -> dict[str, Any]:
    """Return the whole statement as plain values."""
    return {
        "implementation": {
            "name": "Strongroom", "version": __version__, "implementation_class_uid": pdus.IMPLEMENTATION_CLASS_UID,
            "implementation_version_name": pdus.IMPLEMENTATION_VERSION_NAME,
        },
        "network": _network(config),
        "sop_classes": {"services": _services(), "storage": _named(contexts.STORAGE_CLASSES, _storage_note(config))},
        "transfer_syntaxes": {
            "storage": _named(contexts.TRANSFER_SYNTAXES), "queries": _named(contexts.IDENTIFIERS), "verification": _named(contexts.NATIVE),
        },
        "statuses": _statuses(),
        "query_attributes": _attributes(),
        "character_sets": character_sets(),
        "web": {
            "services": _web(), "choices": [{"question": asked, "answer": here} for asked, here in choices.CHOICES],
            "api": _api(), "frame_media_types": _frames(), "statuses": _problems(), "store_failure_reasons": _reasons(),
        },
        "workitems": _workitems(), "modality": statement_modality.of(config), "errors": _by_service(),
        "security": _security(config),
    }


def _network(config: Config) -> Row:
    dimse = config.dimse
    listeners: list[Row] = []
    if dimse.tls.enabled:
        listeners.append({"kind": "TLS", "host": dimse.tls.host, "port": dimse.tls.port, "peers": "by the certificate bound to them"})
    if dimse.plain.enabled:
        listeners.append(
            {"kind": "plain", "host": dimse.plain.host, "port": dimse.plain.port, "peers": "in " + ", ".join(dimse.plain.networks)}
        )
    return {
        "ae_title": dimse.ae_title, "aliases": list(dimse.aliases), "called_ae_checked": dimse.called_ae_strict, "listeners": listeners,
        "maximum_pdu_bytes": dimse.max_pdu_bytes, "maximum_data_set_bytes": dimse.max_dataset_bytes,
        "maximum_associations": dimse.max_associations, "maximum_associations_per_peer": dimse.max_associations_per_peer,
        "association_request_timeout_s": dimse.request_timeout_s, "idle_timeout_s": dimse.idle_timeout_s,
        "asynchronous_operations": "one operation at a time",
        "extended_negotiation": "relational queries and retrieves, fuzzy person names, timezone query adjustment; SCP/SCU role selection",
        "application_context_name": "1.2.840.10008.3.1.1.1",
    }


def _storage_note(config: Config) -> str:
    return "private SOP classes too" if config.dimse.private_sop_classes else ""


def _services() -> list[Row]:
    rows = []
    for uid in (contexts.VERIFICATION, *sorted(models.SERVED, key=_order)):
        found = list(dimse_permissions.of(uid))
        names = [one.name for one in found] + (["N-EVENT-REPORT"] if uid == models.COMMITMENT else [])
        role = "SCP and SCU: " if uid == contexts.VERIFICATION else "SCP: "
        rows.append({
            "uid": uid, "name": UID(uid).name, "role": role + ", ".join(names), "needs": "; ".join(dict.fromkeys(map(_asks, found))),
        })
    return rows


def _asks(operation: dimse_permissions.Operation) -> str:
    asked = _bits(operation.need)
    if operation.to_itself:
        asked += f", to itself {_bits(operation.to_itself)}"
    if operation.of_destination:
        asked += f"; {_bits(operation.of_destination)} of the destination"
    if operation.of_objects:
        asked += f"; {_bits(operation.of_objects)} or having stored it for each instance"
    return asked


def _bits(need: Permission) -> str:
    return ", ".join(roles.names(need))


def _named(uids: frozenset[str], note: str = "") -> list[Row]:
    rows = [{"uid": uid, "name": UID(uid).name, "retired": UID(uid).is_retired} for uid in sorted(uids, key=_order)]
    return [*rows, {"uid": "", "name": note, "retired": False}] if note else rows


def _order(uid: str) -> list[int]:
    return [int(part) for part in uid.split(".")]


def _statuses() -> list[Row]:
    found: dict[int, list[str]] = {}
    for answer in status.ERRORS.values():
        if answer.comment not in found.setdefault(answer.status, []):
            found[answer.status].append(answer.comment)
    for code, text in (
        (status.SUCCESS, "success"), (status.PENDING, "pending"), (status.PENDING_UNSUPPORTED_KEY, "pending; a key is not supported"),
        (status.CANCELLED, "cancelled by the SCU"), (status.DESTINATION_UNKNOWN, "C-MOVE destination unknown"),
        (status.SOME_FAILED, "C-GET, C-MOVE: some sub-operations failed; C-STORE: stored with a warning"),
        (status.CANNOT_COUNT, "out of resources: matches cannot be counted"),
        (status.CANNOT_PERFORM, "out of resources: sub-operations cannot be performed"),
        (status.UNRECOGNISED_OPERATION, "operation not recognised"),
    ):
        found.setdefault(code, []).insert(0, text)
    return [{"status": f"0x{code:04X}", "meaning": "; ".join(text for text in texts if text)} for code, texts in sorted(found.items())]


def _by_service() -> list[Row]:
    """Return what each DIMSE operation may answer besides success."""
    tables: dict[str, dict[int, set[str]]] = {}
    for answer in (*status.ERRORS.values(), *status.REASONS.values(), *status.OUTCOMES.values()):
        if answer.status != status.SUCCESS:
            tables.setdefault("C-STORE", {}).setdefault(answer.status, set()).add(answer.comment)
    found = tables["C-STORE"]
    common = {
        code: found[code] for code in (status.NOT_AUTHORISED, status.PROCESSING_FAILURE, status.OUT_OF_RESOURCES) if code in found
    }
    unique = {status.IDENTIFIER_DOES_NOT_MATCH: {"level, unique keys or a value do not fit the SOP class"}}
    cancelled = {status.CANCELLED: {"cancelled by the SCU"}}
    sub = {
        status.SOME_FAILED: {"some sub-operations failed or warned"}, status.CANNOT_COUNT: {"more instances than can be counted"},
        status.CANNOT_PERFORM: {"no sub-operation succeeded, or none can be performed"},
    }
    tables["C-FIND"] = {**common, **unique, **cancelled, status.PENDING_UNSUPPORTED_KEY: {"pending; a key is not supported"}}
    tables["C-GET"] = {**common, **unique, **cancelled, **sub}
    tables["C-MOVE"] = {**tables["C-GET"], status.DESTINATION_UNKNOWN: {"destination unknown"}}
    return [
        {"service": service, "status": f"0x{code:04X}", "meaning": "; ".join(sorted(text for text in texts if text))}
        for service in ("C-STORE", "C-FIND", "C-GET", "C-MOVE") for code, texts in sorted(tables[service].items())
    ]


def _attributes() -> list[Row]:
    return [
        {
            "tag": f"({one.tag_hex[:4]},{one.tag_hex[4:]})", "keyword": one.keyword, "vr": one.vr, "level": one.level.value,
            "returned_unasked": one.returned, "without_case_and_accents": one.folded, "computed": one.computed,
        }
        for one in ATTRIBUTES
    ]


def character_sets() -> list[str]:
    """Return the defined terms that are read."""
    return charsets.terms()


def _web() -> list[Row]:
    rows = []
    for method, path, endpoint, _view in routes.ROUTES:
        need = _needs(permissions.rule_of(f"dicomweb.{endpoint}"))
        rows.append({
            "method": method, "path": "/dicomweb" + path.replace("<", "{").replace(">", "}").replace("path:", ""), "needs": need,
            "takes": list(capabilities.taken(endpoint)), "answers": list(capabilities.answered(endpoint)),
        })
    return rows


def _api() -> list[Row]:
    return [
        {"method": method, "path": "/api" + path.replace("<", "{").replace(">", "}"), "needs": _needs(RULES[f"api.{name}"])}
        for method, path, name, _view in ROUTES
    ]


def _needs(rule: permissions.Rule | None) -> str:
    return "" if rule is None else _bits(rule.need)


def _frames() -> list[Row]:
    return [
        {
            "transfer_syntax": uid, "media_type": kind, "decoded": uid in DECODABLE, "encoded": uid in transcode.ENCODERS,
            "frames_encoded_with_loss": uid in transcode.LOSSY,
        }
        for uid, kind in sorted(media.FRAME_TYPES.items(), key=lambda one: _order(one[0]))
    ]


def _problems() -> list[Row]:
    found: dict[int, list[str]] = {}
    for kind, line in problems.TABLE.items():
        found.setdefault(int(line.status), []).append(kind.code)
    return [{"status": code, "codes": sorted(set(codes))} for code, codes in sorted(found.items())]


def _reasons() -> list[Row]:
    table = {
        "conflict": stow.CONFLICT, "wrong-study": stow.WRONG_STUDY, "bad-uid": stow.BAD_UID, "cannot-understand": stow.CANNOT_UNDERSTAND,
        "not-permitted": stow.NOT_PERMITTED, "out-of-space": stow.OUT_OF_SPACE, "unsupported-class": stow.UNSUPPORTED_CLASS,
        "processing-failure": stow.PROCESSING_FAILURE,
    }
    return [{"reason": name, "code": code} for name, code in sorted(table.items(), key=lambda one: one[1])]


def _workitems() -> Row:
    def names(tags: Any) -> list[str]:
        from pydicom.datadict import keyword_for_tag

        return [keyword_for_tag(int(tag, 16)) or tag for tag in tags]

    return {
        "required_at_creation": names(workitem.REQUIRED), "added_when_absent": names(workitem.PRESENT), "never_updated": names(
            sorted(workitem.FIXED)), "required_to_complete": [*names(workitem.PERFORMED_WITH_VALUE), *names([workitem.OUTPUT])],
        "warnings": [{"status": f"0x{code:04X}", "text": text} for code, text in sorted(workitem.WARNINGS.items())],
        "events": ["UPS State Report", "UPS Cancel Requested", "UPS Progress Report", "UPS Assigned"],
    }


def _security(config: Config) -> Row:
    return {
        "dimse": f"BCP 195 (RFC 9325): TLS 1.2 and 1.3, {tls.CIPHERS}, certificates on both sides",
        "web": {"built-in": "TLS 1.3, certificate of the archive's own authority", "files": "TLS 1.3, certificate of the operator's",
                "off": "none: behind a proxy or on loopback"}[config.http.tls],
        "user_identity": "DICOMweb: Bearer or Basic with an API token, or the browser's session; DIMSE: the peer's certificate, and the "
                         "user it proves by user identity negotiation (2: password, 5: JWT or API token), over TLS",
        "audit": "each access, before its answer, in a signed ledger; told over TLS syslog where configured: Audit Trail Message Format "
                 "Profile (PS3.15 A.5) and Audit Trail Message Transmission Profile - SYSLOG-TLS (A.6)",
    }
