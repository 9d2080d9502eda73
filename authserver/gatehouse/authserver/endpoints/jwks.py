"""`GET /.well-known/jwks.json` (RFC 7517 5)."""

from gatehouse.authserver.endpoints.conditional import conditional_response
from gatehouse.authserver.endpoints.failures import OUTAGES, unavailable
from gatehouse.authserver.http import Request, Response
from gatehouse.authserver.keys.lifecycle import KEY_SET_MAX_AGE
from gatehouse.authserver.services import Services


def jwks(services: Services, request: Request) -> Response:
    """Answer with the public keys; 304 to a reader that has them already (RFC 9110 13.1.2)."""
    try:
        keys = services.keys.ring()
    except OUTAGES as error:
        return unavailable(request, error)
    headers = {
        "Content-Type": "application/jwk-set+json",
        # What many readers share is asked for anew each time (RFC 9111 5.2.2.10): it may ignore that a resource server
        # asks it to, and would serve it a key that was revoked.
        "Cache-Control": f"public, max-age={KEY_SET_MAX_AGE}, s-maxage=0",
        "ETag": keys.etag,
    }
    return conditional_response(request, keys.jwks, keys.etag, headers)
