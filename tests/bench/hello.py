"""The least that can answer on our server: gunicorn with the same worker and settings, the same headers and log line.

Arguments: the address to bind, a file with the body, and the headers of the response as JSON.
"""

import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from gatehouse.authserver.settings import Settings
from gatehouse.shared.service.gunicorn import Server
from gatehouse.shared.service.requests import RequestLog, common_headers, new_request_id
from gatehouse.shared.service.settings_reading import load_settings

Message = MutableMapping[str, Any]


class Hello:
    """Answers every request with the same body."""

    def __init__(self, body: bytes, headers: dict[str, str]) -> None:
        self._body = body
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Serve a request, or the lifespan of the process (ASGI 3)."""
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        request_id = new_request_id()
        log = RequestLog(request_id)
        headers = [*self._headers, *common_headers(request_id)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})
        log.finish(scope["method"], scope["path"], 200)

    def record(self, event: object) -> None:
        """Ignore the events of the worker, which refuses requests that are not valid HTTP."""


def main() -> None:
    """Serve until SIGTERM."""
    bind, file, headers = sys.argv[1:]
    body = Path(file).read_bytes()
    settings = load_settings(Settings, bind=bind, workers=1)
    Server("authserver", settings, lambda: lambda: Hello(body, json.loads(headers))).run()


if __name__ == "__main__":
    main()
