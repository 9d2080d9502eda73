"""A loopback proxy that adds an access token, for clients that cannot send one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

METHODS = ("DELETE", "GET", "OPTIONS", "POST")
HOP_BY_HOP = {"connection", "content-length", "keep-alive", "transfer-encoding"}
ADDRESSING = {"host", "origin"}


class _Forward(BaseHTTPRequestHandler):
    """Forwards a request and its response, without streaming."""

    protocol_version = "HTTP/1.1"
    server: "_Proxy"

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        connection = HTTPConnection(self.server.upstream, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() in ADDRESSING:
                # Replace the proxy's own address by the server's. Forward any other value, for the server to reject.
                connection.putheader(name, value.replace(self.server.authority, self.server.upstream))
            elif name.lower() not in HOP_BY_HOP:
                connection.putheader(name, value)
        connection.putheader("Authorization", f"Bearer {self.server.token}")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        # The client may have closed the connection already.
        with suppress(ConnectionError):
            self.answer(connection)
        connection.close()

    def answer(self, connection: HTTPConnection) -> None:
        response = connection.getresponse()
        content = response.read()
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


for _method in METHODS:
    setattr(_Forward, f"do_{_method}", _Forward.forward)


class _Proxy(ThreadingHTTPServer):
    def __init__(self, upstream: str, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.upstream, self.token = upstream, token
        self.authority = f"127.0.0.1:{self.server_address[1]}"


@contextmanager
def bearer_proxy(resource: str, token: str) -> Iterator[str]:
    """Run a proxy in front of a resource, and yield the proxy's URL for it."""
    parts = urlsplit(resource)
    with _Proxy(parts.netloc, token) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield f"http://{proxy.authority}{parts.path}"
        finally:
            proxy.shutdown()
            thread.join()
