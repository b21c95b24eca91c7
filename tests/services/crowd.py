"""Processes that store into one archive at the same time, and what must hold afterwards."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from archive.access import policy
from archive.config import Config
from archive.db.tables import held, instance, ledger_leaf, segment, series, study
from archive.node import Node, open_node
from tests.services import archives

STUDIES = 3
SOPS = 6


def sent(writer: int, number: int) -> tuple[str, bytes]:
    """What a writer sends as its `number`th: mostly what others send too, some under a UID with other bytes, some held."""
    study = f"1.2.{number % STUDIES}"
    which = number // STUDIES % SOPS
    uid = f"{study}.{which % 2}.{which}"
    changes: dict[str, Any] = {}
    if number % 7 == 3:
        changes["StudyDescription"] = f"by {writer % 3}"  # conflicts
    if number % 11 == 5:
        changes["PatientID"] = f"P{writer % 2 + 8}"  # held, or first
    if number % 5 == 4:
        uid = f"{study}.{which % 2}.9.{writer}.{number}"  # nobody else's
    return uid, archives.instance(which, study=study, series=f"{study}.{which % 2}", sop=uid, **changes)


def write(config: Config, said: Path, process: int, threads: int, each: int, together: Callable[[], object]) -> None:
    """One process, forked: threads that store; every acknowledged instance is written to a file with its status."""
    node = open_node(config, role="cli")
    failed: list[str] = []
    lock = threading.Lock()
    together()
    with said.open("w", encoding="utf-8") as out:

        def run(writer: int) -> None:
            try:
                for number in range(each):
                    uid, data = sent(writer, number)
                    outcome = archives.store(node, data)
                    with lock:
                        out.write(f"{outcome.status} {uid} {writer} {number}\n")
            except BaseException:  # noqa: BLE001 # reported by the exit status
                with lock:
                    failed.append(traceback.format_exc())

        running = [threading.Thread(target=run, args=(process * threads + one,)) for one in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    node.close()
    if failed:
        sys.exit(failed[0])


def count(node: Node, query: sa.Select[Any]) -> int:
    """Return one number."""
    with node.core.database.read() as tx:
        return int(policy.run_as(tx, policy.system("verify"), query).scalar_one())


def every(node: Node, query: sa.Select[Any]) -> list[Any]:
    """Return rows."""
    with node.core.database.read() as tx:
        return list(policy.run_as(tx, policy.system("verify"), query).all())


def part10(node: Node, study_uid: str) -> dict[str, bytes]:
    """Everything the owner can read of a study, by SOP Instance UID."""
    admin = archives.user(node)
    found = node.retrieve.instances(admin, "clinical", study_uid)
    return {one.sop_instance_uid: b"".join(bytes(view) for view in node.retrieve.open(admin, one)) for one in found}


def check_counts(node: Node) -> None:
    """Counts of studies and series are those of their live rows, and no UID has two."""
    live = instance.c.rejected_at.is_(None)
    per_series, per_study = (
        {row[0]: row[1] for row in every(node, sa.select(column, sa.func.count()).where(live).group_by(column))}
        for column in (instance.c.series_pk, instance.c.study_pk)
    )
    rows_of = {row[0] for row in every(node, sa.select(instance.c.series_pk).distinct())}
    for row in every(node, sa.select(series.c.id, series.c.n_instances, series.c.study_pk)):
        assert row.n_instances == per_series.get(row.id, 0)
        assert row.id in rows_of, "a series without an instance"
    of_study: dict[int, int] = {}
    for row in every(node, sa.select(series.c.study_pk).where(series.c.n_instances > 0)):
        of_study[row.study_pk] = of_study.get(row.study_pk, 0) + 1
    for row in every(node, sa.select(study.c.id, study.c.n_instances, study.c.n_series)):
        assert (row.n_instances, row.n_series) == (per_study.get(row.id, 0), of_study.get(row.id, 0))
    uids = [row.sop_instance_uid for row in every(node, sa.select(instance.c.sop_instance_uid))]
    assert len(uids) == len(set(uids))


def check_ledger(node: Node) -> int:
    """Numbers without gaps; the ledger verifies. Return its size."""
    numbers = [row.n for row in every(node, sa.select(ledger_leaf.c.n).order_by(ledger_leaf.c.n))]
    assert numbers == list(range(len(numbers)))
    return len(numbers)


def check_sound(node: Node) -> None:
    """Everything verifies, with and without keys."""
    for mode in ("full", "keyless"):
        report = node.verify.run(archives.the_console(node), mode)  # type: ignore[arg-type]
        assert report.findings == [], (mode, report.findings)


def state(node: Node) -> dict[str, Any]:
    """What a start must leave alone."""
    segments = every(node, sa.select(segment.c.name, segment.c.state, segment.c.used, segment.c.replay_from))
    return {
        "segments": sorted(tuple(row) for row in segments),
        "files": sorted((path.name, path.stat().st_size) for path in node.config.segments_dir.iterdir()),
        "instances": count(node, sa.select(sa.func.count()).select_from(instance)),
        "held": count(node, sa.select(sa.func.count()).select_from(held)),
    }
