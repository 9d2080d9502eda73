"""Notes. Each client sees only its own."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Annotated

from pydantic import BaseModel, Field

from gatehouse.resourceserver.catalogue import Catalogue, Scope, ToolFailed, ToolGroup
from gatehouse.shared.protocol.claims import AccessClaims

tools = ToolGroup()


class Notes(BaseModel):
    """The result of both tools."""

    notes: list[str]


@tools.tool(scopes=["notes:read"], read_only=True)
def list_notes(claims: AccessClaims) -> Notes:
    """List your notes, the oldest first."""
    return Notes(notes=_list(claims.client_id))


@tools.tool(scopes=["notes:write"])
def add_note(
    claims: AccessClaims, text: Annotated[str, Field(min_length=1, max_length=200, description="What to remember.")]
) -> Notes:
    """Add a note, and list all of yours."""
    return Notes(notes=_add(claims.client_id, text))


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect("var/notes.db")) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS note (client_id, text, PRIMARY KEY (client_id, text))")
        yield database


def _list(client_id: str) -> list[str]:
    with _database() as database:
        rows = database.execute("SELECT text FROM note WHERE client_id = ? ORDER BY rowid", [client_id])
        return [text for (text,) in rows]


def _add(client_id: str, text: str) -> list[str]:
    try:
        with _database() as database:
            database.execute("INSERT INTO note VALUES (?, ?)", [client_id, text])
    except sqlite3.IntegrityError:
        raise ToolFailed("You have that note already. Call list_notes to see yours.") from None
    return _list(client_id)


CATALOGUE = Catalogue(
    "Notes",
    scopes=[
        Scope("notes:read", "See your own notes"),
        Scope("notes:write", "Add notes", implies=("notes:read",)),
    ],
    groups=[tools],
)
