"""Addresses in answers, and UIDs in addresses.

Addresses start with `archive.public_url`: clients are seen to send Host without its port.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from archive.config import Config
from archive.errors import InvalidRequest
from archive.web.context import archive

DEFAULT_DATASTORE = "clinical"

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_CHARACTERS = 64


def base(datastore: str, config: Config | None = None) -> str:
    """Return the absolute address of a datastore's DICOMweb service; without a request, `config` says what the archive is called."""
    root = (config or archive().config).archive.public_url.rstrip("/")
    return f"{root}/dicomweb" if datastore == DEFAULT_DATASTORE else f"{root}/datastores/{quote(datastore, safe='')}/dicomweb"


def address(datastore: str, study: str, series: str | None = None, sop: str | None = None, *, config: Config | None = None) -> str:
    """Return the absolute address of a study, a series or an instance."""
    return below(base(datastore, config), study, series, sop)


def below(base: str, study: str, series: str | None = None, sop: str | None = None) -> str:
    """Return the address of a study, a series or an instance below that of its datastore's service."""
    parts = [base, "studies", study]
    if series is not None:
        parts += ["series", series]
    if sop is not None:
        parts += ["instances", sop]
    return "/".join(parts)


def is_uid(text: str) -> bool:
    """Return whether `text` is a UID as the archive keeps them."""
    return len(text) <= _UID_CHARACTERS and _UID.fullmatch(text) is not None


def uid(text: str) -> str:
    """Return a UID from a path without its padding.

    Raises:
        InvalidRequest: it is none.
    """
    stripped = text.rstrip("\0 ")
    if not is_uid(stripped):
        message = "a UID in the address is malformed"
        raise InvalidRequest(message, remedy="a UID holds digits and single dots, at most 64 characters")
    return stripped


def optional_uid(text: str | None) -> str | None:
    """Return `uid(text)`, or None for None.

    Raises:
        InvalidRequest: it is none.
    """
    return uid(text) if text is not None else None
