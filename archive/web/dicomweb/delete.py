"""DELETE of studies, series and instances: they are taken out of everyone's sight, and can be brought back.

204 when it is done, 409 while the study is on hold, 400 for a malformed UID, 404 where there is nothing, nothing the caller may see, or
something of it the caller may not delete: it goes as a whole. What is empty then is gone as well; the same bytes sent again are there
again.
"""

from __future__ import annotations

from flask import Response, request

from archive.errors import InvalidRequest
from archive.web.context import archive, subject
from archive.web.dicomweb import urls

REASON = "deleted over DICOMweb"
"""What the ledger says where the request has no `reason` parameter."""
MAX_REASON_CHARACTERS = 200


def delete(datastore: str, study: str, series: str | None = None, sop: str | None = None) -> Response:
    """Reject a study, a series or an instance.

    Raises:
        InvalidRequest, NotFound, StateConflict, ReadOnly, Unavailable.
    """
    uids = urls.uid(study), urls.optional_uid(series), urls.optional_uid(sop)
    reason = request.args.get("reason", "").strip() or REASON
    if len(reason) > MAX_REASON_CHARACTERS or not reason.isprintable():
        message = "the reason is malformed"
        raise InvalidRequest(message, remedy=f"give at most {MAX_REASON_CHARACTERS} printable characters")
    archive().remove.reject_at(subject(), datastore, *uids, reason=reason)
    return Response(status=204)
