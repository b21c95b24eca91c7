"""OHIF, unmodified, at the root of an origin of its own, with DICOMweb beside it.

Its build expects to own the root, so it has a port of its own; requests below /dicomweb, /datastores and /healthz go to the
application as on the other port, under the same session and the same rules. What is served here besides is public software.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from archive.config import Config
from archive.web import headers
from archive.web.session import cookie_name

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
PASSED_ON = ("/dicomweb", "/datastores", "/healthz", "/readyz")
CONFIGURATION = "/app-config.js"
_CHUNK_BYTES = 1 << 18
_HASHED = re.compile(r"(\.bundle\.[0-9a-f]{16,}\.|/[0-9a-f]{20}\.)")
_INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_UID = re.compile(r"[0-9.]{1,64}")
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".webapp": "application/json"}


class Ohif:
    """The application of the viewer's port."""

    def __init__(self, application: WSGI, config: Config, files: Path, main_url: str) -> None:
        """`files` is the unpacked release; `main_url` is where people sign in."""
        self._application = application
        self._main_url = main_url.rstrip("/")
        self._cookie = cookie_name(config)
        self._files = {f"/{path.relative_to(files).as_posix()}": path for path in files.rglob("*") if path.is_file()}
        self._index = self._files["/index.html"].read_bytes()
        self._policy = _policy(self._index)
        self._configuration = _configuration(config.archive.name, self._main_url).encode()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        path: str = environ.get("PATH_INFO") or "/"
        if any(path == own or path.startswith(f"{own}/") for own in PASSED_ON):
            return self._application(environ, start_response)
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return self._answer(environ, start_response, "405 Method Not Allowed", b"", "text/plain", [("Allow", "GET, HEAD")])
        if path == CONFIGURATION:
            return self._answer(environ, start_response, "200 OK", self._configuration, "text/javascript; charset=utf-8", _again())
        file = self._files.get(path)
        if file is not None and path != "/index.html":
            return self._file(environ, start_response, path, file)
        return self._page(environ, start_response, path)

    def _page(self, environ: dict[str, Any], start_response: Callable[..., Any], path: str) -> Iterable[bytes]:
        """Answer any path that is no file: the viewer finds its way by them."""
        if "." in path.rpartition("/")[2]:
            return self._answer(environ, start_response, "404 Not Found", b"", "text/plain", [])
        if f"{self._cookie}=" not in environ.get("HTTP_COOKIE", ""):
            return self._answer(environ, start_response, "302 Found", b"", "text/plain", [("Location", self._sign_in(environ))])
        return self._answer(environ, start_response, "200 OK", self._index, "text/html; charset=utf-8", _again())

    def _sign_in(self, environ: dict[str, Any]) -> str:
        """Return the sign-in's address, which leads back to the study that was asked for."""
        asked = parse_qs(environ.get("QUERY_STRING", "")).get("StudyInstanceUIDs", [""])[0]
        target = f"/studies/{asked}/ohif" if _UID.fullmatch(asked) else "/studies"
        return f"{self._main_url}/login?next={quote(target, safe='')}"

    def _file(self, environ: dict[str, Any], start_response: Callable[..., Any], path: str, file: Path) -> Iterable[bytes]:
        found = file.stat()
        tag = f'"{found.st_size:x}-{found.st_mtime_ns:x}"'
        kept = "public, max-age=31536000, immutable" if _HASHED.search(path) else "no-cache"
        fields = [("ETag", tag), ("Cache-Control", kept)]
        if environ.get("HTTP_IF_NONE_MATCH") == tag:
            start_response("304 Not Modified", self._headers(fields))
            return []
        content_type = _TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        fields += [("Content-Type", content_type), ("Content-Length", str(found.st_size))]
        start_response("200 OK", self._headers(fields))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else _read(file)

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any], status: str, data: bytes, content_type: str,
        fields: list[tuple[str, str]],
    ) -> Iterable[bytes]:
        start_response(status, self._headers([*fields, ("Content-Type", content_type), ("Content-Length", str(len(data)))]))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [data]

    def _headers(self, fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
        always = {**headers.ALWAYS, "Content-Security-Policy": self._policy, "Cache-Control": headers.PRIVATE}
        named = {name for name, _value in fields}
        return [*fields, *((name, value) for name, value in always.items() if name not in named)]


def _again() -> list[tuple[str, str]]:
    return [("Cache-Control", "no-cache")]


def _read(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(_CHUNK_BYTES):
            yield piece


def _policy(index: bytes) -> str:
    """Return the strictest policy OHIF runs under: nothing from or to elsewhere, the two inline scripts of its page by their hash.

    Its codecs are WebAssembly and its workers are blobs; styles are written by scripts.
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in _INLINE.findall(index))
    return (
        f"default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob: {hashes}; worker-src 'self' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
        "media-src 'self' blob:; manifest-src 'self'; frame-src 'self' blob:; object-src 'self' blob:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def _configuration(name: str, main_url: str) -> str:
    source = {
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb", "sourceName": "strongroom",
        "configuration": {
            "friendlyName": name, "name": "strongroom", "qidoRoot": "/dicomweb", "wadoRoot": "/dicomweb", "wadoUriRoot": "/dicomweb",
            "qidoSupportsIncludeField": True, "supportsFuzzyMatching": True, "supportsWildcard": True, "supportsReject": False,
            "imageRendering": "wadors", "thumbnailRendering": "wadors", "enableStudyLazyLoad": True, "dicomUploadEnabled": False,
            "singlepart": "bulkdata,video,pdf", "omitQuotationForMultipartRequest": True,
            "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
        },
    }
    settings = {
        "name": "strongroom", "routerBasename": "/", "extensions": [], "modes": [], "customizationService": {}, "showStudyList": True,
        "maxNumberOfWebWorkers": 3, "showWarningMessageForCrossOrigin": True, "showCPUFallbackMessage": True, "showLoadingIndicator": True,
        "strictZSpacingForVolumeViewport": True, "groupEnabledModesFirst": True,
        "investigationalUseDialog": {"option": "configure", "days": 90},
        "maxNumRequests": {"interaction": 20, "thumbnail": 10, "prefetch": 10},
        "defaultDataSourceName": "strongroom", "dataSources": [source],
    }
    # Who is not signed in any more is led to where one signs in.
    return (
        f"window.config = {json.dumps(settings, indent=1)};\n"
        f"window.config.httpErrorHandler = function (error) {{\n"
        f"  if (error && error.status === 401) {{ window.location.assign({json.dumps(main_url + '/login?next=%2Fstudies')}); }}\n"
        f"}};\n"
    )
