"""The ASGI entry: what an endpoint, the start or the end of the process may do wrong."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.resourceserver import ResourceServer

from gatehouse.resourceserver.asgi import Application, Route
from gatehouse.resourceserver.http import Request, Response

pytestmark = pytest.mark.anyio


async def unused(*_: Any) -> Any:
    raise AssertionError("not reached")


def application(server: ResourceServer, endpoint: Any = unused, lifespan: Any = unused) -> Application:
    return Application(server.settings, {"/probe": Route(endpoint)}, server.services.audit, lifespan)


async def sent_by(app: Application, scope: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages that an application sends."""
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return {"type": f"{scope['type']}.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    with_headers = {"method": "GET", "path": "/probe", "headers": [[b"host", b"mcp.example.com"]], **scope}
    await app(with_headers, receive, send)
    return sent


async def test_a_failure_after_the_start_of_a_response_is_not_answered(
    resourceserver: ResourceServer,
) -> None:
    """Two responses to one request would break the connection, or be read as the next one's (ASGI 3, HTTP)."""

    async def endpoint(request: Request) -> Response:
        await request.send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late")

    (start,) = await sent_by(application(resourceserver, endpoint), {"type": "http"})
    assert start["status"] == 200


async def test_a_server_that_sends_no_raw_path_is_served(resourceserver: ResourceServer) -> None:
    """The key is optional (ASGI 3, HTTP)."""

    async def endpoint(_: Request) -> Response:
        return Response(200, b"here")

    for method, body in (("GET", b"here"), ("HEAD", b"")):
        start, end = await sent_by(application(resourceserver, endpoint), {"type": "http", "method": method})
        assert (start["status"], end["body"]) == (200, body)
        assert (b"content-length", b"4") in start["headers"]


@pytest.mark.parametrize(
    ("fails", "messages"),
    [
        ("startup", ["lifespan.startup.failed"]),
        ("shutdown", ["lifespan.startup.complete", "lifespan.shutdown.failed"]),
    ],
)
async def test_a_failed_start_or_end_is_reported(
    resourceserver: ResourceServer, fails: str, messages: list[str]
) -> None:
    """Without the report, an ASGI server may go on without the lifespan, and with it without a poll of the keys."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        if fails == "startup":
            raise RuntimeError("no database")
        yield
        raise RuntimeError("no database")

    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return {"type": "lifespan"}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(RuntimeError, match="no database"):
        await application(resourceserver, lifespan=lifespan)({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == messages
    assert "no database" in sent[-1]["message"]
