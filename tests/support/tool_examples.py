"""An example for every tool of the catalogue: a valid call, an invalid one, and how to read back a write."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import URL, select

from gatehouse.directory.connections import create_environment_oidc_connection
from gatehouse.directory.directory import Directory
from gatehouse.directory.environment_roles import create_environment_role
from gatehouse.directory.environment_scopes import create_environment_scope
from gatehouse.directory.environments import create_environment
from gatehouse.directory.mcp_servers import register_mcp_server
from gatehouse.directory.migrations import SCHEMA
from gatehouse.directory.models import Base
from gatehouse.directory.organization_users import create_organization_user
from gatehouse.directory.organizations import create_organization
from gatehouse.directory.redirect_uris import add_post_logout_redirect_uri, add_redirect_uri, set_initiate_login_uri
from gatehouse.directory.workspace_members import invite_workspace_member
from gatehouse.directory.workspaces import create_workspace
from gatehouse.resourceserver.db.database import Database
from gatehouse.shared.protocol.claims import AccessClaims
from support.clock import FakeClock
from support.resourceserver import ISSUER, RESOURCE, ResourceServer

REDIRECT_URI = "https://app.example.com/callback"
LOGOUT_URI = "https://app.example.com/bye"
LOGIN_URI = "https://app.example.com/login"
PROVIDER = "https://idp.example.com/"
WRONG = "Zzyzx \x07"
"""Text that no argument accepts, and that no response may repeat."""

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Seeded:
    """The objects of a prepared workspace, one of each type. Each field is an argument of some tool."""

    environment_id: str
    organization_id: str
    connection_id: str
    mcp_server_id: str
    user_id: str


def seed(url: URL, workspace_id: str) -> Seeded:
    """Create one object of each type in a workspace."""
    with Database(url) as database, database.write() as session:
        now = FakeClock()()
        claims = AccessClaims(ISSUER, "agent_1", "agent_1", RESOURCE, int(now), int(now) + 300, "jti-1", frozenset())
        directory = Directory(session, claims, workspace_id, now)
        environment = create_environment(directory, "seeded", "staging").environment_id
        organization = create_organization(directory, environment, "Seeded", "seeded").organization_id
        create_environment_role(directory, environment, "seeded")
        create_environment_scope(directory, environment, "seeded:read")
        add_redirect_uri(directory, environment, REDIRECT_URI)
        add_post_logout_redirect_uri(directory, environment, LOGOUT_URI)
        set_initiate_login_uri(directory, environment, LOGIN_URI)
        connection = create_environment_oidc_connection(
            directory, environment, "Seeded", PROVIDER, "seeded", organization, ["openid"], "none"
        )
        url_of_server = "https://seeded.example.com/mcp"
        registered = register_mcp_server(directory, environment, "Seeded", url_of_server, ["seeded:read"])
        create_organization_user(directory, organization, "seeded@example.com", role="seeded")
        member = invite_workspace_member(directory, "seeded@example.com", "admin")
    return Seeded(environment, organization, connection.connection_id, registered.mcp_server_id, member.user_id)


@dataclass(frozen=True)
class Tenant:
    """A prepared workspace, and another tenant's on the same server."""

    workspace_id: str
    own: Seeded
    foreign: Seeded


def furnish(url: URL) -> Tenant:
    """Prepare a database with two workspaces that have one object of each type."""
    database = Database(url, SCHEMA)
    database.migrate()
    with database.write() as session:
        own, foreign = (create_workspace(session, name, 0).workspace_id for name in ("acme", "globex"))
    database.close()
    return Tenant(own, seed(url, own), seed(url, foreign))


def everything_in(server: ResourceServer) -> dict[tuple[str, Any], dict[str, Any]]:
    """Return every row of the directory by table and primary key."""
    rows = {}
    with server.admin_database.write() as session:
        for table in Base.metadata.sorted_tables:
            for row in session.execute(select(table)).mappings():
                rows[table.name, tuple(row[column] for column in table.primary_key)] = dict(row)
    return rows


@dataclass(frozen=True)
class Example:
    """How to call a tool."""

    arguments: Callable[[Seeded], dict[str, Any]]
    """Arguments of a valid call in a workspace that `seed` prepared."""
    wrong: Mapping[str, Any]
    """Arguments that replace the others and make the call invalid."""
    named: str
    """Text that the error message of the invalid call contains."""
    seen_by: str | None = None
    """For a write: the tool that reads it back."""
    shown: Callable[[Result, Result], bool] | None = None
    """Compares the results of the write and of the tool that reads it back."""


def of(*fields: str, **arguments: Any) -> Callable[[Seeded], dict[str, Any]]:
    """Return a function that adds some of the seeded identifiers to fixed arguments."""
    return lambda seeded: {**{name: asdict(seeded)[name] for name in fields}, **arguments}


def arguments_to_see(tool: str, seeded: Seeded, written: Result) -> dict[str, Any]:
    """Return the arguments of the tool that reads back a write: its example's, with the written values."""
    return {name: written.get(name, value) for name, value in EXAMPLES[tool].arguments(seeded).items()}


def listed(key: str, identifier: str) -> Callable[[Result, Result], bool]:
    """Check that the written object is in a list, with equal members."""
    return lambda written, page: (
        [entry for entry in page[key] if entry[identifier] == written[identifier] and entry.items() <= written.items()]
        != []
    )


def gone(key: str, identifier: str) -> Callable[[Result, Result], bool]:
    """Check that the removed object is not in a list."""
    return lambda written, page: written[identifier] not in {entry[identifier] for entry in page[key]}


def same(written: Result, read: Result) -> bool:
    """Check that the written members are read back."""
    return written.items() <= read.items()


ENVIRONMENT = of("environment_id")
ORGANIZATION = of("organization_id")
WRONG_ID = {"environment_id": WRONG}
WRONG_PAGE = {"page_size": 0}
WRONG_URI = {"uri": "https://zzyzx.example.com/*"}

EXAMPLES: dict[str, Example] = {
    "whoami": Example(of(), {"zzyzx": 1}, "unknown argument"),
    "search_docs": Example(of(query="audit log"), {"query": WRONG}, "query"),
    "list_environments": Example(of(), WRONG_PAGE, "page_size"),
    "get_environment_details": Example(ENVIRONMENT, WRONG_ID, "environment_id"),
    "create_environment": Example(
        of(name="new", kind="production"), {"name": WRONG}, "name", "get_environment_details", same
    ),
    "list_environment_roles": Example(ENVIRONMENT, WRONG_ID, "environment_id"),
    "create_environment_role": Example(
        of("environment_id", name="billing", description="Sees invoices"),
        {"name": WRONG},
        "name",
        "list_environment_roles",
        listed("roles", "role_id"),
    ),
    "list_environment_scopes": Example(ENVIRONMENT, WRONG_PAGE, "page_size"),
    "create_environment_scope": Example(
        of("environment_id", name="invoices:read", description="See invoices"),
        {"name": WRONG},
        "name",
        "list_environment_scopes",
        listed("scopes", "scope_id"),
    ),
    "list_environment_connections": Example(ENVIRONMENT, WRONG_PAGE, "page_size"),
    "create_environment_oidc_connection": Example(
        of(
            *("environment_id", "organization_id"),
            display_name="Their provider",
            issuer="https://login.example.com/tenant",
            client_id="gatehouse",
            scopes=["openid", "email"],
        ),
        {"issuer": "http://zzyzx.example.com"},
        "issuer",
        "list_organization_connections",
        listed("connections", "connection_id"),
    ),
    "update_environment_oidc_connection": Example(
        of("environment_id", "connection_id", display_name="Another name", scopes=["openid", "groups"]),
        {"scopes": ["zzyzx"]},
        "scopes",
        "list_environment_connections",
        listed("connections", "connection_id"),
    ),
    "enable_environment_connection": Example(
        of("environment_id", "connection_id"),
        {"connection_id": WRONG},
        "connection_id",
        "list_environment_connections",
        lambda written, page: (
            listed("connections", "connection_id")(written, page) and page["connections"][0]["enabled_at"] > 0
        ),
    ),
    "list_mcp_servers": Example(ENVIRONMENT, WRONG_PAGE, "page_size"),
    "register_mcp_server": Example(
        of("environment_id", name="Invoices", url="https://invoices.example.com/mcp", scopes=["seeded:read"]),
        {"url": "https://zzyzx.example.com/mcp#part"},
        "url",
        "list_mcp_servers",
        listed("mcp_servers", "mcp_server_id"),
    ),
    "update_mcp_server": Example(
        of("environment_id", "mcp_server_id", name="Renamed", scopes=[]),
        {"name": WRONG},
        "name",
        "list_mcp_servers",
        listed("mcp_servers", "mcp_server_id"),
    ),
    "list_redirect_uris": Example(ENVIRONMENT, WRONG_ID, "environment_id"),
    "add_redirect_uri": Example(
        of("environment_id", uri="com.example.app:/callback"),
        WRONG_URI,
        "uri",
        "list_redirect_uris",
        listed("redirect_uris", "redirect_uri_id"),
    ),
    "remove_redirect_uri": Example(
        of("environment_id", uri=REDIRECT_URI),
        WRONG_URI,
        "uri",
        "list_redirect_uris",
        gone("redirect_uris", "redirect_uri_id"),
    ),
    "add_post_logout_redirect_uri": Example(
        of("environment_id", uri="http://127.0.0.1:8080/bye"),
        WRONG_URI,
        "uri",
        "list_redirect_uris",
        listed("post_logout_redirect_uris", "redirect_uri_id"),
    ),
    "remove_post_logout_redirect_uri": Example(
        of("environment_id", uri=LOGOUT_URI),
        WRONG_URI,
        "uri",
        "list_redirect_uris",
        gone("post_logout_redirect_uris", "redirect_uri_id"),
    ),
    "set_initiate_login_uri": Example(
        of("environment_id", uri="https://app.example.com/start"), WRONG_URI, "uri", "list_redirect_uris", same
    ),
    "remove_initiate_login_uri": Example(ENVIRONMENT, WRONG_ID, "environment_id", "list_redirect_uris", same),
    "list_organizations": Example(ENVIRONMENT, WRONG_PAGE, "page_size"),
    "get_organization_details": Example(ORGANIZATION, {"organization_id": WRONG}, "organization_id"),
    "create_organization": Example(
        of("environment_id", name="New & Sons", external_id="crm-1"),
        {"external_id": WRONG},
        "external_id",
        "list_organizations",
        listed("organizations", "organization_id"),
    ),
    "import_organizations": Example(
        of(
            "environment_id",
            organizations=[
                {"name": "New & Sons", "external_id": "crm-1"},
                {"name": "Seeded", "external_id": "seeded"},
                {"name": "New Again", "external_id": "crm-1"},
            ],
        ),
        {"organizations": [{"name": WRONG, "external_id": "crm-1"}]},
        "organizations.0.name",
        "list_organizations",
        lambda written, page: (
            [entry["status"] for entry in written["organizations"]] == ["created", "exists", "failed"]
            and {entry["organization_id"] for entry in page["organizations"]}
            == {entry["organization_id"] for entry in written["organizations"][:2]}
        ),
    ),
    "update_organization_settings": Example(
        of("organization_id", mfa_required=True, allowed_email_domains=["example.org"]),
        {"session_lifetime_minutes": 0},
        "session_lifetime_minutes",
        "get_organization_details",
        lambda written, read: read["settings"] == written,
    ),
    "list_organization_users": Example(ORGANIZATION, WRONG_PAGE, "page_size"),
    "list_organization_connections": Example(ORGANIZATION, WRONG_PAGE, "page_size"),
    "create_organization_user": Example(
        of("organization_id", email="ada@example.com", name="Ada", role="seeded"),
        {"email": "zzyzx@localhost"},
        "email",
        "list_organization_users",
        listed("users", "user_id"),
    ),
    "list_workspace_members": Example(of(), WRONG_PAGE, "page_size"),
    "invite_workspace_member": Example(
        of(email="ada@example.com", role="admin"),
        {"email": WRONG},
        "email",
        "list_workspace_members",
        listed("members", "user_id"),
    ),
    "remove_workspace_member": Example(
        of("user_id"), {"user_id": WRONG}, "user_id", "list_workspace_members", gone("members", "user_id")
    ),
}
