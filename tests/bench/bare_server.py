"""Our resource server without gate, policy, audit log and log line: composed from its parts, for comparison only.

The settings come from the environment, as for `resourceserver serve`. Arguments: the address to bind, and the claims
that every caller has, as JSON.
"""

import json
import sys
from dataclasses import dataclass

from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.resourceserver import policy
from gatehouse.resourceserver.app import Services, build_app, create_services
from gatehouse.resourceserver.asgi import Application
from gatehouse.resourceserver.bearer.gate import AdmittedRequest
from gatehouse.resourceserver.bearer.mcp_request import MAX_BODY, read_headers, read_message
from gatehouse.resourceserver.bearer.refusal import Received
from gatehouse.resourceserver.bearer.verified_request import VerifiedRequest
from gatehouse.resourceserver.catalogue import Catalogue, Tool
from gatehouse.resourceserver.http import Headers, Receive, Request, Scope, Send
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit.events import AuditEvent
from gatehouse.shared.service.gunicorn import Server
from gatehouse.shared.service.settings_reading import load_settings


def allow(catalogue: Catalogue, claims: AccessClaims, tool_name: str) -> policy.Decision[Tool]:
    """Allow every call, in place of the policy."""
    return policy.Allowed(catalogue.tools[tool_name])


@dataclass(frozen=True, slots=True)
class BareServer:
    """Reads each request, and answers it as if the gate had verified the same claims."""

    services: Services
    claims: AccessClaims
    guarded: Application
    """Serves the lifespan."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan of the process (ASGI 3)."""
        if scope["type"] == "lifespan":
            await self.guarded(scope, receive, send)
            return
        deadline.begin()
        headers = Headers(list(scope["headers"]))
        request = Request(scope, receive, send, scope["method"], scope["path"], headers, "req_bare", lambda _: ())
        body = await request.read_body(MAX_BODY) or b""
        message = read_message(body)
        received = Received(request.request_id, message, self.claims, message.id)
        verified = VerifiedRequest(self.claims, request.request_id)
        read = read_headers(request.method, headers)
        response = await self.services.router.answer(AdmittedRequest(request, body, read, message, verified, received))
        if response is not None:
            sent = [*response.headers, (b"content-length", str(len(response.body)).encode())]
            await send({"type": "http.response.start", "status": response.status, "headers": sent})
            await send({"type": "http.response.body", "body": response.body})

    def record(self, event: AuditEvent) -> None:
        """Ignore the events of the worker, which refuses requests that are not valid HTTP."""


def create(settings: Settings, claims: AccessClaims) -> BareServer:
    """Return the application of a worker."""
    policy.decide = allow
    services = create_services(settings, CATALOGUE)
    services.audit.record = lambda event: None  # type: ignore[method-assign]
    return BareServer(services, claims, build_app(services))


def main() -> None:
    """Serve until SIGTERM."""
    bind, content = sys.argv[1:]
    claims = json.loads(content)
    scope, static = frozenset(claims.pop("scope").split()), {"workspace_id": claims.pop("workspace_id")}
    caller = AccessClaims(**{**claims, "scope": scope, "static": static, "status": None})
    settings = load_settings(Settings, bind=bind, workers=1, metrics_bind=None)
    Server("resourceserver", settings, lambda: lambda: create(settings, caller)).run()


if __name__ == "__main__":
    main()
