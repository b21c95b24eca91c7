"""Every tampering of the catalogue is found as the catalogue says, and no wrong byte is served."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from archive.errors import ArchiveError
from tests.tamper import world
from tests.tamper.catalogue import TAMPERS, Tamper
from tests.tamper.world import World

LEVELS = ("quick", "standard", "full")


@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda tamper: tamper.name)
def test_a_tampering_is_found_and_nothing_wrong_is_served(pristine: World, tmp_path: Path, tamper: Tamper) -> None:
    made = pristine.copy(tmp_path / "copy")
    tamper.act(made)
    with world.opened(made.config) as (node, why):
        assert bool(why) == (tamper.level == "start"), why
        said, first = "", ""
        for level in LEVELS:
            said = " ".join(sorted(world.codes(node, level)))
            if said:
                first = level
                break
        assert (said, first) == (tamper.codes, "quick" if tamper.level == "start" else tamper.level)
        served, refused = world.served(node, made)
        expected = len(made.given)
        for study, metadata in made.metadata.items() if served == expected else ():
            with suppress(ArchiveError):
                assert world.told(node, study) == metadata
        assert tamper.reads == ("refused" if refused else "right" if served == expected else "fewer" if served < expected else "more")
