"""The page of a study: what was committed of it and where it goes, and the way to take it along, for those who may know and may do it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from archive.access.grants import Target
from archive.ledger.audit import Kind
from archive.ledger.log import AuditFilter
from archive.node import Node
from tests.services import archives
from tests.services.everything import filled
from tests.web.pages.test_pages import Browser


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with archives.opened(archives.made(tmp_path_factory.mktemp("archive"))) as node:
        filled(node)
        archives.store(node, archives.instance(1, series="1.2.3.2"))
        console = archives.the_console(node)
        for name, role, everything in (("looks", "referrer", True), ("reads", "radiologist", True), ("partly", "radiologist", False)):
            node.accounts.add_user(console, name, password=archives.PASSWORD)
            node.accounts.add_grant(console, to=name, role=role, target=Target("study", "1.2.3"))
            if not everything:
                node.accounts.add_grant(console, to=name, role=role, target=Target("series", "1.2.3.1"), deny=True)
        node.accounts.assign_role(console, "partly", "administrator")
        yield node


def page(node: Node, name: str) -> str:
    browser = Browser(node)
    assert browser.sign_in(name).status_code == 303
    return browser.get("/studies/1.2.3").text


def test_who_looks_after_devices_sees_what_became_of_the_study(node: Node) -> None:
    core = node.core
    shown = page(node, "admin")
    assert "2 images committed to CT1" in shown
    assert "the report waits" in shown
    assert "DST" in shown
    assert "1 sent" in shown
    assert "2 waiting" in shown
    with core.database.read() as tx:
        said = core.ledger.search(tx, AuditFilter(kinds=(Kind.READ,), limit=5))
    assert "study-work" in [row.body["detail"].get("what") for row in said if row.body is not None]


@pytest.mark.parametrize(("name", "may"), [("admin", True), ("reads", True), ("looks", False)])
def test_the_way_to_a_zip_is_there_for_who_may_take_it(node: Node, name: str, may: bool) -> None:
    browser = Browser(node)
    browser.sign_in(name)
    link = "/dicomweb/studies/1.2.3/zip"
    assert (link in browser.get("/studies/1.2.3").text) is may
    answer = browser.get(link)
    assert (answer.status_code == 200) is may
    assert (answer.data[:2] == b"PK") is may


def test_others_learn_nothing_of_devices(node: Node) -> None:
    for name in ("reads", "looks"):
        shown = page(node, name)
        assert "committed" not in shown
        assert "DST" not in shown


def test_counts_are_of_what_is_seen(node: Node) -> None:
    shown = page(node, "partly")  # an administrator to whom the series that was committed and sent is not there
    assert "1.2.3.2" in shown
    assert "committed" not in shown
    assert "DST" not in shown
