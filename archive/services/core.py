"""What every use case stands on, built once by node.py."""

from __future__ import annotations

from dataclasses import dataclass

from archive.config import Config
from archive.db.engine import Database
from archive.errors import ReadOnly
from archive.keys.keyring import Keyring
from archive.ledger.log import Ledger
from archive.services.clock import Clock, utc_now
from archive.vault.keystore import Keystore
from archive.vault.vault import Vault


@dataclass(frozen=True, slots=True)
class Core:
    """The rooms below, opened; `read_only` holds why nothing may change, or is empty."""

    config: Config
    keyring: Keyring
    database: Database
    keystore: Keystore
    vault: Vault
    ledger: Ledger
    clock: Clock = utc_now
    read_only: str = ""

    def require_writable(self) -> None:
        """Refuse changes while a finding waits for an acknowledgement.

        Raises:
            ReadOnly.
        """
        refuse_when(self.read_only)


def refuse_when(read_only: str) -> None:
    """Raise for a reason why nothing may change.

    Raises:
        ReadOnly.
    """
    if read_only:
        raise ReadOnly(
            f"the archive is read-only: {read_only}",
            remedy="run 'archive doctor', then 'archive ledger acknowledge --reason TEXT'",
        )
