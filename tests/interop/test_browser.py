"""A web page on another origin, in Chromium: discovery, a token, calls; and what a page that is not allowed sees.

Only a browser enforces what the servers' headers say. The page sends the headers that MCP clients send.
"""

from pathlib import Path
from typing import Any

import pytest
from local_stack import LocalStack, free_port
from support.browser import CHROMIUM, SANDBOXED, Pages, report_of, serving

from gatehouse.resourceserver import json_rpc

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed; on Debian, run: apt-get install chromium"
)

READABLE = {
    "resource metadata": 200,
    "resource metadata at the root": 200,
    "server metadata": 200,
    "key set": 200,
    "token": 200,
    "form": 401,
    "call": 200,
}
NEVER_READABLE = {"with credentials": "TypeError", "revocation": "TypeError"}
"""The servers do not use the browser's credentials, and pages have no use for the other endpoints."""


def pages_on(port: int, stack: LocalStack, readers: dict[str, Any], token: str, version: str | None = None) -> Pages:
    addresses = {"resource": stack.resource, "issuer": stack.issuer}
    return Pages(port, {**readers["secret"], **addresses, "token": token, "version": version})


@pytest.mark.parametrize("version", ["2026-07-28", "2025-11-25"])
def test_a_page_discovers_obtains_a_token_and_calls_a_tool(
    page_port: int,
    stack: LocalStack,
    readers: dict[str, Any],
    reader_token: str,
    workspace_id: str,
    home: Path,
    version: str,
) -> None:
    with serving(pages_on(page_port, stack, readers, reader_token, version)) as pages:
        report = report_of(pages, home)
    assert report["origin"] == pages.origin
    assert report["probe"] == READABLE | NEVER_READABLE
    walk = report["walk"]
    assert walk["started"] == [401, True]
    assert walk["keys"] > 0
    assert walk["refused"] == [401, "invalid_client", True]
    assert (walk["identity"]["client_id"], walk["identity"]["workspace_id"]) == (
        readers["secret"]["client_id"],
        workspace_id,
    )
    assert walk["forbidden"] == [403, "env:write", json_rpc.INSUFFICIENT_SCOPE]
    if version != "2026-07-28":
        assert (walk["version"], walk["notified"], walk["GET"], walk["DELETE"]) == (version, 202, 405, 405)


@pytest.mark.threat("T-029", "T-137")
@pytest.mark.parametrize("path", ["/", SANDBOXED], ids=["another port", "null"])
def test_a_page_of_another_origin_sees_nothing(
    page_port: int, stack: LocalStack, readers: dict[str, Any], reader_token: str, home: Path, path: str
) -> None:
    """The same requests with the same credentials: a page on a port that no setting names, and a sandboxed page."""
    port = page_port if path == SANDBOXED else free_port()
    with serving(pages_on(port, stack, readers, reader_token)) as pages:
        report = report_of(pages, home, path)
    assert report["origin"] == ("null" if path == SANDBOXED else pages.origin)
    assert report["probe"] == dict.fromkeys(READABLE | NEVER_READABLE, "TypeError")
