"""The unit that events' times are in: a run that counts in another would read them wrongly."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    op.add_column("catalogue", sa.Column("time_unit", sa.Text))
