"""The credentials in a token request (RFC 6749 2.3; RFC 7523 2.2), read in one way. Nothing is proven here."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from gatehouse.authserver.errors import OAuthError, invalid_client, invalid_request
from gatehouse.shared.protocol import jws
from gatehouse.shared.service.audit import CLAIMED

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""RFC 7523 2.2."""

MAX_CREDENTIAL = 512
"""Characters of a client_id or secret."""

_SEND_ONE = "Send the credential that the client was registered with: authserver client show CLIENT_ID"
_ENCODE = "Send base64(form-encoded client_id, colon, form-encoded secret), in UTF-8 (RFC 6749 2.3.1)."
_NO_NUL = "Send the client_id and the credential as they were given: authserver client list"
_WELL_FORMED = "Send a compact JWT of at most 8 KiB, whose header holds alg, kid and typ only (RFC 7523 3)."

_FORM_ENCODED = re.compile(r"(?:[\x20-\x24\x26-\x7e]|%[0-9A-Fa-f]{2})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class SecretCredentials:
    """A client_id and secret, and the method that they came by."""

    client_id: str
    secret: str = field(repr=False)
    method: str


@dataclass(frozen=True, slots=True)
class AssertionCredentials:
    """A signed assertion, and the client that it says it is from."""

    client_id: str
    assertion: str = field(repr=False)
    header: jws.Header
    method: str = "private_key_jwt"


Credentials = SecretCredentials | AssertionCredentials


def read_credentials(authorization: str | None, form: Mapping[str, str]) -> Credentials:
    """Return the one credential of a request.

    Raises:
        OAuthError: `invalid_request` for two methods at once, `invalid_client` for none or a malformed one.
    """
    presented = [authorization is not None, "client_secret" in form, "client_assertion" in form]
    if sum(presented) > 1:
        raise invalid_request("Use one method of client authentication, not several (RFC 6749 2.3).")
    credentials: Credentials
    if authorization is not None:
        credentials = _basic_credentials(authorization)
    elif "client_assertion" in form or "client_assertion_type" in form:
        credentials = _assertion_credentials(form)
    elif "client_secret" in form and "client_id" in form:
        credentials = SecretCredentials(form["client_id"], form["client_secret"], "client_secret_post")
    else:
        raise invalid_client("no client authentication in the request", _SEND_ONE)
    if form.get("client_id", credentials.client_id) != credentials.client_id:
        raise invalid_client("client_id in the body is not the one of the credentials", "Leave client_id out.")
    secret = credentials.secret if isinstance(credentials, SecretCredentials) else ""
    if max(len(credentials.client_id), len(secret)) > MAX_CREDENTIAL:
        raise invalid_client(f"credentials longer than {MAX_CREDENTIAL} characters", _SEND_ONE)
    # PostgreSQL takes no NUL in a text: a lookup would fail as if the database were away. Whatever else cannot be
    # encoded, lone surrogates, the strict readers of form, Basic and JSON have refused.
    if "\x00" in credentials.client_id + secret:
        raise invalid_client("credentials hold a NUL character", _NO_NUL)
    return credentials


def claimed_client_id(authorization: str | None, form: Mapping[str, str]) -> str | None:
    """Return the client_id that a request claims, for the audit log: nothing of it is proven, but its length."""
    try:
        claimed: str | None = read_credentials(authorization, form).client_id
    except OAuthError:
        claimed = form.get("client_id") if authorization is None else None
    return claimed[:MAX_CREDENTIAL] if claimed is not None else None


def claimed_actor(proven: str | None, authorization: str | None, form: Mapping[str, str]) -> str | None:
    """Return whom a refusal is recorded for: who was proven, or who was claimed."""
    if proven is not None:
        return proven
    claimed = claimed_client_id(authorization, form)
    return f"{CLAIMED}{claimed}" if claimed is not None else None


def _assertion_credentials(form: Mapping[str, str]) -> AssertionCredentials:
    """Read the client from `sub` (RFC 7523 3, item 2): with an assertion, `client_id` may be absent."""
    if form.get("client_assertion_type") != ASSERTION_TYPE:
        raise invalid_client("client_assertion_type is not jwt-bearer", f"Send client_assertion_type={ASSERTION_TYPE}.")
    assertion = form.get("client_assertion", "")
    try:
        header = jws.read_header(assertion)
        subject = jws.read_unverified_claims(assertion).get("sub")
    except jws.InvalidToken as error:
        raise invalid_client(f"assertion: {error.reason}", _WELL_FORMED) from None
    if not isinstance(subject, str) or not subject:
        raise invalid_client("assertion: sub is missing", "Set iss and sub to the client_id.")
    return AssertionCredentials(subject, assertion, header)


def _basic_credentials(authorization: str) -> SecretCredentials:
    """Decode strictly (RFC 7617 2; form encoding inside it, RFC 6749 2.3.1): two readers must not differ."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise invalid_client("Authorization scheme is not Basic", _SEND_ONE)
    try:
        decoded = base64.b64decode(encoded.strip(" "), validate=True)
        canonical = base64.b64encode(decoded) == encoded.strip(" ").encode()
        client_id, colon, secret = decoded.decode("ascii").partition(":")
    except (binascii.Error, UnicodeError, ValueError):
        canonical, client_id, colon, secret = False, "", "", ""
    if not canonical:
        raise invalid_client("Basic credentials are not base64 of form-encoded text", _ENCODE)
    if not colon:
        raise invalid_client("Basic credentials have no colon", _ENCODE)
    return SecretCredentials(_form_decode(client_id), _form_decode(secret), "client_secret_basic")


def _form_decode(text: str) -> str:
    if not text or _FORM_ENCODED.fullmatch(text) is None:
        raise invalid_client("Basic credentials are empty or not form-encoded", _ENCODE)
    try:
        decoded = unquote_to_bytes(text.replace("+", " ")).decode("utf-8")
    except UnicodeDecodeError:
        raise invalid_client("Basic credentials are not UTF-8", _ENCODE) from None
    return decoded
