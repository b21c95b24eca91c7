"""Which studies a search looks at first for a principal or group: derived from grants, and never what decides.

A row says that an allow which is not revoked speaks to `subject_id` about the study, its patient or a series of it. Triggers add
rows in the transaction that makes one necessary, whoever writes it, and take none away: what is missing would hide a study, what is
too much costs a look (index/access_study.py takes it away). Allows on everything have no rows here.
"""

# ruff: noqa: S608 # names of the schema alone

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, ForeignKey, Index, Table

from archive.db.tables.columns import metadata
from archive.db.types import CodePointText

access_study = Table(
    "access_study",
    metadata,
    Column("subject_id", ForeignKey("principal.id"), primary_key=True),
    Column("datastore_id", ForeignKey("datastore.id"), primary_key=True),
    Column("study_date", CodePointText, primary_key=True),
    Column("study_time", CodePointText, primary_key=True),
    Column("study_pk", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Index("ix_access_study_study_pk", "study_pk", "subject_id"),
    sqlite_with_rowid=False,
)

_ADD = "INSERT INTO access_study (subject_id, datastore_id, study_date, study_time, study_pk)"
_LIVE = "effect = 1 AND revoked_at IS NULL"


def _grant(grant: str) -> str:
    """Add what one grant speaks about."""
    each = (
        f"{_ADD} SELECT {grant}.subject_id, datastore_id, study_date, study_time, id FROM study "
        f"WHERE datastore_id = {grant}.datastore_id"
    )
    return (
        f"{each} AND {grant}.scope_key % 4 = 1 AND patient_pk = {grant}.scope_key / 4 ON CONFLICT DO NOTHING; "
        f"{each} AND {grant}.scope_key % 4 = 2 AND id = {grant}.scope_key / 4 ON CONFLICT DO NOTHING; "
        f"{each} AND {grant}.scope_key % 4 = 3 AND id = (SELECT study_pk FROM series WHERE series.id = {grant}.scope_key / 4) "
        "ON CONFLICT DO NOTHING;"
    )


_OF_STUDY = (
    f"{_ADD} SELECT subject_id, NEW.datastore_id, NEW.study_date, NEW.study_time, NEW.id FROM grants "
    f"WHERE scope_key IN (NEW.patient_pk * 4 + 1, NEW.id * 4 + 2) AND datastore_id = NEW.datastore_id AND {_LIVE} ON CONFLICT DO NOTHING;"
)
_OF_SERIES = (
    f"{_ADD} SELECT g.subject_id, st.datastore_id, st.study_date, st.study_time, st.id FROM grants g JOIN study st ON st.id = NEW.study_pk "
    "WHERE g.scope_key = NEW.id * 4 + 3 AND g.datastore_id = st.datastore_id "
    f"AND g.{_LIVE.replace('AND ', 'AND g.')} ON CONFLICT DO NOTHING;"
)
_FOLLOW = (
    "UPDATE access_study SET datastore_id = NEW.datastore_id, study_date = NEW.study_date, study_time = NEW.study_time "
    "WHERE study_pk = NEW.id;"
)
_GRANT_COUNTS = "NEW.effect = 1 AND NEW.revoked_at IS NULL AND NEW.scope_key <> 0"
_GRANT_COLUMNS = "subject_id, datastore_id, effect, scope_key, revoked_at"
_STUDY_COLUMNS = ("datastore_id", "patient_pk", "study_date", "study_time")
_STUDY_CHANGED = " OR ".join(f"NEW.{name} <> OLD.{name}" for name in _STUDY_COLUMNS)

TRIGGERS_SQLITE = (
    f"CREATE TRIGGER access_study_grant_added AFTER INSERT ON grants WHEN {_GRANT_COUNTS} BEGIN {_grant('NEW')} END",
    f"CREATE TRIGGER access_study_grant_changed AFTER UPDATE OF {_GRANT_COLUMNS} ON grants WHEN {_GRANT_COUNTS} BEGIN {_grant('NEW')} END",
    f"CREATE TRIGGER access_study_study_added AFTER INSERT ON study BEGIN {_OF_STUDY} END",
    (
        f"CREATE TRIGGER access_study_study_changed AFTER UPDATE OF {', '.join(_STUDY_COLUMNS)} ON study WHEN {_STUDY_CHANGED} "
        f"BEGIN {_FOLLOW} {_OF_STUDY} END"
    ),
    f"CREATE TRIGGER access_study_series_added AFTER INSERT ON series BEGIN {_OF_SERIES} END",
    (
        "CREATE TRIGGER access_study_series_changed AFTER UPDATE OF study_pk ON series WHEN NEW.study_pk <> OLD.study_pk "
        f"BEGIN {_OF_SERIES} END"
    ),
)


def _function(name: str, body: str) -> str:
    return f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NULL; END $$"


# A grant for a patient and a study of that patient may come at the same time, neither seeing the other: they meet at the patient's row.
TRIGGERS_POSTGRESQL = (
    _function(
        "access_study_of_grant",
        "IF NEW.scope_key % 4 = 1 THEN PERFORM 1 FROM patient WHERE id = NEW.scope_key / 4 FOR UPDATE; END IF; " + _grant("NEW"),
    ),
    _function("access_study_of_study", "PERFORM 1 FROM patient WHERE id = NEW.patient_pk FOR KEY SHARE; " + _OF_STUDY),
    _function("access_study_follow", f"{_FOLLOW} PERFORM 1 FROM patient WHERE id = NEW.patient_pk FOR KEY SHARE; {_OF_STUDY}"),
    _function("access_study_of_series", _OF_SERIES),
    (f"CREATE TRIGGER access_study_grant_added AFTER INSERT ON grants FOR EACH ROW WHEN ({_GRANT_COUNTS}) "
    "EXECUTE FUNCTION access_study_of_grant()"),
    (f"CREATE TRIGGER access_study_grant_changed AFTER UPDATE OF {_GRANT_COLUMNS} ON grants FOR EACH ROW WHEN ({_GRANT_COUNTS}) "
    "EXECUTE FUNCTION access_study_of_grant()"),
    "CREATE TRIGGER access_study_study_added AFTER INSERT ON study FOR EACH ROW EXECUTE FUNCTION access_study_of_study()",
    (f"CREATE TRIGGER access_study_study_changed AFTER UPDATE OF {', '.join(_STUDY_COLUMNS)} ON study FOR EACH ROW WHEN ({_STUDY_CHANGED}) "
    "EXECUTE FUNCTION access_study_follow()"),
    "CREATE TRIGGER access_study_series_added AFTER INSERT ON series FOR EACH ROW EXECUTE FUNCTION access_study_of_series()",
    ("CREATE TRIGGER access_study_series_changed AFTER UPDATE OF study_pk ON series FOR EACH ROW WHEN (NEW.study_pk <> OLD.study_pk) "
    "EXECUTE FUNCTION access_study_of_series()"),
)
for _statement in TRIGGERS_SQLITE:
    sa.event.listen(metadata, "after_create", sa.DDL(_statement.replace("%", "%%")).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]
for _statement in TRIGGERS_POSTGRESQL:
    sa.event.listen(metadata, "after_create", sa.DDL(_statement.replace("%", "%%")).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]
