"""The ids of the rows of an audit log, and how far the database has assigned them.

The database assigns ids, so no link authenticates them: anyone who can write to it can give a row any other id. Code
that remembers the highest id would then pass all rows that follow. So a row whose id the database cannot have assigned
yet does not count as the newest one.
"""

from typing import Final

from sqlalchemy import Connection, Table, func, select, text

_MAX_ID: Final = 10**18 - 1
"""No log is as long. After its own highest id, 2^63 - 1, SQLite assigns ids at random
(https://sqlite.org/autoinc.html). A cursor of `audit --follow` has 18 digits."""

_LAST_VALUE: Final = text("SELECT pg_sequence_last_value(pg_get_serial_sequence(:table, 'id'))")
"""No value before the first use of the sequence, as in an empty table."""


def highest_assigned_id(connection: Connection, events: Table) -> int:
    """Return a bound that no id exceeds which the database has assigned so far.

    Call it after rows were read: other transactions go on, and further ids are assigned. SQLite has no sequence. It
    assigns the id after the highest one in the table, so there all later rows follow a row with an altered id.
    """
    if connection.dialect.name != "postgresql":
        return _MAX_ID
    last = connection.scalar(_LAST_VALUE, {"table": events.name})
    return _MAX_ID if last is None else min(int(last), _MAX_ID)


def newest_id(connection: Connection, events: Table) -> int:
    """Return the highest id of a row that the database has assigned; 0 if there is none."""
    assigned = events.c.id <= highest_assigned_id(connection, events)
    return connection.scalar(select(func.max(events.c.id)).where(assigned)) or 0
