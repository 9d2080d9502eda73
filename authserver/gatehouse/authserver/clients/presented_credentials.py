"""The credentials that a request presents, read strictly. Nothing about them is proven yet."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from gatehouse.authserver.clients.assertions import AssertionCredentials, read_assertion
from gatehouse.authserver.errors import AuthFailure, OAuthError, invalid_client, invalid_request
from gatehouse.authserver.http import Form, Request
from gatehouse.authserver.workloads.platform_token import PlatformCredentials
from gatehouse.shared.service.audit.events import CLAIMED

MAX_CREDENTIAL = 512
"""Characters of a client_id or secret."""

_SEND_ONE = "Send the credential that the client was registered with: authserver client show CLIENT_ID"
_ENCODE = "Send base64(form-encoded client_id, colon, form-encoded secret), in UTF-8 (RFC 6749 2.3.1)."
_NO_NUL = "Send the client_id and the credential exactly as issued: authserver client list"

_FORM_ENCODED = re.compile(r"(?:[\x20-\x24\x26-\x7e]|%[0-9A-Fa-f]{2})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class SecretCredentials:
    """A client_id and a secret, and the method that they were sent by. Nothing is proven yet."""

    client_id: str
    secret: str = field(repr=False)
    method: str


Credentials = SecretCredentials | AssertionCredentials | PlatformCredentials


def read_credentials(request: Request, form: Form) -> Credentials:
    """Read the one credential of a request. Sets its `auth_method`, and `actor` to the client that it claims to be.

    For a platform token without `client_id`, the `actor` is its subject.

    Raises:
        OAuthError: `invalid_request` for two methods at once, `invalid_client` for none or a malformed one.
    """
    authorization, parameters = request.headers.get("authorization"), form.parameters
    if authorization is None and "client_id" in parameters:
        _claim(request, parameters["client_id"])
    credentials = _read(authorization, parameters)
    if isinstance(credentials, PlatformCredentials):
        claim_workload(request, credentials)
    else:
        _claim(request, credentials.client_id)
        request.auth_method = credentials.method
    return credentials


def claim_workload(request: Request, credentials: PlatformCredentials) -> None:
    """Set what is recorded of a request with a platform token, as far as it claims it."""
    _claim(request, credentials.client_id or credentials.subject)
    request.auth_method = credentials.method
    external = {"external_issuer": credentials.issuer, "external_subject": credentials.subject}
    request.external = {name: text[:MAX_CREDENTIAL] for name, text in external.items()}


def read_claimed_client(request: Request) -> None:
    """Set the request's `actor` from its Authorization header, for a request whose form cannot be parsed."""
    try:
        read_credentials(request, Form())
    except OAuthError:
        return


def _claim(request: Request, client_id: str) -> None:
    request.actor = f"{CLAIMED}{client_id[:MAX_CREDENTIAL]}"


def _read(authorization: str | None, form: Mapping[str, str]) -> Credentials:
    presented = [authorization is not None, "client_secret" in form, "client_assertion" in form]
    if sum(presented) > 1:
        raise invalid_request("Use one method of client authentication, not several (RFC 6749 2.3).")
    credentials: Credentials
    if authorization is not None:
        credentials = _read_basic(authorization)
    elif "client_assertion" in form or "client_assertion_type" in form:
        credentials = read_assertion(form)
    elif "client_secret" in form and "client_id" in form:
        credentials = SecretCredentials(form["client_id"], form["client_secret"], "client_secret_post")
    else:
        raise invalid_client(AuthFailure.NONE_SENT, "no client authentication in the request", _SEND_ONE)
    if form.get("client_id", credentials.client_id) != credentials.client_id:
        raise _malformed("client_id in the body is not the one of the credentials", "Leave client_id out.")
    secret = credentials.secret if isinstance(credentials, SecretCredentials) else ""
    if max(len(credentials.client_id), len(secret)) > MAX_CREDENTIAL:
        raise _malformed(f"credentials longer than {MAX_CREDENTIAL} characters", _SEND_ONE)
    # PostgreSQL stores no NUL in a text: the lookup would fail as if the database were unavailable. Lone surrogates,
    # which cannot be encoded either, were refused by the strict parsers of form, Basic and JSON.
    if "\x00" in credentials.client_id + secret:
        raise _malformed("credentials hold a NUL character", _NO_NUL)
    return credentials


def _read_basic(authorization: str) -> SecretCredentials:
    """Decode strictly (RFC 7617 2; form encoding inside it, RFC 6749 2.3.1): two readers must not differ."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise _malformed("Authorization scheme is not Basic", _SEND_ONE)
    try:
        decoded = base64.b64decode(encoded.strip(" "), validate=True)
        canonical = base64.b64encode(decoded) == encoded.strip(" ").encode()
        client_id, colon, secret = decoded.decode("ascii").partition(":")
    except (binascii.Error, UnicodeError, ValueError):
        canonical, client_id, colon, secret = False, "", "", ""
    if not canonical:
        raise _malformed("Basic credentials are not base64 of form-encoded text", _ENCODE)
    if not colon:
        raise _malformed("Basic credentials have no colon", _ENCODE)
    return SecretCredentials(_form_decode(client_id), _form_decode(secret), "client_secret_basic")


def _form_decode(text: str) -> str:
    if not text or _FORM_ENCODED.fullmatch(text) is None:
        raise _malformed("Basic credentials are empty or not form-encoded", _ENCODE)
    try:
        decoded = unquote_to_bytes(text.replace("+", " ")).decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("Basic credentials are not UTF-8", _ENCODE) from None
    return decoded


def _malformed(reason: str, remediation: str) -> OAuthError:
    return invalid_client(AuthFailure.MALFORMED, reason, remediation)
