"""A served archive under odd requests, made from the API's own document, and with odd headers at every door: it never answers 500.

What proves nobody opens nothing: the second half sends cookies, tokens and headers that are wrong by a little or by much.
"""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import hypothesis
import pytest
import requests
from hypothesis import strategies as st

from archive.access import roles, token_text
from archive.access.permissions import FUNCTION, OBJECT
from archive.config import load
from archive.services import setup
from archive.services.signin import SignedIn
from tests.journeys.running import RunningArchive
from tests.services import archives

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install -e '.[test]'")

EXAMPLES = int(os.environ.get("ARCHIVE_TEST_FUZZ", "2"))
"""Requests of each operation; a long run sets more."""


TOKENS: dict[str, str] = {}
STUDY = "1.2.3"

@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningArchive]:
    """A served archive with boss, who may everything but see."""
    running = RunningArchive(tmp_path_factory.mktemp("fuzzed"), settings="[signin]\nidle_minutes = 240\n")  # the long run takes hours
    config = load(running.config)
    setup.initialise(config, password=archives.PASSWORD)
    with archives.opened(config) as node:
        console = archives.the_console(node)
        archives.store(node, archives.instance(1, study=STUDY))
        named = roles.names(FUNCTION | OBJECT)
        node.accounts.add_role(console, "every-function", named)
        node.accounts.add_user(console, "boss", roles=["every-function"], password=archives.PASSWORD)
        TOKENS["boss"] = node.accounts.create_token(console, owner="boss", permissions=named)["token"]
        begun = node.signin.password("boss", archives.PASSWORD, address="127.0.0.1", user_agent="test")
        assert isinstance(begun, SignedIn)
        TOKENS["session"] = begun.token
    running.start("serve")
    try:
        yield running
    finally:
        running.stop()


def test_it_answers_as_its_document_says(archive: RunningArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(archive.ca))  # some checks ask again, without credentials
    told = requests.get(f"{archive.url}/api/openapi.json", timeout=30, verify=str(archive.ca))
    schema = schemathesis.openapi.from_dict(told.json())
    headers = {"Authorization": f"Bearer {TOKENS['boss']}"}
    answered: Counter[int] = Counter()
    walked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        walked += 1

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def asked(case: Any) -> None:
            if case.query and "wait" in case.query:
                case.query["wait"] = 0  # for what may come: longer than anybody here has
            answer = case.call(base_url=archive.url, headers=headers, verify=str(archive.ca))
            answered[answer.status_code] += 1
            # What a document can say of a name, a reason or a date is less than what makes it right.
            case.validate_response(answer, headers=headers, excluded_checks=[positive_data_acceptance])

        asked()
    assert walked > 50
    assert answered.keys() <= {200, 201, 204, 400, 403, 404, 409}
    assert answered[200] > 20
    assert '"ERROR"' not in archive.log()


# --- headers --------------------------------------------------------------------------------------------------------------------------

HEADERS_TRIED = 100 * EXAMPLES
MARK = "zQ7-echo"
"""In every value that is made up: nothing that is answered has it."""

OBJECT_PATH = f"/dicomweb/studies/{STUDY}/series/{STUDY}.1/instances/{STUDY}.1.1"
READS = (
    "/", "/studies", f"/studies/{STUDY}", f"/studies/{STUDY}/share", "/me/factors", "/me/sessions", "/admin/roles", "/admin/reviews",
    "/approvals", "/albums", "/shares", "/break-glass", "/shared", f"/shared/studies/{STUDY}", "/ledger/page", "/api/session", "/api/users",
    "/api/grants", "/api/tokens", "/api/audit", "/api/ledger/checkpoint", "/api/ledger/tile/entries/000", "/dicomweb/studies",
    "/dicomweb/instances", f"/dicomweb/studies/{STUDY}", f"/dicomweb/studies/{STUDY}/metadata", f"/dicomweb/studies/{STUDY}/zip",
    OBJECT_PATH, f"{OBJECT_PATH}/frames/1", f"{OBJECT_PATH}/rendered", f"{OBJECT_PATH}/thumbnail", f"{OBJECT_PATH}/bulk/7FE00010",
    f"/dicomweb/wado?requestType=WADO&studyUID={STUDY}&seriesUID={STUDY}.1&objectUID={STUDY}.1.1", "/dicomweb/workitems",
)
WRITES = (
    ("/api/groups", b'{"name": "x"}'), ("/api/grants", b"{}"), ("/api/shares", b"[1"), ("/api/break-glass", b"{}"),
    ("/dicomweb/studies", b"--x\r\n\r\nDICM\r\n--x--"), ("/dicomweb/workitems", b"[{}]"), ("/me/sessions/end", b"a=b"),
    ("/albums", b"name=x"), ("/logout", b""), ("/shared/leave", b""), (f"/studies/{STUDY}/share", b"a=b"),
)
OPEN = ("/login", "/s", "/healthz", "/favicon.ico", "/api/openapi.json")
OPEN_WRITES = (("/s/open", b"word=x"), ("/s/code", b"code=1"), ("/login/second", b"code=1"), ("/login/passkey", b"{}"))

TEXT = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=40).map(lambda text: f"{MARK}{text}".strip())
HUGE = MARK * 800
ODD: dict[str, list[str]] = {
    "Origin": ["null", f"https://{MARK}.example", "https://127.0.0.1:1", "https://[", f"javascript:{MARK}", "https://127.0.0.1.evil.example"],
    "Sec-Fetch-Site": ["cross-site", "same-site", "same-origin", "none", MARK, "same-origin, none"],
    "If-None-Match": ["*", f'"{MARK}"', f'W/"{MARK}', '"' * 50, ",".join([f'"{MARK}"'] * 300)],
    "If-Match": ["*", f'"{MARK}"'], "If-Modified-Since": [MARK, "Thu, 99 Foo 9999 99:99:99 GMT"], "If-Range": [f'"{MARK}"', MARK],
    "Range": ["bytes=0-0", "bytes=-0", "bytes=9-1", f"bytes={'9' * 400}-", "bytes=0-0," * 200, f"{MARK}=0-1", "bytes=a-b", "bytes=-"],
    "Accept": [
        "*/*", f"{MARK}/{MARK}", "text/html;q=2", "image/jpeg;q=nan", ";;;", "multipart/related; type=", "application/dicom;" * 200,
        'multipart/related; type="application/octet-stream"; transfer-syntax=*', f'application/json; profile="{MARK}',
    ],
    "Accept-Encoding": ["gzip;q=0, *;q=0", MARK, "gzip;q=x"], "Accept-Language": [MARK, "de;q=1e999"], "Accept-Charset": [MARK, ";q"],
    "Content-Type": [
        "application/json; charset=zQ7-echo", "multipart/related", 'multipart/related; boundary=""', "multipart/form-data", MARK, "/",
        "multipart/related; type=application/dicom; boundary=x", "application/x-www-form-urlencoded; charset=utf-7", "application/json",
    ],
    "Content-Encoding": ["gzip", MARK], "Expect": [MARK], "X-HTTP-Method-Override": ["DELETE"], "Forwarded": [f"for={MARK};host={MARK}"],
    "X-Forwarded-For": ["127.0.0.1", f"{MARK}, 1.2.3.4", "1.2.3.4," * 300], "X-Forwarded-Host": [f"{MARK}.example"],
    "X-Forwarded-Proto": ["http", MARK], "X-Forwarded-Prefix": [f"/{MARK}"], "X-Request-Id": [MARK], "Referer": [f"https://{MARK}.example/"],
    "Idempotency-Key": [MARK, "", HUGE, f"{MARK}\xe9", '"'], "User-Agent": ["x" * 6000, ""], "Last-Event-ID": [MARK, "-1"],
}  # fmt: skip


def wrong_tokens() -> list[str]:
    """Credentials that are none: a token of a wrong check, of a wrong secret, of another form, or what opens another door."""
    token, session = TOKENS["boss"], TOKENS["session"]
    _, prefix, secret, check = token.split("_")
    other = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    return [
        token[:-1], token[:-1] + ("A" if token[-1] != "A" else "B"), token + "x", token.lower(), f"{token},{token}", f'"{token}"',
        f"{token} {MARK}",
        token_text.written(prefix, other), token_text.written("00000000", secret), f"sr_{prefix}_{secret}", f"sr_{prefix}__{check}",
        session, MARK, HUGE, f"{MARK}\xe9\xff", "\xa0" + token, "eyJhbGciOiJub25lIn0.eyJzdWIiOiJib3NzIn0.", "..", "=", "%00",
    ]


def basic(text: str | bytes) -> str:
    return "Basic " + base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def wrong_credentials() -> st.SearchStrategy[list[tuple[str, str]]]:
    tokens, (token, session) = wrong_tokens(), (TOKENS["boss"], TOKENS["session"])
    headers = [f"{scheme}{one}" for one in tokens for scheme in ("Bearer ", "bearer\t", "Basic ", "")]
    headers += [basic(f"boss:{one}") for one in tokens] + [basic(f"{who}:{token}") for who in ("admin", "bos", "bo ss", "")]
    headers += [
        basic(b"boss:\xff\xfe"), basic(b"\xff" * 4000), basic("boss"), basic(":"), basic(f"boss:{archives.PASSWORD}"), "Basic ====",
        "Bearer", f"Digest username={MARK}", f"Negotiate {token}", f"Token {token}", f"Bearer: {token}", ",",
        f"Bearer {MARK}, Bearer {token}",
    ]
    names = ["__Host-session", "__Host-share", "session", "share", "__host-session", "__Secure-session", "__Host-session "]
    cookies = [f"{name}={one}" for name in names for one in [*tokens, token, f'"{MARK}', "", "; ; =;", "\\303\\251"] if one != session]
    cookies += [f"{name}={session}" for name in names[1:-1]] + [f"__Host-session={MARK}; x={session}"]
    cookies += ["=" * 3000, ";" * 3000, f"{MARK}=" * 900]
    drawn = st.one_of(st.sampled_from(headers), TEXT)
    named = st.tuples(st.sampled_from(names), TEXT).map("=".join)
    cookie = st.one_of(st.sampled_from(cookies), TEXT, named)
    return st.tuples(st.none() | drawn, st.none() | cookie).map(
        lambda both: [(name, value) for name, value in zip(("Authorization", "Cookie"), both, strict=True) if value is not None]
    )


def _values(name: str) -> st.SearchStrategy[str]:
    given = st.sampled_from(ODD[name])
    return given if name == "User-Agent" else st.one_of(given, TEXT)  # which the audit log keeps, and shows


def odd_headers() -> st.SearchStrategy[list[tuple[str, str]]]:
    one = st.sampled_from(sorted(ODD)).flatmap(lambda name: st.tuples(st.just(name), _values(name)))
    return st.lists(one, max_size=4, unique_by=lambda header: header[0])


@dataclass
class Wire:
    """One connection after the other, to which whatever bytes are written."""

    url: str
    ca: str
    connection: ssl.SSLSocket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.part()

    def part(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def send(self, data: bytes) -> http.client.HTTPResponse | None:
        """Return the answer, read to its end; None when the connection is ended instead."""
        if self.connection is None:
            place = urlsplit(self.url)
            assert place.hostname is not None
            plain = socket.create_connection((place.hostname, place.port or 443), timeout=30)
            self.connection = ssl.create_default_context(cafile=self.ca).wrap_socket(plain, server_hostname=place.hostname)
        try:
            self.connection.sendall(data)
            answer = http.client.HTTPResponse(self.connection, method=data.split(b" ", 1)[0].decode())
            answer.begin()
            answer.text = answer.read()  # type: ignore[attr-defined]
        except (OSError, http.client.HTTPException):
            self.part()
            return None
        if answer.will_close:
            self.part()
        return answer

    def ask(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes = b"") -> http.client.HTTPResponse | None:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {urlsplit(self.url).netloc}", *(f"{name}: {value}" for name, value in headers)]
        if method != "GET":
            lines.append(f"Content-Length: {len(body)}")
        return self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def check(answer: http.client.HTTPResponse) -> None:
    """No fault of the archive's, and nothing of what was sent comes back."""
    assert answer.status < 500, (answer.status, answer.text[:300])  # type: ignore[attr-defined]
    assert MARK not in str(answer.headers)
    assert MARK.encode() not in answer.text  # type: ignore[attr-defined]
    assert answer.getheader("Access-Control-Allow-Origin") is None


def fuzzed(**strategies: Any) -> Any:
    def decorate(test: Any) -> Any:
        return hypothesis.settings(
            max_examples=HEADERS_TRIED, deadline=None, database=None, derandomize=True, phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )(hypothesis.given(**strategies)(test))
    return decorate


def test_nothing_but_a_right_credential_opens_a_door(archive: RunningArchive) -> None:
    answered: Counter[int] = Counter()
    protected = st.sampled_from([*(("GET", path, b"") for path in READS), *(("POST", path, body) for path, body in WRITES)])
    with Wire(archive.url, str(archive.ca)) as wire:

        @fuzzed(what=protected, credential=wrong_credentials(), more=odd_headers())
        def refused(what: tuple[str, str, bytes], credential: list[tuple[str, str]], more: list[tuple[str, str]]) -> None:
            answer = wire.ask(what[0], what[1], [*credential, *more], what[2])
            answered[answer.status if answer is not None else 0] += 1
            if answer is not None:
                check(answer)
                led = answer.status in (302, 303) and (answer.getheader("Location") or "").partition("?")[0] in {"/login", "/s"}
                assert answer.status >= 400 or led, (answer.status, answer.getheader("Location"))

        refused()
    assert answered[401] > HEADERS_TRIED // 3
    assert answered[0] < HEADERS_TRIED // 10
    assert '"ERROR"' not in archive.log()


def test_odd_headers_with_a_right_credential_and_at_open_doors(archive: RunningArchive) -> None:
    answered: Counter[int] = Counter()
    known = [("Authorization", f"Bearer {TOKENS['boss']}")]
    doors = [*(("GET", path, b"", known) for path in READS), *(("POST", path, body, known) for path, body in WRITES)]
    doors += [*(("GET", path, b"", []) for path in OPEN), *(("POST", path, body, []) for path, body in OPEN_WRITES)]
    with Wire(archive.url, str(archive.ca)) as wire:

        @fuzzed(what=st.sampled_from(doors), more=odd_headers())
        def asked(what: tuple[str, str, bytes, list[tuple[str, str]]], more: list[tuple[str, str]]) -> None:
            answer = wire.ask(what[0], what[1], [*what[3], *more], what[2])
            answered[answer.status if answer is not None else 0] += 1
            if answer is not None:
                check(answer)

        asked()
    assert answered[200] > HEADERS_TRIED // 10
    assert '"ERROR"' not in archive.log()


def test_a_session_led_here_by_another_site_and_lengths_that_are_wrong(archive: RunningArchive) -> None:
    cookie = ("Cookie", f"__Host-session={TOKENS['session']}")
    with Wire(archive.url, str(archive.ca)) as wire:
        found = wire.ask("GET", "/api/session", [cookie, ("Sec-Fetch-Site", "same-origin")])
        assert found is not None
        assert found.status == 200, "so that what follows is refused for where it comes from"
        for told in ([("Sec-Fetch-Site", site)] for site in ("cross-site", "same-site", MARK, "same-origin, none")):
            for origin in ([], [("Origin", archive.url)]):
                for path, body in (*WRITES, ("/dicomweb/studies", b"")):
                    if not path.startswith("/s"):
                        answer = wire.ask("POST", path, [cookie, *told, *origin], body)
                        assert answer is not None
                        assert answer.status in (400, 403), path
                        check(answer)
        head = f"POST /api/groups HTTP/1.1\r\nHost: {urlsplit(archive.url).netloc}\r\nAuthorization: Bearer {TOKENS['boss']}\r\n"
        for lines in (
            "Content-Length: abc", "Content-Length: -1", "Content-Length: +2", "Content-Length: 0x2", "Content-Length:",
            f"Content-Length: {'9' * 40}", "Content-Length: 99999999999", "Content-Length: 2\r\nContent-Length: 3",
            "Content-Length: 2\r\nTransfer-Encoding: chunked", "Transfer-Encoding: zQ7-echo", "Transfer-Encoding: chunked, zQ7-echo",
        ):
            answer = wire.send(f"{head}Content-Type: application/json\r\n{lines}\r\n\r\n{{}}".encode())
            if answer is not None:
                check(answer)
                assert answer.status >= 400, lines
            wire.part()
    assert '"ERROR"' not in archive.log()
