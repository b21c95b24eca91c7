"""The console: who the command line acts as. Whoever can read the keys is trusted; the operating system's user goes into each event."""

from __future__ import annotations

from archive.access import bootstrap, principals
from archive.access.subject import Subject
from archive.services.core import Core


def console(core: Core, operator: str) -> Subject:
    """Return the console's subject with the operating system's user behind it.

    Raises:
        DatabaseUnavailable.
    """
    with core.database.read() as tx:
        return Subject(bootstrap.console_id(tx), principals.CONSOLE, "console", "console", operator=operator)


def acting_as(core: Core, who: Subject, user: str) -> Subject:
    """Return a user as the console acts in their place: with their grants, and the operating system's user in each event.

    Raises:
        NotFound, DatabaseUnavailable.
    """
    with core.database.read() as tx:
        row = principals.find(tx, user, ("user",))
    return Subject(row["id"], row["name"], "user", "console", operator=who.operator)
