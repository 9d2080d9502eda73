"""Redirect URIs of an environment: after sign-in, after sign-out, and the URI that initiates sign-in."""

from typing import Final, Literal

from pydantic import BaseModel, Field
from sqlalchemy import Select, select

from gatehouse.directory.addresses import InitiateLoginUri, RedirectUri
from gatehouse.directory.directory import MAX_PER_ENVIRONMENT, Directory, Entity, locked
from gatehouse.directory.environments import find_environment
from gatehouse.directory.errors import NotFound
from gatehouse.directory.identifiers import EnvironmentId
from gatehouse.directory.models import RedirectUriRow
from gatehouse.directory.text import CreatedAt
from gatehouse.resourceserver.catalogue import ToolGroup

RedirectUriKind = Literal["redirect", "post_logout_redirect"]

_LIST_TOOL: Final = "list_redirect_uris"

tools = ToolGroup()


class RegisteredUri(Entity):
    """A redirect URI of an environment."""

    redirect_uri_id: str
    environment_id: str
    kind: RedirectUriKind
    uri: str
    created_at: CreatedAt


class InitiateLogin(BaseModel):
    """The URI that initiates sign-in at an environment."""

    environment_id: str
    initiate_login_uri: str | None = Field(description="Null if none is set.")


class RedirectUriList(InitiateLogin):
    """Every URI of an environment, the oldest first. There are at most 100, so the list has no pages."""

    redirect_uris: list[RegisteredUri]
    post_logout_redirect_uris: list[RegisteredUri]


def _query(environment_id: str, kind: RedirectUriKind, uri: str) -> Select[RedirectUriRow]:
    return select(RedirectUriRow).where(
        RedirectUriRow.environment_id == environment_id, RedirectUriRow.kind == kind, RedirectUriRow.uri == uri
    )


def _add(directory: Directory, environment_id: str, kind: RedirectUriKind, uri: str) -> RegisteredUri:
    """Add a URI, or return the existing one. Raises NotFound for the environment, LimitReached."""
    find_environment(directory, environment_id, lock=True)
    row = directory.session.scalar(_query(environment_id, kind, uri))
    if row is None:
        owner, things = RedirectUriRow.environment_id, "redirect URIs in an environment"
        directory.require_room(owner, environment_id, MAX_PER_ENVIRONMENT, things)
        row = RedirectUriRow(
            redirect_uri_id=directory.new_identifier("uri"),
            environment_id=environment_id,
            kind=kind,
            uri=uri,
            created_at=int(directory.now),
        )
        directory.session.add(row)
    return RegisteredUri.model_validate(row)


def _remove(directory: Directory, environment_id: str, kind: RedirectUriKind, uri: str) -> RegisteredUri:
    """Remove a URI, and return it. Raises NotFound."""
    find_environment(directory, environment_id)
    entity = "redirect URI" if kind == "redirect" else "post-logout redirect URI"
    row = directory.find(locked(_query(environment_id, kind, uri)), entity, _LIST_TOOL)
    directory.session.delete(row)
    return RegisteredUri.model_validate(row)


@tools.tool(scopes=["env:read"], read_only=True)
def list_redirect_uris(directory: Directory, environment_id: EnvironmentId) -> RedirectUriList:
    """List all redirect URIs and post-logout redirect URIs of one environment, and its initiate-login URI."""
    environment = find_environment(directory, environment_id)
    query = select(RedirectUriRow).where(RedirectUriRow.environment_id == environment_id)
    rows = directory.session.scalars(query.order_by(RedirectUriRow.redirect_uri_id))
    uris = [RegisteredUri.model_validate(row) for row in rows]
    return RedirectUriList(
        environment_id=environment_id,
        initiate_login_uri=environment.initiate_login_uri,
        redirect_uris=[uri for uri in uris if uri.kind == "redirect"],
        post_logout_redirect_uris=[uri for uri in uris if uri.kind == "post_logout_redirect"],
    )


@tools.tool(scopes=["env:write"], read_only=False, idempotent=True)
def add_redirect_uri(directory: Directory, environment_id: EnvironmentId, uri: RedirectUri) -> RegisteredUri:
    """Allow the applications of one environment to send a browser to a URI after sign-in.

    Authorization codes are sent there, so add only URIs that your organization controls. An existing URI is returned
    unchanged.
    """
    return _add(directory, environment_id, "redirect", uri)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
def remove_redirect_uri(directory: Directory, environment_id: EnvironmentId, uri: RedirectUri) -> RegisteredUri:
    """Remove a redirect URI, written exactly as list_redirect_uris returns it. Sign-in that uses it stops working."""
    return _remove(directory, environment_id, "redirect", uri)


@tools.tool(scopes=["env:write"], read_only=False, idempotent=True)
def add_post_logout_redirect_uri(
    directory: Directory, environment_id: EnvironmentId, uri: RedirectUri
) -> RegisteredUri:
    """Allow the applications of one environment to send a browser to a URI after sign-out.

    An existing URI is returned unchanged.
    """
    return _add(directory, environment_id, "post_logout_redirect", uri)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
def remove_post_logout_redirect_uri(
    directory: Directory, environment_id: EnvironmentId, uri: RedirectUri
) -> RegisteredUri:
    """Remove a post-logout redirect URI, written exactly as list_redirect_uris returns it."""
    return _remove(directory, environment_id, "post_logout_redirect", uri)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
def set_initiate_login_uri(directory: Directory, environment_id: EnvironmentId, uri: InitiateLoginUri) -> InitiateLogin:
    """Set the https URL at which a third party can initiate sign-in at one environment.

    Each environment has one, and the new value replaces it. Check with list_redirect_uris first.
    """
    environment = find_environment(directory, environment_id, lock=True)
    environment.initiate_login_uri = uri
    return InitiateLogin(environment_id=environment_id, initiate_login_uri=uri)


@tools.tool(scopes=["env:write"], read_only=False, destructive=True, idempotent=True)
def remove_initiate_login_uri(directory: Directory, environment_id: EnvironmentId) -> InitiateLogin:
    """Remove the URL at which a third party can initiate sign-in at one environment."""
    environment = find_environment(directory, environment_id, lock=True)
    if environment.initiate_login_uri is None:
        raise NotFound("initiate login URI", _LIST_TOOL)
    environment.initiate_login_uri = None
    return InitiateLogin(environment_id=environment_id, initiate_login_uri=None)
