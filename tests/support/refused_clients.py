"""What a client gets that did not prove who it is, and what it costs."""

import hmac
from collections.abc import Callable
from types import FrameType
from typing import Any

from werkzeug.test import TestResponse

from gatehouse.authserver.credentials import secrets
from support.authserver import AuthServer

CONSTANT = "Client authentication failed. Check the client_id, the credential and the client's registered method."


def assert_invalid_client(response: TestResponse) -> None:
    """Check the one answer to every failed authentication (RFC 6749 5.2)."""
    assert response.status_code == 401, response.text
    assert response.json.pop("request_id") == response.headers["X-Request-Id"]
    assert response.json["error"] == "invalid_client"
    assert response.json["error_description"] == CONSTANT
    assert response.headers["WWW-Authenticate"] == 'Basic realm="gatehouse", charset="UTF-8"'
    assert response.headers["Cache-Control"] == "no-store"


def count_digests_and_comparisons(server: AuthServer, action: Callable[[], Any]) -> tuple[int, int]:
    """Return how many digests of secrets an action makes, and how many comparisons in constant time."""
    digests = comparisons = 0

    def note(frame: FrameType, kind: str, argument: Any) -> None:
        nonlocal digests, comparisons
        digests += kind == "call" and frame.f_code is secrets.digest.__code__
        comparisons += kind == "c_call" and argument is hmac.compare_digest

    with server.profiled(note):
        action()
    return digests, comparisons
