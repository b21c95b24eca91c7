"""WADO-URI: one instance by query parameters, as DICOM or as a picture (PS3.18 9).

`studyUID`, `seriesUID` and `objectUID` are all required, as the standard has it. What would change the meaning of an answer and is not
done (`anonymize`, `region`, presentation states) is refused, never passed over.
"""

from __future__ import annotations

from flask import Response, request

from archive.dicom.recipe import Form
from archive.errors import InvalidRequest, NotAcceptable
from archive.web.context import archive, subject
from archive.web.dicomweb import accept, picture_parameters, rendered, urls, wado
from archive.web.dicomweb.frames import numbers
from archive.web.dicomweb.media import DICOM, EXPLICIT_LE, Container
from archive.web.dicomweb.picture_parameters import MOST_PIXELS

REFUSED = ("anonymize", "presentationUID", "presentationSeriesUID", "region", "overlays")
_LONGEST_SIDE = 65_535


def retrieve(datastore: str) -> Response:
    """Answer one instance.

    Raises:
        InvalidRequest: a parameter is missing or malformed, or asks for what is not done.
        NotAcceptable, NotFound, Unavailable.
    """
    query = request.args
    if query.get("requestType") != "WADO":
        message = "requestType=WADO is required"
        raise InvalidRequest(message, remedy="WADO-RS resources lie under /studies")
    uids = _uid("studyUID"), _uid("seriesUID"), _uid("objectUID")
    for name in REFUSED:
        if query.get(name):
            message = f"the parameter {name} is not offered"
            raise InvalidRequest(message)
    taken = accept.parse(request.headers.get("Accept") if "contentType" not in query else query["contentType"])
    for one in taken.ranges:
        if one.name == DICOM:
            return _dicom(datastore, *uids)
        for form in rendered.FORMS:
            if one.covers(f"image/{form}"):
                return _picture(datastore, uids, form)
    message = "an instance is application/dicom, image/jpeg or image/png"
    raise NotAcceptable(message, remedy="ask for contentType=application/dicom")


def _uid(name: str) -> str:
    text = request.args.get(name, "")
    if not text:
        message = f"the parameter {name} is required"
        raise InvalidRequest(message)
    return urls.uid(text)


def _dicom(datastore: str, study: str, series: str, sop: str) -> Response:
    syntax = request.args.get("transferSyntax") or EXPLICIT_LE
    found = archive().retrieve.instances(subject(), datastore, study, series, sop)
    return wado.answer(datastore, found, [Container(False, (syntax,))])


def _picture(datastore: str, uids: tuple[str, str, str], form: Form) -> Response:
    query = request.args
    wanted = numbers(query.get("frameNumber", "1"))[:1]
    told: dict[str, str] = {}
    if "windowCenter" in query or "windowWidth" in query:
        told["window"] = f"{query.get('windowCenter', '')},{query.get('windowWidth', '')}"
    if "rows" in query or "columns" in query:
        told["viewport"] = ",".join((_side("columns", "rows"), _side("rows", "columns")))
    for name, ours in (("imageQuality", "quality"), ("annotation", "annotation")):
        if name in query:
            told[ours] = query[name]
    wish = picture_parameters.of_rendered(told)
    found = archive().pictures.of_instance(subject(), datastore, *uids, wanted, wish.as_form(form))
    return rendered.answer(datastore, found, wish, multipart=False)


def _side(name: str, other: str) -> str:
    """Return one side of the picture; when only the other is given, as much as it may need."""
    query = request.args
    if name in query:
        return query[name]
    given = query[other]
    known = int(given) if given.isascii() and given.isdigit() and len(given) < 6 else 0
    return str(min(_LONGEST_SIDE, MOST_PIXELS // known)) if known else "0"
