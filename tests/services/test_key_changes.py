"""Signing keys, checkpoint keys and peppers replaced: announced by both keys, finished after a crash at every step, nothing lost."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive import locks
from archive.access import factors, recovery, tokens, totp
from archive.config import Archive, Config
from archive.db.tables import audit_event, factor, ledger_leaf
from archive.errors import ArchiveError, LedgerBroken
from archive.keys import keyring_file
from archive.keys.keyring import Keyring
from archive.ledger import documents, proofs
from archive.ledger.notes import Verifier
from archive.node import Node, open_node
from archive.services import key_changes
from archive.services.signin import SignedIn
from tests.services import archives, crowd

WHICH = ("signing", "log", "pepper")
STRIDE = 1 if os.environ.get("ARCHIVE_TEST_EVERY_STEP") == "1" else 3
"""Which steps a crash is tried at; the suite takes a sample."""


class Interrupted(BaseException):
    """The process ends here."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return archives.made(tmp_path)


def stored(node: Node, study: str) -> bytes:
    data = archives.instance(study=study)
    assert archives.store(node, data).status == "stored"
    return data


def said(node: Node, what: str) -> list[dict[str, Any]]:
    """What events say of keys, the newest first."""
    rows = node.oversight.search(archives.the_console(node), kinds=["key-changed"])
    return [row["body"]["detail"] for row in rows if row["body"]["detail"]["what"] == what]


def check_sound(node: Node) -> None:
    crowd.check_sound(node)
    assert node.oversight.verify_ledger(archives.the_console(node))["findings"] == []


def prove(node: Node, sop: str) -> str:
    node.upkeep.checkpoint()
    return node.oversight.prove(archives.the_console(node), sop)


def test_each_key_is_announced_by_the_one_before_it(config: Config) -> None:
    with archives.opened(config) as node:
        console = archives.the_console(node)
        stored(node, "1.2.1")
        node.upkeep.checkpoint()
        copied = [Verifier.parse(key) for key in node.oversight.public_keys()]  # what a checker elsewhere has
        early = prove(node, "1.2.1.1.1")
        for turn in range(2):
            for which in ("signing", "log"):
                done = node.keys.replace(console, which)  # type: ignore[arg-type]
                assert done["event"] > 0
                assert not [key for key in done["keys"] if key["new"] == key["old"]]
            stored(node, f"1.3.{turn}")
            node.upkeep.checkpoint()
        check_sound(node)
        late = prove(node, "1.3.1.1.1")
        node.upkeep.checkpoint()
        announcement = node.oversight.prove(console, str(done["event"]))
    with archives.opened(config) as node:
        check_sound(node)
        assert set(crowd.part10(node, "1.3.1")) == {"1.3.1.1.1"}
        assert node.keyring.waiting() == frozenset()
    for proof in (early, late):
        found = proofs.check(proof, trusted=copied)
        assert found.statement is not None
    assert len(proofs.check(late, trusted=copied).announced) == 6  # two of each of three
    said = proofs.check(announcement, trusted=copied).document
    assert said is not None
    assert [one["purpose"] for one in said["keys"]] == ["log", "log-pq"]
    with pytest.raises(LedgerBroken):  # without the announcements nobody comes from the old keys to the new
        proofs.check(_without(late, "announcements"), trusted=copied)


def test_old_private_keys_are_gone(config: Config) -> None:
    with archives.opened(config) as node:
        before = {entry.purpose: entry.secret for entry in node.keyring._entries}
        for which in ("signing", "log"):
            node.keys.replace(archives.the_console(node), which)  # type: ignore[arg-type]
        after = [entry.secret for entry in Keyring.open(config)._entries]
        assert not [purpose for purpose in ("instance", "log", "log-pq") if before[purpose] in after]  # type: ignore[index]


def _without(proof: str, name: str) -> str:
    lines = proof.split("\n")
    extra = json.loads(base64.b64decode(lines[1].removeprefix("extra ")))
    del extra[name]
    lines[1] = "extra " + base64.b64encode(json.dumps(extra, sort_keys=True, separators=(",", ":")).encode()).decode()
    return "\n".join(lines)


# --- cut short ------------------------------------------------------------------------------------------------------------------------


class Cut:
    """Ends the process before the `step`th thing that is made durable: a commit, or a write of the keyring; or right after a write."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        self.count, self.step = 0, step
        for database in (node.core.database, node.core.keystore._database):
            database.before_commit = lambda _tx: self.pass_()
        real = keyring_file.store

        def store(*arguments: Any, **options: Any) -> None:
            self.pass_()
            real(*arguments, **options)
            self.pass_()

        monkeypatch.setattr(keyring_file, "store", store)

    def pass_(self) -> None:
        self.count += 1
        if self.count > self.step:
            raise Interrupted


@pytest.mark.parametrize("which", ["log", "pepper"])  # "signing" is "log" with one key
def test_cut_short_at_every_step_it_is_finished_by_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: key_changes.Which
) -> None:
    with archives.opened(archives.made(tmp_path / "made")) as node:
        stored(node, "1.2.1")
    step, cut_short = 0, True
    while cut_short:
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "made", folder)
        config = archives.configured(folder)
        node = open_node(config, role="background")
        subject = archives.the_console(node)
        with monkeypatch.context() as patched:
            cut = Cut(node, patched, step)
            try:
                node.keys.replace(subject, which)
                cut_short = False
            except Interrupted:
                pass
            for database in (node.core.database, node.core.keystore._database):
                database.before_commit = lambda _tx: None
        del cut
        node.core.database.close()
        node.core.keystore.close()
        with archives.opened(config, role="background") as node:  # a start
            assert node.keyring.waiting() == frozenset()
            assert all(len(said(node, what)) <= 1 for what in ("key-announced", "key-retired"))
            stored(node, "1.2.2")
            node.upkeep.checkpoint()
            assert node.verify.run(archives.the_console(node), "standard").findings == []
            assert len(crowd.part10(node, "1.2.1") | crowd.part10(node, "1.2.2")) == 2
        step += STRIDE
    assert step > 4


def test_a_start_does_not_wait_for_whoever_rotates_just_now(config: Config) -> None:
    """That one may wait for the start."""
    with archives.opened(config) as node:
        node.keyring.prepare(["instance"], at=node.core.clock())
        done: list[list[str]] = []
        starts = threading.Thread(target=lambda: done.append(key_changes.finish(node.core)))
        with locks.alone(config.run_dir / "rotate.lock"):
            starts.start()
            starts.join(60)
            assert done == [[]]
        starts.join()
        assert key_changes.finish(node.core) == ["signing"]


# --- what is found -------------------------------------------------------------------------------------------------------------------


def test_a_key_that_nobody_announced_is_found(config: Config) -> None:
    with archives.opened(config) as node:
        stored(node, "1.2.1")
        for purposes in (["instance"], ["log", "log-pq"]):
            node.keyring.prepare(purposes, at=node.core.clock())  # type: ignore[arg-type]
            node.keyring.activate(purposes)  # type: ignore[arg-type]
        stored(node, "1.2.2")
        node.upkeep.checkpoint()
        report = node.oversight.verify_ledger(archives.the_console(node))
        assert sum("was not announced by the one before" in one["detail"] for one in report["findings"]) == 3
        assert {one["code"] for one in report["findings"]} == {"V13"}
        found = node.verify.run(archives.the_console(node), "standard").findings
        assert [one.code for one in found if one.sop_instance_uid == "1.2.2.1.1"] == ["V09"]
        assert not [one for one in found if one.sop_instance_uid == "1.2.1.1.1"]


@pytest.mark.parametrize("how", ["changed", "of a stranger", "removed"])
def test_a_forged_announcement_is_found(config: Config, tmp_path: Path, how: str) -> None:
    with archives.opened(config) as node:
        done = node.keys.replace(archives.the_console(node), "signing")
        n = done["event"]
        with node.core.database.begin() as tx:
            if how == "removed":
                tx.execute(sa.update(audit_event).where(audit_event.c.n == n).values(kind="key-used"))
            else:
                salt, body = node.core.ledger.opening(tx, n)
                said = json.loads(body)
                ring = Keyring.create(Config(archive=Archive(storage=str(tmp_path / "other"))), at=node.core.clock())
                ring.prepare(["instance"], at=node.core.clock())
                envelope = json.loads(said["detail"]["document"])
                payload = json.loads(base64.b64decode(envelope["payload"]))
                if how == "changed":
                    payload["after"] = 0
                    envelope["payload"] = base64.b64encode(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()).decode()
                    forged = json.dumps(envelope, sort_keys=True, separators=(",", ":"))
                else:
                    forged = documents.sign("announcement", payload, ring.handover_signers("instance"))
                said["detail"]["document"] = forged
                sealed = node.core.ledger._bodies.seal(n, salt, json.dumps(said, sort_keys=True, separators=(",", ":")).encode())
                tx.execute(sa.update(audit_event).where(audit_event.c.n == n).values(body=sealed))
                leaf = json.loads(tx.execute(sa.select(ledger_leaf.c.data).where(ledger_leaf.c.n == n)).scalar_one())
                leaf["doc"] = documents.digest(forged).hex()
                data = json.dumps(leaf, sort_keys=True, separators=(",", ":")).encode()
                tx.execute(sa.update(ledger_leaf).where(ledger_leaf.c.n == n).values(data=data))
        report = node.oversight.verify_ledger(archives.the_console(node))
        details = [one["detail"] for one in report["findings"] if one["code"] == "V13"]
        assert any("was not announced by the one before it" in one for one in details)
        if how != "removed":
            assert any(f"event {n} announces a key, but" in one for one in details)


def test_an_old_key_signs_nothing_later(config: Config) -> None:
    """One that was kept, by whoever, is refused for what comes later, and a new one for what was before."""
    with archives.opened(config) as node:
        console = archives.the_console(node)
        ring = Keyring.from_bytes(node.keyring.to_bytes())
        kept = ring.instance_signer, ring.instance_signer_since
        node.keys.replace(console, "signing")
        node.keyring.instance_signer = kept[0]  # type: ignore[misc]
        stored(node, "1.2.1")
        found = node.verify.run(console, "standard").findings
        assert {(one.code, one.sop_instance_uid) for one in found} == {("V09", "1.2.1.1.1")}


# --- beside a server -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["signing", "pepper"])
def test_old_and_new_workers_know_each_others(config: Config, which: key_changes.Which) -> None:
    def worker(ring: Keyring) -> Node:
        return open_node(config, keyring=Keyring.from_bytes(ring.to_bytes()), role="dimse")

    with archives.opened(config) as node:
        workers = [worker(node.keyring)]
        stored(workers[0], "1.2.0")

        def reload() -> None:
            workers.append(worker(node.keyring))
            for number, one in enumerate(workers):
                stored(one, f"1.2.{len(workers)}.{number}")
            text = _token(workers[-1])
            for one in workers[-2:]:  # before the next reload, all of these run
                with one.core.database.read() as tx:
                    assert tokens.find(tx, one.keyring, text, at=one.core.clock())

        node.keys.replace(archives.the_console(node), which, reload=reload)
        assert len(workers) == 3
        stored(workers[-1], "1.2.9")
        for one in workers:
            one.close()
        node.upkeep.checkpoint()
        check_sound_but_tokens(node)


def check_sound_but_tokens(node: Node) -> None:
    """The tokens of this test have no event."""
    findings = node.verify.run(archives.the_console(node), "full").findings
    assert [one for one in findings if "token" not in one.detail] == []


def _token(node: Node) -> str:
    with node.core.database.begin() as tx:
        admin = archives.user(node).principal_id
        return tokens.create(tx, node.keyring, admin, by=admin, at=node.core.clock())[1]


def test_a_command_that_runs_on_signs_with_the_new_key(config: Config) -> None:
    with archives.opened(config) as command, archives.opened(config) as node:
        stored(command, "1.2.1")
        for which in WHICH:
            node.keys.replace(archives.the_console(node), which)  # type: ignore[arg-type]
        stored(command, "1.2.2")
        assert command.keyring.instance_signer.key_id == node.keyring.instance_signer.key_id
    with archives.opened(config) as node:
        check_sound(node)


# --- what depends on the pepper ------------------------------------------------------------------------------------------------------


def test_tokens_codes_and_factors_outlive_the_pepper(config: Config) -> None:
    with archives.opened(config) as node:
        console, at = archives.the_console(node), node.core.clock()
        admin = archives.user(node).principal_id
        text = _token(node)
        signed_in = node.signin.password("admin", archives.PASSWORD, address="192.0.2.1", user_agent="")
        assert isinstance(signed_in, SignedIn)
        begun = node.factors.begin_totp(signed_in.subject, "phone")
        secret = base64.b32decode(begun.secret.replace(" ", ""))
        codes = node.factors.confirm_totp(signed_in.subject, begun.id, totp.code(secret, totp.step_of(at)))
        before = _sealed(node)
        old = node.keyring.pepper("api-token")
        names = node.keyring.pseudonym("ledger/study", "1.2.3"), node.keyring.pseudonym("keystore/study", "1.2.3")
        data = stored(node, "1.2.3")
        for _ in range(2):
            node.keys.replace(console, "pepper")
        assert node.keyring.pepper("api-token") != old
        assert (node.keyring.pseudonym("ledger/study", "1.2.3"), node.keyring.pseudonym("keystore/study", "1.2.3")) == names
        assert _sealed(node) != before
    with archives.opened(config) as node:
        with node.core.database.begin() as tx:
            assert tokens.find(tx, node.keyring, text, at=at).principal_id == admin
            with pytest.raises(ArchiveError):
                tokens.find(tx, node.keyring, text[:20] + ("a" if text[20] != "a" else "b") + text[21:], at=at)
            assert recovery.take(tx, node.keyring, admin, codes[0], at=at)
            assert recovery.take(tx, node.keyring, admin, codes[0], at=at) is None
            [found] = factors.of(tx, admin)
            assert factors.opened(node.keyring, found) == secret
        assert crowd.part10(node, "1.2.3")["1.2.3.1.1"] == data
        stored(node, "1.2.4")
        found_now = node.verify.run(console, "quick").findings
        assert [one.detail for one in found_now if "token" not in one.detail and "recovery code" not in one.detail] == []


def _sealed(node: Node) -> bytes:
    with node.core.database.read() as tx:
        return bytes(tx.execute(sa.select(factor.c.sealed)).scalar_one())
