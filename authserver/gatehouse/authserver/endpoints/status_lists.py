"""`GET /status-lists` and `GET /status-lists/ID` (draft-ietf-oauth-status-list 8, 9)."""

from gatehouse.authserver.endpoints.conditional import conditional_response
from gatehouse.authserver.endpoints.failures import OUTAGES, unavailable
from gatehouse.authserver.errors import invalid_request
from gatehouse.authserver.http import Request, Response, json_response
from gatehouse.authserver.refusals import refuse
from gatehouse.authserver.services import Services
from gatehouse.shared.protocol.status_list import MEDIA_TYPE, PATH, parse_list_uri

# A cache between here and a resource server would make revocation wait for it.
_HEADERS = {"Cache-Control": "no-cache"}


def status_lists(services: Services, request: Request) -> Response:
    """Answer with the URI of every list, so that a resource server knows them before their first token (9.1)."""
    try:
        return json_response({"status_lists": services.status_lists.uris()}, headers=_HEADERS)
    except OUTAGES as error:
        return unavailable(request, error)


def status_list(services: Services, request: Request) -> Response:
    """Answer with a signed list; 304 to a reader that has it already."""
    issuer = services.settings.issuer
    # What is no id is not looked up: not every text can be asked for.
    list_id = parse_list_uri(issuer, f"{issuer}{request.path}")
    try:
        key = services.keys.ring().signing_key
        published = services.status_lists.find(list_id, key) if list_id is not None else None
    except OUTAGES as error:
        return unavailable(request, error)
    if published is None:
        gone = invalid_request("There is no such status list. Tokens that refer to it have expired.", status=404)
        return refuse(services.audit, request.request_id, gone, target=PATH)
    headers = {**_HEADERS, "Content-Type": MEDIA_TYPE, "ETag": published.etag}
    return conditional_response(request, published.token, published.etag, headers)
