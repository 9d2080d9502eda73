"""An HTTP client for an ASGI application in this process, without a network."""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from queue import Queue
from typing import TYPE_CHECKING, Any, TypeVar

from werkzeug.test import Client

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

AsgiApplication = Callable[[Any, Any, Any], Awaitable[None]]

ResultT = TypeVar("ResultT")

_BLOCK = 16384


def http_client(app: AsgiApplication) -> Client:
    """Return a client that sends its requests to an application. Several threads may use it at once."""
    return Client(as_wsgi(app))


def run(awaitable: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine on the event loop of the tests' applications, and return its result."""
    return asyncio.run_coroutine_threadsafe(_traced(awaitable), _loop()).result()


async def _traced(awaitable: Coroutine[Any, Any, ResultT]) -> ResultT:
    _resume_tracing()
    return await awaitable


def _resume_tracing() -> None:
    """Trace this thread if coverage runs: it pauses during some tests, and resumes only in new threads."""
    if sys.gettrace() is None:
        sys.settrace(threading.gettrace())


class _TracedThreads(ThreadPoolExecutor):
    """The threads of the event loop, which are traced even if they were started before coverage paused."""

    def submit(self, fn: Callable[..., ResultT], /, *args: Any, **kwargs: Any) -> Future[ResultT]:
        def traced() -> ResultT:
            _resume_tracing()
            return fn(*args, **kwargs)

        return super().submit(traced)


def as_wsgi(app: AsgiApplication) -> "WSGIApplication":
    """Return a WSGI application that passes each request to an ASGI application on one event loop."""

    def respond(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        exchange = Exchange(environ)
        run(exchange.run(app))
        status, headers, body = exchange.response()
        start_response(f"{status} {HTTPStatus(status).phrase}", headers)
        return [body]

    return respond


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of the tests' applications. Its thread ends with the process."""
    loop = asyncio.new_event_loop()
    loop.set_default_executor(_TracedThreads())
    threading.Thread(target=loop.run_forever, name="test event loop", daemon=True).start()
    return loop


class Exchange:
    """One request, and the messages of its response, as a server passes them."""

    def __init__(self, environ: "WSGIEnvironment") -> None:
        headers = [
            (name[5:].replace("_", "-").lower().encode(), str(value).encode("latin-1"))
            for name, value in environ.items()
            if name.startswith("HTTP_")
        ]
        chunked = environ.get("wsgi.input_terminated", False)
        for variable, header in (("CONTENT_TYPE", b"content-type"), ("CONTENT_LENGTH", b"content-length")):
            if chunked and variable == "CONTENT_LENGTH":
                continue
            headers += [(header, environ[variable].encode("latin-1"))] if environ.get(variable) else []
        path, _, query = environ.get("RAW_URI", environ["PATH_INFO"]).partition("?")
        self.scope = {
            "type": "http",
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "raw_path": path.encode("latin-1"),
            "query_string": (environ["QUERY_STRING"] or query).encode("latin-1"),
            "headers": headers,
            "client": (environ["REMOTE_ADDR"], 1234) if environ.get("REMOTE_ADDR") else None,
        }
        self.messages: list[dict[str, Any]] = []
        self.input = environ["wsgi.input"]
        self._left = None if chunked else int((environ.get("CONTENT_LENGTH") or "0")[:20])

    async def run(self, app: AsgiApplication) -> None:
        await app(self.scope, self.receive, self._send)

    def response(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return status, headers and body. A server sends no body with HEAD and 304."""
        [start, *bodies] = self.messages
        headers = [(name.decode("latin-1").title(), value.decode("latin-1")) for name, value in start["headers"]]
        empty = self.scope["method"] == "HEAD" or start["status"] == HTTPStatus.NOT_MODIFIED
        return start["status"], headers, b"" if empty else b"".join(message["body"] for message in bodies)

    async def receive(self) -> dict[str, Any]:
        chunk = self.input.read(_BLOCK if self._left is None else min(_BLOCK, self._left))
        if self._left is None:
            return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}
        self._left -= len(chunk)
        if self._left and not chunk:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": self._left > 0}

    async def _send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)


@contextmanager
def lifespan(app: AsgiApplication) -> Iterator[None]:
    """Start and stop an application, as a worker process does."""
    received: Queue[dict[str, str]] = Queue()
    sent: Queue[dict[str, str]] = Queue()

    async def receive() -> dict[str, str]:
        return await asyncio.to_thread(received.get)

    async def send(message: dict[str, str]) -> None:
        sent.put(message)

    running = asyncio.run_coroutine_threadsafe(_awaited(app({"type": "lifespan"}, receive, send)), _loop())
    received.put({"type": "lifespan.startup"})
    assert sent.get() == {"type": "lifespan.startup.complete"}
    yield
    received.put({"type": "lifespan.shutdown"})
    assert sent.get() == {"type": "lifespan.shutdown.complete"}
    running.result()


async def _awaited(result: Awaitable[None]) -> None:
    await result
