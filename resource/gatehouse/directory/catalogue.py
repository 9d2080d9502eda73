"""The bundled catalogue: the directory's tools and their scopes. One file per entity has its schema and its tools."""

from gatehouse.directory import (
    connections,
    documentation,
    environment_roles,
    environment_scopes,
    environments,
    identity,
    mcp_servers,
    organization_import,
    organization_settings,
    organization_users,
    organizations,
    redirect_uris,
    workspace_members,
)
from gatehouse.directory.directory import Directory, open_directory
from gatehouse.resourceserver.catalogue import Catalogue, Scope

CATALOGUE = Catalogue(
    "Gatehouse",
    scopes=[
        Scope("env:read", "See the environments of the workspace, and how they are set up"),
        Scope("env:write", "Create environments, and set up how their users and clients sign in", ("env:read",)),
        Scope("org:read", "See the organizations of an environment, with their users and connections"),
        Scope("org:write", "Create organizations and their users, and change their settings", ("org:read",)),
        Scope("wks:read", "See the members of the workspace"),
        Scope("wks:write", "Invite and remove members of the workspace", ("wks:read",)),
    ],
    groups=[
        identity.tools,
        documentation.tools,
        workspace_members.tools,
        environments.tools,
        environment_roles.tools,
        environment_scopes.tools,
        connections.tools,
        mcp_servers.tools,
        redirect_uris.tools,
        organizations.tools,
        organization_settings.tools,
        organization_import.tools,
        organization_users.tools,
    ],
    providers={Directory: open_directory},
    migrations="gatehouse.directory.migrations:SCHEMA",
    cli="gatehouse.directory.cli:workspace",
    instructions="Call whoami to see what this client may do. Tools that it may not call are not listed.",
)
