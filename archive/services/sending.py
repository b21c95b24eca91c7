"""Sending: instances leave by C-GET to who asks, or by C-MOVE to a registered destination, inside the scope of both sides.

One statement chooses the instances; the audit event is committed durably before the first leaves; each is looked for again inside the
scopes as they are then, so that a revocation lets at most the one under way finish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain

import sqlalchemy as sa

from archive.access.permissions import Permission
from archive.access.policy import Scope, scope_of
from archive.access.subject import Subject
from archive.db.tables import peer, peer_ae_title, principal
from archive.dicom import transcode
from archive.dicom.decode import DECODABLE
from archive.dicom.part10 import Limits
from archive.dicom.pieces import Piece, Stream
from archive.dicom.transfer import UNCOMPRESSED
from archive.errors import ArchiveError, NotFound, Rejected, Unavailable
from archive.index import locate
from archive.index.locate import InstanceRow
from archive.index.selection import Selected, UniqueKeys, select
from archive.ledger.audit import Event, Kind, ObjectRef
from archive.services import datastores
from archive.services.asking import Asking
from archive.services.core import Core
from archive.services.records import decode

__all__ = ["MAXIMUM_INSTANCES", "Destination", "Leaving", "Selected", "Selection", "Sending", "TooMany", "UniqueKeys"]

MAXIMUM_INSTANCES = 65_535
"""What the counters of a C-GET or C-MOVE response hold (PS3.7 9.1.3)."""

WHOLE_BYTES = 8 << 20
"""Up to here an instance is authenticated to its end before any of it leaves."""

_AUDITED_UIDS = 1000


class TooMany(Rejected):
    """More instances than one retrieve can count."""

    code = "too-many"


@dataclass(frozen=True, slots=True)
class Destination:
    """A registered peer that instances may be sent to; with `tls` only to the one who holds the certificate."""

    subject: Subject
    ae_title: str
    host: str
    port: int
    tls: bool
    certificate_sha256: bytes | None


@dataclass(frozen=True, slots=True)
class Leaving:
    """The data set of one instance in the transfer syntax it was asked in."""

    length: int
    pieces: Iterator[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Selection:
    """What one retrieve sends, and on whose right."""

    subject: Subject
    need: Permission
    to: Destination | None
    instances: tuple[Selected, ...]


class Sending:
    """The one way for instances to leave over DIMSE; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        """Work on an opened archive."""
        self._core = core
        limits = core.config.limits
        self._limits = Limits(inflated_bytes=limits.inflated_bytes, nesting=limits.nesting, elements=limits.elements)

    def destination(self, subject: Subject, ae_title: str) -> Destination | None:
        """Return the registered peer with an address that has this AE title; of several, the one who asks.

        Raises:
            Unavailable: that there is none could not be recorded.
        """
        with self._core.database.read() as tx:
            rows = tx.execute(_ADDRESSED.where(peer_ae_title.c.ae_title == ae_title)).all()
        own = [row for row in rows if row.id == subject.peer_id]
        rows = own or rows
        if len(rows) != 1:
            self._record(Event(Kind.DENIED, outcome=4, subject=subject, detail={"what": "C-MOVE", "unknown_destination": ae_title}))
            return None
        row = rows[0]
        them = Subject(row.principal_id, row.name, "device", "dimse", row.host, peer_id=row.id)
        digest = bytes(row.certificate_sha256) if row.certificate_sha256 else None
        return Destination(them, ae_title, row.host, row.port, bool(row.tls), digest)

    def address(self, peer_id: int, ae_title: str = "") -> Destination | None:
        """Return a registered peer with an address, under one of its AE titles or its first; None when it is that no more."""
        wanted = _ADDRESSED.add_columns(peer_ae_title.c.ae_title).where(peer.c.id == peer_id).order_by(peer_ae_title.c.id)
        with self._core.database.read() as tx:
            row = tx.execute(wanted.where(peer_ae_title.c.ae_title == ae_title) if ae_title else wanted).first()
        if row is None:
            return None
        them = Subject(row.principal_id, row.name, "device", "dimse", row.host, peer_id=row.id)
        digest = bytes(row.certificate_sha256) if row.certificate_sha256 else None
        return Destination(them, row.ae_title, row.host, row.port, bool(row.tls), digest)

    def select(self, subject: Subject, datastore: str, keys: UniqueKeys, *, what: str, to: Destination | None = None) -> Selection:
        """Return what leaves: visible to who asks and, when it goes to somebody else, with the right to send it and theirs to receive.

        Raises:
            TooMany: more than can be counted.
            Unavailable: the read could not be recorded, so nothing may leave.
        """
        core = self._core
        at = core.clock()
        asks_for_itself = to is None or to.subject.principal_id == subject.principal_id
        need = Permission.ORIGINAL if asks_for_itself else Permission.SEND
        with core.database.read() as tx:
            place = datastores.asked_for(tx, subject, datastore, at)
            scope, also = self._scopes(subject, need, to, at)
            rows = select(tx, scope, place.id, keys, also=also, limit=MAXIMUM_INSTANCES + 1)
        if len(rows) > MAXIMUM_INSTANCES:
            message = "more instances than one retrieve can count"
            raise TooMany(message, remedy="retrieve study by study")
        studies = dict.fromkeys(row.study_instance_uid for row in rows) or dict.fromkeys(keys.studies)
        detail: dict[str, str | int] = {"what": what, "datastore": datastore}
        if to is not None:
            detail |= {"destination": to.subject.name, "ae_title": to.ae_title, "host": to.host, "port": to.port}
        if len(studies) > _AUDITED_UIDS:
            detail["studies"] = len(studies)
        kind = (Kind.READ if to is None else Kind.SENT) if rows else Kind.DENIED
        self._record(Event(
            kind, outcome=0 if rows else 4, subject=subject, instances=len(rows), bytes=sum(row.part10_bytes for row in rows),
            objects=tuple(ObjectRef("study", uid) for uid in list(studies)[:_AUDITED_UIDS]), detail=detail,
        ))  # fmt: skip
        return Selection(subject, need, to, tuple(rows))

    def record_forward(self, subject: Subject, to: Destination, instances: Sequence[Selected], *, rule: str) -> None:
        """Record durably what goes to a destination by a rule, before any of it does.

        Raises:
            Unavailable.
        """
        studies = dict.fromkeys(one.study_instance_uid for one in instances)
        self._record(Event(
            Kind.SENT, subject=subject, instances=len(instances), bytes=sum(one.part10_bytes for one in instances),
            objects=tuple(ObjectRef("study", uid) for uid in list(studies)[:_AUDITED_UIDS]),
            detail={"what": "forward", "rule": rule, "destination": to.subject.name, "ae_title": to.ae_title, "host": to.host,
                    "port": to.port},
        ))  # fmt: skip

    def opening(self, selection: Selection) -> Callable[[Selected, str], Leaving]:
        """Return what opens the instances of a selection, each as `open` does; in its order that costs least. One thread."""
        core = self._core

        def one(key: int, at: datetime) -> InstanceRow | None:
            scope, also = self._scopes(selection.subject, selection.need, selection.to, at)
            return locate.within(core.database, scope, key, also=also)

        def between(first: int, last: int, at: datetime) -> dict[int, InstanceRow]:
            scope, also = self._scopes(selection.subject, selection.need, selection.to, at)
            return locate.within_between(core.database, scope, first, last, also=also)

        keys = [selected.instance_pk for selected in selection.instances]
        numbers = {key: number for number, key in enumerate(keys)}
        asking = Asking(core, keys, one, between)
        return lambda wanted, syntax: self._leaving(asking.now(numbers[wanted.instance_pk]), syntax)

    def open(self, selection: Selection, one: Selected, transfer_syntax_uid: str) -> Leaving:
        """Return the data set of one instance; the scopes are asked again first.

        Raises:
            NotFound: the right to it ended meanwhile.
            NotAcceptable: it cannot be had in that transfer syntax.
            SealBroken, KeyShredded, VaultUnavailable: a large one also while its pieces are taken.
        """
        core = self._core
        scope, also = self._scopes(selection.subject, selection.need, selection.to, core.clock())
        return self._leaving(locate.within(core.database, scope, one.instance_pk, also=also), transfer_syntax_uid)

    def _leaving(self, row: InstanceRow | None, transfer_syntax_uid: str) -> Leaving:
        core = self._core
        if row is None:
            message = "there is no such object"
            raise NotFound(message)
        if row.transfer_syntax_uid != transfer_syntax_uid:
            made = self._transcoded(row, transfer_syntax_uid)
            return Leaving(sum(map(len, made)), iter(made))
        length = row.ref.part10_bytes - row.dataset_offset
        views = core.vault.read(row.ref, row.dataset_offset)
        if length > WHOLE_BYTES:
            return Leaving(length, views)
        first = next(views, memoryview(b""))
        if len(first) < length:  # a view is good until the next one
            return Leaving(length, iter((b"".join((bytes(first), *map(bytes, views))),)))
        return Leaving(length, chain((first,), views))

    @staticmethod
    def convertible(one: Selected) -> bool:
        """Whether an instance can be decoded, so that it can be had in other transfer syntaxes."""
        return one.transfer_syntax_uid in UNCOMPRESSED | DECODABLE

    def _transcoded(self, row: InstanceRow, transfer_syntax_uid: str) -> list[Piece]:
        vault = self._core.vault
        scanned = decode(vault.sections(row.ref).meta).scanned
        stream = Stream(row.ref.part10_bytes, partial(vault.read_range, row.ref))
        return transcode.to_syntax(stream, scanned, transfer_syntax_uid, self._limits)[1:]  # without the file meta information

    @staticmethod
    def _scopes(subject: Subject, need: Permission, to: Destination | None, at: datetime) -> tuple[Scope, Scope | None]:
        theirs = None if to is None else scope_of(to.subject, Permission.RECEIVE, at, prefix="receiver")
        return scope_of(subject, need, at), theirs

    def _record(self, event: Event) -> None:
        """No audit, no data."""
        core = self._core
        try:
            core.database.group(lambda tx: core.ledger.record(tx, event, at=core.clock()), durable=True)
        except (ArchiveError, sa.exc.SQLAlchemyError) as error:
            message = "the access could not be recorded, so nothing was answered"
            raise Unavailable(message, remedy=getattr(error, "remedy", "") or "run 'archive doctor'") from error


_ADDRESSED = (
    sa.select(peer.c.id, peer.c.principal_id, peer.c.name, peer.c.host, peer.c.port, peer.c.tls, peer.c.certificate_sha256)
    .join(peer_ae_title, peer_ae_title.c.peer_id == peer.c.id)
    .join(principal, principal.c.id == peer.c.principal_id)
    .where(peer.c.enabled, principal.c.enabled, principal.c.removed_at.is_(None), peer.c.host != "", peer.c.port.is_not(None))
)
