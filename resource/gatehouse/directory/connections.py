"""Connections: the OpenID providers of an environment or of one organization.

No client secret is accepted or stored: a connection authenticates to its provider with a key (`private_key_jwt`), or
is a public client.
"""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError
from sqlalchemy import select

from gatehouse.directory.addresses import IssuerUrl
from gatehouse.directory.directory import (
    DEFAULT_PAGE_SIZE,
    Directory,
    Entity,
    Listing,
    NextPageToken,
    PageSize,
    PageToken,
    change_row,
    locked,
)
from gatehouse.directory.environments import find_environment, require_room_in
from gatehouse.directory.errors import NotFound
from gatehouse.directory.identifiers import ConnectionId, EnvironmentId, OrganizationId
from gatehouse.directory.models import ConnectionRow
from gatehouse.directory.organizations import find_organization
from gatehouse.directory.text import CreatedAt, DisplayName, ScopeName
from gatehouse.resourceserver.catalogue import ToolGroup

_CONFLICT: Final = (
    "A connection with that issuer and client_id exists. Call list_environment_connections, or change it with "
    "update_environment_oidc_connection."
)

ClientId = Annotated[
    str, Field(pattern=r"^[\x21-\x7e]{1,255}$", description="The client_id of this connection at the provider.")
]
AuthMethod = Annotated[
    Literal["private_key_jwt", "none"],
    Field(description="How the connection authenticates to the provider: with a key, or none for a public client."),
]


def _check_openid(scopes: list[str]) -> list[str]:
    if "openid" not in scopes:
        raise PydanticCustomError("openid_missing", "must contain openid (OpenID Connect Core 3.1.2.1)")
    return scopes


OidcScopes = Annotated[
    list[ScopeName],
    Field(min_length=1, max_length=20, description="Scopes to request from the provider, including openid."),
    AfterValidator(_check_openid),
]
DEFAULT_SCOPES: Final = ("email", "openid", "profile")

tools = ToolGroup()


class Connection(Entity):
    """A connection."""

    connection_id: str
    environment_id: str
    organization_id: str | None = Field(description="The organization that it is for; null for the whole environment.")
    kind: Literal["oidc"]
    display_name: str
    issuer: str
    client_id: str
    scopes: list[str]
    token_endpoint_auth_method: AuthMethod
    enabled_at: int | None = Field(description="When it was enabled, like created_at; null while it is disabled.")
    created_at: CreatedAt


class ConnectionPage(BaseModel):
    """Connections, the oldest first."""

    connections: list[Connection]
    next_page_token: NextPageToken


_OF_ENVIRONMENT: Final = Listing(ConnectionPage, ConnectionRow.environment_id, ConnectionRow.connection_id, "conn")
_OF_ORGANIZATION: Final = Listing(ConnectionPage, ConnectionRow.organization_id, ConnectionRow.connection_id, "conn")


def _find(directory: Directory, environment_id: str, connection_id: str) -> ConnectionRow:
    """Return a connection of an environment of the workspace, locked. Raises NotFound."""
    find_environment(directory, environment_id)
    query = select(ConnectionRow).where(
        ConnectionRow.connection_id == connection_id, ConnectionRow.environment_id == environment_id
    )
    return directory.find(locked(query), "connection", "list_environment_connections")


@tools.tool(scopes=["env:read"], read_only=True)
def list_environment_connections(
    directory: Directory,
    environment_id: EnvironmentId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> ConnectionPage:
    """List the connections of one environment, including those of its organizations, the oldest first.

    If next_page_token is not null, call again with it as page_token.
    """
    find_environment(directory, environment_id)
    return _OF_ENVIRONMENT.read(directory, environment_id, page_token, page_size)


@tools.tool(scopes=["org:read"], read_only=True)
def list_organization_connections(
    directory: Directory,
    organization_id: OrganizationId,
    page_token: PageToken | None = None,
    page_size: PageSize = DEFAULT_PAGE_SIZE,
) -> ConnectionPage:
    """List the connections of one organization itself, the oldest first.

    If next_page_token is not null, call again with it as page_token.
    """
    find_organization(directory, organization_id)
    return _OF_ORGANIZATION.read(directory, organization_id, page_token, page_size)


@tools.tool(scopes=["env:write"], read_only=False)
def create_environment_oidc_connection(
    directory: Directory,
    environment_id: EnvironmentId,
    display_name: DisplayName,
    issuer: IssuerUrl,
    client_id: ClientId,
    organization_id: OrganizationId | None = None,
    scopes: OidcScopes | None = None,
    token_endpoint_auth_method: AuthMethod = "private_key_jwt",  # noqa: S107 - the name of a method
) -> Connection:
    """Create a connection to an OpenID provider in one environment, or for one organization if organization_id is set.

    No client secret is accepted: the connection authenticates with a key, or is a public client. The default scopes
    are email, openid and profile. Nobody can sign in with the connection before enable_environment_connection.
    """
    require_room_in(directory, environment_id, ConnectionRow.environment_id, "connections")
    if organization_id is not None:
        organization = find_organization(directory, organization_id)
        if organization.environment_id != environment_id:
            raise NotFound("organization", "list_organizations")
    row = ConnectionRow(
        connection_id=directory.new_identifier("conn"),
        environment_id=environment_id,
        organization_id=organization_id,
        kind="oidc",
        display_name=display_name,
        issuer=issuer,
        client_id=client_id,
        scopes=sorted(set(scopes or DEFAULT_SCOPES)),
        token_endpoint_auth_method=token_endpoint_auth_method,
        enabled_at=None,
        created_at=int(directory.now),
    )
    directory.insert(_CONFLICT, row)
    return Connection.model_validate(row)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
def update_environment_oidc_connection(
    directory: Directory,
    environment_id: EnvironmentId,
    connection_id: ConnectionId,
    display_name: DisplayName | None = None,
    issuer: IssuerUrl | None = None,
    client_id: ClientId | None = None,
    scopes: OidcScopes | None = None,
    token_endpoint_auth_method: AuthMethod | None = None,
) -> Connection:
    """Change a connection. Members that you omit keep their values.

    The issuer decides who the users are: before you change it, make sure that it is the right one.
    """
    row = _find(directory, environment_id, connection_id)
    changes = {
        "display_name": display_name,
        "issuer": issuer,
        "client_id": client_id,
        "scopes": scopes,
        "token_endpoint_auth_method": token_endpoint_auth_method,
    }
    change_row(row, changes)
    row.scopes = sorted(set(row.scopes))
    directory.flush(_CONFLICT)
    return Connection.model_validate(row)


@tools.tool(scopes=["env:write"], read_only=False, idempotent=True)
def enable_environment_connection(
    directory: Directory, environment_id: EnvironmentId, connection_id: ConnectionId
) -> Connection:
    """Let users sign in with a connection. Has no effect if it is enabled already.

    Check its issuer and client_id with list_environment_connections first.
    """
    row = _find(directory, environment_id, connection_id)
    if row.enabled_at is None:
        row.enabled_at = int(directory.now)
    return Connection.model_validate(row)
