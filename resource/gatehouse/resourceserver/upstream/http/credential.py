"""The gateway's own credential for an upstream: none, a header from a file, or the token of a client.

The caller's token never leaves the gateway: MCP forbids it ("Token Passthrough").
"""

import re
from pathlib import Path
from typing import Final, Protocol

import httpx2

from gatehouse.bridge.credentials import read_credentials_file
from gatehouse.bridge.errors import BridgeError
from gatehouse.bridge.settings import SettingNames
from gatehouse.bridge.tokens import Token, TokenSource
from gatehouse.resourceserver.catalogue.policy_file import ClientCredential, HeaderCredential, HttpTransport
from gatehouse.resourceserver.upstream.upstream import UpstreamUnavailable
from gatehouse.shared.service.files import UnsafeFile, read_private_text
from gatehouse.shared.service.settings import InvalidSettings
from gatehouse.shared.service.tls import tls_context

Headers = list[tuple[str, str]]
"""Names and values of header fields."""

_MAX_FILE: Final = 8192
"""Bytes of a file with the value of a header."""

_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
"""The value of a header field without obsolete characters (RFC 9110 5.5)."""

_NAMES: Final = SettingNames(
    credentials="upstream.credential.file",
    client_id="upstream.credential.client_id",
    issuer="upstream.credential.issuer",
    ca_file=None,
)


class Credential(Protocol):
    """What the gateway presents to an upstream."""

    async def headers(self) -> Headers:
        """Return the header fields of a request. Raises UpstreamUnavailable: there is no usable credential."""
        ...

    async def renewed(self, rejected: Headers) -> Headers | None:
        """Return other header fields than those that the upstream rejected with 401; None if there are none.

        Raises:
            UpstreamUnavailable: there is no usable credential.
        """
        ...

    async def close(self) -> None:
        """Close the connections that it uses."""
        ...


class NoCredential:
    """An upstream without authentication."""

    async def headers(self) -> Headers:
        """Return no header field."""
        return []

    async def renewed(self, rejected: Headers) -> Headers | None:
        """Return None."""
        return None

    async def close(self) -> None:
        """Do nothing."""


class FileHeader:
    """A header field whose value is in a file. It is read again when the file changes, so a rotation needs no restart.

    Reading takes a few microseconds, except on a network file system, and so happens on the event loop.
    """

    def __init__(self, header: str, file: Path) -> None:
        self._header = header
        self._file = file
        self._version: object = None
        self._fields: Headers = []

    async def headers(self) -> Headers:
        """Return the header field. Raises UpstreamUnavailable: the file is missing, exposed or malformed."""
        try:
            status = self._file.stat()
            version = status.st_ino, status.st_mtime_ns
            if version != self._version:
                value = read_private_text(self._file, "credential of the upstream", limit=_MAX_FILE + 1)
                self._fields = [(self._header, self._checked(value))]
                self._version = version
        except FileNotFoundError:
            raise UpstreamUnavailable(f"upstream.credential.file: there is no file {self._file}") from None
        except UnsafeFile as error:
            raise UpstreamUnavailable(f"upstream.credential.file: {error}") from None
        except OSError as error:
            reason = error.strerror or "input/output"
            raise UpstreamUnavailable(f"upstream.credential.file: {self._file} cannot be read ({reason})") from None
        return self._fields

    def _checked(self, value: str) -> str:
        if len(value) > _MAX_FILE or _VALUE.fullmatch(value) is None:
            raise UpstreamUnavailable(
                f"upstream.credential.file: {self._file} is not one line of at most {_MAX_FILE} ASCII characters"
            )
        return value

    async def renewed(self, rejected: Headers) -> Headers | None:
        """Return None: a file that has changed is read anyway."""
        return None

    async def close(self) -> None:
        """Do nothing."""


class ClientToken:
    """The access token of a client, which another authorization server issues for the upstream."""

    def __init__(self, credential: ClientCredential, http: httpx2.AsyncClient | None = None) -> None:
        """Create it, without a token. `http` replaces the HTTP client for the issuer."""
        self._credential = credential
        self._http = http
        self._source: TokenSource | None = None

    def _tokens(self) -> TokenSource:
        if self._source is None:
            credential = self._credential
            if self._http is None:
                try:
                    self._http = httpx2.AsyncClient(trust_env=False, verify=tls_context(None, "SSL_CERT_FILE"))
                except InvalidSettings as error:
                    raise UpstreamUnavailable(str(error)) from None
            self._source = TokenSource(
                self._http,
                credential.resource,
                credential.issuer,
                lambda: read_credentials_file(credential.file, credential.client_id, _NAMES),
                names=_NAMES,
            )
        return self._source

    async def headers(self) -> Headers:
        """Return the header field with the token. Raises UpstreamUnavailable: the issuer gives no token."""
        try:
            return _bearer(await self._tokens().current())
        except BridgeError as error:
            raise UpstreamUnavailable(str(error)) from None

    async def renewed(self, rejected: Headers) -> Headers | None:
        """Return the header field with another token. Raises UpstreamUnavailable: the issuer gives no token."""
        try:
            token = await self._tokens().current()
            # Another call may have replaced it in the meantime.
            return _bearer(await self._tokens().replace(token) if _bearer(token) == rejected else token)
        except BridgeError as error:
            raise UpstreamUnavailable(str(error)) from None

    async def close(self) -> None:
        """Close the connections to the issuer."""
        if self._http is not None:
            await self._http.aclose()


def _bearer(token: Token) -> Headers:
    return [("Authorization", f"Bearer {token.value}")]


def open_credential(transport: HttpTransport) -> Credential:
    """Return the credential of an upstream. It is read or requested when it is first needed."""
    credential = transport.credential
    if credential is None:
        return NoCredential()
    if isinstance(credential, HeaderCredential):
        return FileHeader(credential.header, credential.file)
    return ClientToken(credential)
