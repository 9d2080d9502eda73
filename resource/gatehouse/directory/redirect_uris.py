"""Where the applications of an environment may send a browser: after it signed in, after it signed out, to sign in."""

from typing import Literal

from pydantic import BaseModel, Field
from sqlalchemy import Select, select

from gatehouse.directory.environments import PartOfEnvironments
from gatehouse.directory.errors import NotFound
from gatehouse.directory.identifiers import new_identifier
from gatehouse.directory.models import RedirectUriRow
from gatehouse.directory.rows import MAX_PER_ENVIRONMENT, find_row, require_room, to_change
from gatehouse.directory.text import CreatedAt

RedirectUriKind = Literal["redirect", "post_logout_redirect"]

_LIST_TOOL = "list_redirect_uris"
_NOUNS: dict[RedirectUriKind, str] = {"redirect": "redirect URI", "post_logout_redirect": "post-logout redirect URI"}


class RegisteredUri(BaseModel):
    """A redirect URI of an environment."""

    redirect_uri_id: str
    environment_id: str
    kind: RedirectUriKind
    uri: str
    created_at: CreatedAt


class InitiateLogin(BaseModel):
    """Where an environment's sign-in begins."""

    environment_id: str
    initiate_login_uri: str | None = Field(description="Null when there is none.")


class RedirectUriList(InitiateLogin):
    """Every URI of an environment, the oldest first: at most 100, so there are no pages."""

    redirect_uris: list[RegisteredUri]
    post_logout_redirect_uris: list[RegisteredUri]


class RedirectUris(PartOfEnvironments):
    """The redirect URIs of one workspace's environments."""

    async def all_of(self, environment_id: str) -> RedirectUriList:
        """Return every URI of an environment. Raises NotFound."""
        environment = await self._environments.find(environment_id)
        query = select(RedirectUriRow).where(RedirectUriRow.environment_id == environment.environment_id)
        rows = (await self._session.scalars(query.order_by(RedirectUriRow.redirect_uri_id))).all()
        return RedirectUriList(
            environment_id=environment.environment_id,
            initiate_login_uri=environment.initiate_login_uri,
            redirect_uris=[_uri(row) for row in rows if row.kind == "redirect"],
            post_logout_redirect_uris=[_uri(row) for row in rows if row.kind == "post_logout_redirect"],
        )

    async def add(self, environment_id: str, kind: RedirectUriKind, uri: str) -> RegisteredUri:
        """Add a URI, or return it when it is there. Raises NotFound for the environment, LimitReached."""
        environment = await self._environments.find(environment_id, lock=True)
        row = await self._session.scalar(_query(environment.environment_id, kind, uri))
        if row is None:
            owner, things = RedirectUriRow.environment_id, "redirect URIs in an environment"
            await require_room(self._session, owner, environment.environment_id, MAX_PER_ENVIRONMENT, things)
            row = RedirectUriRow(
                redirect_uri_id=new_identifier("uri", self._now),
                environment_id=environment.environment_id,
                kind=kind,
                uri=uri,
                created_at=int(self._now),
            )
            self._session.add(row)
        return _uri(row)

    async def remove(self, environment_id: str, kind: RedirectUriKind, uri: str) -> RegisteredUri:
        """Remove a URI, and return what it was. Raises NotFound."""
        environment = await self._environments.find(environment_id)
        query = to_change(_query(environment.environment_id, kind, uri))
        row = await find_row(self._session, query, _NOUNS[kind], _LIST_TOOL)
        await self._session.delete(row)
        return _uri(row)

    async def set_initiate_login(self, environment_id: str, uri: str) -> InitiateLogin:
        """Set where sign-in begins, in place of what was set. Raises NotFound for the environment."""
        environment = await self._environments.find(environment_id, lock=True)
        environment.initiate_login_uri = uri
        return InitiateLogin(environment_id=environment.environment_id, initiate_login_uri=uri)

    async def remove_initiate_login(self, environment_id: str) -> InitiateLogin:
        """Remove where sign-in begins. Raises NotFound for the environment, or when nothing is set."""
        environment = await self._environments.find(environment_id, lock=True)
        if environment.initiate_login_uri is None:
            raise NotFound("initiate login URI", _LIST_TOOL)
        environment.initiate_login_uri = None
        return InitiateLogin(environment_id=environment.environment_id, initiate_login_uri=None)


def _query(environment_id: str, kind: RedirectUriKind, uri: str) -> Select[RedirectUriRow]:
    return select(RedirectUriRow).where(
        RedirectUriRow.environment_id == environment_id, RedirectUriRow.kind == kind, RedirectUriRow.uri == uri
    )


def _uri(row: RedirectUriRow) -> RegisteredUri:
    return RegisteredUri.model_validate(row, from_attributes=True)
