"""What an archive has promised so far, and whether it kept it: the plain account that every crash is held against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import sqlalchemy as sa

from archive.access.grants import Target
from archive.db.tables import instance, ledger_leaf, principal, statement
from archive.errors import ArchiveError, NotFound
from archive.node import Node
from archive.services.store import Outcome, Source
from tests.journeys.instances import dataset_bytes
from tests.services import archives, crowd

Sent = tuple[str, bytes]  # study, Part 10


@dataclass
class Promises:
    """Filled by a workload after each answer; `copy` it at the moment of a crash."""

    stored: dict[str, Sent] = field(default_factory=dict)  # by SOP Instance UID
    rejected: set[str] = field(default_factory=set)  # study UIDs
    reads: int = 0
    users: set[str] = field(default_factory=set)
    under_way: set[str] = field(default_factory=set)  # studies whose state is being changed
    by_data_set: bool = False  # C-STORE sends no file meta information

    def copy(self) -> Promises:
        """Return an account of its own."""
        return Promises(
            dict(self.stored), set(self.rejected), self.reads, set(self.users), set(self.under_way), self.by_data_set
        )

    def check(self, node: Node) -> None:
        """Everything promised is there, byte for byte; nothing is half visible; what was taken away is not back."""
        studies = {study for study, _data in self.stored.values()}
        for study in sorted(studies):
            seen = _visible(node, study)
            if study in self.rejected and study not in self.under_way:
                assert seen == {}, "a rejected study is visible"
                continue
            for uid, (_study, data) in self.stored.items():
                if _study == study and study not in self.under_way:
                    found = seen.get(uid, b"")
                    same = found == data or (self.by_data_set and found.endswith(dataset_bytes(data)))
                    assert same, "an acknowledged instance is missing"
        named = sa.select(sa.func.count()).select_from(principal).where(principal.c.name.in_(self.users))
        assert crowd.count(node, named) == len(self.users)
        reads = crowd.count(node, sa.select(sa.func.count()).select_from(ledger_leaf).where(ledger_leaf.c.data.contains(b'"read"')))
        assert reads >= self.reads, "a read that was answered is not in the ledger"
        crowd.check_counts(node)
        crowd.check_ledger(node)
        self._every_record_once(node)

    @staticmethod
    def _every_record_once(node: Node) -> None:
        """An instance has one live row, a record one statement."""
        rows = crowd.every(node, sa.select(instance.c.object_id))
        assert max(Counter(bytes(row.object_id) for row in rows).values(), default=1) == 1
        said = crowd.every(node, sa.select(statement.c.object_id))
        assert {bytes(row.object_id) for row in rows} <= {bytes(row.object_id) for row in said}


def _visible(node: Node, study: str) -> dict[str, bytes]:
    try:
        return crowd.part10(node, study)
    except NotFound:
        return {}


LARGE = {"rows": 1600}  # 5 MiB of pixels: a segment of its own


class Workload:
    """One thread's doing: new instances small and large, the same again, reads, rejections, restorations, users, grants."""

    def __init__(self, node: Node, promises: Promises, thread: int, *, large: bool = True) -> None:
        """Work on an opened archive; studies are named by thread, so that what is promised of one is known."""
        self._node, self._promises, self._thread, self._large = node, promises, thread, large

    def step(self, number: int) -> None:
        """Do the `number`th thing and promise it when it is answered."""
        node, promises = self._node, self._promises
        study = f"1.2.{self._thread + 1}.{number // 8 + 1}"
        kind = number % 8
        if kind == 0:
            self._store_together(study, {f"{study}.1.{n}": archives.instance(n, study=study) for n in (0, 1)})
        elif kind in {1, 2, 5}:
            size = LARGE if kind == 2 and self._large and number // 8 % 3 == 0 else {}
            self._store(study, archives.instance(kind, study=study, **size), f"{study}.1.{kind}")
        elif kind == 3:  # everything else of the study once more
            self._store(study, archives.instance(0, study=study), f"{study}.1.0")
        elif kind == 4:
            assert len(node.retrieve.instances(archives.user(node), "clinical", study)) == 3
            promises.reads += 1
        elif kind == 6:
            self._change(study)
        else:
            name = f"user-{self._thread}-{number}"
            console = archives.the_console(node)
            node.accounts.add_user(console, name)
            node.accounts.add_grant(console, to=name, role="referrer", target=Target("study", study), reason="x")
            promises.users.add(name)

    def _store(self, study: str, data: bytes, uid: str) -> None:
        assert archives.store(self._node, data, pieces=1 << 20).status in {"stored", "duplicate"}
        self._promises.stored[uid] = (study, data)

    def _store_together(self, study: str, instances: dict[str, bytes]) -> None:
        """Store as one batch; each is promised when it is told of."""

        def told(uid: str, became: Outcome | ArchiveError) -> None:
            assert isinstance(became, Outcome)
            assert became.status in {"stored", "duplicate"}
            self._promises.stored[uid] = (study, instances[uid])

        batch = self._node.store.batch(told)
        for uid, data in instances.items():
            incoming = self._node.store.open(archives.the_console(self._node), "clinical", Source("stow"))
            batch.begin(incoming)
            incoming.write(data)
            batch.add(uid, incoming)
        batch.flush()

    def _change(self, study: str) -> None:
        """Reject, and for every other study restore again."""
        node, promises, console = self._node, self._promises, archives.the_console(self._node)
        promises.under_way.add(study)
        node.remove.reject(console, "clinical", "study", study, reason="crash")
        promises.rejected.add(study)
        promises.under_way.discard(study)
        if study.endswith(("0", "2", "4", "6", "8")):
            promises.under_way.add(study)
            node.remove.restore(console, "clinical", "study", study, reason="crash")
            promises.rejected.discard(study)
            promises.under_way.discard(study)
