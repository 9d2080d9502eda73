"""The Flask application behind the ASGI entry: endpoints that wait, each called in a thread.

The bridge is our own (docs/decisions/0015-asgi-entry.md), because the entry has read the whole body already.
"""

import io
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import flask

from gatehouse.authserver.http import Endpoint, Request, Response

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_REQUEST = "gatehouse.request"


class FlaskApplication:
    """Serves endpoints by Flask. Whatever one raises reaches the caller: the entry renders every refusal."""

    def __init__(self) -> None:
        self._flask = flask.Flask("gatehouse.authserver", static_folder=None)
        self._flask.config["PROPAGATE_EXCEPTIONS"] = True
        # Werkzeug would answer `//token` with a redirect to the host that the Host header names.
        self._flask.url_map.merge_slashes = False

    def add(self, method: str, path: str, endpoint: Callable[[Request], Response]) -> Endpoint:
        """Serve a path by Flask. Return the endpoint for the entry."""
        view = partial(_view, endpoint)
        self._flask.add_url_rule(path, path, view, methods=[method], provide_automatic_options=False)
        return self._serve

    async def _serve(self, request: Request) -> Response:
        return await request.in_thread(self._call, request)

    def _call(self, request: Request) -> Response:
        started: list[tuple[str, list[tuple[str, str]]]] = []
        written: list[bytes] = []

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> Callable[[bytes], object]:
            started.append((status, headers))
            return written.append

        chunks: Iterable[bytes] = self._flask(_environ(request), start_response)
        body = b"".join([*written, *chunks])
        [(status, headers)] = started
        return Response(int(status[:3]), body, dict(headers))


def _view(endpoint: Callable[[Request], Response]) -> flask.Response:
    response = endpoint(flask.request.environ[_REQUEST])
    return flask.Response(response.body, response.status, dict(response.headers))


def _environ(request: Request) -> "WSGIEnvironment":
    """Return the environ of a request (PEP 3333). The Host header is not in it: no URL may be derived from it."""
    headers = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in request.headers.items()}
    headers.pop("HTTP_HOST", None)
    return {
        **headers,
        _REQUEST: request,
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "CONTENT_TYPE": request.headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(request.body)),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
