"""Fetches the key sets of trusted issuers, and stores them for all nodes. Runs in threads, outside of requests.

Only addresses that an administrator configured are fetched, and those that the metadata of such an issuer names on the
issuer's own host.
"""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
from sqlalchemy import select, update

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import TrustedIssuerRow
from gatehouse.authserver.workloads.issuer_keys import (
    MAX_LENGTH,
    REFETCH_INTERVAL,
    REFRESH_INTERVAL,
    parse_issuer_keys,
)
from gatehouse.authserver.workloads.registry import KeyLocation
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.protocol.jws import InvalidKeySet
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.protocol.resource_identifiers import is_protected_transport
from gatehouse.shared.service.fetch import FetchFailed, Source, http_client, http_fetch
from gatehouse.shared.service.settings import InvalidSettings
from gatehouse.shared.service.tls import tls_context

METADATA: Final = "/.well-known/openid-configuration"
"""Where an issuer publishes its metadata (OpenID Connect Discovery 4)."""

_MAX_URL: Final = 2048
_MAX_TOKEN: Final = 16 * 1024
"""Bytes of a file with a bearer token."""

_MAX_FAILURE: Final = 512
"""Characters of a stored failure."""

_SOURCE: Final = Source(
    content_types=("application/jwk-set+json", "application/json"),
    max_length=MAX_LENGTH,
    ca_setting="--ca-file",
    server="the issuer",
)

log = logging.getLogger(__name__)


def fetch_keys(issuer: str, location: KeyLocation) -> bytes:
    """Fetch the key set of an issuer. Waits up to 5 s for each of at most two documents.

    Raises:
        FetchFailed: it cannot be fetched. The message is for the operator.
    """
    return anyio.run(_fetch_keys, issuer, location)


async def _fetch_keys(issuer: str, location: KeyLocation) -> bytes:
    authorization = _authorization(location)
    async with http_client(_context(location)) as client:

        async def document(url: str) -> bytes:
            fetched = await http_fetch(client, url, _SOURCE, authorization=authorization)(None)
            if fetched is None:
                raise FetchFailed(f"{url}: status 304, although the request has no entity tag")
            return fetched.document

        url = location.jwks_uri
        if url is None:
            metadata = f"{issuer.rstrip('/')}{METADATA}"
            url = _jwks_uri(await document(metadata), issuer, metadata)
        return await document(url)


def _context(location: KeyLocation) -> ssl.SSLContext:
    try:
        return tls_context(None if location.ca_file is None else Path(location.ca_file), "--ca-file")
    except InvalidSettings as error:
        raise FetchFailed(str(error)) from None


def _authorization(location: KeyLocation) -> str | None:
    """Return the header value for an issuer that requires a token for its keys. Raises FetchFailed."""
    if location.bearer_token_file is None:
        return None
    try:
        with Path(location.bearer_token_file).open("rb") as file:
            token = file.read(_MAX_TOKEN + 1).strip()
    except OSError as error:
        raise FetchFailed(f"{location.bearer_token_file}: {error.strerror or 'cannot be read'}") from None
    if not 0 < len(token) <= _MAX_TOKEN or not token.isascii() or not token.decode("ascii").isprintable():
        raise FetchFailed(f"{location.bearer_token_file}: not one line with a token")
    return f"Bearer {token.decode('ascii')}"


def _jwks_uri(document: bytes, issuer: str, url: str) -> str:
    """Return the address of the key set from an issuer's metadata. Raises FetchFailed."""
    try:
        members: Any = parse_json(document)
    except InvalidJson as error:
        raise FetchFailed(f"{url}: {error}") from None
    found = members if isinstance(members, dict) else {}
    # Compared exactly: another issuer's metadata would name another issuer's keys (RFC 8414 3.3).
    if found.get("issuer") != issuer:
        raise FetchFailed(f"{url}: its issuer is {quoted(str(found.get('issuer')))}, not {issuer}")
    jwks_uri = found.get("jwks_uri")
    if not isinstance(jwks_uri, str) or len(jwks_uri) > _MAX_URL or not is_protected_transport(jwks_uri):
        raise FetchFailed(f"{url}: its jwks_uri is not an https URL")
    if urlsplit(jwks_uri)[:2] != urlsplit(issuer)[:2]:
        raise FetchFailed(f"{url}: its jwks_uri {quoted(jwks_uri)} is on another host; if it is right, set --jwks-uri")
    return jwks_uri


class KeyFetcher:
    """Renews the stored key sets."""

    def __init__(
        self, database: Database, clock: Clock, fetch: Callable[[str, KeyLocation], bytes] = fetch_keys
    ) -> None:
        self._database = database
        self._clock = clock
        self._fetch = fetch

    def due(self) -> list[str]:
        """Return the names of the enabled issuers whose keys must be fetched. Raises SQLAlchemyError."""
        now, row = int(self._clock()), TrustedIssuerRow
        with self._database.read() as session:
            rows = session.scalars(select(row).where(~row.disabled, row.discovery | row.jwks_uri.is_not(None)))
            return [one.name for one in rows if now - one.attempted_at >= _interval(one)]

    def renew(self, name: str) -> None:
        """Fetch and store the keys of an issuer, unless another node did a moment ago. Never raises.

        A key set that cannot be used replaces none.
        """
        try:
            self._renew(name)
        except Exception as error:  # noqa: BLE001 - whatever fails, the stored keys stay in use
            log.error("the keys of the trusted issuer %s were not renewed: %s", name, type(error).__name__)

    def _renew(self, name: str) -> None:
        now, row = int(self._clock()), TrustedIssuerRow
        claim = update(row).where(row.name == name, ~row.disabled, row.attempted_at <= now - REFETCH_INTERVAL)
        with self._database.write() as session:
            if session.execute(claim.values(attempted_at=now).returning(row.name)).first() is None:
                return
            issuer = session.get_one(row, name)
            location = KeyLocation(issuer.discovery, issuer.jwks_uri, issuer.ca_file, issuer.bearer_token_file)
            session.expunge(issuer)
        try:
            document = self._fetch(issuer.issuer, location)
            parse_issuer_keys(document, issuer.kind, issuer.algorithms)
            changes: dict[str, Any] = {"jwks": document.decode(), "fetched_at": now, "failure": None}
        except (FetchFailed, InvalidKeySet) as error:
            changes = {"failure": str(error)[:_MAX_FAILURE]}
            # One line for an outage, however long it lasts.
            if changes["failure"] != issuer.failure:
                log.warning("the keys of the trusted issuer %s were not renewed: %s", name, error)
        # Not if an admin changed where the keys come from meanwhile.
        same = (row.name == name, row.issuer == issuer.issuer, row.jwks_uri.is_not_distinct_from(issuer.jwks_uri))
        with self._database.write() as session:
            session.execute(update(row).where(*same).values(**changes))


def _interval(row: TrustedIssuerRow) -> int:
    """Return the seconds from one fetch of an issuer's keys to the next."""
    return REFRESH_INTERVAL if row.failure is None else REFETCH_INTERVAL
