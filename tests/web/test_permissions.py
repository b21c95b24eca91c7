"""No endpoint without a rule, and no rule that lets a stranger through."""

from __future__ import annotations

import pytest
from flask import Flask

from archive.access.permissions import Permission
from archive.web import permissions
from archive.web.permissions import PUBLIC, SIGNED_IN, Rule
from tests.web.fakes import FakeNode

OPEN = {"static", "probes.healthz", "probes.readyz", "probes.metrics", "dicomweb.capabilities", "datastores.capabilities", "api.openapi"}
UID = "1.2.3"


def test_t11_every_endpoint_has_a_rule(app: Flask) -> None:
    without = [rule.endpoint for rule in app.url_map.iter_rules() if permissions.rule_of(rule.endpoint) is None]
    assert without == []


def test_t11_only_these_are_public(app: Flask) -> None:
    public = {rule.endpoint for rule in app.url_map.iter_rules() if permissions.rule_of(rule.endpoint) == PUBLIC}
    assert public == OPEN


def test_every_rule_of_dicomweb_has_a_route(app: Flask) -> None:
    routed = {rule.endpoint for rule in app.url_map.iter_rules()}
    assert {endpoint for endpoint in permissions.ENDPOINTS if endpoint.startswith("dicomweb.")} <= routed


def test_dicomweb_needs_what_each_transaction_means(app: Flask) -> None:
    for rule in app.url_map.iter_rules():
        name = rule.endpoint.rpartition(".")[2]
        found = permissions.rule_of(rule.endpoint)
        assert found is not None
        for prefix, need in (("search", Permission.SEARCH), ("store", Permission.STORE), ("retrieve", Permission.ORIGINAL)):
            if name.startswith(prefix):
                assert found.need is need
        if "metadata" in name:
            assert found.need is Permission.METADATA
        if name in {"frames", "bulk"}:
            assert found.need is Permission.PIXELS


def test_t11_a_stranger_gets_401_everywhere_else_and_no_service_is_asked(app: Flask, node: FakeNode) -> None:
    client = app.test_client()
    walked = 0
    for rule in app.url_map.iter_rules():
        if rule.endpoint in OPEN:
            continue
        values = dict.fromkeys(rule.arguments, UID) | {"datastore": "x", "listed": "1", "path": "7FE00010"}
        path = rule.rule
        for name, value in values.items():
            path = path.replace(f"<{name}>", value).replace(f"<path:{name}>", value)
        for method in (rule.methods or set()) - {"OPTIONS"}:
            answer = client.open(path, method=method)
            assert answer.status_code == 401, (rule, method)
            walked += 1
    assert walked > 40
    assert (node.store.incoming, node.query.asked, node.retrieve.opened) == ([], [], [])


def test_an_endpoint_without_a_rule_answers_nobody(app: Flask) -> None:
    app.add_url_rule("/forgotten", "forgotten", lambda: "secret")
    answer = app.test_client().get("/forgotten", headers={"Authorization": "Bearer mia-token"})
    assert answer.status_code == 500
    assert "secret" not in answer.text


def test_a_blueprint_declares_its_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permissions, "ENDPOINTS", dict(permissions.ENDPOINTS))
    permissions.declare({"pages.x": SIGNED_IN})
    permissions.declare({"pages.x": SIGNED_IN})
    with pytest.raises(ValueError, match="two rules"):
        permissions.declare({"pages.x": PUBLIC})
    assert permissions.rule_of("pages.x") == Rule()
