"""Shredding over HTTP: asked again who it is, the same answer for what is not there and what is not theirs, a receipt that checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from archive.access.grants import Target
from archive.ledger import documents, proofs
from archive.ledger.notes import Verifier
from archive.web.permissions import FRESH
from tests.services import archives
from tests.web import real
from tests.web.real import HIDDEN, SEEN, Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """An archive, and mia, who sees one study of two."""
    with archives.opened(real.config(tmp_path_factory.mktemp("shred"))) as node:
        yield real.place(node)


def asked(place: Place, token: str, method: str, path: str, **more: Any) -> Any:
    return place.ask(method, path, headers={"Authorization": f"Bearer {token}"}, **more)


def test_a_study_goes_and_the_receipt_checks(place: Place) -> None:
    node = place.node
    console = archives.the_console(node)
    assert "api.study_shred" in FRESH
    node.accounts.add_role(console, "cleaner", ["purge"])
    node.accounts.add_user(console, "cleo", password=archives.PASSWORD)
    node.accounts.add_grant(console, to="cleo", role="cleaner", target=Target("study", SEEN))
    cleo = node.accounts.create_token(console, owner="cleo")["token"]
    reason = {"reason": "asked by the patient"}
    told = set()
    for token, uid in ((place.token, SEEN), (cleo, HIDDEN), (cleo, "1.2.999")):  # may not purge, not hers, not there
        answer = asked(place, token, "POST", f"/api/studies/{uid}/shred", json=reason)
        told.add((answer.status_code, answer.json["title"], answer.json.get("detail")))
    assert len(told) == 1
    assert next(iter(told))[0] == 404
    assert asked(place, cleo, "POST", f"/api/studies/{SEEN}/shred", json={"reason": " "}).status_code == 400
    done = asked(place, cleo, "POST", f"/api/studies/{SEEN}/shred", json=reason)
    assert done.status_code == 200, done.text
    assert documents.read(done.json["receipt"]).said["study"] == SEEN
    assert asked(place, cleo, "GET", f"/api/studies/{SEEN}/receipts").status_code == 403
    assert asked(place, place.token, "GET", f"/dicomweb/studies/{SEEN}").status_code == 404
    node.accounts.add_user(console, "ada", password=archives.PASSWORD, roles=["auditor"])
    ada = node.accounts.create_token(console, owner="ada", permissions=["audit"])["token"]
    (kept,) = asked(place, ada, "GET", f"/api/studies/{SEEN}/receipts").json
    assert (kept["document"], kept["event"]) == (done.json["receipt"], done.json["event"])
    node.upkeep.checkpoint()
    proof = node.oversight.prove(console, str(kept["event"]))
    assert proofs.check(proof, trusted=[Verifier.parse(key) for key in node.oversight.public_keys()]).document == kept["said"]
