"""Witnesses outside: what they agree to is kept and checked; a log that went back, or became another, is found by them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from archive.config import Config
from archive.db.tables import checkpoint, ledger_leaf, ledger_node, witness, witness_cosignature
from archive.errors import Forbidden, LedgerBroken, NotFound, ReadOnly
from archive.keys.keyring import Keyring
from archive.ledger import notes, proofs, tree, witnessed
from archive.node import Node, open_node
from archive.witness.__main__ import forget
from tests.services import archives, witnessing
from tests.services.witnessing import Witness

NOON = datetime(2031, 3, 3, 12, 0, tzinfo=UTC)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> datetime:
        return self.at

    def pass_(self, **much: float) -> None:
        self.at += timedelta(**much)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outside(tmp_path: Path, clock: Clock) -> Witness:
    return Witness(tmp_path / "outside", clock)


@pytest.fixture
def config(tmp_path: Path, outside: Witness) -> Config:
    (tmp_path / "inside").mkdir()
    made = archives.made(tmp_path / "inside")
    with outside.running(*map(str, proofs.verifier_keys(Keyring.open(made)))):
        return witnessing.write_config(made, outside)


@pytest.fixture
def node(config: Config, clock: Clock) -> Iterator[Node]:
    with archives.opened(config, clock=clock) as opened:
        yield opened


def grow(node: Node, number: int = 1) -> None:
    archives.store(node, archives.instance(number, study=f"1.2.{number}"))
    node.upkeep.checkpoint()


def ask(node: Node) -> str:
    """The problem the one witness tells, or nothing."""
    [told] = node.witnesses.ask(archives.the_console(node))
    return str(told["problem"])


def kept(node: Node) -> list[tuple[int, datetime]]:
    with node.core.database.read() as tx:
        query = sa.select(witness_cosignature.c.size, witness_cosignature.c.at).order_by(witness_cosignature.c.size)
        return [(row.size, row.at) for row in tx.execute(query)]


def said(node: Node) -> list[tuple[str, int]]:
    rows = node.oversight.search(archives.the_console(node), kinds=["witness"])
    return [(row["body"]["detail"]["what"], row["outcome"]) for row in rows][::-1]


def codes(node: Node) -> set[str]:
    return {one["code"] for one in node.oversight.verify_ledger(archives.the_console(node))["findings"]}


def test_the_newest_checkpoint_is_cosigned_and_kept(node: Node, outside: Witness, clock: Clock) -> None:
    grow(node)
    with outside.running():
        assert ask(node) == ""
        [(size, at)] = kept(node)
        assert at == NOON
        assert ask(node) == "", "the same size again"
        clock.pass_(minutes=5)
        grow(node, 2)
        node.witnesses.tick()
    assert [one for one, _at in kept(node)] == [size, kept(node)[-1][0]]
    assert kept(node)[-1][1] == NOON + timedelta(minutes=5)
    note = witnessed.agreed(node.config.ledger_dir, "nas")
    assert note is not None
    assert notes.parse(note).size == kept(node)[-1][0]
    assert codes(node) == set()
    [shown] = node.witnesses.show(archives.the_console(node))
    assert (shown["name"], shown["size"], shown["agreed_at"], shown["problem"]) == ("nas", kept(node)[-1][0], clock.at, "")
    assert said(node) == []


def test_it_is_asked_each_few_minutes(node: Node, outside: Witness, clock: Clock) -> None:
    grow(node)
    with outside.running():
        for _ in range(3):
            node.witnesses.tick()
        assert len(kept(node)) == 1
        grow(node, 2)
        clock.pass_(minutes=4, seconds=59)
        node.witnesses.tick()
        assert len(kept(node)) == 1
        clock.pass_(seconds=1)
        node.witnesses.tick()
        assert len(kept(node)) == 2


def test_what_it_knows_is_found_out(node: Node, outside: Witness) -> None:
    """An answer that was lost, an index that was made anew: the witness tells what it has, and the proof begins there."""
    grow(node)
    with outside.running():
        assert ask(node) == ""
        with node.core.database.begin() as tx:
            tx.execute(sa.delete(witness))
            tx.execute(sa.delete(witness_cosignature))
        grow(node, 2)
        assert ask(node) == ""
        with node.core.database.begin() as tx:
            tx.execute(sa.update(witness).values(size=10**9))
        assert ask(node) == ""
        assert said(node) == []


def test_a_silent_witness_is_told_once(node: Node, outside: Witness, clock: Clock) -> None:
    grow(node)
    node.alerts.tick()
    with outside.running():
        node.witnesses.tick()
    clock.pass_(hours=23, minutes=59)
    node.witnesses.tick()
    assert said(node) == []
    assert "no connection" in node.witnesses.show(archives.the_console(node))[0]["problem"]
    clock.pass_(minutes=2)
    for _ in range(3):
        node.witnesses.tick()
        node.alerts.tick()
        clock.pass_(hours=1)
    assert said(node) == [("silent", 4)]
    assert [row["rule"] for row in node.alerts.list(archives.the_console(node))] == ["witness-silent"]
    with outside.running():
        clock.pass_(minutes=5)
        node.witnesses.tick()
        assert said(node) == [("silent", 4), ("heard again", 0)]
        clock.pass_(hours=12)
        node.witnesses.tick()
    node.alerts.tick()
    assert len(node.alerts.list(archives.the_console(node))) == 1


def test_another_key_is_another_witness(node: Node, config: Config, outside: Witness, tmp_path: Path) -> None:
    grow(node)
    other = Witness(tmp_path / "other")
    with outside.running():
        assert ask(node) == ""
        genuine, outside.key = outside.key, other.key
        witnessing.write_config(config, outside)
        assert "not signed with the key" in ask(node)
        assert kept(node) == []
        outside.key = genuine
        witnessing.write_config(config, outside)
        assert ask(node) == ""


def test_a_key_that_is_none(node: Node, config: Config, outside: Witness) -> None:
    grow(node)
    for text in ("garbage", "nas.example/w+00000000+BAAA"):
        outside.key = text  # type: ignore[assignment]
        witnessing.write_config(config, outside)
        assert "not the verifier key" in ask(node)


def test_a_witness_that_does_not_know_this_log(node: Node, outside: Witness) -> None:
    grow(node)
    with outside.running("example.com/log+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".replace("c74f20a3", _key_id())):
        assert "--log" in ask(node)


def _key_id() -> str:
    import base64
    import hashlib

    public = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    return hashlib.sha256(b"example.com/log\n" + public).hexdigest()[:8]


# --- T9: rolled back, rewritten -------------------------------------------------------------------------------------------------------


def test_everything_rolled_back_together_is_found_at_the_start(config: Config, outside: Witness, clock: Clock, tmp_path: Path) -> None:
    """What nothing inside can tell: the whole storage is yesterday's. The witness can."""
    with archives.opened(config, clock=clock) as node, outside.running():
        grow(node)
        assert ask(node) == ""
    shutil.copytree(config.storage_dir, tmp_path / "yesterday")
    with archives.opened(config, clock=clock) as node, outside.running():
        grow(node, 2)
        assert ask(node) == ""
    shutil.rmtree(config.storage_dir)
    shutil.copytree(tmp_path / "yesterday", config.storage_dir)
    with closing(open_node(config, clock=clock)) as node:
        assert node.oversight.rolled_back() == "", "nothing inside remembers"
        assert node.start() == "", "a witness that is not there holds nothing up"
    with closing(open_node(config, clock=clock)) as node, outside.running():
        assert "V14" in node.start()
        assert ("against", 12) in said(node)
        assert codes(node) == {"V14"}
    with closing(open_node(config, clock=clock)) as node:  # the command line, and a start while the witness is away
        assert "V14" in node.core.read_only
        with pytest.raises(ReadOnly):
            node.witnesses.ask(archives.the_console(node))
        assert "V14" in node.start()
        node.oversight.acknowledge(archives.the_console(node), reason="the disk broke, this is the backup")
        assert node.oversight.rolled_back() == ""
    with archives.opened(config, clock=clock) as node, outside.running():
        grow(node, 3)
        assert "given up" in ask(node), "it still remembers, and never agrees to what it did not see"
        origin = notes.origin_of(node.keyring.archive_uuid)
    assert forget(outside.folder, origin) > 0
    with archives.opened(config, clock=clock) as node, outside.running():
        assert ask(node) == ""
        assert codes(node) == set()
        assert said(node)[-1] == ("begins anew", 4)


def rewrite(node: Node) -> None:
    """Who has the log's keys rewrites an event and signs anew everything that says otherwise."""
    with node.core.database.begin() as tx:
        leaf = tx.execute(sa.select(ledger_leaf).where(ledger_leaf.c.n == 1)).one()
        data = bytes(leaf.data).replace(b'"o":0', b'"o":4')
        assert data != bytes(leaf.data)
        tx.execute(sa.update(ledger_leaf).where(ledger_leaf.c.n == 1).values(data=data, hash=tree.leaf_hash(data)))
        hashes = tx.execute(sa.select(ledger_leaf.c.hash).order_by(ledger_leaf.c.n)).scalars().all()
        forged = tree.Tree(bytes(one) for one in hashes)
        for row in tx.execute(sa.select(ledger_node)).all():
            at_row = sa.and_(ledger_node.c.level == row.level, ledger_node.c.position == row.position)
            tx.execute(sa.update(ledger_node).where(at_row).values(hash=forged.lookup(row.level, row.position)))
        origin, at = notes.origin_of(node.keyring.archive_uuid), node.core.clock()
        for size in tx.execute(sa.select(checkpoint.c.size)).scalars().all():
            root = forged.root(size)
            note = notes.write(origin, size, root, node.keyring.log_signers, at)
            tx.execute(sa.update(checkpoint).where(checkpoint.c.size == size).values(root=root, at=at, note=note))
        newest = max(tx.execute(sa.select(checkpoint.c.size)).scalars())
        tx.execute(sa.delete(witness_cosignature))
    shutil.rmtree(node.config.ledger_dir / "witness")
    note = notes.write(origin, newest, forged.root(newest), node.keyring.log_signers, at)
    (node.config.ledger_dir / "checkpoint").write_bytes(note)
    node.core.keystore.set_anchor("checkpoint", newest, note)


@pytest.mark.parametrize("grown", [False, True])
def test_a_forged_history_is_refused(node: Node, outside: Witness, grown: bool) -> None:
    stopped: list[bool] = []
    node.witnesses.on_against = lambda: stopped.append(True)
    grow(node)
    with outside.running():
        assert ask(node) == ""
        rewrite(node)
        if grown:
            grow(node, 2)
        assert node.oversight.rolled_back() == "", "everything inside was made to agree"
        assert "not the ones that were signed (V14)" in ask(node)
    assert stopped == [True]
    assert "V14" in node.oversight.rolled_back()
    assert "V14" in codes(node)


def test_a_word_that_nothing_shows_stops_nobody(node: Node, outside: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network without TLS anyone could say so."""
    from archive.services import witness_calls

    stopped: list[bool] = []
    node.witnesses.on_against = lambda: stopped.append(True)
    grow(node)
    answers = {"status": 409, "content_type": "text/x.tlog.size", "body": b"1000000\n", "proven": False}
    shown: list[Any] = [None, b"garbage"]
    monkeypatch.setattr(witness_calls.Line, "add_checkpoint", lambda _self, _body: witness_calls.Said(**answers))
    for one in shown:
        monkeypatch.setattr(witness_calls.Line, "newest", lambda _self, _origin, one=one: one)
        assert "nothing shows" in ask(node)
    assert (stopped, node.oversight.rolled_back()) == ([], "")
    node.alerts.tick()
    assert said(node) == [("against", 8)], "told once"
    answers["proven"] = True
    monkeypatch.setattr(witness_calls.Line, "newest", lambda _self, _origin: None)
    assert "V14" in ask(node), "a witness of the network, over TLS, that shows no checkpoints"
    assert stopped == [True]
    assert "remembers 1000000 events" in node.oversight.rolled_back()
    node.oversight.acknowledge(archives.the_console(node), reason="that witness was mistaken")
    assert node.oversight.rolled_back() == ""
    assert "given up" in ask(node)


def test_answers_that_are_none(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    from archive.services import witness_calls

    grow(node)
    for answer in (
        (200, b""), (200, b"\xff\xfe"), (200, "\N{EM DASH} nas.example/witness AAAA\n".encode()), (409, b"-1\n"), (409, b""),
        (409, b"many"), (500, b""), (302, b""), (400, b""), (403, b"x"),
    ):
        given = witness_calls.Said(answer[0], "text/plain", answer[1], proven=True)
        monkeypatch.setattr(witness_calls.Line, "add_checkpoint", lambda _self, _body, given=given: given)
        assert ask(node), answer
    assert kept(node) == []
    assert node.oversight.rolled_back() == ""


def test_a_witness_that_never_agrees_on_a_size(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    from archive.services import witness_calls

    grow(node)
    asked: list[bytes] = []

    def odd(_self: object, body: bytes) -> witness_calls.Said:
        asked.append(body)
        return witness_calls.Said(409, "text/x.tlog.size", b"%d\n" % (len(asked) % 2 + 1), proven=True)

    monkeypatch.setattr(witness_calls.Line, "add_checkpoint", odd)
    assert "another size" in ask(node)
    assert len(asked) == 4


# --- proofs, verify, who may ----------------------------------------------------------------------------------------------------------


def test_proofs_carry_cosignatures(node: Node, outside: Witness) -> None:
    console = archives.the_console(node)
    grow(node)
    trusted = [notes.Verifier.parse(one) for one in node.oversight.public_keys()]
    plain = node.oversight.prove(console, "2")
    assert proofs.check(plain, trusted=trusted).witnesses == ()
    with pytest.raises(LedgerBroken):
        proofs.check(plain, trusted=trusted, witnesses=[outside.key])
    with outside.running():
        assert ask(node) == ""
    grow(node, 2)  # not seen by the witness yet
    found = proofs.check(node.oversight.prove(console, "2"), trusted=trusted, witnesses=[outside.key])
    assert (found.size, found.witnesses) == (kept(node)[0][0], ((witnessing.NAME, NOON),))
    newer = node.oversight.prove(console, str(found.size))
    assert proofs.check(newer, trusted=trusted).size > found.size
    with pytest.raises(LedgerBroken):
        proofs.check(newer, witnesses=[outside.key])


def test_only_administrators_ask_and_auditors_look(node: Node, outside: Witness) -> None:
    console = archives.the_console(node)
    for name, role in (("mia", "radiologist"), ("dora", "auditor")):
        node.accounts.add_user(console, name, roles=[role])
    for name in ("mia", "dora"):
        with pytest.raises(Forbidden):
            node.witnesses.ask(archives.user(node, name))
    with pytest.raises(Forbidden):
        node.witnesses.show(archives.user(node, "mia"))
    assert node.witnesses.show(archives.user(node, "dora"))[0]["name"] == "nas"
    with pytest.raises(NotFound):
        node.witnesses.ask(console, "other")


def test_what_was_kept_of_a_witness(node: Node, outside: Witness) -> None:
    grow(node)
    with outside.running():
        assert ask(node) == ""
        path = node.config.ledger_dir / "witness" / "nas"
        said = path.read_bytes()
        path.unlink()
        assert codes(node) == set(), "the index knows it, and the witness"
        path.write_bytes(said.replace(b"\n6\n", b"\n5\n") if b"\n6\n" in said else b"x")
        assert "V14" in node.oversight.rolled_back()
        assert ask(node) == ""
        assert codes(node) == set()


def test_cosignatures_are_thinned_on_both_engines(engine: dict[str, Any], outside: Witness, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    made = archives.made(tmp_path / "both", **engine)
    with outside.running(*map(str, proofs.verifier_keys(Keyring.open(made)))):
        witnessing.write_config(made, outside)
        with archives.opened(made, clock=clock) as node:
            times = []
            for hours in (0, 6, 8 * 24, 8 * 24):
                clock.pass_(hours=hours)
                times.append(clock.at)
                node.accounts.add_group(archives.the_console(node), f"group {len(times)}")
                node.upkeep.checkpoint()
                assert ask(node) == ""
            assert [at for _size, at in kept(node)] == times[1:], "of a day more than a week ago the last"
            assert codes(node) == set()
            assert node.health.checks()


def test_a_restored_backup_is_sound_and_told_of_by_the_witness(config: Config, outside: Witness, tmp_path: Path) -> None:
    from tests.services.test_backup import back_up, put_back

    with archives.opened(config) as node, outside.running():
        grow(node)
        assert ask(node) == ""
        back_up(node, tmp_path / "backup", keys=True)
        grow(node, 2)
        assert ask(node) == ""
    restored, report = put_back(tmp_path / "backup", tmp_path / "again")
    assert report.findings == []
    assert witnessed.agreed(restored.ledger_dir, "nas") is not None
    restored = witnessing.write_config(restored, outside)
    with closing(open_node(restored)) as node:
        assert node.oversight.rolled_back() == ""
        with outside.running():
            assert "V14" in node.start(), "what came after the backup is lost, and the witness had seen it"
