"""The addresses of DICOMweb: once for the default datastore, once for each by name.

What a later release adds is a line here, a row in web/permissions.py, and a view in a file
of its own; `media` and `accept` serve them as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flask import Blueprint, Flask, Response

from archive.dicom.attributes import Level
from archive.web.dicomweb import capabilities, delete, download, frames, qido, rendered, stow, ups, urls, wado, wado_uri

STUDY = "/studies/<study>"
SERIES = f"{STUDY}/series/<series>"
INSTANCE = f"{SERIES}/instances/<sop>"
WORKITEM = "/workitems/<workitem>"
SUBSCRIBER = f"{WORKITEM}/subscribers/<aetitle>"

ROUTES: tuple[tuple[str, str, str, Callable[..., Response]], ...] = (
    ("POST", "/studies", "store", stow.store),
    ("POST", STUDY, "store_study", stow.store),
    ("GET", "/studies", "search_studies", partial(qido.search, Level.STUDY)),
    ("GET", "/series", "search_series", partial(qido.search, Level.SERIES)),
    ("GET", "/instances", "search_instances", partial(qido.search, Level.IMAGE)),
    ("GET", f"{STUDY}/series", "search_study_series", partial(qido.search, Level.SERIES)),
    ("GET", f"{STUDY}/instances", "search_study_instances", partial(qido.search, Level.IMAGE)),
    ("GET", f"{SERIES}/instances", "search_series_instances", partial(qido.search, Level.IMAGE)),
    ("GET", STUDY, "retrieve_study", wado.instances),
    ("GET", SERIES, "retrieve_series", wado.instances),
    ("GET", INSTANCE, "retrieve_instance", wado.instances),
    ("DELETE", STUDY, "delete_study", delete.delete),
    ("DELETE", SERIES, "delete_series", delete.delete),
    ("DELETE", INSTANCE, "delete_instance", delete.delete),
    ("GET", f"{STUDY}/metadata", "study_metadata", wado.metadata),
    ("GET", f"{SERIES}/metadata", "series_metadata", wado.metadata),
    ("GET", f"{INSTANCE}/metadata", "instance_metadata", wado.metadata),
    ("GET", f"{STUDY}/zip", "study_zip", download.download),
    ("GET", f"{SERIES}/zip", "series_zip", download.download),
    ("GET", f"{INSTANCE}/frames/<listed>", "frames", frames.frames),
    ("GET", f"{INSTANCE}/bulk/<path:path>", "bulk", frames.bulk),
    ("OPTIONS", "", "capabilities", capabilities.capabilities),
    ("GET", "", "wado_uri_root", wado_uri.retrieve),
    ("GET", "/wado", "wado_uri", wado_uri.retrieve),
    ("GET", f"{STUDY}/rendered", "rendered_study", rendered.rendered),
    ("GET", f"{SERIES}/rendered", "rendered_series", rendered.rendered),
    ("GET", f"{INSTANCE}/rendered", "rendered_instance", rendered.rendered),
    ("GET", f"{INSTANCE}/frames/<listed>/rendered", "rendered_frames", rendered.rendered),
    ("GET", f"{STUDY}/thumbnail", "study_thumbnail", rendered.thumbnail),
    ("GET", f"{SERIES}/thumbnail", "series_thumbnail", rendered.thumbnail),
    ("GET", f"{INSTANCE}/thumbnail", "instance_thumbnail", rendered.thumbnail),
    ("GET", f"{INSTANCE}/frames/<listed>/thumbnail", "frame_thumbnail", rendered.thumbnail),
    ("POST", "/workitems", "ups_create", ups.create),
    ("GET", "/workitems", "ups_search", ups.search),
    ("GET", WORKITEM, "ups_retrieve", ups.retrieve),
    ("POST", WORKITEM, "ups_update", ups.update),
    ("PUT", f"{WORKITEM}/state", "ups_change_state", ups.change_state),
    ("POST", f"{WORKITEM}/cancelrequest", "ups_request_cancel", ups.request_cancel),
    ("POST", SUBSCRIBER, "ups_subscribe", ups.subscribe),
    ("DELETE", SUBSCRIBER, "ups_unsubscribe", ups.unsubscribe),
    ("POST", f"{SUBSCRIBER}/suspend", "ups_suspend", ups.suspend),
    ("GET", "/subscribers/<aetitle>", "ups_connect", ups.connect),
)
"""Method, rule, endpoint, view; a view gets the variables of its rule and `datastore` by name."""


def register(app: Flask) -> None:
    """Put DICOMweb under /dicomweb and /datastores/<datastore>/dicomweb."""
    blueprint = Blueprint("dicomweb", __name__)
    for method, rule, endpoint, view in ROUTES:
        blueprint.add_url_rule(rule, endpoint, view, methods=[method])
    app.register_blueprint(blueprint, url_prefix="/dicomweb", url_defaults={"datastore": urls.DEFAULT_DATASTORE})
    app.register_blueprint(blueprint, name="datastores", url_prefix="/datastores/<datastore>/dicomweb")
