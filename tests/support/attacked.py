"""A token endpoint under attack, the client whose request is attacked, and how a refusal looks."""

import base64
from typing import Any

from werkzeug.test import TestResponse

from gatehouse.authserver.clients.registry import Client
from support.authserver import AuthServer

BODY = b"grant_type=client_credentials"


class Attacked:
    """A server, one of its clients, and that client's request."""

    def __init__(self, server: AuthServer) -> None:
        self.server = server
        self.client: Client
        self.client, self.secret = server.create_client("env:read org:read")

    @property
    def basic(self) -> tuple[str, str]:
        return self.client.client_id, self.secret

    def accepted(self, response: TestResponse | None = None) -> dict[str, Any]:
        """Return the claims of the token in a response; by default, send the request without the attack."""
        return self.server.read_token(response or self.server.post_token(basic=self.basic))[1]

    def post(self, body: bytes, **named: Any) -> TestResponse:
        return self.server.post_token(body, basic=self.basic, **named)

    def post_header(self, authorization: str) -> TestResponse:
        return self.server.post_token(headers={"Authorization": authorization})


def assert_refused(response: TestResponse, error: str, status: int = 400) -> None:
    assert response.status_code == status, response.text
    assert response.json["error"] == error
    assert response.headers["Cache-Control"] == "no-store"


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()
