"""The viewer's origin: its files, its pages, its configuration, and what goes on to the archive."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from werkzeug.test import Client
from werkzeug.wrappers import Response

from archive.config import Archive, Config
from archive.web.ohif import Ohif

INLINE = b"window.PUBLIC_URL = '/';"
INDEX = b"<!doctype html><script>" + INLINE + b"</script><script src='/app.bundle.0123456789abcdef0123.js'></script>"
MAIN = "https://clinic.example:8443"


def beyond(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"archive " + environ["PATH_INFO"].encode()]


@pytest.fixture
def client(tmp_path: Path) -> Client:
    for name, data in {"index.html": INDEX, "app.bundle.0123456789abcdef0123.js": b"run()", "app-config.js": b"window.config = cloud",
                       "assets/logo.svg": b"<svg/>", "decoder.wasm": b"\0asm"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    config = msgspec.structs.replace(Config(), archive=Archive(name='A "quoted" clinic', public_url="https://clinic.example:8444"))
    return Client(Ohif(beyond, config, tmp_path, MAIN), use_cookies=False)


def page(client: Client, path: str, cookie: str = "__Host-session=abc") -> Response:
    return client.get(path, headers={"Cookie": cookie} if cookie else {})


@pytest.mark.parametrize("path", ["/dicomweb/studies", "/datastores/x/dicomweb/studies", "/healthz", "/dicomweb"])
def test_dicomweb_is_the_archives(client: Client, path: str) -> None:
    assert client.get(path).data == b"archive " + path.encode()
    assert client.post(path).status_code == 200


def test_files_are_served_as_they_came(client: Client) -> None:
    script = client.get("/app.bundle.0123456789abcdef0123.js")
    assert (script.status_code, script.data, script.headers["Content-Type"]) == (200, b"run()", "text/javascript")
    assert "immutable" in script.headers["Cache-Control"]
    wasm = client.get("/decoder.wasm")
    assert wasm.headers["Content-Type"] == "application/wasm"
    assert wasm.headers["Cache-Control"] == "no-cache"
    assert client.get("/decoder.wasm", headers={"If-None-Match": wasm.headers["ETag"]}).status_code == 304
    head = client.head("/assets/logo.svg")
    assert (head.status_code, head.headers["Content-Length"], head.data) == (200, "6", b"")


def test_the_configuration_is_ours(client: Client) -> None:
    made = client.get("/app-config.js").get_data(as_text=True)
    assert "cloud" not in made
    assert '"wadoRoot": "/dicomweb"' in made
    assert 'A \\"quoted\\" clinic' in made
    assert f'"{MAIN}/login?next=%2Fstudies"' in made


def test_pages_need_a_session(client: Client) -> None:
    refused = page(client, "/viewer?StudyInstanceUIDs=1.2.3", cookie="")
    assert (refused.status_code, refused.headers["Location"]) == (302, f"{MAIN}/login?next=%2Fstudies%2F1.2.3%2Fohif")
    odd = page(client, "/viewer?StudyInstanceUIDs=//evil.example", cookie="")
    assert odd.headers["Location"] == f"{MAIN}/login?next=%2Fstudies"
    for path in ("/", "/viewer?StudyInstanceUIDs=1.2.3", "/segmentation/anything"):
        assert page(client, path).data == INDEX


def test_nothing_from_elsewhere_and_no_inline_script_but_its_own(client: Client) -> None:
    policy = page(client, "/").headers["Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(INLINE).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    directives = dict(one.strip().split(" ", 1) for one in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert "'unsafe-eval'" not in policy
    assert "'unsafe-inline'" not in directives["script-src"]
    assert not any("http" in sources or "*" in sources for sources in directives.values())


@pytest.mark.parametrize("path", ["/absent.js", "/../config.toml", "/assets/../../config.toml", "/%2e%2e/config.toml", "/assets/none.png"])
def test_what_is_no_file_of_the_release_is_not_served(client: Client, path: str) -> None:
    assert page(client, path).status_code == 404


def test_only_reading(client: Client) -> None:
    assert client.post("/viewer").status_code == 405
    assert client.put("/app-config.js").status_code == 405
