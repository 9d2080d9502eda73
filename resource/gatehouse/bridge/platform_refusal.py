"""Why an authorization server refused a platform token, as far as its holder can tell.

The response says only `invalid_client` (RFC 6749 section 5.2); the reason is in the server's audit log. What the token
says of itself, and the clock of this machine, often name it as well.
"""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gatehouse.bridge.credentials import Credentials
from gatehouse.bridge.errors import BridgeError, audit_command
from gatehouse.bridge.platform_claims import describe, only_audience, read_claims
from gatehouse.shared.protocol.claims import MAX_LIFETIME, is_fractional_date
from gatehouse.shared.protocol.clock import LEEWAY

_OTHER_CAUSES: Final = (
    "no trust rule matches it, or rules of two clients do; its issuer or its key is unknown there; its issuer or its"
    " client is disabled; or it was used before and is accepted once, as those of GitHub are"
)
"""What only the server knows."""


def platform_token_refused(
    *, issuer: str, credentials: Credentials, token: str, client_id_setting: str, request_id: object, now: float
) -> BridgeError:
    """Return the error for a platform token that the authorization server refused. It does not hold the token.

    Args:
        issuer: the authorization server.
        credentials: where the token is from, and the client_id that was sent with it.
        token: what was sent.
        client_id_setting: the name of the setting with the client_id.
        request_id: the request id of the response, if there is one.
        now: seconds since the epoch.
    """
    source, client_id = credentials.source, credentials.client_id
    said = [
        f"The authorization server {issuer} refused the platform token from {source}{describe(token)}: invalid_client."
    ]
    claims = read_claims(token)
    if claims is None:
        problems = ["Its claims cannot be read: it is not the JWT of a platform."]
    else:
        problems = [*_problems_of_audience(claims, issuer), *_problems_of_lifetime(claims, now)]
        if claims.get("iss") == issuer:
            problems = [f"It is a token of {issuer} itself. Use the token that the platform issues to this workload."]
    said += problems
    if claims is not None and not problems:
        said.append(
            "Its audience is right, and by the clock of this machine it is valid for"
            f" {int(claims['exp'] - now)} s more. The usual reasons then: {_OTHER_CAUSES}."
        )
    if client_id:
        said.append(
            f"It was sent with the client_id {client_id} of {client_id_setting}, which must be the client of the token."
            f" Without {client_id_setting}, the token alone says which client it is."
        )
    # A job of GitHub Actions has the right to request tokens, and no file with one.
    is_in_file = credentials.secret == token
    inspect = f"authserver token inspect < {shlex.quote(source) if is_in_file else 'FILE'}"
    said.append(
        f"{'If that is not the reason, ask' if problems else 'Ask'} the admin to run"
        f" `{audit_command(client_id, request_id)}`, or `{inspect}` with such a token: both name the failed check."
    )
    return BridgeError(" ".join(said))


def _problems_of_audience(claims: Mapping[str, Any], issuer: str) -> Iterator[str]:
    audience = only_audience(claims)
    if audience == issuer:
        return
    if not audience:
        yield f"It has no aud. Request a token for the audience {issuer} from the platform."
    elif isinstance(audience, list) and len(audience) > 1:
        yield f"It is for several audiences, and must be for {issuer} alone. Request a token with this one audience."
    elif isinstance(audience, str) and audience.rstrip("/") == issuer.rstrip("/"):
        yield f"Its aud differs from the issuer by a slash at the end. Request a token for exactly {issuer}."
    else:
        yield f"Its aud is not {issuer}. Unless the admin told you another audience, request a token for {issuer}."


def _problems_of_lifetime(claims: Mapping[str, Any], now: float) -> Iterator[str]:
    expires_at = claims.get("exp")
    if not is_fractional_date(expires_at):
        yield "It does not say in exp when it expires, which every accepted token does."
    elif now >= expires_at:
        yield (
            f"It expired {int(now - expires_at)} s ago by the clock of this machine. Request a new one: the platform"
            " replaces it before it expires."
        )
    elif (left := expires_at - now) > MAX_LIFETIME + LEEWAY:
        yield (
            f"It is valid for {int(left)} s more, and a server accepts at most {MAX_LIFETIME} s unless its admin"
            " allows more. Request a shorter one, or ask for a larger --max-lifetime of the trusted issuer."
        )
    for name in ("iat", "nbf"):
        if is_fractional_date(begin := claims.get(name)) and begin > now + LEEWAY:
            yield f"Its {name} is in the future by the clock of this machine. Compare this clock with the platform's."
            return
