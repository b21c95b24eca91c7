"""New key-encryption keys while other processes hold older keyrings: every data key stays openable, whoever made it and when."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.config import Config
from archive.db.tables import data_key, study
from archive.errors import ArchiveError, KeysUnavailable
from archive.keys.keyring import Keyring
from archive.node import Node, open_node
from tests.services import archives, crowd


class Interrupted(Exception):
    """The rotation's process ends here."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return archives.made(tmp_path)


def worker(config: Config, keyring: Keyring) -> Node:
    """A process that was handed the keyring as it is now."""
    return open_node(config, keyring=Keyring.from_bytes(keyring.to_bytes()), role="dimse")


def stored(node: Node, study: str) -> bytes:
    data = archives.instance(study=study)
    assert archives.store(node, data).status == "stored"
    return data


def test_old_and_new_workers_read_what_the_other_stores_until_all_are_new(config: Config) -> None:
    with archives.opened(config) as node:
        old = worker(config, node.keyring)
        assert stored(old, "1.2.1")
        workers = [old]

        def reload() -> None:
            new = worker(config, node.keyring)
            workers.append(new)
            assert stored(new, "1.2.2")
            assert stored(old, "1.2.3")
            for one in workers:
                for study in ("1.2.1", "1.2.2", "1.2.3"):
                    assert crowd.part10(one, study)

        done = node.keys.rotate(archives.the_console(node), reload=reload)
        assert done["destroyed"] == 1
        assert stored(workers[1], "1.2.4")
        for study in ("1.2.1", "1.2.2", "1.2.3", "1.2.4"):
            assert crowd.part10(workers[1], study)
        for one in workers:
            one.close()
    with archives.opened(config) as node:
        for study in ("1.2.1", "1.2.2", "1.2.3", "1.2.4"):
            assert crowd.part10(node, study)
        crowd.check_sound(node)


def test_one_that_missed_the_rotation_wraps_nothing_under_a_destroyed_key(config: Config) -> None:
    with archives.opened(config) as node:
        missed = worker(config, node.keyring)
        stored(missed, "1.2.1")
        node.keys.rotate(archives.the_console(node))
        with pytest.raises(KeysUnavailable):
            archives.store(missed, archives.instance(study="1.2.2"))
        assert archives.store(missed, archives.instance(2, study="1.2.1")).status == "stored"  # that study's key is open
        missed.close()
    with archives.opened(config) as node:
        assert len(crowd.part10(node, "1.2.1")) == 2
        crowd.check_sound(node)


def test_a_command_that_runs_on_takes_the_new_keyring(config: Config) -> None:
    with archives.opened(config) as command, archives.opened(config) as node:
        for turn in range(3):
            stored(command, f"1.2.{turn}")
            node.keys.rotate(archives.the_console(node))
            assert stored(node, f"1.3.{turn}") == crowd.part10(command, f"1.3.{turn}")[f"1.3.{turn}.1.1"]
        assert stored(command, "1.2.9")
    with archives.opened(config) as node:
        crowd.check_sound(node)


@pytest.mark.parametrize("step", range(6))
def test_a_rotation_cut_short_is_finished_by_the_start(config: Config, step: int) -> None:
    with archives.opened(config) as node:
        stored(node, "1.2.1")
    node = open_node(config)
    count = 0

    def cut(_tx: object) -> None:
        nonlocal count
        count += 1
        if count > step:
            raise Interrupted

    for database in (node.core.database, node.core.keystore._database):
        database.before_commit = cut
    subject = archives.the_console(node)
    with pytest.raises((Interrupted, ArchiveError)):
        node.keys.rotate(subject)
    for database in (node.core.database, node.core.keystore._database):
        database.before_commit = lambda _tx: None
    node.close()
    with archives.opened(config) as node:
        assert sum(one["purpose"] == "kek" and one["state"] != "retired" for one in node.keyring.describe()) == 1
        stored(node, "1.2.2")
        node.keys.rotate(archives.the_console(node))
        stored(node, "1.2.3")
        assert sum(one["purpose"] == "kek" and one["state"] != "retired" for one in node.keyring.describe()) == 1
    with archives.opened(config) as node:
        crowd.check_sound(node)
        for study in ("1.2.1", "1.2.2", "1.2.3"):
            assert crowd.part10(node, study)


def keks(node: Node) -> list[str]:
    return [one["state"] for one in node.keyring.describe() if one["purpose"] == "kek" and one["state"] != "retired"]


def rotations(node: Node) -> list[tuple[int, dict[str, object]]]:
    rows = node.oversight.search(archives.the_console(node), kinds=["key-changed"])
    return [(row["outcome"], row["body"]["detail"]) for row in rows if row["body"]["detail"]["what"] == "kek-rotated"]


@pytest.mark.parametrize("way_out", ["put back", "purged"])
def test_one_damaged_data_key_keeps_no_other_from_a_new_key(config: Config, way_out: str) -> None:
    """It is told, and what it may be put back with is kept until it opens or is gone."""
    with archives.opened(config) as node:
        for one in ("1.2.1", "1.2.2", "1.2.3"):
            stored(node, one)
        [found] = [row for row in crowd.every(node, sa.select(study)) if row.study_instance_uid == "1.2.2"]
        named = data_key.c.key_id == found.key_id
        with node.core.keystore._database.begin() as tx:
            sound = tx.execute(sa.select(data_key.c.wrapped).where(named)).scalar_one()
            tx.execute(sa.update(data_key).where(named).values(wrapped=sound[:-1] + bytes([sound[-1] ^ 1])))
    with archives.opened(config) as node:
        console = archives.the_console(node)
        done = node.keys.rotate(console)
        assert done["findings"] == [{"code": "V05", "detail": f"data key {found.key_id.hex()} does not open"}]
        assert done["rewrapped"] >= 2
        assert done["destroyed"] == 0
        assert keks(node) == ["retiring", "active"]
        assert rotations(node)[0][0] == 8
        assert rotations(node)[0][1]["left"] == 1
        stored(node, "1.2.4")
        node.keys.rotate(console)
        assert keks(node) == ["retiring", "retiring", "active"]
    with archives.opened(config) as node:  # a start tries again, and says nothing it has said
        assert len(rotations(node)) == 2
        assert keks(node) == ["retiring", "retiring", "active"]
        for one in ("1.2.1", "1.2.3", "1.2.4"):
            assert crowd.part10(node, one)
        assert [one.code for one in node.verify.run(archives.the_console(node)).findings] == ["V05"]
        if way_out == "put back":
            with node.core.keystore._database.begin() as tx:
                tx.execute(sa.update(data_key).where(named).values(wrapped=sound))
        else:
            node.remove.reject(archives.the_console(node), "clinical", "study", "1.2.2", reason="lost")
            node.purge.run(archives.the_console(node), "clinical", study="1.2.2", reason="lost")
    with archives.opened(config) as node:
        assert keks(node) == ["active"]
        assert rotations(node)[0][0] == 0
        if way_out == "put back":
            assert crowd.part10(node, "1.2.2")
        crowd.check_sound(node)
