"""What is settled for one peer because its device cannot be told otherwise: character set, strictness, what it is offered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from archive.dicom import registry
from archive.dicom.charsets import repertoire
from archive.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """The settings of one peer; None means as the configuration has it."""

    character_set: str = ""
    """(0008,0005) of what it sends or asks without one."""
    called_ae_strict: bool | None = None
    private_sop_classes: bool | None = None
    relational: bool = False
    """Its queries and retrieves need not follow the hierarchy, negotiated or not."""
    commitment_same_association: bool = False
    modality_without_tls: bool = False
    """Without TLS it may ask for its worklist, report procedure steps and ask for commitment, as its role says."""
    whole_worklist: bool = False
    """It sees what is scheduled for other stations too."""
    transfer_syntaxes: tuple[str, ...] = ()
    """What its instances are taken in, the preferred first; none: everything, as it prefers."""

    @classmethod
    def of(cls, row: Any) -> PeerSettings:
        """Return the settings in a row of table peer."""
        found = row if isinstance(row, Mapping) else row._mapping  # noqa: SLF001 # SQLAlchemy's public name
        values = {one.name: found[one.name] for one in fields(cls)}
        values["transfer_syntaxes"] = tuple(uid for uid in values["transfer_syntaxes"].split("\\") if uid)
        return cls(**values)

    def shown(self) -> dict[str, Any]:
        """Return them as lists and events name them."""
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"transfer_syntaxes": list(self.transfer_syntaxes)}

    def changed(self, changes: Mapping[str, Any]) -> PeerSettings:
        """Return them with some values replaced, each checked.

        Raises:
            InvalidRequest.
        """
        known = {one.name for one in fields(self)}
        if not changes.keys() <= known:
            message = "there is no such setting of a peer"
            raise InvalidRequest(message, remedy="'archive peer set --help' lists them")
        values = {name: getattr(self, name) for name in known} | dict(changes)
        values["character_set"] = _character_set(values["character_set"])
        values["transfer_syntaxes"] = _syntaxes(values["transfer_syntaxes"])
        return PeerSettings(**values)

    def values(self) -> dict[str, Any]:
        """Return the columns of table peer."""
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"transfer_syntaxes": "\\".join(self.transfer_syntaxes)}


DEFAULTS = PeerSettings().shown()


def _character_set(text: str) -> str:
    """Check a value of (0008,0005); spelt as the standard spells it."""
    text = text.strip()
    if not text:
        return ""
    # One term without a prefix, or several with an empty first, are as the standard has them.
    faults = repertoire(text.encode("ascii", "replace")).faults
    if faults or len(text) > 80 or not text.strip("\\"):
        message = "that is no character set of the standard"
        raise InvalidRequest(message, remedy=r"for example ISO_IR 100, ISO_IR 192, GB18030, or '\ISO 2022 IR 87'")
    return text


def _syntaxes(wanted: Sequence[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(uid.strip() for uid in wanted if uid.strip()))
    if any(registry.UIDS.get(uid, ("", ""))[1] != "Transfer Syntax" for uid in found):
        message = "that is no transfer syntax of the standard"
        raise InvalidRequest(message, remedy="name them by UID, for example 1.2.840.10008.1.2.1")
    return found
