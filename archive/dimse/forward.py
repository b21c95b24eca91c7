"""Deliveries to registered peers: instances by C-STORE, commitment results by N-EVENT-REPORT, from the durable queue.

Two kinds of threads, neither of which anything else waits for: one looks (at commitments to check, at rules for what has arrived), some
deliver, each to one destination at a time that nobody else delivers to meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from archive.config import Config
from archive.dimse import commitment, status
from archive.dimse.move import choose, needed
from archive.dimse.requestor import Broken, Declined, Requestor, Terms, Unreachable
from archive.dimse.retrieve import NotSent
from archive.dimse.tls import TlsFiles
from archive.errors import ArchiveError, IntegrityError, NotFound, Unavailable
from archive.services.deliveries import FORWARD, REPORT

if TYPE_CHECKING:
    from archive.services.commitments import Commitments
    from archive.services.deliveries import Claimed, Deliveries, Due
    from archive.services.forwarding import Batch, Forwarding
    from archive.services.sending import Destination, Selected, Sending

LOG = logging.getLogger("archive.dimse")

SENDERS = 2
PAUSE_S = 1.0
BATCH = 200
_LONGEST_PAUSE_S = 60.0
_NOT_ALLOWED = "the rule's user may no longer send it, or the destination no longer receive it"
_BROKEN = 3
"""So many associations in a row on which nothing was answered: then what waits there, waits, and other destinations have their turn."""
_NO_ANSWER = "it takes associations and answers nothing on them"
_NO_ADDRESS = "it is no registered peer with an address"


class Node(Protocol):
    """What of an opened archive is needed here."""

    @property
    def config(self) -> Config:
        """Its configuration."""

    @property
    def sending(self) -> Sending:
        """What lets instances leave."""

    @property
    def commitments(self) -> Commitments:
        """What is promised."""

    @property
    def deliveries(self) -> Deliveries:
        """The queue."""

    @property
    def forwarding(self) -> Forwarding:
        """The rules."""


class Delivering:
    """The threads of one process; `start` and `stop` once each."""

    def __init__(self, node: Node, *, pause_s: float = PAUSE_S, senders: int = SENDERS) -> None:
        """Prepare; nothing runs yet."""
        self._courier = Courier(node)
        self._pause_s = pause_s
        self._stop = threading.Event()
        steps: list[tuple[str, Callable[[Callable[[], bool]], bool]]] = [("looker", self._courier.look)]
        steps += [(f"sender-{n}", self._courier.deliver) for n in range(senders)]
        self._threads = [threading.Thread(target=self._run, args=(step,), name=name, daemon=True) for name, step in steps]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 20.0) -> None:
        """End after the instance under way; what is not done by then is done after the next start."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout_s)

    def _run(self, step: Callable[[Callable[[], bool]], bool]) -> None:
        failures = 0
        while not self._stop.wait(min(self._pause_s * 2**failures, _LONGEST_PAUSE_S)):
            try:
                while step(self._stop.is_set) and not self._stop.is_set():
                    pass
                failures = 0
            except ArchiveError as error:
                failures = min(failures + 1, 10)
                LOG.error("deliveries wait: %s", error.message, extra={"code": error.code, "remedy": error.remedy})
            except Exception as error:  # noqa: BLE001 # the thread must go on; what failed is tried again
                failures = min(failures + 1, 10)
                LOG.error("deliveries wait", extra={"error": type(error).__name__})


class Courier:
    """The steps themselves; each returns whether there was something to do."""

    def __init__(self, node: Node) -> None:
        """Take from the node what is delivered and how."""
        self._node = node
        self._files = TlsFiles.of(node.config)

    def look(self, stopped: Callable[[], bool]) -> bool:
        """Check one commitment that waits, and queue some of what rules say has to go on."""
        checked = not stopped() and self._node.commitments.check_next()
        queued = not stopped() and (self._node.forwarding.look() > 0 or self._node.forwarding.behind)
        return checked or queued

    def deliver(self, stopped: Callable[[], bool]) -> bool:
        """Take one destination with something due and deliver to it."""
        queue = self._node.deliveries
        claimed = queue.claim()
        if claimed is None:
            return False
        try:
            self._reports(claimed, stopped)
            self._forward(claimed, stopped)
        except Unreachable as error:
            queue.unreachable(claimed.peer_id, str(error))
            LOG.warning("a destination cannot be reached", extra={"peer": claimed.peer_id, "reason": str(error)})
        except NotFound as error:
            queue.unreachable(claimed.peer_id, error.message)
        except Unavailable:
            raise  # it is the archive's own, and everything waits
        except Exception as error:  # noqa: BLE001 # it would be the first again, for ever, and every other destination behind it
            queue.unreachable(claimed.peer_id, f"deliveries to it go wrong: {type(error).__name__}")
            LOG.error("deliveries to a destination go wrong", extra={"peer": claimed.peer_id, "error": type(error).__name__})
        finally:
            queue.release(claimed)
        return True

    # --- reports ------------------------------------------------------------------------------------------------------------------

    def _reports(self, claimed: Claimed, stopped: Callable[[], bool]) -> None:
        node = self._node
        declined: set[str] = set()
        for due in node.deliveries.due(claimed, REPORT, limit=BATCH):
            if stopped() or not node.deliveries.keep(claimed):
                return
            if due.ae_title in declined:
                continue
            try:
                self._report(due)
            except commitment.NotTaken as error:
                node.deliveries.refused(due, str(error), for_good=False)
            except Broken:
                node.deliveries.refused(due, "the association ended before the answer came", for_good=False)
            except Declined as error:  # under the title that asked; instances go under the first one
                node.deliveries.put_off(due, str(error))
                declined.add(due.ae_title)
            except (Unreachable, Unavailable):
                raise
            except Exception as error:  # noqa: BLE001 # it would be the first again, for ever, and keep all behind it
                node.deliveries.refused(due, _not_ready(error), for_good=False)

    def _report(self, due: Due) -> None:
        node = self._node
        report = None if due.commitment_id is None else node.commitments.report(due.commitment_id)
        if report is None:
            node.deliveries.done(due.id)
            return
        to = node.sending.address(due.peer_id, due.ae_title) or node.sending.address(due.peer_id)
        if to is None:
            raise Unreachable(_NO_ADDRESS)
        commitment.send(self._terms(to), report)
        node.commitments.reported(report.commitment_id)
        node.deliveries.reached(due.peer_id)

    # --- instances ----------------------------------------------------------------------------------------------------------------

    def _forward(self, claimed: Claimed, stopped: Callable[[], bool]) -> None:
        node, broken = self._node, 0
        while not stopped() and node.deliveries.keep(claimed):
            due = node.deliveries.due(claimed, FORWARD, limit=BATCH)
            if not due:
                return
            batch = node.forwarding.batch(due)
            if batch is None:
                continue
            node.forwarding.lost(batch.lost, _NOT_ALLOWED)
            if batch.selection.instances:
                broken = 0 if self._send(claimed, batch, stopped) else broken + 1
                if broken >= _BROKEN:
                    raise Unreachable(_NO_ANSWER)

    def _send(self, claimed: Claimed, batch: Batch, stopped: Callable[[], bool]) -> bool:
        """Send on one association; return whether it lasted until something was answered."""
        node, selection, answered = self._node, batch.selection, False
        assert selection.to is not None
        association = Requestor(self._terms(selection.to), needed(selection.instances))
        node.deliveries.reached(claimed.peer_id)
        try:
            for one in selection.instances:
                if stopped() or not node.deliveries.keep(claimed):
                    break
                self._send_one(association, batch, one, node.deliveries.holding(claimed))
                answered = True
        except Broken:
            return answered
        except BaseException:
            association.abort()
            raise
        association.release()
        return True

    def _send_one(self, association: Requestor, batch: Batch, one: Selected, holding: Callable[[], None]) -> None:
        node, due = self._node, batch.due[one.instance_pk]
        queue = node.deliveries
        try:
            context_id, syntax = choose(association.contexts, one, convertible=node.sending.convertible(one))
            leaving = node.sending.open(batch.selection, one, syntax)
        except NotSent:
            queue.refused(due, "the destination takes neither its SOP class as stored nor uncompressed", for_good=True)
            return
        except NotFound as error:
            assert batch.selection.to is not None
            lost = node.forwarding.withheld(batch.selection.subject, batch.selection.to, (due,))
            node.forwarding.lost(lost, error.message)
            if not lost:  # where it may go by now: soon, and not for ever
                queue.refused(due, error.message, for_good=False)
            return
        except ArchiveError as error:
            queue.refused(due, error.message, for_good=not isinstance(error, Unavailable))
            return
        except Exception as error:  # noqa: BLE001 # it would be the first again, for ever, and keep all behind it
            queue.refused(due, _not_ready(error), for_good=False)
            return
        try:
            code = association.store(context_id, one.sop_class_uid, one.sop_instance_uid, leaving, originator=None, between=holding)
        except Broken:
            queue.refused(due, "the association ended before the answer came", for_good=False)
            raise
        except (IntegrityError, Unavailable) as error:  # half of it has left, and nothing else may follow that half
            queue.refused(due, error.message, for_good=isinstance(error, IntegrityError))
            association.abort()
            raise Broken from error
        except Exception as error:
            queue.refused(due, _not_ready(error), for_good=False)
            association.abort()
            raise Broken from error
        self._answered(due, code)

    def _answered(self, due: Due, code: int) -> None:
        queue = self._node.deliveries
        if code == status.SUCCESS or code & 0xF000 == 0xB000 or code in (0x0001, 0x0107, 0x0116, status.DUPLICATE_SOP_INSTANCE):
            queue.done(due.id)
        else:
            queue.refused(due, f"it answered with status {code:04X}", for_good=code & 0xFF00 != status.OUT_OF_RESOURCES)

    def _terms(self, to: Destination) -> Terms:
        dimse = self._node.config.dimse
        return Terms(
            to.host, to.port, dimse.ae_title, to.ae_title, self._files if to.tls else None, to.certificate_sha256,
            dimse.request_timeout_s, dimse.idle_timeout_s, dimse.max_pdu_bytes,
        )


def _not_ready(error: Exception) -> str:
    LOG.error("a delivery could not be made ready", extra={"error": type(error).__name__})
    return f"it could not be made ready: {type(error).__name__}"
