"""The lives of signing keys, and who does the maintenance."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEYS = sa.table(
    "signing_key",
    sa.column("kid", sa.String),
    sa.column("created_at", sa.BigInteger),
    sa.column("state", sa.String),
    sa.column("published_at", sa.BigInteger),
    sa.column("activated_at", sa.BigInteger),
    sa.column("retired_at", sa.BigInteger),
)


def upgrade() -> None:
    with op.batch_alter_table("signing_key") as batch_op:
        batch_op.add_column(sa.Column("state", sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column("published_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("activated_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("retired_at", sa.BigInteger(), nullable=True))
    # Keys had no end before: their time is counted from now, so that none of them is over at once.
    now = int(time.time())
    connection = op.get_bind()
    newest = connection.scalar(sa.select(_KEYS.c.kid).order_by(_KEYS.c.created_at.desc(), _KEYS.c.kid.desc()).limit(1))
    connection.execute(
        _KEYS.update().values(state="retiring", published_at=now, activated_at=_KEYS.c.created_at, retired_at=now)
    )
    connection.execute(_KEYS.update().where(_KEYS.c.kid == newest).values(state="active", retired_at=None))
    with op.batch_alter_table("signing_key") as batch_op:
        batch_op.alter_column("state", existing_type=sa.String(length=16), nullable=False)
        batch_op.alter_column("published_at", existing_type=sa.BigInteger(), nullable=False)
    op.create_index(
        "uq_signing_key_active",
        "signing_key",
        ["state"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=32), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )


def downgrade() -> None:
    op.drop_table("lease")
    op.drop_index("uq_signing_key_active", "signing_key")
    with op.batch_alter_table("signing_key") as batch_op:
        batch_op.drop_column("retired_at")
        batch_op.drop_column("activated_at")
        batch_op.drop_column("published_at")
        batch_op.drop_column("state")
