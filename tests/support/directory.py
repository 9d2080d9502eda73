"""A caller of the directory's tools."""

from typing import Any

from sqlalchemy import text

from support.resourceserver import ResourceServer


class Caller:
    """A client with every scope in its own workspace."""

    def __init__(self, server: ResourceServer, workspace: str) -> None:
        """Create the workspace."""
        self.server = server
        self.workspace_id = server.create_workspace(workspace)
        self.token = server.issuer.token(workspace_id=self.workspace_id)
        self.here = self.there = ""
        """Two environments, in the fixture `acme`."""

    async def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Return the result of a successful call."""
        return await self.server.result(tool, self.token, **arguments)

    async def failure(self, tool: str, **arguments: Any) -> str:
        """Return the error text of a failed call."""
        return await self.server.failure(tool, self.token, **arguments)

    async def organization(self, **arguments: Any) -> str:
        """Create an organization in the environment `here`, and return its identifier."""
        created = await self("create_organization", environment_id=self.here, name="A", **arguments)
        return str(created["organization_id"])


def count_rows(server: ResourceServer, table: str) -> int:
    """Return the number of rows in a table."""
    with server.admin_database.write() as session:
        return int(session.scalar(text(f"SELECT count(*) FROM {table}")) or 0)
