"""Both servers for tests of availability, with requests that they answer with 200."""

import base64
import json
import os
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from local_stack import LocalStack

FAST_PARSER = os.environ.get("FAST_PARSER", "")
"""Folder with gunicorn's parser in C, gunicorn_h1c."""


@dataclass(frozen=True)
class Target:
    """A server, and requests that it answers with 200."""

    name: str
    url: str
    requests: list[bytes]


@dataclass
class Stack:
    """Both servers, with a client that calls a tool and requests tokens."""

    servers: LocalStack

    def __post_init__(self) -> None:
        self.servers.init()
        client = self.servers.create_client("caller", "env:read")
        credentials = base64.b64encode(f"{client['client_id']}:{client['client_secret']}".encode()).decode()
        self._basic = f"Authorization: Basic {credentials}"

    def targets(self) -> list[Target]:
        """Return both servers."""
        body = "grant_type=client_credentials"
        form = "Content-Type: application/x-www-form-urlencoded"
        issuer, resource = self.servers.issuer, self.servers.resource
        token_request = http("POST", f"{issuer}/token", self._basic, form, body=body)
        with urlopen(Request(f"{issuer}/token", body.encode(), {"Authorization": self._basic[15:]})) as response:
            token = json.load(response)["access_token"]
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "whoami", "arguments": {}}}
        headers = (f"Authorization: Bearer {token}", "Content-Type: application/json", "Accept: application/json")
        return [
            Target("resourceserver", resource, [http("POST", resource, *headers, body=json.dumps(call))]),
            Target("authserver", issuer, [token_request, http("GET", f"{issuer}/.well-known/jwks.json")]),
        ]


def http(method: str, url: str, *headers: str, body: str = "") -> bytes:
    """Return the bytes of a request."""
    parts = urlsplit(url)
    lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", body]).encode()
