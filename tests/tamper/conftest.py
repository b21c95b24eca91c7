"""The archive that every tampering gets a copy of."""

from __future__ import annotations

import pytest

from tests.tamper import world
from tests.tamper.world import World


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small archive with something of everything; sound at every level."""
    made = world.build(tmp_path_factory.mktemp("pristine"))
    sound = made.copy(tmp_path_factory.mktemp("sound"))
    with world.opened(sound.config) as (node, why):
        assert why == ""
        for mode in world.MODES:
            assert world.codes(node, mode) == set()
        assert world.served(node, made) == (len(made.given), 0)
    return made
