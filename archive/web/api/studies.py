"""/api/studies: what is done to a whole study beside DICOMweb."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from archive.access.permissions import Permission
from archive.services import datastores
from archive.web.api.operation import Asked, Operation, Taken, Told
from archive.web.context import node, subject

_P = Permission
Row = dict[str, Any]


class Shred(Taken):
    """Why a study is destroyed; the reason stands on the receipt."""

    reason: str
    datastore: str = datastores.DEFAULT


class Shredded(Told):
    """What was destroyed; `receipt` is the signed document (a DSSE envelope), kept in `event` of the ledger."""

    study: str
    at: datetime
    instances: int
    bytes: int
    keys: int
    event: int
    receipt: str


class Receipt(Told):
    """That a study was shredded: the event, the signed document, and what it says."""

    event: int
    at: datetime
    document: str
    said: Row


def _shred(asked: Asked, uid: str | int) -> Any:
    given: Shred = asked.body
    return node().shred.run(subject(), str(uid), reason=given.reason, datastore=given.datastore)


OPERATIONS = (
    Operation("POST", "/studies/<uid>/shred", "study_shred", "Destroy a study with its key, for good", _P.PURGE, _shred, Shredded, Shred,
              tag="studies", refuses=(404, 409)),
    Operation("GET", "/studies/<uid>/receipts", "study_receipts", "Return the receipts of a study that was shredded", _P.AUDIT,
              lambda _asked, uid: node().shred.receipts(subject(), str(uid)), list[Receipt], tag="studies", refuses=(404,)),
)
