"""What a search looks at first: the studies grants speak about, in order, and indexes that hold what is compared."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

TRIGGERS_SQLITE = (
    ("CREATE TRIGGER access_study_grant_added AFTER INSERT ON grants WHEN NEW.effect = 1 AND NEW.revoked_at IS NULL "
    "AND NEW.scope_key <> 0 BEGIN INSERT INTO access_study (subject_id, datastore_id, study_date, study_time, "
    "study_pk) SELECT NEW.subject_id, datastore_id, study_date, study_time, id FROM study WHERE datastore_id = "
    "NEW.datastore_id AND NEW.scope_key % 4 = 1 AND patient_pk = NEW.scope_key / 4 ON CONFLICT DO NOTHING; INSERT "
    "INTO access_study (subject_id, datastore_id, study_date, study_time, study_pk) SELECT NEW.subject_id, "
    "datastore_id, study_date, study_time, id FROM study WHERE datastore_id = NEW.datastore_id AND NEW.scope_key % 4 "
    "= 2 AND id = NEW.scope_key / 4 ON CONFLICT DO NOTHING; INSERT INTO access_study (subject_id, datastore_id, "
    "study_date, study_time, study_pk) SELECT NEW.subject_id, datastore_id, study_date, study_time, id FROM study "
    "WHERE datastore_id = NEW.datastore_id AND NEW.scope_key % 4 = 3 AND id = (SELECT study_pk FROM series WHERE "
    "series.id = NEW.scope_key / 4) ON CONFLICT DO NOTHING; END"),
    ("CREATE TRIGGER access_study_grant_changed AFTER UPDATE OF subject_id, datastore_id, effect, scope_key, "
    "revoked_at ON grants WHEN NEW.effect = 1 AND NEW.revoked_at IS NULL AND NEW.scope_key <> 0 BEGIN INSERT INTO "
    "access_study (subject_id, datastore_id, study_date, study_time, study_pk) SELECT NEW.subject_id, datastore_id, "
    "study_date, study_time, id FROM study WHERE datastore_id = NEW.datastore_id AND NEW.scope_key % 4 = 1 AND "
    "patient_pk = NEW.scope_key / 4 ON CONFLICT DO NOTHING; INSERT INTO access_study (subject_id, datastore_id, "
    "study_date, study_time, study_pk) SELECT NEW.subject_id, datastore_id, study_date, study_time, id FROM study "
    "WHERE datastore_id = NEW.datastore_id AND NEW.scope_key % 4 = 2 AND id = NEW.scope_key / 4 ON CONFLICT DO "
    "NOTHING; INSERT INTO access_study (subject_id, datastore_id, study_date, study_time, study_pk) SELECT "
    "NEW.subject_id, datastore_id, study_date, study_time, id FROM study WHERE datastore_id = NEW.datastore_id AND "
    "NEW.scope_key % 4 = 3 AND id = (SELECT study_pk FROM series WHERE series.id = NEW.scope_key / 4) ON CONFLICT DO "
    "NOTHING; END"),
    ("CREATE TRIGGER access_study_study_added AFTER INSERT ON study BEGIN INSERT INTO access_study (subject_id, "
    "datastore_id, study_date, study_time, study_pk) SELECT subject_id, NEW.datastore_id, NEW.study_date, "
    "NEW.study_time, NEW.id FROM grants WHERE scope_key IN (NEW.patient_pk * 4 + 1, NEW.id * 4 + 2) AND datastore_id "
    "= NEW.datastore_id AND effect = 1 AND revoked_at IS NULL ON CONFLICT DO NOTHING; END"),
    ("CREATE TRIGGER access_study_study_changed AFTER UPDATE OF datastore_id, patient_pk, study_date, study_time ON "
    "study WHEN NEW.datastore_id <> OLD.datastore_id OR NEW.patient_pk <> OLD.patient_pk OR NEW.study_date <> "
    "OLD.study_date OR NEW.study_time <> OLD.study_time BEGIN UPDATE access_study SET datastore_id = "
    "NEW.datastore_id, study_date = NEW.study_date, study_time = NEW.study_time WHERE study_pk = NEW.id; INSERT INTO "
    "access_study (subject_id, datastore_id, study_date, study_time, study_pk) SELECT subject_id, NEW.datastore_id, "
    "NEW.study_date, NEW.study_time, NEW.id FROM grants WHERE scope_key IN (NEW.patient_pk * 4 + 1, NEW.id * 4 + 2) "
    "AND datastore_id = NEW.datastore_id AND effect = 1 AND revoked_at IS NULL ON CONFLICT DO NOTHING; END"),
    ("CREATE TRIGGER access_study_series_added AFTER INSERT ON series BEGIN INSERT INTO access_study (subject_id, "
    "datastore_id, study_date, study_time, study_pk) SELECT g.subject_id, st.datastore_id, st.study_date, "
    "st.study_time, st.id FROM grants g JOIN study st ON st.id = NEW.study_pk WHERE g.scope_key = NEW.id * 4 + 3 AND "
    "g.datastore_id = st.datastore_id AND g.effect = 1 AND g.revoked_at IS NULL ON CONFLICT DO NOTHING; END"),
    ("CREATE TRIGGER access_study_series_changed AFTER UPDATE OF study_pk ON series WHEN NEW.study_pk <> OLD.study_pk "
    "BEGIN INSERT INTO access_study (subject_id, datastore_id, study_date, study_time, study_pk) SELECT "
    "g.subject_id, st.datastore_id, st.study_date, st.study_time, st.id FROM grants g JOIN study st ON st.id = "
    "NEW.study_pk WHERE g.scope_key = NEW.id * 4 + 3 AND g.datastore_id = st.datastore_id AND g.effect = 1 AND "
    "g.revoked_at IS NULL ON CONFLICT DO NOTHING; END"),
)
TRIGGERS_POSTGRESQL = (
    ("CREATE FUNCTION access_study_of_grant() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.scope_key % 4 = 1 "
    "THEN PERFORM 1 FROM patient WHERE id = NEW.scope_key / 4 FOR UPDATE; END IF; INSERT INTO access_study "
    "(subject_id, datastore_id, study_date, study_time, study_pk) SELECT NEW.subject_id, datastore_id, study_date, "
    "study_time, id FROM study WHERE datastore_id = NEW.datastore_id AND NEW.scope_key % 4 = 1 AND patient_pk = "
    "NEW.scope_key / 4 ON CONFLICT DO NOTHING; INSERT INTO access_study (subject_id, datastore_id, study_date, "
    "study_time, study_pk) SELECT NEW.subject_id, datastore_id, study_date, study_time, id FROM study WHERE "
    "datastore_id = NEW.datastore_id AND NEW.scope_key % 4 = 2 AND id = NEW.scope_key / 4 ON CONFLICT DO NOTHING; "
    "INSERT INTO access_study (subject_id, datastore_id, study_date, study_time, study_pk) SELECT NEW.subject_id, "
    "datastore_id, study_date, study_time, id FROM study WHERE datastore_id = NEW.datastore_id AND NEW.scope_key % 4 "
    "= 3 AND id = (SELECT study_pk FROM series WHERE series.id = NEW.scope_key / 4) ON CONFLICT DO NOTHING; RETURN "
    "NULL; END $$"),
    ("CREATE FUNCTION access_study_of_study() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 FROM patient "
    "WHERE id = NEW.patient_pk FOR KEY SHARE; INSERT INTO access_study (subject_id, datastore_id, study_date, "
    "study_time, study_pk) SELECT subject_id, NEW.datastore_id, NEW.study_date, NEW.study_time, NEW.id FROM grants "
    "WHERE scope_key IN (NEW.patient_pk * 4 + 1, NEW.id * 4 + 2) AND datastore_id = NEW.datastore_id AND effect = 1 "
    "AND revoked_at IS NULL ON CONFLICT DO NOTHING; RETURN NULL; END $$"),
    ("CREATE FUNCTION access_study_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE access_study SET "
    "datastore_id = NEW.datastore_id, study_date = NEW.study_date, study_time = NEW.study_time WHERE study_pk = "
    "NEW.id; PERFORM 1 FROM patient WHERE id = NEW.patient_pk FOR KEY SHARE; INSERT INTO access_study (subject_id, "
    "datastore_id, study_date, study_time, study_pk) SELECT subject_id, NEW.datastore_id, NEW.study_date, "
    "NEW.study_time, NEW.id FROM grants WHERE scope_key IN (NEW.patient_pk * 4 + 1, NEW.id * 4 + 2) AND datastore_id "
    "= NEW.datastore_id AND effect = 1 AND revoked_at IS NULL ON CONFLICT DO NOTHING; RETURN NULL; END $$"),
    ("CREATE FUNCTION access_study_of_series() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO access_study "
    "(subject_id, datastore_id, study_date, study_time, study_pk) SELECT g.subject_id, st.datastore_id, "
    "st.study_date, st.study_time, st.id FROM grants g JOIN study st ON st.id = NEW.study_pk WHERE g.scope_key = "
    "NEW.id * 4 + 3 AND g.datastore_id = st.datastore_id AND g.effect = 1 AND g.revoked_at IS NULL ON CONFLICT DO "
    "NOTHING; RETURN NULL; END $$"),
    ("CREATE TRIGGER access_study_grant_added AFTER INSERT ON grants FOR EACH ROW WHEN (NEW.effect = 1 AND "
    "NEW.revoked_at IS NULL AND NEW.scope_key <> 0) EXECUTE FUNCTION access_study_of_grant()"),
    ("CREATE TRIGGER access_study_grant_changed AFTER UPDATE OF subject_id, datastore_id, effect, scope_key, "
    "revoked_at ON grants FOR EACH ROW WHEN (NEW.effect = 1 AND NEW.revoked_at IS NULL AND NEW.scope_key <> 0) "
    "EXECUTE FUNCTION access_study_of_grant()"),
    ("CREATE TRIGGER access_study_study_added AFTER INSERT ON study FOR EACH ROW EXECUTE FUNCTION "
    "access_study_of_study()"),
    ("CREATE TRIGGER access_study_study_changed AFTER UPDATE OF datastore_id, patient_pk, study_date, study_time ON "
    "study FOR EACH ROW WHEN (NEW.datastore_id <> OLD.datastore_id OR NEW.patient_pk <> OLD.patient_pk OR "
    "NEW.study_date <> OLD.study_date OR NEW.study_time <> OLD.study_time) EXECUTE FUNCTION access_study_follow()"),
    ("CREATE TRIGGER access_study_series_added AFTER INSERT ON series FOR EACH ROW EXECUTE FUNCTION "
    "access_study_of_series()"),
    ("CREATE TRIGGER access_study_series_changed AFTER UPDATE OF study_pk ON series FOR EACH ROW WHEN (NEW.study_pk "
    "<> OLD.study_pk) EXECUTE FUNCTION access_study_of_series()"),
)
SERIES_INDEX = (
    "CREATE INDEX ix_series_condition ON series"
    " (study_pk, n_instances, restricted, modality, patient_pk, datastore_id, study_date, department_id)"
)
FILL = (
    "INSERT INTO access_study (subject_id, datastore_id, study_date, study_time, study_pk) "
    "SELECT g.subject_id, st.datastore_id, st.study_date, st.study_time, st.id FROM grants g JOIN study st "
    "ON st.datastore_id = g.datastore_id AND {covers} "
    "WHERE g.effect = 1 AND g.revoked_at IS NULL AND g.scope_key % 4 = {level} ON CONFLICT DO NOTHING"
)
COVERS = {
    1: "st.patient_pk = g.scope_key / 4",
    2: "st.id = g.scope_key / 4",
    3: "st.id = (SELECT se.study_pk FROM series se WHERE se.id = g.scope_key / 4)",
}


def upgrade() -> None:
    """Add access_study, fill it from the grants there are, and let triggers keep it."""
    op.create_table(
        "access_study",
        sa.Column("subject_id", BIG_ID, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("study_date", CODE_POINT_TEXT, nullable=False),
        sa.Column("study_time", CODE_POINT_TEXT, nullable=False),
        sa.Column("study_pk", BIG_ID, nullable=False),
        sa.ForeignKeyConstraint(["subject_id"], ["principal.id"], name=op.f("fk_access_study_subject_id_principal")),
        sa.ForeignKeyConstraint(["datastore_id"], ["datastore.id"], name=op.f("fk_access_study_datastore_id_datastore")),
        sa.ForeignKeyConstraint(["study_pk"], ["study.id"], name=op.f("fk_access_study_study_pk_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint(
            "subject_id", "datastore_id", "study_date", "study_time", "study_pk", name=op.f("pk_access_study")
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_access_study_study_pk", "access_study", ["study_pk", "subject_id"], unique=False)
    op.drop_index("ix_study_date", table_name="study")
    op.create_index("ix_study_date", "study", ["datastore_id", "study_date", "study_time", "id"], unique=False)
    op.create_index("ix_study_order", "study", ["id", "datastore_id", "study_date", "study_time", "patient_name_folded"], unique=False)
    op.drop_index("ix_grants_subject", table_name="grants")
    op.create_index("ix_grants_subject", "grants", ["subject_id", "effect", "scope_key"], unique=False)
    for level, covers in COVERS.items():
        op.execute(FILL.format(covers=covers, level=level))
    sqlite = op.get_context().dialect.name == "sqlite"
    for statement in (SERIES_INDEX, *TRIGGERS_SQLITE) if sqlite else TRIGGERS_POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    """Take all of it away; nothing in it is told only there."""
    if op.get_context().dialect.name == "sqlite":
        op.execute("DROP INDEX ix_series_condition")
        for statement in TRIGGERS_SQLITE:
            op.execute(f"DROP TRIGGER {statement.split()[2]}")
    else:
        for statement in TRIGGERS_POSTGRESQL:
            if statement.startswith("CREATE FUNCTION"):
                op.execute(f"DROP FUNCTION {statement.split()[2]} CASCADE")
    op.drop_table("access_study")
    op.drop_index("ix_grants_subject", table_name="grants")
    op.create_index("ix_grants_subject", "grants", ["subject_id", "scope_key"], unique=False)
    op.drop_index("ix_study_order", table_name="study")
    op.drop_index("ix_study_date", table_name="study")
    op.create_index("ix_study_date", "study", ["datastore_id", "study_date", "id"], unique=False)
