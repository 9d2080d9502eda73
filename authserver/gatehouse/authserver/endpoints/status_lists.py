"""`GET /status-lists` and `GET /status-lists/ID` (draft-ietf-oauth-status-list 8, 9)."""

from gatehouse.authserver.errors import invalid_request
from gatehouse.authserver.http import Request, Response, conditional_response, json_response
from gatehouse.authserver.keys.store import KeyStore
from gatehouse.authserver.tokens.status_lists import StatusListPublisher
from gatehouse.shared.protocol.status_list import MEDIA_TYPE, PATH, parse_list_uri

# A cache between this server and a resource server would delay revocation.
_HEADERS = {"Cache-Control": "no-cache"}


async def status_lists(keys: KeyStore, publisher: StatusListPublisher, request: Request) -> Response:
    """Answer with the URI of every list, so that a resource server knows a list before its first token (9.1).

    The member `etags`, an extension, has the entity tag of each list in the same order.
    """
    key = (await request.load(keys.ring)).signing_key
    etags = await request.load(publisher.etags, key)
    return json_response({"status_lists": [*etags], "etags": [*etags.values()]}, headers=_HEADERS)


async def status_list(issuer: str, keys: KeyStore, publisher: StatusListPublisher, request: Request) -> Response:
    """Answer with a signed list; 304 if the resource server has this version already."""
    request.target = PATH
    list_id = parse_list_uri(issuer, f"{issuer}{request.path}")
    key = (await request.load(keys.ring)).signing_key
    # A malformed id is not looked up: it may hold text that the database cannot compare.
    published = await request.load(publisher.find, list_id, key) if list_id is not None else None
    if published is None:
        raise invalid_request("There is no such status list. Tokens that refer to it have expired.", status=404)
    headers = {**_HEADERS, "Content-Type": MEDIA_TYPE, "ETag": published.etag}
    return conditional_response(request, published.token, published.etag, headers)
