"""Trace one warm request of each kind, and print the project's functions that it runs, in order, with their files.

Each request is sent twice before it is traced, so that caches are warm. Exit code 1 when a request passes through more
files than a reader should have to open: 14 of the server's own package, or 20 of the project.
"""

import asyncio
import base64
import inspect
import json
import os
import sys
import tempfile
import threading
import time
import wsgiref.simple_server
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click.testing
import httpx2
from local_stack import free_port
from support.http_client import Exchange, as_wsgi
from support.resourceserver import lifespan
from werkzeug.test import EnvironBuilder

from gatehouse.authserver.app import Services, build_app, close_services, create_services
from gatehouse.authserver.cli import main as authserver
from gatehouse.authserver.http import Request
from gatehouse.authserver.settings import Settings as AuthserverSettings
from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.resourceserver.app import create_app as create_resource_app
from gatehouse.resourceserver.cli import main as resourceserver
from gatehouse.resourceserver.settings import Settings as ResourceserverSettings
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.settings_reading import load_settings

ROOT = Path(__file__).parents[2]
SOURCES = tuple(f"{ROOT / folder}{os.sep}" for folder in ("authserver", "resource", "shared"))
MAX_OWN_PACKAGE, MAX_PROJECT = 14, 20


class Walk:
    """The project's functions in the order of their first call."""

    def __init__(self) -> None:
        self.calls: dict[tuple[str, int, str], int] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Record a call. `sys.setprofile` calls this; it also reports each time that a coroutine is resumed."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(SOURCES) and not code.co_name.startswith("<"):
            key = (code.co_filename, code.co_firstlineno, code.co_qualname)
            resumed = code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_GENERATOR)
            self.calls[key] = 1 if resumed else self.calls.get(key, 0) + 1

    def report(self, title: str, package: str) -> bool:
        """Print the walk. Return whether it stays within the bounds."""
        print(f"\n{title}")
        files: dict[str, None] = {}
        for (file, line, name), count in self.calls.items():
            short = file.partition(f"gatehouse{os.sep}")[2]
            files.setdefault(short)
            print(f"  {short}:{line} {name}{f' ({count} times)' if count > 1 else ''}")
        own = [file for file in files if file.startswith(package)]
        print(f"  {len(self.calls)} functions in {len(own)} files of {package} and {len(files)} in all")
        return len(own) <= MAX_OWN_PACKAGE and len(files) <= MAX_PROJECT


@contextmanager
def traced(walk: Walk) -> Iterator[None]:
    """Trace this thread until the block ends."""
    sys.setprofile(walk)
    try:
        yield
    finally:
        sys.setprofile(None)


def run(command: click.Command, *arguments: str) -> str:
    """Run a command of either program and return what it printed."""
    result = click.testing.CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, (arguments, result.output)
    return result.stdout


class TokenRequests:
    """Token requests to one authorization server."""

    def __init__(self, app: Any, services: Services) -> None:
        self._app = app
        self._threads = services.threads
        self._issuer = services.settings.issuer

    def send(self, form: dict[str, str], headers: dict[str, str], walk: Walk | None = None) -> str:
        """Return the access token that a request gets."""
        form = {"grant_type": "client_credentials", **form}
        exchange = Exchange(EnvironBuilder("/token", method="POST", data=form, headers=headers).get_environ())
        asyncio.run(self._run(exchange, walk or Walk()))
        status, _, body = exchange.response()
        assert status == 200, body
        token: str = json.loads(body)["access_token"]
        return token

    async def _run(self, exchange: Exchange, walk: Walk) -> None:
        """Trace the event loop and the server's only thread."""
        request = Request({}, pool=self._threads)
        await request.in_thread(sys.setprofile, walk)
        with traced(walk):
            await exchange.run(self._app)
        await request.in_thread(sys.setprofile, None)

    def by_secret(self, client: dict[str, Any], walk: Walk | None = None) -> str:
        """Send a request with client_secret_basic."""
        pair = f"{client['client_id']}:{client['client_secret']}"
        return self.send({}, {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}, walk)

    def by_key(self, client_id: str, key: SigningKey, walk: Walk | None = None) -> str:
        """Send a request with private_key_jwt and a new assertion."""
        now = int(time.time())
        claims = {"iss": client_id, "sub": client_id, "aud": self._issuer, "iat": now, "exp": now + 60}
        form = {
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": key.sign("JWT", {**claims, "jti": os.urandom(8).hex()}),
        }
        return self.send(form, {}, walk)


async def call_tool(app: Any, resource: str, token: str, tool: str, walk: Walk) -> None:
    """Call a tool twice, then once more with the trace, by protocol version 2025-11-25."""
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2025-11-25",
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
        for use in (Walk(), Walk(), walk):
            with traced(use):
                response = await http.post(resource, json=message, headers=headers)
            assert response.status_code == 200, response.text
            assert not response.json()["result"]["isError"], response.text


async def walk_tools(token: str) -> bool:
    """Trace one tool that reads nothing and one that reads the database."""
    settings = load_settings(ResourceserverSettings)
    app = create_resource_app(settings, CATALOGUE)
    within = True
    async with lifespan(app):
        readyz = settings.resource.removesuffix(settings.endpoint_path) + "/readyz"
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
            for _ in range(200):
                if (await http.get(readyz)).status_code == 200:
                    break
                await asyncio.sleep(0.05)
        for tool in ("whoami", "list_environments"):
            walk = Walk()
            await call_tool(app, settings.resource, token, tool, walk)
            within &= walk.report(f"tools/call {tool}", "resourceserver")
    return within


def main() -> None:
    """Make an installation in a temporary folder, send the requests, print the walks."""
    port = free_port()
    resource, issuer = "http://127.0.0.1:8000/mcp", f"http://127.0.0.1:{port}"
    os.environ.update(AUTHSERVER_ISSUER=issuer, AUTHSERVER_BIND=f"127.0.0.1:{port}", RESOURCESERVER_ISSUER=issuer)
    run(authserver, "init")
    run(resourceserver, "init")
    Path("catalogue.json").write_text(run(resourceserver, "tools", "--output", "json"), encoding="utf-8")
    run(authserver, "resource", "add", resource, "--name", "directory", "--catalogue", "catalogue.json")
    workspace = json.loads(run(resourceserver, "workspace", "create", "--name", "walk", "--output", "json"))
    claim = ("--claim", f"workspace_id={workspace['workspace_id']}")
    create = ("client", "create", "--resource", resource, "--scope", "env:read", *claim, "--output", "json")
    by_secret = json.loads(run(authserver, *create, "--name", "secret"))
    key = SigningKey.generate("ES256")
    Path("key.json").write_text(json.dumps(key.public_jwk()), encoding="utf-8")
    by_key = json.loads(run(authserver, *create, "--name", "key", "--jwks", "key.json"))["client_id"]

    services = create_services(load_settings(AuthserverSettings).model_copy(update={"threads": 1}))
    app = build_app(services)
    requests = TokenRequests(app, services)
    secret_walk, key_walk = Walk(), Walk()
    for walk in (None, None, secret_walk):
        token = requests.by_secret(by_secret, walk)
    for walk in (None, None, key_walk):
        requests.by_key(by_key, key, walk)
    within = [
        secret_walk.report("POST /token, client_secret_basic", "authserver"),
        key_walk.report("POST /token, private_key_jwt", "authserver"),
    ]
    server = wsgiref.simple_server.make_server("127.0.0.1", port, as_wsgi(app))
    server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[union-attr]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        within.append(asyncio.run(walk_tools(token)))
    finally:
        server.shutdown()
        server.server_close()
        close_services(services)
    print(f"\nbounds: {MAX_OWN_PACKAGE} files of a server's package, {MAX_PROJECT} in all")
    sys.exit(not all(within))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main()
