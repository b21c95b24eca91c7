"""What the archive answers for to whom: the bytes that somebody sent, and no others under their UID."""

from __future__ import annotations

from pathlib import Path

from archive.services.commitment_check import COMMITTED, NO_SUCH_INSTANCE, Checker, Reference
from tests.services import archives


def test_who_sent_what_another_took_the_place_of_is_not_told_that_it_is_kept(tmp_path: Path) -> None:
    with archives.opened(archives.made(tmp_path)) as node:
        console = archives.the_console(node)
        for name in ("first", "again", "corrector"):
            node.accounts.add_user(console, name, roles=["technologist"], password=archives.PASSWORD)
        first, again, corrector = (archives.user(node, name) for name in ("first", "again", "corrector"))
        data = archives.instance()
        assert archives.store(node, data, subject=first).status == "stored"
        assert archives.store(node, data, subject=again).status == "duplicate"
        asked = Reference(archives.CT, "1.2.3.1.1")
        assert [Checker(node.core, who, 1).check(asked).reason for who in (first, again)] == [COMMITTED, COMMITTED]
        assert archives.store(node, archives.instance(StudyDescription="corrected"), subject=corrector).status == "conflict"
        (waiting,) = node.reconcile.list(console)
        node.reconcile.accept(console, waiting["id"], reason="the modality corrected it")
        found = [Checker(node.core, who, 1).check(asked).reason for who in (first, again, corrector)]
        assert found == [NO_SUCH_INSTANCE, NO_SUCH_INSTANCE, COMMITTED]
        assert archives.store(node, archives.instance(StudyDescription="corrected"), subject=again).status == "duplicate"
        assert Checker(node.core, again, 1).check(asked).reason == COMMITTED
