"""Connections: the OpenID providers that users of an environment, or of one organization, sign in with.

No secret is taken or kept: a connection authenticates at its provider by a key (`private_key_jwt`), or not at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError
from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.directory.environments import Environments, PartOfEnvironments
from gatehouse.directory.identifiers import new_identifier
from gatehouse.directory.models import ConnectionRow
from gatehouse.directory.organizations import Organizations
from gatehouse.directory.paging import NextPageToken, fetch_page
from gatehouse.directory.rows import add_row, change_row, find_row, to_change, write_changes
from gatehouse.directory.text import CreatedAt, ScopeName

_CONFLICT: Final = (
    "There is a connection of that issuer and client_id. Call list_environment_connections, or change that one with "
    "update_environment_oidc_connection."
)

ClientId = Annotated[
    str, Field(pattern=r"^[\x21-\x7e]{1,255}$", description="The client_id that the provider knows this connection by.")
]
AuthMethod = Annotated[
    Literal["private_key_jwt", "none"],
    Field(description="How the connection authenticates at the provider: by a key, or not at all as a public client."),
]


def _check_openid(scopes: list[str]) -> list[str]:
    if "openid" not in scopes:
        raise PydanticCustomError("openid_missing", "must contain openid (OpenID Connect Core 3.1.2.1)")
    return scopes


OidcScopes = Annotated[
    list[ScopeName],
    Field(min_length=1, max_length=20, description="What to ask the provider for; openid is one of them."),
    AfterValidator(_check_openid),
]
DEFAULT_SCOPES: Final = ("email", "openid", "profile")


@dataclass(frozen=True, slots=True)
class OidcProvider:
    """What a connection needs to know of its provider, all of it public."""

    display_name: str
    issuer: str
    client_id: str
    scopes: Sequence[str]
    token_endpoint_auth_method: AuthMethod


class Connection(BaseModel):
    """A connection."""

    connection_id: str
    environment_id: str
    organization_id: str | None = Field(description="The organization that it is for; null for the environment.")
    kind: Literal["oidc"]
    display_name: str
    issuer: str
    client_id: str
    scopes: list[str]
    token_endpoint_auth_method: AuthMethod
    enabled_at: int | None = Field(description="When it was enabled, as created_at; null while nobody can use it.")
    created_at: CreatedAt


class ConnectionPage(BaseModel):
    """Connections, the oldest first."""

    connections: list[Connection]
    next_page_token: NextPageToken


class Connections(PartOfEnvironments):
    """The connections of one workspace's environments."""

    def __init__(
        self, session: AsyncSession, environments: Environments, organizations: Organizations, now: float
    ) -> None:
        super().__init__(session, environments, now)
        self._organizations = organizations

    async def page(self, environment_id: str, page_token: str | None, page_size: int) -> ConnectionPage:
        """Return one page. Raises NotFound for the environment, DirectoryError for a page_token that is none."""
        environment = await self._environments.find(environment_id)
        query = select(ConnectionRow).where(ConnectionRow.environment_id == environment.environment_id)
        return await self._page(query, page_token, page_size)

    async def page_of_organization(
        self, organization_id: str, page_token: str | None, page_size: int
    ) -> ConnectionPage:
        """Return one page of an organization's own connections. Raises as `page` does."""
        organization = await self._organizations.find(organization_id)
        query = select(ConnectionRow).where(ConnectionRow.organization_id == organization.organization_id)
        return await self._page(query, page_token, page_size)

    async def _page(self, query: Select[ConnectionRow], page_token: str | None, page_size: int) -> ConnectionPage:
        key = ConnectionRow.connection_id
        rows, next_page_token = await fetch_page(self._session, query, key, "conn", page_token, page_size)
        return ConnectionPage(connections=[_connection(row) for row in rows], next_page_token=next_page_token)

    async def create(self, environment_id: str, organization_id: str | None, provider: OidcProvider) -> Connection:
        """Create a connection that nobody can use before it is enabled.

        Raises:
            NotFound: the environment, or the organization in it.
            Conflict: the environment has a connection of that issuer and client_id.
            LimitReached: the environment has as many connections as it may have.
        """
        environment_id = await self._room_in(
            environment_id, ConnectionRow.environment_id, "connections in an environment"
        )
        if organization_id is not None:
            await self._organizations.require_in(environment_id, organization_id)
        row = ConnectionRow(
            connection_id=new_identifier("conn", self._now),
            environment_id=environment_id,
            organization_id=organization_id,
            kind="oidc",
            display_name=provider.display_name,
            issuer=provider.issuer,
            client_id=provider.client_id,
            scopes=sorted(set(provider.scopes)),
            token_endpoint_auth_method=provider.token_endpoint_auth_method,
            enabled_at=None,
            created_at=int(self._now),
        )
        await add_row(self._session, row, _CONFLICT)
        return _connection(row)

    async def update(self, environment_id: str, connection_id: str, changes: Mapping[str, object]) -> Connection:
        """Change what is not None among `changes`. Raises NotFound, Conflict, DirectoryError for no change."""
        row = await self._find(environment_id, connection_id)
        change_row(row, changes)
        row.scopes = sorted(set(row.scopes))
        await write_changes(self._session, _CONFLICT)
        return _connection(row)

    async def enable(self, environment_id: str, connection_id: str) -> Connection:
        """Let users sign in with a connection. Raises NotFound."""
        row = await self._find(environment_id, connection_id)
        if row.enabled_at is None:
            row.enabled_at = int(self._now)
        return _connection(row)

    async def _find(self, environment_id: str, connection_id: str) -> ConnectionRow:
        environment = await self._environments.find(environment_id)
        query = select(ConnectionRow).where(
            ConnectionRow.connection_id == connection_id, ConnectionRow.environment_id == environment.environment_id
        )
        return await find_row(self._session, to_change(query), "connection", "list_environment_connections")


def _connection(row: ConnectionRow) -> Connection:
    return Connection.model_validate(row, from_attributes=True)
