"""What one event writes lies together: numbers of events are SQLite's row ids, and each table has one index less."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
RANK = "row_number() OVER (PARTITION BY n ORDER BY id) - 1"


def upgrade() -> None:
    """Key statements by their leaf, objects by event and position; nothing is lost or changed."""
    if op.get_context().dialect.name == "sqlite":
        _sqlite()
    else:
        _postgresql()


def _postgresql() -> None:
    op.drop_constraint("pk_statement", "statement", type_="primary")
    op.drop_index("ix_statement_leaf", table_name="statement")
    op.create_primary_key("pk_statement", "statement", ["leaf"])
    op.create_unique_constraint("uq_statement_object_id", "statement", ["object_id"])
    op.add_column("audit_object", sa.Column("position", sa.Integer(), nullable=True))
    ranked = f"SELECT id, {RANK} AS rank FROM audit_object"  # noqa: S608 # no value in it
    op.execute(f"UPDATE audit_object o SET position = r.rank FROM ({ranked}) r WHERE r.id = o.id")  # noqa: S608 # nor here
    op.alter_column("audit_object", "position", nullable=False)
    op.drop_index("ix_audit_object_n", table_name="audit_object")
    op.drop_column("audit_object", "id")
    op.create_primary_key("pk_audit_object", "audit_object", ["n", "position"])


def _sqlite() -> None:
    op.create_table(
        "new_ledger_leaf",
        sa.Column("n", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("n", name=op.f("pk_ledger_leaf")),
    )
    op.create_table(
        "new_audit_event",
        sa.Column("n", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Integer(), nullable=False),
        sa.Column("principal_id", sa.BigInteger(), nullable=True),
        sa.Column("peer_id", sa.BigInteger(), nullable=True),
        sa.Column("instances", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["n"], ["new_ledger_leaf.n"], name=op.f("fk_audit_event_n_ledger_leaf")),
        sa.PrimaryKeyConstraint("n", name=op.f("pk_audit_event")),
    )
    op.create_table(
        "new_audit_object",
        sa.Column("n", BIG_ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("ref", sa.LargeBinary(length=32), nullable=False),
        sa.ForeignKeyConstraint(["n"], ["new_audit_event.n"], name=op.f("fk_audit_object_n_audit_event")),
        sa.PrimaryKeyConstraint("n", "position", name=op.f("pk_audit_object")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "new_statement",
        sa.Column("leaf", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("object_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("leaf", name=op.f("pk_statement")),
        sa.UniqueConstraint("object_id", name=op.f("uq_statement_object_id")),
    )
    event = "n, at, kind, action, outcome, principal_id, peer_id, instances, body"
    for table, columns, chosen in (
        ("ledger_leaf", "n, data, hash", "n, data, hash"), ("audit_event", event, event),
        ("audit_object", "n, position, ref", f"n, {RANK}, ref"), ("statement", "leaf, object_id, envelope", "leaf, object_id, envelope"),
    ):
        op.execute(f"INSERT INTO new_{table} ({columns}) SELECT {chosen} FROM {table}")  # noqa: S608 # no value in it
    for table in ("audit_object", "audit_event", "ledger_leaf", "statement"):
        op.drop_table(table)
        op.rename_table(f"new_{table}", table)
    op.create_index(op.f("ix_audit_event_at"), "audit_event", ["at"], unique=False)
    op.create_index(op.f("ix_audit_event_principal_id"), "audit_event", ["principal_id"], unique=False)
    op.create_index(op.f("ix_audit_object_ref"), "audit_object", ["ref"], unique=False)
