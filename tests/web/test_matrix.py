"""Who may call what: every role from the start, no role and no sign-in, against every endpoint, and what may and may not be seen.

The statuses of the answers are compared with tests/web/golden/matrix.tsv, which was read for sense. After a change that is meant to be,

    ARCHIVE_TEST_MATRIX=write python -m pytest tests/web/test_matrix.py

writes it anew: read the difference before it is committed. A line is an endpoint, a method and what it is about: `granted` (a study on
which each has a grant of the own role, where that role holds anything on images), `not-granted` (one that is there) or `absent`. 400 and
404 of an endpoint that takes more than it was given say that the caller came as far as that; 403 that the caller did not; 200- is an
empty list.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest

from archive.access.grants import Target
from archive.access.permissions import ADMINISTRATIVE, BUILTIN_ROLES, OBJECT, Permission
from archive.web import permissions
from archive.web.api import OPERATIONS
from tests.services import archives
from tests.web import real
from tests.web.real import ABSENT, HIDDEN, ORIGIN, SEEN, Place

pytestmark = pytest.mark.timeout(900)  # thousands of requests before the first test: twenty seconds, minutes where others work too

GOLDEN = Path(__file__).parent / "golden" / "matrix.tsv"
WHO = ("anonymous", "no-role", *BUILTIN_ROLES)
ABOUT = {"granted": SEEN, "not-granted": HIDDEN, "absent": ABSENT}
NAMES = {
    "user": "someone", "group": "desk", "member": "someone", "role": "own", "listed": "1", "path": "7FE00010", "number": "1", "frame": "1",
}
"""What stands in a path beside studies, series and instances; whatever else is asked for is not there."""

OBJECTS = frozenset({"study", "series", "sop", "instance", "uid"})
WADO = frozenset({"dicomweb.wado_uri", "dicomweb.wado_uri_root"})
"""What names its object in the query."""
BODIES: dict[str, Any] = {
    "grant_add": {"to": "someone", "role": "referrer", "study": SEEN},
    "identity_bind": {"subject": "x", "issuer": "https://idp.example"},
    "peer_add": {"name": "CT9", "ae_titles": ["CT9"], "networks": ["192.0.2.0/24"]},
    "rule_add": {"name": "arrivals", "to": "someone", "role": "referrer", "modality": ["CT"]},
    "rule_apply": {"since": "2020-01-01T00:00:00Z"},
    "review_start": {"title": "x", "due": "2999-01-01T00:00:00Z"}, "review_decide": {"items": [1], "decision": "keep"},
    "break_glass_open": {"reason_code": "emergency", "reason": "an emergency in the ward", "study": HIDDEN},
    "break_glass_review": {"verdict": "justified", "note": "looked at closely"},
    "access_request_add": {"reason": "asked for by the board", "study": HIDDEN}, "share_add": {"studies": [SEEN]},
    "share_preview": {"studies": [SEEN]}, "user_role_add": {"role": "referrer"}, "group_join": {"member": "someone"},
    "role_add": {"name": "another", "permissions": ["search"]}, "role_change": {"add": ["pixels"]},
    "policy_test": {"text": "format = 1"},
    "policy_apply": {"text": "format = 1"}, "hold_add": {"study": SEEN, "reason": "asked for by a court"},
}
"""Bodies that mean something, where the smallest one would be refused before anybody asks who sends it."""
QUERIES = {
    "explain": f"subject=someone&uid={SEEN}", "disclosures": f"patient=P{SEEN}", "disclosures_csv": f"patient=P{SEEN}",
    "disclosures_pdf": f"patient=P{SEEN}", "hold_remove": "reason=over", "rule_test": f"study={SEEN}",
    "ledger_replay": "at=2020-01-01T00:00:00Z",
}

Line = tuple[str, str, str]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Line, list[str]]]:
    """The status of each line for each of WHO; nothing that a request changes outlives it."""
    with archives.opened(real.config(tmp_path_factory.mktemp("matrix"))) as node:
        place = real.place(node)
        cookies = staffed(place)
        database = node.core.database

        def undo(tx: Any) -> None:
            driver = tx.connection.driver_connection
            driver.execute("ROLLBACK")
            driver.execute("BEGIN")

        database.before_commit = undo
        try:
            yield {line: [asked(place, cookies[who], line) for who in WHO] for line in lines(place)}
        finally:
            database.before_commit = lambda _tx: None


def staffed(place: Place) -> dict[str, str]:
    """Make a user of each role, with a grant of it on what is granted, and return their sessions."""
    node, console = place.node, archives.the_console(place.node)
    node.accounts.add_user(console, "someone")
    node.accounts.add_group(console, "desk")
    node.accounts.add_role(console, "own", ["search"])
    cookies = {"anonymous": ""}
    for name in WHO[1:]:
        node.accounts.add_user(console, f"the-{name}", roles=[name] if name in BUILTIN_ROLES else [], password=archives.PASSWORD)
        if BUILTIN_ROLES.get(name, Permission.NONE) & OBJECT:
            node.accounts.add_grant(console, to=f"the-{name}", role=name, target=Target("study", SEEN))
        begun = node.signin.password(f"the-{name}", archives.PASSWORD, address="192.0.2.7", user_agent="test")
        cookies[name] = begun.token  # type: ignore[union-attr]
    return cookies


def lines(place: Place) -> list[Line]:
    """Every endpoint; of another datastore's DICOMweb, which has the rules of the default one's, two."""
    found = set()
    for rule in place.app.url_map.iter_rules():
        about = ABOUT if rule.arguments & OBJECTS or rule.endpoint in WADO else ("-",)
        if not rule.endpoint.startswith("datastores.") or rule.endpoint in ("datastores.search_studies", "datastores.retrieve_study"):
            found |= {(rule.endpoint, method, one) for method in (rule.methods or set()) - {"OPTIONS", "HEAD"} for one in about}
    return sorted(found)


def asked(place: Place, cookie: str, line: Line) -> str:
    """How one request is answered; `.`: whoever asks, the answer is the stranger's."""
    endpoint, method, about = line
    if cookie and permissions.rule_of(endpoint) == permissions.PUBLIC:
        return "."
    study = ABOUT.get(about, "x")
    rules = [rule for rule in place.app.url_map.iter_rules(endpoint) if method in (rule.methods or ())]
    rule = min(rules, key=lambda one: (len(one.arguments), one.rule))
    sop = f"{study}.1.1"
    objects = {"study": study, "series": f"{study}.1", "sop": sop, "instance": sop, "uid": study, "datastore": "clinical"}
    values = {name: (objects | NAMES).get(name, "1") for name in rule.arguments}
    path = place.app.url_map.bind("127.0.0.1").build(endpoint, values, method=method, force_external=False)
    query = f"requestType=WADO&studyUID={study}&seriesUID={study}.1&objectUID={sop}" if endpoint in WADO else ""
    headers = {"Cookie": f"__Host-session={cookie}"} if cookie else {}
    answer = place.app.test_client(use_cookies=False).open(
        path, method=method, base_url=ORIGIN, query_string=query or QUERIES.get(endpoint.removeprefix("api."), ""),
        headers={**headers, "Sec-Fetch-Site": "same-origin", "Accept": "*/*"}, **sent(endpoint),
    )
    empty = answer.get_data().strip() == b"[]"
    return f"{answer.status_code}{'-' if empty else ''}"


@cache
def sent(endpoint: str) -> dict[str, Any]:
    """The smallest body that an operation of the API takes."""
    name = endpoint.removeprefix("api.")
    body = next((one.body for one in OPERATIONS if one.name == name), None)
    return {} if body is None else {"json": BODIES.get(name) or sample(body)}


def sample(kind: Any) -> Any:
    """The smallest value of a type."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {one.encode_name: sample(one.type) for one in msgspec.structs.fields(kind) if one.required}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (tuple, list, dict):
        return {} if origin is dict else []
    if arguments and origin is not None and str(origin) == "typing.Literal":
        return arguments[0]
    if arguments:
        return sample(arguments[0])
    return {str: "x", int: 1, float: 1.0, bool: False, bytes: ""}.get(kind, "x")


def written(found: dict[Line, list[str]]) -> str:
    head = "\t".join(("endpoint", "method", "about", *WHO))
    return "\n".join([head, *("\t".join((*line, *statuses)) for line, statuses in sorted(found.items()))]) + "\n"


def test_the_matrix_is_the_one_that_was_read(answers: dict[Line, list[str]]) -> None:
    found = written(answers)
    if os.environ.get("ARCHIVE_TEST_MATRIX") == "write":
        GOLDEN.write_text(found, encoding="utf-8")
    before = GOLDEN.read_text(encoding="utf-8").splitlines()
    other = sorted(set(before) ^ set(found.splitlines()))
    assert other == [], f"{len(other)} lines differ: ARCHIVE_TEST_MATRIX=write writes them; read the difference"


def test_what_is_not_granted_answers_everybody_as_what_is_absent(answers: dict[Line, list[str]]) -> None:
    for (endpoint, method, about), statuses in answers.items():
        if about == "not-granted":
            assert statuses == answers[endpoint, method, "absent"], endpoint


def test_who_holds_nothing_on_images_gets_nothing_of_them(answers: dict[Line, list[str]]) -> None:
    """An administrator, an auditor, a security officer, a modality: a study is as absent to them, whatever else they may."""
    blind = [n for n, who in enumerate(WHO) if not BUILTIN_ROLES.get(who, Permission.NONE) & OBJECT]
    assert {WHO[n] for n in blind} == {"anonymous", "no-role", "administrator", "modality", "auditor", "security-officer"}
    for (endpoint, method, about), statuses in answers.items():
        if about == "granted":
            absent = answers[endpoint, method, "absent"]
            assert [statuses[n] for n in blind] == [absent[n] for n in blind], endpoint


def test_only_who_administers_administers(answers: dict[Line, list[str]]) -> None:
    """An endpoint whose rule asks for administrative permissions alone answers nobody else but with a refusal."""
    looked, through = 0, set()
    for (endpoint, _method, _about), statuses in answers.items():
        rule = permissions.rule_of(endpoint)
        if rule is None or not rule.need or rule.need & ~ADMINISTRATIVE:
            continue
        for who, status in zip(WHO, statuses, strict=True):
            if not BUILTIN_ROLES.get(who, Permission.NONE) & ADMINISTRATIVE:
                looked += 1
                if status not in ("302", "401", "403", "404"):
                    through.add(endpoint)
    assert looked > 300
    assert through == set()


def test_no_answer_is_a_fault(answers: dict[Line, list[str]]) -> None:
    faults = {line for line, statuses in answers.items() if any(one[0] == "5" for one in statuses)}
    assert faults == {("dicomweb.ups_subscribe", "POST", "-")}, "503: there are no notification connections here"


def test_a_stranger_is_led_to_the_sign_in_or_refused(answers: dict[Line, list[str]]) -> None:
    strangers = {line[0] for line, statuses in answers.items() if statuses[0] not in ("302", "401")}
    told = {"api.openapi", "pages.favicon", "pages.login", "probes.healthz", "probes.metrics", "probes.readyz", "static"}
    assert strangers == told | SIGNING_IN


SIGNING_IN = {"pages.oidc", "pages.passkey_options", "shared.ask", "shared.enter", "shared.open"}
"""Steps of signing in, and what a share link opens: they refuse in their own way what they were not given."""
