"""User identity negotiation (PS3.7 D.3.3.7): what an association says of the user behind it, and what that changes.

A user who is proven narrows what the peer may do to what both may; nobody widens it. A name alone (1) proves nothing: it is written
down, and the association goes on as the peer's own, without the positive response that would say otherwise. So it does with forms that
are not supported here, Kerberos (3) and SAML (4). A password (2) or a token (5) that is wrong, or came without TLS, ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pynetdicom.pdu_primitives import UserIdentityNegotiation

from archive.errors import Forbidden

if TYPE_CHECKING:
    from archive.services.peers import Admission, Peers

USERNAME, PASSCODE, TOKEN = 1, 2, 5
LONGEST_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """What the A-ASSOCIATE-RQ says; what it holds is in no log."""

    form: int
    primary: bytes = field(repr=False)
    secondary: bytes = field(repr=False)
    wants_response: bool


def of(item: UserIdentityNegotiation) -> UserIdentity:
    """Return what the library read."""
    return UserIdentity(
        int(item.user_identity_type or 0), bytes(item.primary_field or b""), bytes(item.secondary_field or b""),
        bool(item.positive_response_requested),
    )


def narrowed(admission: Admission, identity: UserIdentity | None, peers: Peers, *, tls: bool) -> tuple[Admission, bool]:
    """Return on which terms an association goes on, and whether its user was proven.

    Raises:
        Denied: the proof is wrong, or came without TLS.
        ArchiveError: it cannot be looked at now.
    """
    if identity is None or identity.form not in (USERNAME, PASSCODE, TOKEN):
        return admission, False
    if len(identity.primary) + len(identity.secondary) > LONGEST_BYTES:
        raise Forbidden
    primary, secondary = (part.decode("utf-8", "replace") for part in (identity.primary, identity.secondary))
    if identity.form == USERNAME:
        peers.note_claim(admission, primary)
        return admission, False
    if identity.form == PASSCODE:
        return peers.on_behalf(admission, name=primary, password=secondary, tls=tls), True
    return peers.on_behalf(admission, token=primary, tls=tls), True
