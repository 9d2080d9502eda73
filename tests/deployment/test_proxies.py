"""How the proxies of deploy/ treat nodes that refuse connections, are not ready, or fail in a request."""

import http.client
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from local_stack import free_port
from support.certificates import Authority
from support.documents import ROOT
from support.nginx import NGINX, Nginx, served_at
from support.waiting import wait_until

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin")
SEVERAL = 8
"""Requests after which a proxy has used every node that it uses at all."""


class Node(ThreadingHTTPServer):
    """Answers every request with 200 if it is ready, else with 503. It can close the connection instead."""

    daemon_threads = True

    def __init__(self, address: str, port: int) -> None:
        super().__init__((address, port), _Handler)
        self.ready = True
        self.answers = True
        self.posts = 0
        self.checks = 0

    def handle_error(self, *_: object) -> None:
        """Report no connection that a proxy reset."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Node

    def do_GET(self) -> None:
        self.server.checks += self.path == "/readyz"
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts += 1
        if self.server.answers:
            self._answer()
        else:
            self.close_connection = True

    def _answer(self) -> None:
        body = b"from the node"
        self.send_response(200 if self.server.ready else 503)
        self.send_header("Content-Length", str(len(body)))
        # So that a node that was stopped answers nothing on connections that the proxy keeps open.
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Proxy:
    """A running proxy in front of two nodes."""

    def __init__(self, name: str, port: int, node_port: int, authority: Authority) -> None:
        self.name = name
        self.node_port = node_port
        self.nodes = [self.start_node(number) for number in (1, 2)]
        self._port = port
        self._context = ssl.create_default_context(cafile=authority.file)

    def start_node(self, number: int) -> Node:
        """Start a node, which listens at an address of its own."""
        node = Node(f"127.0.0.1{number}", self.node_port)
        threading.Thread(target=node.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return node

    def request(self, method: str, path: str = "/token") -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=self._context, timeout=20)
        try:
            connection.request(method, path, b"x" if method == "POST" else None)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def statuses(self, method: str) -> set[int]:
        return {self.request(method)[0] for _ in range(SEVERAL)}


@contextmanager
def running_haproxy(folder: Path, port: int, authority: Authority, replaced: dict[str, str]) -> Iterator[None]:
    """Run HAProxy with the configuration of deploy/."""
    certificate = folder / "gatehouse.pem"
    certificate.write_bytes(authority.server_file.read_bytes())
    text = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text(encoding="utf-8")
    values = {
        **replaced,
        "auth.example.com": f"127.0.0.1:{port}",
        "bind :443": f"bind 127.0.0.1:{port}",
        "/etc/haproxy/gatehouse.pem": str(certificate),
    }
    for shown, actual in values.items():
        text = text.replace(shown, actual)
    (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
    with (folder / "haproxy.log").open("wb") as log:
        command = [str(HAPROXY), "-db", "-f", str(folder / "haproxy.cfg")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
        assert process.poll() is None, (folder / "haproxy.log").read_text(encoding="utf-8")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def running_nginx(folder: Path, port: int, authority: Authority, replaced: dict[str, str]) -> Iterator[None]:
    """Run nginx with the configuration of deploy/."""
    served = served_at(f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
    nginx = Nginx(folder / "nginx", "upstreams-two-nodes.conf", authority, {**replaced, **served})
    nginx.start(port)
    try:
        yield
    finally:
        nginx.stop()


PROXIES = {
    "nginx": pytest.param(running_nginx, marks=pytest.mark.skipif(NGINX is None, reason="needs nginx")),
    "haproxy": pytest.param(running_haproxy, marks=pytest.mark.skipif(HAPROXY is None, reason="needs haproxy")),
}


@pytest.fixture(params=PROXIES.values(), ids=PROXIES.keys())
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxy]:
    port, node_port, authority = free_port(), free_port(), Authority(tmp_path)
    replaced = {"10.0.0.1": "127.0.0.1", ":9000": f":{node_port}", ":8000": f":{node_port}"}
    proxy = Proxy(request.param.__name__.removeprefix("running_"), port, node_port, authority)
    with ExitStack() as stack:
        for node in proxy.nodes:
            stack.callback(node.server_close)
            stack.callback(node.shutdown)
        stack.enter_context(request.param(tmp_path, port, authority, replaced))
        wait_until(lambda: answers(proxy))
        yield proxy


def answers(proxy: Proxy) -> bool:
    try:
        return proxy.request("GET")[0] == 200
    except OSError:
        return False


def test_every_node_gets_requests(proxy: Proxy) -> None:
    assert proxy.statuses("POST") == {200}
    assert all(node.posts for node in proxy.nodes)


def test_a_node_that_refuses_connections_costs_no_request(proxy: Proxy) -> None:
    proxy.nodes[0].shutdown()
    proxy.nodes[0].server_close()
    assert proxy.statuses("POST") == {200}
    assert proxy.nodes[1].posts == SEVERAL


def test_a_post_that_a_node_received_is_never_repeated(proxy: Proxy) -> None:
    for node in proxy.nodes:
        node.answers = False
    assert proxy.request("POST")[0] == 502
    assert sum(node.posts for node in proxy.nodes) == 1


def test_a_get_is_answered_by_the_node_that_is_ready(proxy: Proxy) -> None:
    proxy.nodes[0].ready = False
    if proxy.name == "haproxy":
        wait_until(lambda: proxy.statuses("GET") == {200})
    assert proxy.statuses("GET") == {200}


@pytest.mark.parametrize("proxy", [PROXIES["haproxy"]], indirect=True)
def test_haproxy_sends_no_post_to_a_node_that_is_not_ready(proxy: Proxy) -> None:
    """Nginx does not ask /readyz."""
    proxy.nodes[0].ready = False
    wait_until(lambda: proxy.statuses("POST") == {200})
    before = proxy.nodes[0].posts
    assert proxy.statuses("POST") == {200}
    assert proxy.nodes[0].posts == before
    proxy.nodes[0].ready = True
    wait_until(lambda: proxy.statuses("POST") == {200} and proxy.nodes[0].posts > before)


def test_without_a_ready_node_clients_get_the_answer_of_a_node(proxy: Proxy) -> None:
    for node in proxy.nodes:
        node.ready = False
    checks = [node.checks for node in proxy.nodes]
    if proxy.name == "haproxy":
        wait_until(lambda: all(node.checks > seen + 2 for node, seen in zip(proxy.nodes, checks, strict=True)))
    assert {proxy.request("POST") for _ in range(SEVERAL)} == {(503, b"from the node")}
    proxy.nodes[1].ready = True
    wait_until(lambda: 200 in proxy.statuses("POST"))
