"""An MCP endpoint under attack, and the call that every attack tries to run."""

import json
from typing import Any

from sqlalchemy import text

from support.resourceserver import ResourceServer

LEAKS = ("Traceback", "site-packages", "pydantic", "sqlite", "psycopg", "SELECT", "INSERT", "input_value", 'File "')


class Target:
    """The server under attack, with a workspace and a token with every scope in it."""

    def __init__(self, server: ResourceServer) -> None:
        self.server = server
        self.workspace_id = server.create_workspace("acme")
        self.token = server.issuer.token(workspace_id=self.workspace_id)

    def rows(self, table: str = "environment") -> int:
        with self.server.admin_database.write() as session:
            return int(session.scalar(text(f"SELECT count(*) FROM {table}")) or 0)

    async def refuses(self, body: Any, headers: dict[str, str] | None = None, status: int = 400) -> dict[str, Any]:
        """Send a body. Assert that it is refused, writes nothing, and that the error reveals no internals."""
        before = self.rows()
        response = await self.server.post(body, self.token, headers)
        assert response.status_code == status, response.text
        assert self.rows() == before
        assert not [leak for leak in LEAKS if leak in response.text]
        error: dict[str, Any] = response.json()["error"]
        return error


def creation(name: str = "probe", **more: Any) -> dict[str, Any]:
    """Return a call that writes. Every attack tries to run it."""
    params = {"name": "create_environment", "arguments": {"name": name}}
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params, **more}


CREATION = json.dumps(creation()).encode()
