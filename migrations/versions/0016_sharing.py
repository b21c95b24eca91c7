"""Share links and albums."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
CODE_POINT_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create seven tables."""
    _links()
    _albums()


def _id() -> sa.Column[int]:
    return sa.Column("id", BIG_ID, autoincrement=True, nullable=False)


def _refers(table: str, column: str, other: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{other}.id"], name=op.f(f"fk_{table}_{column}_{other}"))


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, CODE_POINT_TEXT, server_default="", nullable=False)


def _instant(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _links() -> None:
    op.create_table(
        "share_link",
        _id(),
        sa.Column("token_hmac", sa.LargeBinary(32), nullable=False),
        sa.Column("owner_id", BIG_ID, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        sa.Column("boundary_id", BIG_ID, nullable=False),
        sa.Column("token_id", sa.BigInteger(), nullable=True),
        sa.Column("permissions", sa.BigInteger(), nullable=False),
        _text("recipient_name"),
        _text("recipient_email"),
        sa.Column("code_by", sa.Text(), nullable=False),
        sa.Column("max_views", sa.Integer(), nullable=True),
        sa.Column("views", sa.Integer(), server_default="0", nullable=False),
        _text("label"),
        _instant("created_at"),
        _instant("not_after"),
        _instant("last_opened_at", nullable=True),
        _instant("revoked_at", nullable=True),
        sa.Column("revoked_by", sa.BigInteger(), nullable=True),
        _refers("share_link", "owner_id", "principal"),
        _refers("share_link", "datastore_id", "datastore"),
        _refers("share_link", "boundary_id", "boundary"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_share_link")),
        sa.UniqueConstraint("token_hmac", name=op.f("uq_share_link_token_hmac")),
        sa.UniqueConstraint("boundary_id", name=op.f("uq_share_link_boundary_id")),
    )
    op.create_index(op.f("ix_share_link_owner_id"), "share_link", ["owner_id"])
    op.create_table(
        "share_code",
        _id(),
        sa.Column("share_id", BIG_ID, nullable=False),
        sa.Column("code_hmac", sa.LargeBinary(32), nullable=False),
        _instant("created_at"),
        _instant("not_after"),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        _instant("ended_at", nullable=True),
        _refers("share_code", "share_id", "share_link"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_share_code")),
    )
    op.create_index(op.f("ix_share_code_share_id"), "share_code", ["share_id"])
    op.create_table(
        "share_session",
        _id(),
        sa.Column("share_id", BIG_ID, nullable=False),
        sa.Column("token_sha256", sa.LargeBinary(32), nullable=False),
        _instant("created_at"),
        _instant("last_seen_at"),
        _instant("idle_until"),
        _instant("absolute_until"),
        _instant("revoked_at", nullable=True),
        _text("address"),
        _text("user_agent"),
        _refers("share_session", "share_id", "share_link"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_share_session")),
        sa.UniqueConstraint("token_sha256", name=op.f("uq_share_session_token_sha256")),
    )
    op.create_index(op.f("ix_share_session_share_id"), "share_session", ["share_id"])


def _albums() -> None:
    op.create_table(
        "album",
        _id(),
        sa.Column("owner_id", BIG_ID, nullable=False),
        sa.Column("datastore_id", BIG_ID, nullable=False),
        _text("name"),
        _instant("created_at"),
        _instant("not_after"),
        _instant("ended_at", nullable=True),
        _refers("album", "owner_id", "principal"),
        _refers("album", "datastore_id", "datastore"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_album")),
    )
    op.create_index(op.f("ix_album_owner_id"), "album", ["owner_id"])
    op.create_table(
        "album_item",
        _id(),
        sa.Column("album_id", BIG_ID, nullable=False),
        sa.Column("scope_key", sa.BigInteger(), nullable=False),
        sa.Column("added_by", sa.BigInteger(), nullable=False),
        _instant("created_at"),
        _instant("removed_at", nullable=True),
        _refers("album_item", "album_id", "album"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_album_item")),
    )
    op.create_index(op.f("ix_album_item_album_id"), "album_item", ["album_id"])
    op.create_table(
        "album_share",
        _id(),
        sa.Column("album_id", BIG_ID, nullable=False),
        sa.Column("principal_id", BIG_ID, nullable=False),
        sa.Column("rights", sa.Text(), nullable=False),
        sa.Column("permissions", sa.BigInteger(), nullable=False),
        _instant("not_before"),
        _instant("not_after"),
        sa.Column("shared_by", sa.BigInteger(), nullable=False),
        _instant("created_at"),
        _instant("revoked_at", nullable=True),
        _refers("album_share", "album_id", "album"),
        _refers("album_share", "principal_id", "principal"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_album_share")),
    )
    op.create_index(op.f("ix_album_share_album_id"), "album_share", ["album_id"])
    op.create_index(op.f("ix_album_share_principal_id"), "album_share", ["principal_id"])
    op.create_table(
        "album_grant",
        _id(),
        sa.Column("grant_id", BIG_ID, nullable=False),
        sa.Column("album_share_id", BIG_ID, nullable=False),
        sa.Column("album_item_id", BIG_ID, nullable=False),
        _refers("album_grant", "grant_id", "grants"),
        _refers("album_grant", "album_share_id", "album_share"),
        _refers("album_grant", "album_item_id", "album_item"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_album_grant")),
        sa.UniqueConstraint("grant_id", name=op.f("uq_album_grant_grant_id")),
        sa.UniqueConstraint(
            "album_share_id", "album_item_id", "grant_id", name=op.f("uq_album_grant_album_share_id_album_item_id_grant_id")
        ),
    )
