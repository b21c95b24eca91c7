"""The statement of one instance: what the archive signs when it takes it (docs/format.md 8)."""

from __future__ import annotations

from datetime import datetime

from archive import __version__
from archive.access.subject import Subject
from archive.dicom.part10 import Scanned
from archive.ledger import statements
from archive.services.core import Core
from archive.services.incoming import Coercion, Source

SOFTWARE = f"strongroom {__version__}"


def statement_for(
    core: Core, scanned: Scanned, *, sha256: bytes, part10_bytes: int, object_id: bytes, datastore: bytes, at: datetime,
    subject: Subject, source: Source, coercion: Coercion | None,
) -> bytes:
    """Return the DSSE envelope over the instance's SHA-256, identity and origin.

    What began to arrive before the key that signs it was made is said to be received when that was.
    """
    core.keyring.stay_current()
    made = statements.statement(
        datastore=datastore, object_id=object_id, sop_instance_uid=scanned.sop_instance_uid, sop_class_uid=scanned.sop_class_uid,
        study_instance_uid=scanned.study_instance_uid, series_instance_uid=scanned.series_instance_uid,
        transfer_syntax_uid=scanned.transfer_syntax_uid, part10_bytes=part10_bytes, sha256=sha256,
        dataset_offset=scanned.dataset_offset,
        received_at=max(at, core.keyring.instance_signer_since),
        origin=statements.Origin(
            via=source.via, peer_id=subject.peer_id, principal_id=subject.principal_id, certificate_sha256=source.certificate_sha256,
            calling_ae_title=source.calling_ae_title, called_ae_title=source.called_ae_title,
        ),
        software=SOFTWARE, original=(coercion.sha256, part10_bytes) if coercion is not None else None,
        coerced=("preamble",) if coercion is not None else (),
    )
    return statements.sign(core.keyring.instance_signer, made)
