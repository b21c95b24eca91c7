"""The JSON API over a real archive: each operation done once, what it refuses, and that its document says what it does."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from archive.access import roles
from archive.access.permissions import FUNCTION, OBJECT
from archive.db.tables import idempotent_request
from archive.errors import CommitUncertain
from archive.keys import ca
from archive.ledger.audit import Event, Kind
from archive.services import idempotency
from archive.web import permissions
from archive.web.api import OPERATIONS
from archive.web.api.openapi import document
from archive.web.api.operation import Text
from tests.services import archives
from tests.web import real
from tests.web.real import HIDDEN, SEEN, Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An archive, mia, and boss, who may do everything but see."""
    with archives.opened(real.config(tmp_path_factory.mktemp("api"))) as node:
        yield real.place(node)


@pytest.fixture(scope="module")
def boss(place: Place) -> str:
    """A token of boss that carries every function."""
    console = archives.the_console(place.node)
    named = roles.names(FUNCTION | OBJECT)
    place.node.accounts.add_role(console, "all-functions", named)
    place.node.accounts.add_user(console, "boss", roles=["all-functions"])
    return str(place.node.accounts.create_token(console, owner="boss", permissions=named)["token"])


class Api:
    """Asks as boss and checks each answer against the document."""

    def __init__(self, place: Place, token: str) -> None:
        self.place, self.token = place, token
        self.done: set[str] = set()
        self.by_rule = {(one.method, one.path): one for one in OPERATIONS}

    def __call__(self, method: str, path: str, body: Any = None, *, status: int | None = None, rule: str = "") -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        sent = {} if body is None else {"json": body}
        answer = self.place.ask(method, "/api" + path, headers=headers, **sent)
        one = self.by_rule[method, rule or path.partition("?")[0]]
        expected = status or (204 if one.answer is None else one.status)
        assert answer.status_code == expected, answer.text
        if expected >= 400:
            assert answer.content_type == "application/problem+json"
            return answer.json
        self.done.add(one.name)
        if one.answer is None or one.answer is Text:
            return answer.data if one.media_type == "application/pdf" else answer.text
        msgspec.json.decode(answer.data, type=one.answer)
        return answer.json


RAN: set[str] = set()


@pytest.fixture(autouse=True)
def _noted(request: pytest.FixtureRequest) -> None:
    RAN.add(request.function.__name__)


@pytest.fixture(scope="module")
def api(place: Place, boss: str) -> Api:
    return Api(place, boss)


def test_people_from_begin_to_end(api: Api) -> None:
    made = api("POST", "/users", {"name": "ada", "password": "lantern-orbit-mustard-quilt", "roles": ["auditor"]})
    assert (made["roles"], made["password"], "phc" in json.dumps(made)) == (["auditor"], True, False)
    assert api("GET", "/users/ada", rule="/users/<user>")["id"] == made["id"]
    assert "ada" in [one["name"] for one in api("GET", "/users")]
    api("POST", "/users", {"name": "ada"}, status=400)
    assert api("PATCH", "/users/ada", {"enabled": False}, rule="/users/<user>")["enabled"] is False
    drawn = api("POST", "/users/ada/password", {}, rule="/users/<user>/password")
    assert len(drawn["password"]) > 20
    given = {"password": "another long passphrase here"}
    assert api("POST", "/users/ada/password", given, rule="/users/<user>/password")["password"] is None
    api("POST", "/users/ada/roles", {"role": "researcher", "until": "8h"}, rule="/users/<user>/roles")
    assert set(api("GET", "/users/ada", rule="/users/<user>")["roles"]) == {"auditor", "researcher"}
    api("DELETE", "/users/ada/roles/researcher", rule="/users/<user>/roles/<role>")
    api("POST", "/groups", {"name": "readers"})
    api("POST", "/groups/readers/members", {"member": "ada"}, rule="/groups/<group>/members")
    assert [one["members"][0]["name"] for one in api("GET", "/groups") if one["name"] == "readers"] == ["ada"]
    api("DELETE", "/groups/readers/members/ada", rule="/groups/<group>/members/<member>")
    api("DELETE", "/groups/readers", rule="/groups/<group>")
    role = api("POST", "/roles", {"name": "looker", "permissions": ["search", "metadata"]})
    assert api("GET", "/roles/looker", rule="/roles/<role>") == role
    assert role in api("GET", "/roles")
    api("DELETE", "/users/ada", rule="/users/<user>")
    api("GET", "/users/ada", rule="/users/<user>", status=404)


def test_nobody_changes_their_own_rights(api: Api) -> None:
    assert api("POST", "/users/boss/roles", {"role": "owner"}, rule="/users/<user>/roles", status=403)["code"] == "forbidden"
    api("POST", "/grants", {"to": "boss", "role": "radiologist", "everything": True}, status=403)


def test_roles_change_with_their_grants(api: Api) -> None:
    api("POST", "/roles", {"name": "readers", "permissions": ["search"]})
    api("POST", "/users", {"name": "rita"})
    given = api("POST", "/grants", {"to": "rita", "role": "readers", "study": SEEN})
    made = api("PATCH", "/roles/readers", {"add": ["pixels"], "reason": "pictures"}, rule="/roles/<role>")
    assert (made["permissions"], made["grants"]) == (["search", "pixels"], 1)
    api("PATCH", "/roles/readers", {}, rule="/roles/<role>", status=400)
    api("PATCH", "/roles/referrer", {"add": ["original"]}, rule="/roles/<role>", status=409)
    api("DELETE", "/roles/readers", rule="/roles/<role>", status=409)
    assert next(one for one in api("GET", "/grants") if one["id"] == given["id"])["permissions"] == ["search", "pixels"]
    api("DELETE", f"/grants/{given['id']}", rule="/grants/<number>")
    assert api("DELETE", "/roles/readers", rule="/roles/<role>")["name"] == "readers"
    api("GET", "/roles/readers", rule="/roles/<role>", status=404)
    rows = {one["permission"]: one for one in api("GET", "/roles/matrix")}
    assert "owner" in rows["purge"]["roles"]


def test_policy_as_text(api: Api) -> None:
    api("POST", "/users", {"name": "pia"})
    text = api("GET", "/policy")
    assert api("POST", "/policy/test", {"text": text})["changes"] == []
    more = text + f'\n[[grant]]\nto = "pia"\nrole = "referrer"\nstudy = "{SEEN}"\n[[expect]]\nsubject = "pia"\nstudy = "{SEEN}"\n'
    assert api("POST", "/policy/test", {"text": more + 'decision = "deny"\n'})["failed"][0]["found"] == "allow"
    api("POST", "/policy", {"text": more + 'decision = "deny"\n'}, status=409)
    done = api("POST", "/policy", {"text": more + 'decision = "allow"\n', "reason": "as written"})
    assert done["applied"] is True
    assert done["effects"] == [{"subject": "pia", "change": "gains", "permissions": ["search", "metadata", "pixels"], "series": 1}]
    api("POST", "/policy", {"text": "format = 3"}, status=400)
    assert api("GET", "/approvals?every=true") == []
    api("GET", "/approvals/1", rule="/approvals/<number>", status=404)


def test_rules_on_arrival(api: Api) -> None:
    body = {"name": "ct", "to": "mia", "role": "referrer", "modality": ["CT"], "lasts": "30d", "priority": 3}
    made = api("POST", "/rules", body)
    assert (made["conditions"], made["days"], made["level"], made["enabled"]) == ({"modality": ["CT"]}, 30.0, "study", True)
    api("POST", "/rules", {**body, "name": "x", "lasts": "for ever"}, status=400)
    api("POST", "/rules", {**body, "name": "x", "to": "boss"}, status=403)
    assert [one["name"] for one in api("GET", "/rules")] == ["ct"]
    [match] = api("GET", f"/rules/test?study={HIDDEN}", rule="/rules/test")
    assert (match["rule"], match["object"], match["due"]) == ("ct", HIDDEN, True)
    api("GET", "/rules/test?study=9.9", rule="/rules/test", status=404)
    preview = api("POST", "/rules/apply", {"since": "2020-01-01T00:00:00Z", "rule": "ct"})
    assert (preview["done"], preview["grants"] > 0) == (False, True)
    assert api("POST", "/rules/ct/disable", rule="/rules/<rule>/disable")["enabled"] is False
    assert api("POST", "/rules/apply", {"since": "2020-01-01T00:00:00Z", "confirm": True})["grants"] == 0
    assert api("POST", "/rules/ct/enable", rule="/rules/<rule>/enable")["enabled"] is True
    gone = api("DELETE", "/rules/ct?keep_grants=true", rule="/rules/<rule>")
    assert (gone["name"], gone["revoked"]) == ("ct", 0)
    api("DELETE", "/rules/ct", rule="/rules/<rule>", status=404)


def test_access_reviews(api: Api) -> None:
    api("POST", "/users", {"name": "vera", "roles": ["researcher"]})
    made = api("POST", "/reviews", {"title": "vera's", "due": "2999-01-01T00:00:00Z", "role": "researcher", "grants": False})
    assert (made["state"], made["undecided"]) == ("open", 1)
    path = f"/reviews/{made['id']}"
    [row] = api("GET", path, rule="/reviews/<number>")["items"]
    assert (row["subject"], row["role"], row["decision"]) == ("vera", "researcher", "")
    api("POST", f"{path}/close", {}, rule="/reviews/<number>/close", status=409)
    decided = api("POST", f"{path}/decisions", {"items": [row["id"]], "decision": "revoke", "note": "left"},
                  rule="/reviews/<number>/decisions")
    assert (decided["undecided"], decided["to_revoke"]) == (0, 1)
    closed = api("POST", f"{path}/close", {}, rule="/reviews/<number>/close")
    assert (closed["state"], closed["revoked"]) == ("closed", 1)
    assert [one["leaf"] for one in api("GET", "/reviews") if one["id"] == made["id"]] == [closed["leaf"]]
    assert api("GET", path, rule="/reviews/<number>")["items"][0]["note"] == "left"
    api("GET", "/reviews/999", rule="/reviews/<number>", status=404)


def test_who_could_see_what_then_and_the_log_in_lines(api: Api) -> None:
    size = api("GET", "/audit?limit=1", rule="/audit")["events"][0]["id"]
    told = api("GET", f"/ledger/replay?size={size}&subject=mia", rule="/ledger/replay")
    assert SEEN in [one["study_instance_uid"] for one in told["studies"]]
    assert api("GET", f"/ledger/replay?size={size}&study={SEEN}", rule="/ledger/replay")["existed"] is True
    assert api("GET", f"/ledger/replay?size={size}", rule="/ledger/replay")["people"]
    for bad in ("", "?size=0", "?at=2999-01-01T00:00:00Z", f"?size={size}&at=2020-01-01T00:00:00Z"):
        api("GET", f"/ledger/replay{bad}", rule="/ledger/replay", status=400)
    lines = api("GET", "/audit.jsonl?limit=3", rule="/audit.jsonl").splitlines()
    assert [json.loads(line)["n"] for line in lines[:-1]] == [0, 1, 2]
    assert json.loads(lines[-1])["end"]["next_after"] == 2
    found = api("GET", "/audit?network=10.0.0.0/8&action=R&action=E&outcome=0", rule="/audit")
    assert found == {"events": [], "before": None}
    api("GET", "/audit?network=nowhere", rule="/audit", status=400)
    assert api("GET", f"/audit/disclosures.pdf?patient=P{SEEN}", rule="/audit/disclosures.pdf").startswith(b"%PDF-")
    assert api("GET", f"/audit/disclosures.csv?patient=P{SEEN}", rule="/audit/disclosures.csv").startswith("at,who,kind")
    headers = {"Authorization": f"Bearer {api.token}", "Accept": "application/pdf"}
    answer = api.place.ask("GET", f"/api/audit/disclosures?patient=P{SEEN}", headers=headers)
    assert (answer.content_type, answer.data[:5]) == ("application/pdf", b"%PDF-")


def test_grants_and_why(api: Api) -> None:
    made = api("POST", "/grants", {"to": "mia", "role": "referrer", "study": HIDDEN, "until": "8h", "reason": "asked"})
    assert (made["level"], made["object"], made["state"], made["endless"]) == ("study", HIDDEN, "active", False)
    assert made["id"] in [one["id"] for one in api("GET", "/grants?to=mia")]
    why = api("GET", f"/explain?subject=mia&uid={HIDDEN}", rule="/explain")
    assert why["allowed"] is True
    assert [one["grant"] for one in why["because"]] == [made["id"]]
    ended = api("DELETE", f"/grants/{made['id']}?reason=done", rule="/grants/<number>")
    assert ended["state"] == "revoked"
    assert api("GET", f"/explain?subject=mia&uid={HIDDEN}", rule="/explain")["allowed"] is False
    for wrong in ({}, {"everything": True, "study": SEEN}, {"patient": " "}):
        api("POST", "/grants", {"to": "mia", "role": "referrer", **wrong}, status=400)
    api("DELETE", "/grants/999999", rule="/grants/<number>", status=404)
    api("DELETE", "/grants/x", rule="/grants/<number>", status=404)


def test_tokens_are_made_in_the_browser_or_with_a_token_and_bounded(place: Place, api: Api) -> None:
    made = api("POST", "/tokens", {"permissions": ["search"], "until": "1h"})
    assert (made["user"], made["permissions"], made["parent"] is None) == ("boss", ["search"], False)
    assert api("POST", "/tokens", {"permissions": ["user-manage"]}, status=403)["code"] == "forbidden"
    answer = place.ask("POST", "/api/tokens", browser=True, json={"studies": [SEEN], "until": "1h"})
    assert (answer.status_code, answer.json["user"], answer.json["bounded_to"]) == (201, "mia", 1)
    assert place.ask("POST", "/api/tokens", browser=True, json={"studies": [HIDDEN]}).status_code == 404
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://elsewhere.example"}
    assert place.ask("POST", "/api/tokens", browser=True, json={}, headers=foreign).status_code == 403
    mine = place.ask("GET", "/api/tokens", browser=True).json
    assert answer.json["id"] in [one["id"] for one in mine]
    assert {one["user"] for one in mine} == {"mia"}
    assert {one["user"] for one in api("GET", "/tokens")} >= {"mia", "boss"}
    assert all("token" not in one for one in mine)
    assert api("DELETE", f"/tokens/{answer.json['id']}", rule="/tokens/<ref>")["state"] == "revoked"


def test_peers_and_where_things_go(place: Place, api: Api, tmp_path: Path) -> None:
    made = api("POST", "/peers", {"name": "CT one", "ae_titles": ["CT1"], "networks": ["192.0.2.0/24"], "address": "192.0.2.7:104"})
    assert (made["tls"], made["networks"], made["port"]) == (False, ["192.0.2.0/24"], 104)
    assert api("GET", "/peers/CT one", rule="/peers/<peer>") == made
    assert api("PATCH", "/peers/CT one", {"relational": True}, rule="/peers/<peer>")["settings"]["relational"] is True
    assert len(api("GET", "/peers")) == 1
    key = tmp_path / "issued"
    issued = place.node.peers.add(archives.the_console(place.node), "WS", ["WS1"], issue=key)
    pem = (key / "cert.pem").read_text()
    api("POST", "/peers/WS/certificate", {"certificate": pem}, rule="/peers/<peer>/certificate", status=400)
    api("DELETE", "/peers/WS", rule="/peers/<peer>")
    again = api("POST", "/peers", {"name": "WS", "ae_titles": ["WS1"], "certificate": pem})
    assert again["certificate_sha256"] == issued["certificate_sha256"]
    other = ca.issue_peer(place.node.config, place.node.keyring, "WS2", tmp_path / "other", at=place.node.core.clock())
    renewed = api("POST", "/peers/WS/certificate", {"certificate": (tmp_path / "other" / "cert.pem").read_text()},
                  rule="/peers/<peer>/certificate")
    assert renewed["certificate_sha256"] == other.fingerprint.hex()
    api("POST", "/peers", {"name": "X", "ae_titles": ["X"]}, status=400)
    rule = {"name": "all", "destination": "CT one", "on_behalf_of": "mia", "modality": ["CT"]}
    assert api("POST", "/forwarding/rules", rule)["author"] == "mia"
    assert [one["name"] for one in api("GET", "/forwarding/rules")] == ["all"]
    assert [one["destination"] for one in api("GET", "/forwarding/destinations")] == ["CT one"]
    api("PATCH", "/forwarding/destinations/CT one", {"paused": True}, rule="/forwarding/destinations/<peer>")
    assert api("GET", "/forwarding/destinations")[0]["state"] == "paused"
    assert api("GET", "/forwarding/deliveries") == []
    api("DELETE", "/forwarding/rules/all", rule="/forwarding/rules/<rule>")
    assert api("GET", "/associations?since=2026-01-01T00:00:00Z&failed=true", rule="/associations") == []
    assert api("GET", "/pending-peers") == []
    assert api("GET", "/commitments") == []
    api("GET", "/commitments/1.2.3/receipt", rule="/commitments/<transaction>/receipt", status=404)
    api("POST", "/pending-peers/7", {"name": "Y"}, rule="/pending-peers/<number>", status=404)


def test_oversight(api: Api) -> None:
    first = api("GET", "/audit?limit=2")
    assert len(first["events"]) == 2
    later = api("GET", f"/audit?limit=2&before={first['before']}", rule="/audit")
    assert [one["id"] for one in first["events"] + later["events"]] == sorted(
        (one["id"] for one in first["events"] + later["events"]), reverse=True
    )
    kinds = api("GET", "/audit?kind=granted&kind=revoked", rule="/audit")["events"]
    assert {one["kind"] for one in kinds} == {"granted", "revoked"}
    api("GET", "/audit?kind=nonsense", rule="/audit", status=400)
    assert api("GET", "/audit?since=2031-01-01T00:00:00Z", rule="/audit")["events"] == []
    api("GET", "/audit?since=2031-01-01T00:00:00", rule="/audit", status=400)
    assert [one["who"] for one in api("GET", f"/audit/disclosures?patient=P{SEEN}", rule="/audit/disclosures")] == []
    api("GET", "/audit/disclosures?patient=nobody", rule="/audit/disclosures", status=404)
    api.place.node.upkeep.checkpoint()
    assert "c2sp.org/tlog-proof" in api("GET", "/ledger/proofs/0", rule="/ledger/proofs/<what>")
    assert len(api("GET", "/ledger/keys")["keys"]) >= 1
    assert api("GET", "/ledger/witnesses") == api("POST", "/ledger/witnesses/ask", {}) == []
    api("POST", "/ledger/witnesses/ask", {"name": "nas"}, status=404)
    assert api("POST", "/ledger/compare", {"text": api.place.node.printed.checkpoint_line()})["consistent"] is True
    api("POST", "/ledger/compare", {"text": "nothing"}, status=400)
    node = api.place.node
    node.alerts.tick()
    with node.core.database.begin() as tx:
        node.core.ledger.record(tx, Event(Kind.VERIFIED, outcome=8, detail={"findings": 1}), at=node.core.clock())
    node.alerts.tick()
    [alert] = [one for one in api("GET", "/alerts") if one["rule"] == "integrity"]
    closed = api("POST", f"/alerts/{alert['id']}/acknowledge", {"note": "a test"}, rule="/alerts/<number>/acknowledge")
    assert (closed["note"], closed["acknowledged_at"] is not None) == ("a test", True)
    assert [one["id"] for one in api("GET", "/alerts?every=true")] == [alert["id"]]


def test_holds_and_what_waits(api: Api) -> None:
    grant = api.place.node.accounts.add_grant(
        archives.the_console(api.place.node), to="boss", role="all-functions", target=real.Target("study", SEEN)
    )
    made = api("POST", "/holds", {"study": SEEN, "reason": "court"})
    assert [(one["id"], one["in_force"]) for one in api("GET", f"/holds?study={SEEN}", rule="/holds")] == [(made["id"], True)]
    api("POST", "/holds", {"study": HIDDEN, "reason": "court"}, status=404)
    api("DELETE", f"/holds/{made['id']}?reason=over", rule="/holds/<number>")
    api.place.node.accounts.revoke_grant(archives.the_console(api.place.node), grant["id"])
    assert api("GET", "/reconcile") == []
    for act in ("accept", "reject"):
        api("POST", f"/reconcile/9/{act}", {"reason": "x"}, rule=f"/reconcile/<number>/{act}", status=404)
    api("GET", "/reconcile/9", rule="/reconcile/<number>", status=404)
    assert api("GET", "/imports") == []
    api("GET", "/imports/1", rule="/imports/<number>", status=404)


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b'{"name": 7}', b'{"name": "x", "other": 1}', b"\xff", b"[" * 100_000,
])  # fmt: skip
def test_a_body_that_is_not_what_is_taken(place: Place, boss: str, body: bytes) -> None:
    answer = place.ask("POST", "/api/groups", headers={"Authorization": f"Bearer {boss}"}, data=body, content_type="application/json")
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json")


def test_another_media_type_and_unknown_parameters(place: Place, boss: str) -> None:
    headers = {"Authorization": f"Bearer {boss}"}
    form = place.ask("POST", "/api/groups", headers=headers, data=b"name=x", content_type="application/x-www-form-urlencoded")
    assert form.status_code == 415
    for query in ("x=1", "to=a&to=b", "ended=perhaps", "to=%00"):
        assert place.ask("GET", f"/api/grants?{query}", headers=headers).status_code == 400, query


def test_a_patient_id_in_a_wrong_body_is_not_answered_back(place: Place, boss: str) -> None:
    answer = place.ask("POST", "/api/grants", headers={"Authorization": f"Bearer {boss}"},
                       json={"to": "mia", "role": "referrer", "patient": {"id": "CANARY-17"}})
    assert answer.status_code == 400
    assert "CANARY" not in answer.text


def test_who_somebody_is_elsewhere(api: Api) -> None:
    api("POST", "/users", {"name": "iris"})
    path, rule = "/users/iris/identities", "/users/<user>/identities"
    made = api("POST", path, {"issuer": "https://id.example", "subject": "iris-1"}, rule=rule)
    assert (made["user"], made["issuer"], made["subject"]) == ("iris", "https://id.example", "iris-1")
    assert api("GET", "/identities") == [made]
    api("POST", path, {"subject": "iris-1"}, rule=rule, status=400)  # no issuer is configured
    api("POST", "/users/nobody/identities", {"issuer": "https://id.example", "subject": "x"}, rule=rule, status=404)
    api("DELETE", f"/identities/{made['id']}", rule="/identities/<number>")
    api("DELETE", f"/identities/{made['id']}", rule="/identities/<number>", status=404)
    assert api("GET", "/identities") == []


def test_the_audit_log_is_told_to_nobody(api: Api) -> None:
    told = api("GET", "/audit/syslog")
    assert (told["collector"], told["behind"], told["problem"]) == ("", 0, "")
    api("POST", "/audit/syslog/test", status=400)
    api("POST", "/audit/syslog/again", {"first": 0}, status=400)


def test_every_operation_needs_its_permission(place: Place) -> None:
    """mia, who may store and reads one study, is refused wherever a permission of administration is asked for."""
    for one in OPERATIONS:
        need = one.need & ~(OBJECT | permissions.Permission.STORE | permissions.Permission.WORKLIST)
        if not need:
            continue
        path = "/api" + one.path.replace("<number>", "1")
        for name in ("user", "role", "group", "member", "ref", "peer", "rule", "transaction", "what"):
            path = path.replace(f"<{name}>", "mia")
        asked = {
            "disclosures": "?patient=P", "disclosures_pdf": "?patient=P", "disclosures_csv": "?patient=P", "ledger_replay": "?size=1",
            "explain": f"?subject=mia&uid={SEEN}", "rule_test": f"?study={SEEN}",
        }.get(one.name, "")
        if "reason" in {member.encode_name for member in msgspec.structs.fields(one.query) if member.required}:
            asked = "?reason=x"
        sent = {"json": _sample(one.body)} if one.body is not None else {}
        answer = place.ask(one.method, path + asked, **sent)
        assert answer.status_code in {403, 404}, (one.name, answer.status_code, answer.text)
        if answer.status_code == 404:
            assert one.name in {"hold_add", "hold_remove"}, one.name  # unseen is absent


def _sample(kind: Any) -> dict[str, Any]:
    """The least a body must hold."""
    found = {}
    for member in msgspec.structs.fields(kind):
        if member.required:
            plain = getattr(member.type, "__origin__", member.type)  # of Annotated
            found[member.encode_name] = {str: "x", bool: True, int: 1}.get(plain, ["x"])
    if kind.__name__ == "NewGrant":
        found["everything"] = True
    if kind.__name__ == "NewRole":
        found["permissions"] = ["search"]
    if kind.__name__ == "NewArrivalRule":
        found["modality"] = ["CT"]
    more = {
        "ApplyRules": {"since": "2020-01-01T00:00:00Z"}, "NewReview": {"due": "2999-01-01T00:00:00Z"},
        "Decided": {"items": [1], "decision": "keep"}, "NewVerdict": {"verdict": "justified", "note": "x"},
    }
    found |= more.get(kind.__name__, {})
    if kind.__name__ == "NewWebhook":
        found["url"] = "https://hooks.example/x"
    if kind.__name__ == "NewPeer":
        found["networks"] = ["192.0.2.0/24"]
    return found


def test_a_creating_call_made_again_is_done_once(place: Place, boss: str) -> None:
    def send(key: str, name: str, path: str = "groups", **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {boss}", "Idempotency-Key": key}
        return place.ask("POST", f"/api/{path}", headers=headers, json={"name": name, **more})

    first, again = send("k1", "once"), send("k1", "once")
    assert (first.status_code, again.status_code, first.data) == (201, 201, again.data)
    assert ("Idempotent-Replayed" in first.headers, again.headers["Idempotent-Replayed"]) == (False, "true")
    assert send("k1", "other").status_code == 400, "the key of another request"
    assert send("k2", "once").status_code == 400, "another key: the name is taken"
    assert send("k2", "twice").status_code == 201, "what failed left the key free"
    assert send("", "x").status_code == send("x" * 256, "x").status_code == 400
    secret = [place.ask("POST", "/api/tokens", browser=True, headers={"Idempotency-Key": "t"}, json={"until": "1h"}) for _ in range(2)]
    assert secret[0].json["token"] == secret[1].json["token"]
    with place.node.core.database.read() as tx:
        kept = tx.execute(sa.select(idempotent_request.c.sealed_answer)).scalars().all()
    assert all(secret[0].json["token"].encode() not in bytes(one) for one in kept)


def test_a_call_that_nobody_knows_of_is_not_done_again(place: Place, boss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def uncertain(*_args: Any, **_more: Any) -> Any:
        raise CommitUncertain("the commit was not answered")

    headers = {"Authorization": f"Bearer {boss}", "Idempotency-Key": "u"}
    with monkeypatch.context() as broken:
        broken.setattr(type(place.node.accounts), "add_group", uncertain)
        assert place.ask("POST", "/api/groups", headers=headers, json={"name": "unknown"}).status_code == 503
    again = place.ask("POST", "/api/groups", headers=headers, json={"name": "unknown"})
    assert (again.status_code, again.json["code"]) == (409, "state-conflict")
    with place.node.core.database.begin() as tx:
        idempotency.sweep(tx, place.node.core.clock() + timedelta(hours=25))
    assert place.ask("POST", "/api/groups", headers=headers, json={"name": "unknown"}).status_code == 201


def test_the_document_says_what_is_served(place: Place) -> None:
    told = place.app.test_client().get("/api/openapi.json", base_url=real.ORIGIN).json
    assert told == json.loads(json.dumps(document(OPERATIONS)))
    assert told["openapi"].startswith("3.1")
    served = {(method, rule.rule) for rule in place.app.url_map.iter_rules() if rule.endpoint.startswith("api.")
              for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}
    described = {(method.upper(), path.replace("{", "<").replace("}", ">")) for path, item in told["paths"].items() for method in item}
    assert served - described == {("GET", "/api/openapi.json")}
    assert described <= served
    refs = [part for part in json.dumps(told).split('"') if part.startswith("#/components/")]
    for ref in refs:
        _, _, kind, name = ref.split("/")
        assert name in told["components"][kind]


def test_every_operation_has_been_done(api: Api, request: pytest.FixtureRequest) -> None:
    """Those that need what this archive does not hold are done elsewhere."""
    for name, test in list(globals().items()):  # some of this file may have been given to another worker
        if name.startswith("test_") and name not in RAN and "api" in (wants := inspect.signature(test).parameters):
            test(**{one: request.getfixturevalue(one) for one in wants})
    elsewhere = {"worklist_search", "worklist_add", "worklist_show", "worklist_cancel", "mpps_search", "changes", "webhooks", "webhook_add",
                 "webhook_remove", "webhook_test", "peer_enrol", "commitment_receipt", "reconcile_show", "reconcile_accept",
                 "reconcile_reject", "import_show", "approval_show", "approval_approve", "approval_refuse", "my_grants",
                 "access_request_add", "access_requests", "access_request_decide", "access_request_withdraw", "break_glass_open",
                 "my_break_glass", "break_glass_end", "break_glass", "break_glass_review"}
    elsewhere |= {one.name for one in OPERATIONS if one.tag in ("shares", "albums")}  # tests/web/test_shared.py
    elsewhere |= {"study_shred", "study_receipts"}  # tests/web/api/test_studies.py
    elsewhere |= {"syslog_test", "syslog_again"}  # tests/web/api/test_collector.py
    undone = {one.name for one in OPERATIONS if one.tag != "identity"} - api.done
    assert sorted(undone - elsewhere) == sorted(elsewhere - undone) == []
