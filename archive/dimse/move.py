"""Instances to a registered destination: one association for a whole C-MOVE, with the contexts its instances need (PS3.4 C.4.2.2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archive.config import Dimse
from archive.dicom.transcode import ENCODERS
from archive.dicom.transfer import EXPLICIT_LE, IMPLICIT_LE
from archive.dimse.contexts import Proposed
from archive.dimse.requestor import MAXIMUM_CONTEXTS, Broken, Requestor, Terms, Unreachable
from archive.dimse.retrieve import NotSent
from archive.dimse.tls import TlsFiles
from archive.errors import ArchiveError

if TYPE_CHECKING:
    from archive.services.sending import Selected, Selection, Sending

LOG = logging.getLogger("archive.dimse")

NATIVE = (EXPLICIT_LE, IMPLICIT_LE)
COMPRESSED = tuple(ENCODERS)
"""What an instance is encoded in for a peer that takes neither its own transfer syntax nor an uncompressed one."""
_TRIES = 2
"""How often in a row the association is opened anew before the rest is given up."""


def needed(instances: Sequence[Selected]) -> tuple[Proposed, ...]:
    """Return the contexts for these instances: their classes as stored, each alone, uncompressed, and losslessly compressed."""
    kinds = dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in instances)
    classes = dict.fromkeys(sop_class_uid for sop_class_uid, _ in kinds)
    wanted: list[tuple[str, tuple[str, ...]]] = [(uid, NATIVE) for uid in classes]
    wanted += [(uid, (syntax,)) for uid, syntax in kinds]
    wanted += [(uid, (IMPLICIT_LE,)) for uid, syntax in kinds if syntax == EXPLICIT_LE and (uid, IMPLICIT_LE) not in kinds]
    wanted += [(uid, (syntax,)) for uid in classes for syntax in COMPRESSED if (uid, syntax) not in kinds]
    return tuple(Proposed(2 * n + 1, uid, syntaxes) for n, (uid, syntaxes) in enumerate(wanted[:MAXIMUM_CONTEXTS]))


def choose(contexts: dict[tuple[str, str], int], one: Selected, *, convertible: bool) -> tuple[int, str]:
    """Return the context and transfer syntax for an instance: as stored, else uncompressed, else compressed without loss.

    Raises:
        NotSent: the peer takes neither.
    """
    for syntax in (one.transfer_syntax_uid, *NATIVE, *COMPRESSED) if convertible else (one.transfer_syntax_uid,):
        context_id = contexts.get((one.sop_class_uid, syntax))
        if context_id is not None:
            return context_id, syntax
    raise NotSent


@dataclass(frozen=True, slots=True)
class Originator:
    """Whose C-MOVE it is."""

    ae_title: str
    message_id: int


class Mover:
    """Sends the instances of one C-MOVE; used by one thread."""

    def __init__(self, sending: Sending, selection: Selection, config: Dimse, files: TlsFiles, originator: Originator) -> None:
        """Prepare; the association is opened with the first instance."""
        to = selection.to
        assert to is not None
        self._sending = sending
        self._opened = sending.opening(selection)
        self._originator = (originator.ae_title, originator.message_id)
        self._terms = Terms(
            to.host, to.port, config.ae_title, to.ae_title, files if to.tls else None, to.certificate_sha256,
            config.request_timeout_s, config.idle_timeout_s, config.max_pdu_bytes,
        )
        self._proposed = needed(selection.instances)
        self._association: Requestor | None = None
        self._failures = 0

    def deliver(self, one: Selected) -> int:
        """Send one instance; an association that broke is opened again, a destination that cannot be reached is not asked for long.

        Raises:
            NotSent.
        """
        association = self._open()
        try:
            context_id, syntax = choose(association.contexts, one, convertible=self._sending.convertible(one))
            leaving = self._opened(one, syntax)
        except ArchiveError as error:
            LOG.warning("an instance was not sent", extra={"error": error.code})
            raise NotSent from error
        try:
            answer = association.store(context_id, one.sop_class_uid, one.sop_instance_uid, leaving, originator=self._originator)
        except (Broken, ArchiveError) as error:
            self._lost(association)
            raise NotSent from error
        self._failures = 0
        return answer

    def close(self) -> None:
        """Release the association."""
        association, self._association = self._association, None
        if association is not None:
            association.release()

    def _open(self) -> Requestor:
        if self._association is None:
            if self._failures >= _TRIES:
                raise NotSent
            try:
                self._association = Requestor(self._terms, self._proposed)
            except Unreachable as error:
                self._failures += 1
                LOG.warning("a destination cannot be reached", extra={"destination": self._terms.called_ae_title, "reason": str(error)})
                raise NotSent from error
        return self._association

    def _lost(self, association: Requestor) -> None:
        self._failures += 1
        self._association = None
        association.abort()
