"""Reads which status lists the issuer has (draft-ietf-oauth-status-list 9), and which of them have changed."""

from collections.abc import Iterator, Mapping
from typing import Any

from gatehouse.shared.protocol.encoding import parse_json
from gatehouse.shared.protocol.status_list import MAX_LISTS, parse_list_uri
from gatehouse.shared.service.fetch import Fetched, FetchFailed


def read_names(fetched: Fetched | None, issuer: str) -> Mapping[str, str | None]:
    """Return the URI of every list of the issuer, including those without tokens, with its entity tag.

    Tags are an extension of Gatehouse, the member `etags`. For another issuer, they are None. If there are more lists
    than MAX_LISTS, the last ones are returned: Gatehouse names the newest last, and only those have tokens that were
    issued lately.

    Raises:
        FetchFailed: the document is not a list of status lists, or names only those of another issuer.
        InvalidJson: it is not JSON.
    """
    document = parse_json(fetched.document) if fetched is not None else None
    members = document if isinstance(document, dict) else {}
    names = members.get("status_lists")
    if not isinstance(names, list):
        raise FetchFailed("no list of status lists")
    own = dict([*_own(names, members.get("etags"), issuer)][-MAX_LISTS:])
    if names and not own:
        raise FetchFailed(
            f"none of them is a list of {issuer}: set RESOURCESERVER_ISSUER to exactly the issuer of the "
            "authorization server (AUTHSERVER_ISSUER)"
        )
    return own


def _own(names: list[Any], etags: Any, issuer: str) -> Iterator[tuple[str, str | None]]:
    if not isinstance(etags, list) or len(etags) != len(names):
        etags = [None] * len(names)
    for uri, etag in zip(names, etags, strict=True):
        if isinstance(uri, str) and parse_list_uri(issuer, uri) is not None:
            yield uri, etag if isinstance(etag, str) else None
