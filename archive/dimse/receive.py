"""One C-STORE on its way in: the data set goes into the store fragment by fragment and is never held in memory or on disk here.

Whatever goes wrong, the sender gets an answer: after a failure the rest of the data set is read and thrown away, and the status
follows the last fragment, as PS3.7 9.3.1 wants it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from archive.dimse import status
from archive.dimse.command import StoreRequest
from archive.dimse.contexts import Answered
from archive.dimse.status import Answer
from archive.errors import ArchiveError

if TYPE_CHECKING:
    from archive.access.subject import Subject
    from archive.dicom.alike import Alike
    from archive.services.store import Incoming, Source, Store

LOG = logging.getLogger("archive.dimse")


_MAXIMUM_EMPTY_FRAGMENTS = 1000


class Endless(Exception):
    """The message goes on far beyond what could ever be taken; the association is aborted."""


class Empties:
    """Counts the fragments of a message that hold nothing: the last of a data set does with some devices, others have no reason to."""

    def __init__(self) -> None:
        """Begin with none."""
        self._count = 0

    def note(self, fragment: memoryview, *, first: bool) -> None:
        """Look at the next fragment, maybe the first of a message.

        Raises:
            Endless: too many of this message were empty; no limit of bytes would ever end it.
        """
        if first:
            self._count = 0
        if not fragment:
            self._count += 1
            if self._count > _MAXIMUM_EMPTY_FRAGMENTS:
                raise Endless


class Reception:
    """A data set being received; ended by `finish` or `abort`, used by one thread."""

    def __init__(
        self,
        store: Store,
        subject: Subject,
        datastore: str,
        source: Source,
        *,
        context: Answered,
        request: StoreRequest,
        maximum_bytes: int,
        alike: Alike | None = None,
    ) -> None:
        """Open the store for the instance; a refusal is kept for `finish`, since the data set comes in any case.

        `alike` belongs to the association.
        """
        self.request = request
        self._maximum_bytes = maximum_bytes
        self._received_bytes = 0
        self._incoming: Incoming | None = None
        self._failure: Answer | None = None
        if not context.storage or request.sop_class_uid != context.abstract_syntax:
            self._failure = Answer(status.SOP_CLASS_NOT_SUPPORTED, "not the SOP class of this presentation context")
            return
        try:
            self._incoming = store.open_dataset(
                subject,
                datastore,
                source,
                sop_class_uid=request.sop_class_uid,
                sop_instance_uid=request.sop_instance_uid,
                transfer_syntax_uid=context.transfer_syntax,
                alike=alike,
            )
        except Exception as error:  # noqa: BLE001 # the peer is owed a status for whatever went wrong
            self._fail(error)

    def write(self, fragment: bytes | memoryview) -> None:
        """Take the next bytes of the data set.

        Raises:
            Endless: twice the largest data set has come.
        """
        self._received_bytes += len(fragment)
        if self._received_bytes > self._maximum_bytes:
            if self._received_bytes > 2 * self._maximum_bytes:
                raise Endless
            if self._failure is None:
                self.abort()
                self._failure = status.REASONS["too-large"]
        if self._incoming is None:
            return
        try:
            self._incoming.write(fragment)
        except Exception as error:  # noqa: BLE001 # as above
            self._fail(error)

    def finish(self) -> Answer:
        """Return the answer; success only when the store has made the instance durable."""
        if self._failure is not None:
            return self._failure
        assert self._incoming is not None
        try:
            outcome = self._incoming.finish()
        except Exception as error:  # noqa: BLE001 # as above
            return self._fail(error)
        self._incoming = None
        return status.of_outcome(outcome.status)

    def abort(self) -> None:
        """Leave nothing behind; harmless when already ended."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            try:
                incoming.abort()
            except Exception as error:  # noqa: BLE001 # nothing more can be done; the start sweeps what is left
                LOG.error("an instance could not be abandoned", extra={"error": type(error).__name__})

    def _fail(self, error: Exception) -> Answer:
        self._failure = answer = status.of_error(error)
        # The text of an error from a library may quote what it read, so only its kind is written down.
        code = error.code if isinstance(error, ArchiveError) else type(error).__name__
        LOG.warning("an instance was not stored", extra={"error": code, "status": f"{answer.status:04X}"})
        self.abort()
        return answer
