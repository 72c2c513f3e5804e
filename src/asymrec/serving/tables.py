"""The tables of the store, as the latest migration leaves them."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts up an INTEGER key only

events = sa.Table(
    "events",
    metadata,
    sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("event", sa.Text, unique=True),  # the sender's own id: a repeated post is stored once
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("item", sa.Text, nullable=False),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.Index("events_of_user", "user", "time", "number"),
)

# The catalogue is the run's items and these changes in order; nothing is ever overwritten, so that every version can be had again.
changes = sa.Table(
    "changes",
    metadata,
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, nullable=False),  # put, retire, rollback
    sa.Column("item", sa.Text),
    sa.Column("record", sa.Text),  # JSON of a put
    sa.Column("target", sa.BigInteger),  # the version that a rollback goes back to
    sa.Column("made", sa.BigInteger, nullable=False),  # ms since 1970
)

# What a run makes of a put, so that a restart embeds nothing anew and every server gives an item the same codes.
placements = sa.Table(
    "placements",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("vector", sa.LargeBinary, nullable=False),  # float32, little endian
    sa.Column("codes", sa.LargeBinary),  # int32
)

catalogue = sa.Table(
    "catalogue",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger, nullable=False),  # the latest; its row is locked by whoever writes the next
    sa.Column("time_unit", sa.Text),  # of the events: s, ms, us or ns; null until a run is served
)

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),  # the public half
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),  # "read" or "read write"
    sa.Column("digest", sa.Text, nullable=False),  # SHA-256 of the secret half, 256 random bits
    sa.Column("made", sa.BigInteger, nullable=False),
)
