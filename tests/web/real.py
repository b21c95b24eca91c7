"""The real application over a real archive: mia sees study 1.2.3 and may store, study 1.2.4 is there and hidden from her."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from archive.access.grants import Target
from archive.node import Node
from archive.services import viewers
from archive.web.wsgi import application
from tests.services import archives

SEEN, HIDDEN, ABSENT = "1.2.3", "1.2.4", "1.2.5"
ORIGIN = "https://127.0.0.1:8443"


@dataclass(frozen=True)
class Place:
    """An archive, its application, and a token and a browser session of mia."""

    node: Node
    app: Flask
    token: str
    session: str

    def ask(self, method: str, path: str, *, browser: bool = False, headers: dict[str, str] | None = None, **more: Any) -> TestResponse:
        """Send one request as mia."""
        client = self.app.test_client(use_cookies=False)
        own = {"Cookie": f"__Host-session={self.session}", "Sec-Fetch-Site": "same-origin"} if browser else {
            "Authorization": f"Bearer {self.token}"
        }
        return client.open(path, method=method, headers={**own, **(headers or {})}, base_url=ORIGIN, **more)


def place(node: Node) -> Place:
    """Fill an archive and make mia."""
    for study in (SEEN, HIDDEN):
        for number in (1, 2):
            archives.store(node, archives.instance(number, study=study, PatientID=f"P{study}", PatientName="Canary^Hidden"))
    console = archives.the_console(node)
    node.accounts.add_user(console, "mia", roles=["technologist"], password=archives.PASSWORD)
    node.accounts.add_grant(console, to="mia", role="radiologist", target=Target("study", SEEN))
    token = node.accounts.create_token(console, owner="mia")["token"]
    signed_in = node.signin.password("mia", archives.PASSWORD, address="192.0.2.7", user_agent="test")
    viewer = viewers.folder(node.config)
    viewer.mkdir(parents=True)
    (viewer / viewers.RECORD).write_text(json.dumps(asdict(viewers.Release("@ohif/app", "1.0.0", "0" * 64, 1, 1))), encoding="utf-8")
    return Place(node, application(node), token, signed_in.token)


def seen(path: str) -> int:
    """The status of a GET of something mia sees: only the way to a viewer leads on."""
    return 302 if path.endswith("/ohif") else 200


def config(folder: Path) -> Any:
    """The configuration of a fresh archive that says it is at ORIGIN."""
    return archives.made(folder, archive={"public_url": ORIGIN})


def addresses(app: Flask, *, study: str, series: str, sop: str) -> list[tuple[str, str]]:
    """Return method and path of every route that names an object, filled in."""
    values = {"study": study, "series": series, "sop": sop, "instance": sop, "listed": "1", "path": "7FE00010", "frame": 1}
    found = []
    for rule in app.url_map.iter_rules():
        if not rule.arguments & {"study", "series", "sop"} or rule.endpoint.startswith("shared."):  # by links: tests/web/test_shared.py
            continue
        for name in sorted(rule.methods or set()):
            if name == "OPTIONS":
                continue
            with app.test_request_context(base_url=ORIGIN):
                path = app.url_map.bind("127.0.0.1").build(rule.endpoint, {k: v for k, v in {**values, "datastore": "clinical"}.items()
                                                                         if k in rule.arguments})
            found.append((name, path))
    return sorted(set(found))
