"""Client authentication at the token endpoint (RFC 6749 2.3; MCP client-credentials extension).

One method for each client, the registered one. Whatever fails, the caller is told the same, and the same work was
done: which it was stands in the audit trail.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from gatehouse.authserver.clients.registry import Client, ClientRegistry
from gatehouse.authserver.clients.secrets import matches
from gatehouse.authserver.errors import OAuthError, invalid_client, invalid_request
from gatehouse.authserver.keys.store import KeyRing

AUTH_METHODS = ("client_secret_basic", "client_secret_post")
"""What a client can be registered for (`token_endpoint_auth_method`, RFC 7591 2)."""

_FORM_ENCODED = re.compile(r"(?:[\x20-\x24\x26-\x7e]|%[0-9A-Fa-f]{2})*", re.ASCII)
_MAX_CREDENTIAL = 512


@dataclass(frozen=True, slots=True)
class AuthenticatedClient:
    """A client that proved who it is. Only `authenticate_client` makes one."""

    client: Client


@dataclass(frozen=True, slots=True)
class _SecretCredentials:
    client_id: str
    secret: str = field(repr=False)
    method: str


def claimed_client_id(authorization: str | None, form: Mapping[str, str]) -> str | None:
    """Return the client_id that a request claims, for the audit trail: nothing of it is proven, but its length."""
    if authorization is None:
        claimed = form.get("client_id")
    else:
        try:
            claimed = _basic_credentials(authorization).client_id
        except OAuthError:
            claimed = None
    return claimed[:_MAX_CREDENTIAL] if claimed is not None else None


def authenticate_client(
    authorization: str | None, form: Mapping[str, str], registry: ClientRegistry, keys: KeyRing
) -> AuthenticatedClient:
    """Authenticate the client of a token request.

    Raises:
        OAuthError: `invalid_client`, with the failed check as private reason; `invalid_request` for two methods in
            one request (RFC 6749 2.3).
    """
    credentials = _read_credentials(authorization, form)
    if max(len(credentials.client_id), len(credentials.secret)) > _MAX_CREDENTIAL:
        raise invalid_client(f"credentials longer than {_MAX_CREDENTIAL} characters")
    client = registry.find(credentials.client_id)
    proven = matches(credentials.secret, client.secrets if client else (), keys.peppers)
    if client is None:
        raise invalid_client("unknown client")
    if client.token_endpoint_auth_method != credentials.method:
        raise invalid_client(f"used {credentials.method}, registered for {client.token_endpoint_auth_method}")
    if not proven:
        raise invalid_client("wrong secret")
    if client.disabled:
        raise invalid_client("client is disabled")
    return AuthenticatedClient(client)


def _read_credentials(authorization: str | None, form: Mapping[str, str]) -> _SecretCredentials:
    presented = [authorization is not None, "client_secret" in form, "client_assertion" in form]
    if sum(presented) > 1:
        raise invalid_request("Use one method of client authentication, not several (RFC 6749 2.3).")
    if authorization is not None:
        credentials = _basic_credentials(authorization)
        if form.get("client_id", credentials.client_id) != credentials.client_id:
            raise invalid_client("client_id in the body is not the one in the Authorization header")
        return credentials
    if "client_secret" in form and "client_id" in form:
        return _SecretCredentials(form["client_id"], form["client_secret"], "client_secret_post")
    if "client_assertion" in form:
        raise invalid_client("no client is registered for private_key_jwt")
    raise invalid_client("no client authentication in the request")


def _basic_credentials(authorization: str) -> _SecretCredentials:
    """Decode strictly (RFC 7617 2; form encoding inside it, RFC 6749 2.3.1): two readers must not differ."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise invalid_client("Authorization scheme is not Basic")
    try:
        decoded = base64.b64decode(encoded.strip(" "), validate=True)
        canonical = base64.b64encode(decoded) == encoded.strip(" ").encode()
        client_id, colon, secret = decoded.decode("ascii").partition(":")
    except (binascii.Error, UnicodeError, ValueError):
        canonical, client_id, colon, secret = False, "", "", ""
    if not canonical:
        raise invalid_client("Basic credentials are not base64 of form-encoded text")
    if not colon:
        raise invalid_client("Basic credentials have no colon")
    return _SecretCredentials(_form_decode(client_id), _form_decode(secret), "client_secret_basic")


def _form_decode(text: str) -> str:
    if not text or _FORM_ENCODED.fullmatch(text) is None:
        raise invalid_client("Basic credentials are empty or not form-encoded")
    try:
        decoded = unquote_to_bytes(text.replace("+", " ")).decode("utf-8")
    except UnicodeDecodeError:
        raise invalid_client("Basic credentials are not UTF-8") from None
    if "\x00" in decoded:
        raise invalid_client("Basic credentials hold a NUL character")
    return decoded
