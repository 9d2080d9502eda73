"""The registry of MCP servers: the protected resources of an environment's applications. None is ever called."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.directory.environment_scopes import EnvironmentScopes
from gatehouse.directory.environments import Environments, PartOfEnvironments
from gatehouse.directory.identifiers import new_identifier
from gatehouse.directory.models import McpServerRow
from gatehouse.directory.paging import NextPageToken, fetch_page
from gatehouse.directory.rows import add_row, change_row, find_row, to_change
from gatehouse.directory.text import CreatedAt, ScopeName
from gatehouse.resourceserver.protected_resource import metadata_document, metadata_url

OfferedScopes = Annotated[
    list[ScopeName],
    Field(max_length=100, description="Scopes that the server's tools need; each one is a scope of the environment."),
]


class McpServer(BaseModel):
    """A registered MCP server."""

    mcp_server_id: str
    environment_id: str
    name: str
    url: str
    scopes: list[str]
    created_at: CreatedAt


class McpServerPage(BaseModel):
    """MCP servers, the oldest first."""

    mcp_servers: list[McpServer]
    next_page_token: NextPageToken


class ProtectedResourceMetadata(BaseModel):
    """The document that the registered server should publish (RFC 9728)."""

    resource: str
    authorization_servers: list[str]
    bearer_methods_supported: list[str]
    scopes_supported: list[str]
    resource_name: str


class RegisteredMcpServer(McpServer):
    """A registered MCP server, and what it should publish."""

    protected_resource_metadata: ProtectedResourceMetadata
    protected_resource_metadata_url: str = Field(description="Where it should stand, readable without a token.")


class McpServers(PartOfEnvironments):
    """The MCP servers of one workspace's environments."""

    def __init__(
        self, session: AsyncSession, environments: Environments, scopes: EnvironmentScopes, now: float
    ) -> None:
        super().__init__(session, environments, now)
        self._scopes = scopes

    async def page(self, environment_id: str, page_token: str | None, page_size: int) -> McpServerPage:
        """Return one page. Raises NotFound for the environment, DirectoryError for a page_token that is none."""
        environment = await self._environments.find(environment_id)
        rows, next_page_token = await fetch_page(
            self._session,
            select(McpServerRow).where(McpServerRow.environment_id == environment.environment_id),
            McpServerRow.mcp_server_id,
            "mcps",
            page_token,
            page_size,
        )
        return McpServerPage(mcp_servers=[_server(row) for row in rows], next_page_token=next_page_token)

    async def register(
        self, environment_id: str, name: str, url: str, scopes: Sequence[str], issuer: str
    ) -> RegisteredMcpServer:
        """Register a server by its canonical URL; tokens for it come from `issuer`.

        Raises:
            NotFound: the environment, or one of the scopes in it.
            Conflict: the environment has a server of that URL.
            LimitReached: the environment has as many servers as it may have.
        """
        row = McpServerRow(
            mcp_server_id=new_identifier("mcps", self._now),
            environment_id=await self._room_in(
                environment_id, McpServerRow.environment_id, "MCP servers in an environment"
            ),
            name=name,
            url=url,
            scopes=await self._scopes.require(environment_id, scopes),
            created_at=int(self._now),
        )
        await add_row(self._session, row, "There is an MCP server of that URL. Call list_mcp_servers.")
        return _registered(row, issuer)

    async def update(
        self, environment_id: str, mcp_server_id: str, name: str | None, scopes: Sequence[str] | None, issuer: str
    ) -> RegisteredMcpServer:
        """Change what is not None. Raises NotFound, also for a scope; DirectoryError for no change."""
        environment = await self._environments.find(environment_id)
        query = select(McpServerRow).where(
            McpServerRow.mcp_server_id == mcp_server_id, McpServerRow.environment_id == environment.environment_id
        )
        row = await find_row(self._session, to_change(query), "MCP server", "list_mcp_servers")
        known = await self._scopes.require(environment_id, scopes) if scopes is not None else None
        change_row(row, {"name": name, "scopes": known})
        return _registered(row, issuer)


def _server(row: McpServerRow) -> McpServer:
    return McpServer.model_validate(row, from_attributes=True)


def _registered(row: McpServerRow, issuer: str) -> RegisteredMcpServer:
    document = metadata_document(row.url, issuer, row.scopes, row.name)
    return RegisteredMcpServer(
        **_server(row).model_dump(),
        protected_resource_metadata=ProtectedResourceMetadata(**document),
        protected_resource_metadata_url=metadata_url(row.url),
    )
