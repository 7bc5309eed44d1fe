"""The only attempt of a request is stored in its decision's row, not in a second table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Rows of `attempts` that exist already are not moved."""
    op.add_column("decisions", sa.Column("only_attempt", sa.Text))
