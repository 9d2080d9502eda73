"""Both servers for tests of availability, with requests that they answer with 200."""

import base64
import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from local_stack import LocalStack

_GRANT = "grant_type=client_credentials"


@dataclass(frozen=True)
class Target:
    """A server, and requests that it answers with 200."""

    name: str
    url: str
    requests: list[bytes]
    writes: list[bytes] = field(default_factory=list)
    """Requests that wait for the write lock of the database."""


@dataclass
class Stack:
    """Both servers, with a client that calls a tool and requests tokens."""

    servers: LocalStack

    def __post_init__(self) -> None:
        self.servers.init()
        workspace = self.servers.run_json("resourceserver", "workspace", "create", "--name", "load")["workspace_id"]
        client = self.servers.create_client("caller", "env:read env:write", "--claim", f"workspace_id={workspace}")
        credentials = base64.b64encode(f"{client['client_id']}:{client['client_secret']}".encode()).decode()
        self._basic = f"Authorization: Basic {credentials}"

    def request_token(self) -> str:
        """Return a new access token. Raises OSError."""
        url, headers = f"{self.servers.issuer}/token", {"Authorization": self._basic.partition(" ")[2]}
        with urlopen(Request(url, _GRANT.encode(), headers)) as response:
            token: str = json.load(response)["access_token"]
        return token

    def targets(self) -> list[Target]:
        """Return both servers."""
        form = "Content-Type: application/x-www-form-urlencoded"
        issuer, resource = self.servers.issuer, self.servers.resource
        token_request = http("POST", f"{issuer}/token", self._basic, form, body=_GRANT)
        headers = (
            f"Authorization: Bearer {self.request_token()}",
            "Content-Type: application/json",
            "Accept: application/json",
        )
        calls = [
            http("POST", resource, *headers, body=tool_call("whoami", {})),
            http("POST", resource, *headers, body=tool_call("create_environment", {"name": "load"})),
        ]
        return [
            Target("resourceserver", resource, calls[:1], writes=calls[1:]),
            Target("authserver", issuer, [token_request, http("GET", f"{issuer}/.well-known/jwks.json")]),
        ]


def tool_call(name: str, arguments: dict[str, str]) -> str:
    """Return the body of a tool call."""
    params = {"name": name, "arguments": arguments}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})


def http(method: str, url: str, *headers: str, body: str = "") -> bytes:
    """Return the bytes of a request."""
    parts = urlsplit(url)
    lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", body]).encode()
