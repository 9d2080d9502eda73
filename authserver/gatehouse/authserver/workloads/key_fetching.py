"""Fetches the key sets of trusted issuers over HTTP. Runs in threads, outside of requests.

Only addresses that an administrator configured are fetched, and those that the metadata of such an issuer names on the
issuer's own host.
"""

import re
import ssl
import threading
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
from anyio.from_thread import BlockingPortal, start_blocking_portal

from gatehouse.authserver.workloads.issuer_keys import MAX_LENGTH
from gatehouse.authserver.workloads.registry import KeyLocation
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.fetch import FetchFailed, Source, http_client, http_fetch, is_fetchable, shown_url
from gatehouse.shared.service.settings import InvalidSettings
from gatehouse.shared.service.tls import current_tls_context

METADATA: Final = "/.well-known/openid-configuration"
"""Where an issuer publishes its metadata (OpenID Connect Discovery 4)."""

_MAX_TOKEN: Final = 16 * 1024
"""Bytes of a file with a bearer token."""

_TOKEN: Final = re.compile(rb"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
"""A JWT, as every token of a cluster is. Nothing else: a row of the database names the file and the server, and must
not be able to send the sealing key away."""

_SOURCE: Final = Source(
    content_types=("application/jwk-set+json", "application/json"),
    max_length=MAX_LENGTH,
    ca_setting="--ca-file",
    server="the issuer",
)


class MisspelledIssuer(FetchFailed):
    """The metadata name an issuer that differs by a slash at the end. The message says what to type."""


class FetchStopped(Exception):
    """The server stops, and a fetch was not completed."""


class KeySetClient:
    """Fetches key sets in the threads that call it, until it is stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Future[bytes]] = set()
        self._stopped = False

    def fetch(self, issuer: str, location: KeyLocation) -> bytes:
        """Fetch the key set of an issuer. Waits up to 5 s for each of at most two documents.

        Raises:
            FetchFailed: it cannot be fetched. The message is for the operator.
            FetchStopped: `stop` was called.
        """
        with start_blocking_portal() as portal:
            fetching = self._begin(portal, issuer, location)
            try:
                return fetching.result()
            except CancelledError:
                raise FetchStopped from None
            finally:
                with self._lock:
                    self._running.remove(fetching)

    def _begin(self, portal: BlockingPortal, issuer: str, location: KeyLocation) -> "Future[bytes]":
        with self._lock:
            if self._stopped:
                raise FetchStopped
            fetching = portal.start_task_soon(_fetch, issuer, location)
            self._running.add(fetching)
            return fetching

    def stop(self) -> None:
        """End the fetches that run, and begin no other one."""
        with self._lock:
            self._stopped = True
            for fetching in self._running:
                fetching.cancel()


def fetch_keys(issuer: str, location: KeyLocation) -> bytes:
    """Fetch the key set of an issuer, as a command does. Raises FetchFailed."""
    return KeySetClient().fetch(issuer, location)


async def _fetch(issuer: str, location: KeyLocation) -> bytes:
    authorization = _authorization(location)
    async with http_client(_context(location)) as client:
        fetch = partial(_document, client, authorization)
        url = location.jwks_uri
        if url is None:
            metadata = f"{issuer.rstrip('/')}{METADATA}"
            url = _jwks_uri(await fetch(metadata), issuer, metadata)
        return await fetch(url)


async def _document(client: httpx2.AsyncClient, authorization: str | None, url: str) -> bytes:
    fetched = await http_fetch(client, url, _SOURCE, authorization=authorization)(None)
    if fetched is None:
        raise FetchFailed(f"{shown_url(url)}: status 304, although the request has no entity tag")
    return fetched.document


def _context(location: KeyLocation) -> ssl.SSLContext:
    """Return the TLS context for an issuer. Raises FetchFailed."""
    try:
        return current_tls_context(None if location.ca_file is None else Path(location.ca_file), "--ca-file")
    except InvalidSettings as error:
        raise FetchFailed(str(error)) from None


def _authorization(location: KeyLocation) -> str | None:
    """Return the header value for an issuer that requires a token for its keys. Raises FetchFailed.

    The file is read for each fetch, because a cluster replaces the token in it.
    """
    if location.bearer_token_file is None:
        return None
    try:
        with Path(location.bearer_token_file).open("rb") as file:
            token = file.read(_MAX_TOKEN + 1).strip()
    except OSError as error:
        raise FetchFailed(f"{location.bearer_token_file}: {error.strerror or 'cannot be read'}") from None
    if len(token) > _MAX_TOKEN or _TOKEN.fullmatch(token) is None:
        raise FetchFailed(f"{location.bearer_token_file}: not one line with a token, which is a JWT")
    return f"Bearer {token.decode('ascii')}"


def _jwks_uri(document: bytes, issuer: str, url: str) -> str:
    """Return the address of the key set from an issuer's metadata. Raises FetchFailed."""
    shown = shown_url(url)
    try:
        members: Any = parse_json(document)
    except InvalidJson as error:
        raise FetchFailed(f"{shown}: {error}") from None
    found = members if isinstance(members, dict) else {}
    # Compared exactly: another issuer's metadata would name another issuer's keys (RFC 8414 3.3).
    if (named := found.get("issuer")) != issuer:
        reason = f"{shown}: its issuer is {quoted(str(named))}, not {issuer}"
        if f"{named}/" == issuer or named == f"{issuer}/":
            do = "Leave it out" if issuer.endswith("/") else "Add it"
            raise MisspelledIssuer(f"{reason}; they differ by the slash at the end. {do}: --issuer {named}")
        raise FetchFailed(reason)
    jwks_uri = found.get("jwks_uri")
    if not isinstance(jwks_uri, str) or not is_fetchable(jwks_uri):
        raise FetchFailed(f"{shown}: its jwks_uri is not an https URL")
    if urlsplit(jwks_uri)[:2] != urlsplit(issuer)[:2]:
        raise FetchFailed(
            f"{shown}: its jwks_uri {shown_url(jwks_uri)} is on another host; if it is right, set --jwks-uri"
        )
    return jwks_uri
