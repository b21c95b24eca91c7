"""Second factors, and what a session knows of how it began."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add columns to two tables and create three."""
    op.add_column("role", sa.Column("mfa_level", sa.SmallInteger(), server_default="0", nullable=False))
    op.add_column("role", sa.Column("idle_s", sa.Integer(), server_default="0", nullable=False))
    op.add_column("role", sa.Column("max_session_s", sa.Integer(), server_default="0", nullable=False))
    op.add_column("session", sa.Column("auth_level", sa.SmallInteger(), server_default="1", nullable=False))
    op.add_column("session", sa.Column("authn_at", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("session", sa.Column("idle_s", sa.Integer(), server_default="900", nullable=False))
    op.create_table(
        "factor",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("label", CODE_POINT_TEXT, server_default="", nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("credential_sha256", sa.LargeBinary(32), nullable=True),
        sa.Column("last_step", sa.BigInteger(), server_default="-1", nullable=False),
        sa.Column("sign_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("confirmed_at", sa.BigInteger(), nullable=True),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_factor_principal_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_factor")),
        sa.UniqueConstraint("credential_sha256", name=op.f("uq_factor_credential_sha256")),
    )
    op.create_index(op.f("ix_factor_principal_id"), "factor", ["principal_id"])
    op.create_table(
        "recovery_code",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        sa.Column("code_hmac", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"], name=op.f("fk_recovery_code_principal_id_principal")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recovery_code")),
        sa.UniqueConstraint("principal_id", "code_hmac", name=op.f("uq_recovery_code_principal_id_code_hmac")),
    )
    op.create_index(op.f("ix_recovery_code_principal_id"), "recovery_code", ["principal_id"])
    op.create_table(
        "passkey_challenge",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("challenge_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=True),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_passkey_challenge")),
        sa.UniqueConstraint("challenge_sha256", name=op.f("uq_passkey_challenge_challenge_sha256")),
    )
    op.create_index(op.f("ix_passkey_challenge_not_after"), "passkey_challenge", ["not_after"])
