"""`GET /.well-known/jwks.json` (RFC 7517 5)."""

from gatehouse.authserver.http import Request, Response, conditional_response
from gatehouse.authserver.keys.lifecycle import KEY_SET_MAX_AGE
from gatehouse.authserver.keys.store import KeyStore

PATH = "/.well-known/jwks.json"


async def jwks(keys: KeyStore, request: Request) -> Response:
    """Answer with the public keys; 304 if the client has this version already."""
    ring = await request.load(keys.ring)
    headers = {
        "Content-Type": "application/jwk-set+json",
        # A shared cache must ask each time (s-maxage, RFC 9111 5.2.2.10). It may ignore the Cache-Control of a
        # resource server's request, and would then serve it a revoked key.
        "Cache-Control": f"public, max-age={KEY_SET_MAX_AGE}, s-maxage=0",
        "ETag": ring.etag,
    }
    return conditional_response(request, ring.jwks, ring.etag, headers)
