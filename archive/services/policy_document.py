"""Policy as text: roles, groups, assignments, grants, and decisions that are expected of them, as one TOML document (docs/access.md).

A section that is not there stays as the archive has it; one that is empty (`grant = []`) says that there is none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from archive.access import roles
from archive.access.grants import Level, Target
from archive.access.permissions import FUNCTION, OBJECT, Permission
from archive.db.types import FOREVER
from archive.errors import InvalidRequest

FORMAT = 1
LONGEST = 4 << 20
At = Annotated[datetime, msgspec.Meta(tz=True)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the document: a key that is not known is refused."""


class Timed(Part, frozen=True, kw_only=True):
    """What counts for a time: without `from` since whenever it is given, without `until` for good."""

    since: At | None = msgspec.field(name="from", default=None)
    until: At | None = None


class RoleText(Part, frozen=True, kw_only=True):
    """[[role]]: one of the archive's own; or of those from the start, whose permissions are fixed, what it asks of sign-ins."""

    name: Name
    permissions: tuple[Name, ...] | None = None
    second_factor: bool = False
    idle_minutes: Annotated[int, msgspec.Meta(ge=0, le=527040)] = 0
    absolute_hours: Annotated[int, msgspec.Meta(ge=0, le=8784)] = 0

    def asks(self) -> dict[str, Any]:
        """Return what is asked of sign-ins, as the table keeps it."""
        return {"second_factor": self.second_factor, "idle_s": self.idle_minutes * 60, "max_session_s": self.absolute_hours * 3600}


class MemberText(Timed, frozen=True, kw_only=True):
    """[[group.member]]."""

    name: Name


class GroupText(Part, frozen=True, kw_only=True):
    """[[group]] with its members."""

    name: Name
    full_name: str = ""
    member: tuple[MemberText, ...] = ()


class AssignmentText(Timed, frozen=True, kw_only=True):
    """[[assignment]]: a role's function permissions."""

    to: Name
    role: Name


class _Aimed(Part, frozen=True, kw_only=True):
    """What is about a patient, a study or a series."""

    datastore: Name = "clinical"
    patient: Name | None = None
    issuer: str | None = None
    study: Name | None = None
    series: Name | None = None

    def aims(self) -> list[tuple[Level, str]]:
        """Return what is named."""
        named: tuple[tuple[Level, str | None], ...] = (("patient", self.patient), ("study", self.study), ("series", self.series))
        return [(level, value) for level, value in named if value is not None]


class GrantText(_Aimed, frozen=True, kw_only=True):
    """[[grant]]: a role's object permissions on something, allowed or denied."""

    since: At | None = msgspec.field(name="from", default=None)
    until: At | None = None
    to: Name
    role: Name
    effect: Literal["allow", "deny"] = "allow"
    everything: bool = False
    expected: bool = False
    modality: Annotated[str, msgspec.Meta(max_length=16)] = ""
    delegable: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0
    reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""

    def target(self) -> Target:
        """Return what it is about."""
        level, value = ("everything", "") if self.everything else self.aims()[0]
        return Target(level, value, issuer=self.issuer, expected=self.expected)  # type: ignore[arg-type]


class ExpectText(_Aimed, frozen=True, kw_only=True):
    """[[expect]]: what must come of it: of object permissions on a patient, study or series, or of function permissions."""

    subject: Name
    permission: tuple[Name, ...] | Name = ("search",)
    decision: Literal["allow", "deny"]
    at: At | None = None

    def permissions(self) -> Permission:
        """Return the bits that are asked about, all at once."""
        return roles.parse((self.permission,) if isinstance(self.permission, str) else self.permission)


class Document(Part, frozen=True, kw_only=True):
    """The whole text."""

    format: Literal[1]
    role: tuple[RoleText, ...] | None = None
    group: tuple[GroupText, ...] | None = None
    assignment: tuple[AssignmentText, ...] | None = None
    grant: tuple[GrantText, ...] | None = None
    expect: tuple[ExpectText, ...] = ()


def end_of(part: Timed | GrantText) -> datetime:
    """Return when it ends."""
    return FOREVER if part.until is None else part.until.astimezone(UTC)


def parse(text: str) -> Document:
    """Read a document.

    Raises:
        InvalidRequest: no TOML, a key that is not known, a value of the wrong kind, what cannot be meant.
    """
    if len(text) > LONGEST:
        message = "the policy is longer than 4 MiB"
        raise InvalidRequest(message, remedy="give grants to groups rather than to each")
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        message = f"the policy is not TOML: {str(error)[:200]}"
        raise InvalidRequest(message, remedy="mend that line; 'archive policy export' shows the form") from error
    try:
        found = msgspec.convert(raw, Document)
    except msgspec.ValidationError as error:
        message = f"the policy is not what is taken: {str(error)[:300]}"
        raise InvalidRequest(message, remedy="docs/access.md tells each key; 'archive policy export' shows the form") from error
    for number, wrong in _wrong(found):
        raise InvalidRequest(f"{wrong} {number}", remedy="docs/access.md tells each key")
    return found


def _wrong(found: Document) -> Iterator[tuple[str, str]]:
    for number, grant in enumerate(found.grant or (), 1):
        if len(grant.aims()) + grant.everything != 1:
            yield f"grant {number}", "one of everything, patient, study and series is to be named in"
        if grant.patient is None and (grant.expected or grant.issuer is not None):
            yield f"grant {number}", "issuer and expected are said of patients alone, unlike"
        if grant.since is not None and grant.since >= end_of(grant):
            yield f"grant {number}", "the end comes before the beginning in"
    for number, expected in enumerate(found.expect, 1):
        bits = expected.permissions()
        if (bits & FUNCTION and bits & OBJECT) or len(expected.aims()) != (1 if bits & OBJECT else 0):
            yield f"expectation {number}", "object permissions are of a patient, study or series, function permissions of none, unlike"
    yield from _twice(found)


def _twice(found: Document) -> Iterator[tuple[str, str]]:
    groups = found.group or ()
    members = [[one.name for one in group.member] for group in groups]
    for names in ([one.name for one in found.role or ()], [one.name for one in groups], *members):
        if len({name.lower() for name in names}) != len(names):
            yield "roles, groups or members", "a name stands twice among the"


def write(found: Document) -> str:
    """Return a document as text; read again it is the same."""
    empty = [f"{name} = []" for name in ("role", "group", "assignment", "grant") if getattr(found, name) == ()]
    lines = ["# The policy of a Strongroom archive; docs/access.md tells each key.", f"format = {FORMAT}", *empty]
    for name in ("role", "group", "assignment", "grant", "expect"):
        for part in getattr(found, name) or ():
            lines += ["", f"[[{name}]]", *_keys(part)]
            for member in getattr(part, "member", ()):
                lines += ["", "[[group.member]]", *_keys(member)]
    return "\n".join(lines) + "\n"


def _keys(part: Part) -> Iterator[str]:
    for one in msgspec.structs.fields(part):
        value = getattr(part, one.name)
        if one.name == "member" or (value == one.default and one.name != "permissions") or value is None:
            continue
        yield f"{one.encode_name} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    return '"' + "".join(_character(one) for one in value) + '"'


def _character(one: str) -> str:
    if one in '"\\':
        return "\\" + one
    return one if one.isprintable() else f"\\u{ord(one):04x}" if ord(one) < 0x10000 else f"\\U{ord(one):08x}"
