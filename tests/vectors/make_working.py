"""Write tests/vectors/working.json: event records of what was answered, the rows they make, and a work snapshot, as they are written now.

A file that exists is kept: what a release wrote is read for ever. Needs an archive in a folder of its own.

    python -m tests.vectors.make_working
"""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from archive.db.tables import audit_event, datastore, statement
from archive.services import work_snapshot, working
from tests.services import archives
from tests.services.everything import CLINICAL, filled, rows

FILE = Path(__file__).with_name("working.json")


def told(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Rows as JSON has them."""
    made: dict[str, list[dict[str, Any]]] = json.loads(
        json.dumps(found, default=lambda value: value.hex() if isinstance(value, bytes) else value.isoformat())
    )
    return made


def main() -> None:
    """Write the file unless it is there."""
    if FILE.exists():
        return
    with tempfile.TemporaryDirectory() as folder, archives.opened(archives.made(Path(folder))) as node:
        filled(node)
        node.upkeep.finish()
        core = node.core
        with core.database.read() as tx:
            uid = bytes(tx.execute(sa.select(datastore.c.uid)).scalar_one()).hex()
            query = sa.select(statement.c.leaf, statement.c.envelope).join(audit_event, audit_event.c.n == statement.c.leaf)
            kept = tx.execute(query.where(audit_event.c.kind.in_(working.LABELS)).order_by(statement.c.leaf)).all()
        snapshot = work_snapshot.files(core.config.ledger_dir)[0]
        FILE.write_text(json.dumps({
            "datastore": uid, "records": [[row.leaf, msgspec.json.decode(bytes(row.envelope))] for row in kept],
            "rows": told(rows(node, *CLINICAL)),
            "snapshot": {
                "archive": core.keyring.archive_uuid, "key": core.keyring.pepper("work-snapshot").hex(), "name": snapshot.name,
                "sealed": base64.b64encode(snapshot.read_bytes()).decode(),
                "tables": work_snapshot.read(core.keyring, snapshot).tables,
            },
        }, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
