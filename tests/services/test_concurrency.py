"""Several processes store the same, overlapping and contradicting instances at once: nothing is lost, doubled or half there."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import sqlalchemy as sa

from archive.db.tables import held, ledger_leaf
from tests.services import archives, crowd

PROCESSES, THREADS, EACH = 4, 2, 36
FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "sqlite" else str(request.getfixturevalue("postgresql_url"))


def test_four_processes_store_at_once(tmp_path: Path, url: str) -> None:
    sections = {"database": {"url": url}} if url else {}
    config = archives.made(tmp_path, **sections)
    together = FORK.Barrier(PROCESSES, timeout=100).wait
    said = [tmp_path / f"said-{one}" for one in range(PROCESSES)]
    running = [FORK.Process(target=crowd.write, args=(config, said[one], one, THREADS, EACH, together)) for one in range(PROCESSES)]
    for process in running:
        process.start()
    for process in running:
        process.join(200)
    assert [process.exitcode for process in running] == [0] * PROCESSES
    answers: list[tuple[str, str, int, int]] = []
    for path in said:
        for line in path.read_text(encoding="utf-8").splitlines():
            status, uid, writer, number = line.split()
            answers.append((status, uid, int(writer), int(number)))
    assert len(answers) == PROCESSES * THREADS * EACH
    statuses = {answer[0] for answer in answers}
    assert statuses == {"stored", "duplicate", "held", "conflict"}

    with archives.opened(config) as node:
        stored = {uid for status, uid, _, _ in answers if status == "stored"}
        assert len(stored) == sum(answer[0] == "stored" for answer in answers), "one UID was stored twice"
        seen: dict[str, bytes] = {}
        for number in range(crowd.STUDIES):
            seen |= crowd.part10(node, f"1.2.{number}")
        assert set(seen) == stored
        for status, uid, writer, number in answers:
            data = crowd.sent(writer, number)[1]
            assert (seen.get(uid) == data) == (status in {"stored", "duplicate"})
        waiting = {bytes(row.sha256) for row in crowd.every(node, sa.select(held.c.sha256))}
        import hashlib

        apart = {hashlib.sha256(crowd.sent(w, n)[1]).digest() for status, _, w, n in answers if status in {"held", "conflict"}}
        assert waiting == apart
        crowd.check_counts(node)
        crowd.check_ledger(node)
        crowd.check_sound(node)
        before, leaves = crowd.state(node), crowd.count(node, sa.select(sa.func.count()).select_from(ledger_leaf))
    with archives.opened(config) as node:
        assert crowd.state(node) == before
        # a start, and what verify recorded; nothing was adopted or swept
        assert crowd.count(node, sa.select(sa.func.count()).select_from(ledger_leaf).where(ledger_leaf.c.data.contains(b'"replayed"'))) == 0
        assert crowd.check_ledger(node) > leaves
