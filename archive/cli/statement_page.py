"""The conformance statement as a page of Markdown."""

from __future__ import annotations

from typing import Any

from pydicom.uid import UID

Row = dict[str, Any]
_MADE = (
    "Made by `archive conformance` from the tables the code works by (PS3.2). This page is of a configuration in which nothing is "
    "changed; the command prints that of yours."
)
_STORAGE = (
    "SCP of these, and SCU of them for C-GET and C-MOVE. What a peer may do of it is decided by its roles and grants; what it may not do "
    "is rejected when the association is opened (result 1, user rejection)."
)
_QUERIES = (
    "Keys of C-FIND and QIDO-RS, matched by the one matcher of both: single value, wild card, list of UIDs, range, universal, empty value "
    '(`""`), keys in sequences; numbers by their value, however they are written; several values (AE, AS, CS, LO, SH, IS, UC) with '
    "backslashes between them, of codes in QIDO-RS with commas too, of which any may fit. "
    "A date and time (DT) with an offset from UTC is matched by the instant with those that have one, of their own or of their data set "
    "(0008,0201), and with all others as written. The offset of a data set is the one that is kept of its study, that of the instance "
    "which came first. "
    "TimezoneOffsetFromUTC in a query is never matched: it says where the clock of whoever asks hangs. Times (TM), dates (DA) whose times "
    "are asked about too, and dates and times (DT) without an offset of their own are then matched by what that clock showed, of data "
    "sets without an offset as written; so it is with a worklist query. Answers are as stored, with their own offset. "
    "A = answered unasked, F = without regard to case and accents, C = computed, never stored."
)
_FRAMES = (
    "Of every other transfer syntax: application/octet-stream. Frames that are not asked for as stored are decoded to Explicit VR Little "
    "Endian, or encoded without loss in the media type asked for, in its own transfer syntax where none is named; with loss by name alone, "
    "in 8 bits, and single frames only. Whole instances too are encoded without loss, for retrieves, C-GET, C-MOVE and forwarding; "
    "encapsulated icons (0088,0200) are decoded in these up to 8 MiB together; other encapsulated data than their pixel data, and bytes "
    "behind the data set, are left out. What has no decoder, would lose pixels, has another number of frames than NumberOfFrames says, or "
    "is encapsulated in an uncompressed transfer syntax answers 406 with the reason; as stored it can be had always."
)
_KEPT = "The proposer's first that is in the list is accepted, and instances are kept as they come."
_WORKLIST = (
    "SCP of C-FIND. Every attribute of an entry is a key and is answered, matched as in C-FIND of instances, in the sequence of the step "
    "too; those below have a place of their own. Entries that are {states} are answered; a device sees those for its own AE titles or for "
    "none."
)
_STEPS = (
    "SCP of N-CREATE and N-SET. Every attribute with text, numbers or sequences is kept; those below are checked. A step is changed only "
    "by the device that began it."
)
_COMMITMENT = (
    "SCP, push model, well-known instance, action 1, events 1 (successful) and 2 (failures exist). Each instance is read to its end, its "
    "SHA-256 and signature checked before it is committed. The report comes on a new association with role selection, or on the same one "
    "where a peer is set so, and is tried again until it is taken. The same request again is looked at again, and so is one whose report "
    "waits when something of it is gone."
)
_FORWARDING = (
    "SCU of C-STORE to registered peers with an address, over TLS only to the holder of the certificate bound to the peer; each SOP class "
    "is proposed as stored, uncompressed and in what can be encoded."
)
_UPS = "What a state does not allow is answered 409 with a Warning header; a warning of success comes with 200, 201 or 202."


def markdown(made: Row) -> str:
    """Return the statement as a page."""
    parts = [*_network(made), *_storage(made), *_queries(made), *modality(made["modality"]), *_web(made["web"]),
             *_workitems(made["workitems"]), "## Security",
             _pairs({name.replace("_", " "): _said(value) for name, value in made["security"].items()})]
    return "\n\n".join(part for part in parts if part) + "\n"


def _network(made: Row) -> list[str]:
    network, known = made["network"], made["implementation"]
    return [
        "# DICOM Conformance Statement",
        _MADE,
        "## Implementation",
        _pairs({
            "Product": f"{known['name']} {known['version']}", "Implementation Class UID": known["implementation_class_uid"],
            "Implementation Version Name": known["implementation_version_name"],
        }),
        "## Network",
        _pairs({name.replace("_", " "): _said(value) for name, value in network.items() if name != "listeners"}),
        _table(["listener", "host", "port", "peers"], _cells(network["listeners"], "kind", "host", "port", "peers")),
        "## Services",
        _table(["SOP class", "UID", "role", "needs"], _cells(made["sop_classes"]["services"], "name", "uid", "role", "needs")),
    ]


def _storage(made: Row) -> list[str]:
    syntaxes = made["transfer_syntaxes"]
    queries, verification = (", ".join(one["name"] for one in syntaxes[name]) for name in ("queries", "verification"))
    return [
        "## Storage", _STORAGE, _table(["SOP class", "UID", ""], _retired(made["sop_classes"]["storage"])),
        "### Transfer syntaxes",
        f"{_KEPT} Queries and retrieves: {queries}. Verification: {verification}.",
        _table(["transfer syntax", "UID", ""], _retired(syntaxes["storage"])),
        "### Statuses", _table(["status", "meaning"], _cells(made["statuses"], "status", "meaning")),
        "### Statuses by operation", _table(["operation", "status", "meaning"], _cells(made["errors"], "service", "status", "meaning")),
    ]


def _queries(made: Row) -> list[str]:
    letters = (("A", "returned_unasked"), ("F", "without_case_and_accents"), ("C", "computed"))
    rows = [
        [one["keyword"], one["tag"], one["vr"], one["level"], "".join(letter for letter, name in letters if one[name])]
        for one in made["query_attributes"]
    ]
    return [
        "## Query attributes", _QUERIES, _table(["attribute", "tag", "VR", "level", ""], rows),
        "### Character sets", ", ".join(f"`{one}`" for one in made["character_sets"]) + ". DICOMweb answers are UTF-8.",
    ]


def _web(web: Row) -> list[str]:
    return [
        "## DICOMweb",
        "Each path also under `/datastores/{datastore}/dicomweb`. What the caller may not see answers as what is not there.",
        _table(["method", "path", "needs", "takes", "answers"], [
            [one["method"], f"`{one['path']}`", one["needs"], ", ".join(one["takes"]), ", ".join(one["answers"])] for one in web["services"]
        ]),
        "### Where servers differ", _table(["", "here"], _cells(web["choices"], "question", "answer")),
        "### Beside DICOMweb",
        _table(["method", "path", "needs"], [[one["method"], f"`{one['path']}`", one["needs"]] for one in web["api"]]),
        "### Media types of stored frames", _FRAMES,
        _table(["transfer syntax", "media type", "decoded", "encoded"], [
            [UID(one["transfer_syntax"]).name, one["media_type"], "yes" if one["decoded"] else "",
             "yes" if one["encoded"] else "frames, with loss" if one["frames_encoded_with_loss"] else ""]
            for one in web["frame_media_types"]
        ]),
        "### Statuses of refused requests",
        _table(["status", "codes of application/problem+json"], [[one["status"], ", ".join(one["codes"])] for one in web["statuses"]]),
        "### Failure reasons of STOW-RS", _table(["code", "reason"], _cells(web["store_failure_reasons"], "code", "reason")),
    ]


def _workitems(items: Row) -> list[str]:
    return [
        "## Unified Procedure Step (UPS-RS)",
        _pairs({name.replace("_", " "): ", ".join(found) for name, found in items.items() if name != "warnings"}),
        _UPS, _table(["status", "text"], _cells(items["warnings"], "status", "text")),
    ]


def modality(made: Row) -> list[str]:
    """Return the sections of worklist, procedure steps, commitment and forwarding."""
    entries, steps, commitment, forwarding = (made[name] for name in ("worklist", "procedure_steps", "commitment", "forwarding"))
    codes = ("status", "meaning")
    return [
        "## Modality Worklist", _WORKLIST.format(states=", ".join(entries["states"])),
        _table(["attribute", "tag", "VR", "in", "of an entry", "narrows"], _cells(
            entries["attributes"], "keyword", "tag", "vr", "of", "entry", "narrowed")),
        "## Modality Performed Procedure Step", _STEPS,
        _table(["attribute", "tag", "VR", "N-CREATE", "N-SET"], _cells(steps["attributes"], "keyword", "tag", "vr", "create", "set")),
        _table(["status", "meaning"], _cells(steps["statuses"], *codes)),
        "## Storage Commitment", _COMMITMENT,
        _table(["attribute", "tag", "VR", "in", "message"], _cells(commitment["attributes"], "keyword", "tag", "vr", "of", "message")),
        _table(["status of N-ACTION", "meaning"], _cells(commitment["statuses"], *codes)),
        _table(["Failure Reason", "meaning"], _cells(commitment["failure_reasons"], *codes)),
        _pairs({name: _said(value) for name, value in commitment["limits"].items()}),
        "## Forwarding", _FORWARDING, _table(["answer to C-STORE", "what it means here"], _cells(forwarding["statuses"], *codes)),
        _pairs({name: _said(value) for name, value in forwarding["limits"].items()}),
    ]


def _retired(rows: list[Row]) -> list[list[Any]]:
    return [[one["name"], one["uid"], "retired" if one["retired"] else ""] for one in rows]


def _cells(rows: list[Row], *names: str) -> list[list[Any]]:
    return [[one[name] for name in names] for one in rows]


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(one) for one in value) or "none"
    return str(value)


def _pairs(found: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in found.items())


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
