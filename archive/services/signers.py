"""Who may have signed what, while keys are rotated."""

from __future__ import annotations

from archive.ledger.announcements import Succession
from archive.services.core import Core


class Signers:
    """Which keys may have signed what, as log and keyring say by now: a key may be rotated meanwhile."""

    def __init__(self, core: Core) -> None:
        """Know them as they are."""
        self._core = core
        self._generation = -1
        self.succession = Succession()
        self.renew()

    def renew(self) -> bool:
        """Take in what was rotated since; False when nothing was.

        Raises:
            KeysUnavailable, DatabaseUnavailable.
        """
        keyring, before = self._core.keyring, self._generation
        keyring.stay_current()
        while self._generation != keyring.generation:  # a log from before a rotation and a keyring from after it do not agree
            self._generation = keyring.generation
            with self._core.database.read() as tx:
                self.succession = Succession.of(tx, keyring)
            keyring.stay_current()
        return self._generation != before
