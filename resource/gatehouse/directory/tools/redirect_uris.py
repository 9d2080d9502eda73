"""Where the applications of an environment may send a browser."""

from gatehouse.directory.addresses import InitiateLoginUri, RedirectUri
from gatehouse.directory.directory import Directory
from gatehouse.directory.identifiers import EnvironmentId
from gatehouse.directory.redirect_uris import InitiateLogin, RedirectUriList, RegisteredUri
from gatehouse.resourceserver.catalogue import ToolGroup

tools = ToolGroup()


@tools.tool(scopes=["env:read"], read_only=True)
async def list_redirect_uris(directory: Directory, environment_id: EnvironmentId) -> RedirectUriList:
    """List every redirect URI of one environment, those after sign-out, and where sign-in is initiated."""
    return await directory.redirect_uris.all_of(environment_id)


@tools.tool(scopes=["env:write"], read_only=False, idempotent=True)
async def add_redirect_uri(directory: Directory, environment_id: EnvironmentId, uri: RedirectUri) -> RegisteredUri:
    """Let the applications of one environment send a browser to a URI after it signed in.

    Authorization codes go there: add only what your organization controls. One that is there already is returned.
    """
    return await directory.redirect_uris.add(environment_id, "redirect", uri)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
async def remove_redirect_uri(directory: Directory, environment_id: EnvironmentId, uri: RedirectUri) -> RegisteredUri:
    """Remove a redirect URI, exactly as list_redirect_uris shows it. Sign-in that uses it stops working."""
    return await directory.redirect_uris.remove(environment_id, "redirect", uri)


@tools.tool(scopes=["env:write"], read_only=False, idempotent=True)
async def add_post_logout_redirect_uri(
    directory: Directory, environment_id: EnvironmentId, uri: RedirectUri
) -> RegisteredUri:
    """Let the applications of one environment send a browser to a URI after it signed out.

    One that is there already is returned.
    """
    return await directory.redirect_uris.add(environment_id, "post_logout_redirect", uri)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
async def remove_post_logout_redirect_uri(
    directory: Directory, environment_id: EnvironmentId, uri: RedirectUri
) -> RegisteredUri:
    """Remove a URI for after sign-out, exactly as list_redirect_uris shows it."""
    return await directory.redirect_uris.remove(environment_id, "post_logout_redirect", uri)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
async def set_initiate_login_uri(
    directory: Directory, environment_id: EnvironmentId, uri: InitiateLoginUri
) -> InitiateLogin:
    """Set the https URL at which a sign-in of one environment can be initiated by somebody else.

    There is one for each environment: what was set before is replaced. Look with list_redirect_uris first.
    """
    return await directory.redirect_uris.set_initiate_login(environment_id, uri)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
async def remove_initiate_login_uri(directory: Directory, environment_id: EnvironmentId) -> InitiateLogin:
    """Remove the URL at which a sign-in of one environment can be initiated."""
    return await directory.redirect_uris.remove_initiate_login(environment_id)
