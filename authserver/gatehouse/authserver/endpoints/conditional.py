"""Answers to readers that may have the document already (RFC 9110 13.1.2)."""

from collections.abc import Mapping

from gatehouse.authserver.http import Request, Response


def conditional_response(request: Request, body: bytes, etag: str, headers: Mapping[str, str]) -> Response:
    """Return 304 if the request names the entity tag, strong or weak, else the document."""
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {"*", etag.removeprefix("W/")}:
        return Response(304, headers=headers)
    return Response(200, body, headers)
