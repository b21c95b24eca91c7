"""The capabilities document: every route is in it, and nothing else (PS3.18 8.9; checklist F07)."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from flask import Flask
from flask.testing import FlaskClient

from archive.web.dicomweb.capabilities import NAMESPACE, WADL
from archive.web.dicomweb.routes import ROUTES

NS = f"{{{NAMESPACE}}}"


@pytest.mark.parametrize("accept", [None, "*/*", WADL, "application/xml"])
def test_every_route_is_told_to_everyone(client: FlaskClient, accept: str | None) -> None:
    answer = client.open("/dicomweb", method="OPTIONS", headers={"Accept": accept}, anonymous=True)  # type: ignore[call-arg]
    assert (answer.status_code, answer.content_type) == (200, WADL)
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    root = ET.fromstring(answer.data)
    base = root.find(f"{NS}resources")
    assert base is not None
    assert base.get("base") == "https://pacs.example:8443/dicomweb"
    told = {(method.get("name"), resource.get("path")) for resource in base for method in resource.iter(f"{NS}method")}
    assert told == {(method, re.sub(r"<(?:path:)?([a-z]+)>", r"{\1}", rule).lstrip("/")) for method, rule, _, _ in ROUTES}


def test_every_retrieve_names_its_media_types(client: FlaskClient) -> None:
    root = ET.fromstring(client.open("/dicomweb", method="OPTIONS").data)
    for method in root.iter(f"{NS}method"):
        name = str(method.get("id"))
        kinds = [one.get("mediaType") for one in method.findall(f"{NS}response/{NS}representation")]
        told = method.get("name") in {"GET", "OPTIONS"} or name.startswith("store")
        assert bool(kinds) is (told and name != "ups_connect"), name


def test_another_datastore_has_its_own_base(client: FlaskClient) -> None:
    answer = client.open("/datastores/research/dicomweb", method="OPTIONS")
    assert b'base="https://pacs.example:8443/datastores/research/dicomweb"' in answer.data


def test_other_media_types_are_refused(client: FlaskClient) -> None:
    assert client.open("/dicomweb", method="OPTIONS", headers={"Accept": "image/png"}).status_code == 406


def test_f07_options_tells_the_methods_to_everyone(app: Flask, client: FlaskClient) -> None:
    every = {"GET", "HEAD", "POST", "OPTIONS"}
    for path, wanted in (("/dicomweb/studies", every), ("/dicomweb/studies/1.2", {*every, "DELETE"})):
        answer = client.open(path, method="OPTIONS", anonymous=True)  # type: ignore[call-arg]
        assert answer.status_code == 200
        assert set(answer.headers["Allow"].split(", ")) == wanted
        assert not answer.data
