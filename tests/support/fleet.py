"""Two nodes of each server behind nginx, on one PostgreSQL server and one Redis server."""

import contextlib
import re
import shutil
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from local_stack import child_processes, free_port

from support.certificates import Authority
from support.databases import PostgreSQL, running_postgresql
from support.limits import VARIABLES
from support.measured_stack import status_of
from support.nginx import Nginx, served_at
from support.prepared_stack import PreparedStack
from support.redis_server import RedisServer
from support.waiting import wait_until

SERVERS = ("authserver", "resourceserver")
ADDRESSES = ("127.0.0.11", "127.0.0.12")
"""In place of 10.0.0.11 and 10.0.0.12 of docs/deployment.md."""

FAILURES_PER_MINUTE = 10
"""Failed authentications that the authorization servers allow."""

FALLBACKS = "gatehouse_limit_fallbacks_total"

START_TIMEOUT = 60.0
"""Seconds."""

_SETTINGS = {
    **VARIABLES,
    "AUTHSERVER_LIMIT_AUTHENTICATION_FAILURES": f"{FAILURES_PER_MINUTE}/minute",
    "AUTHSERVER_TRUSTED_PROXIES": "127.0.0.1",
    "RESOURCESERVER_TOOLS": "support.fleet_tools",
    "PYTHONPATH": str(Path(__file__).parents[1]),
}


@dataclass
class Node(PreparedStack):
    """Both servers of one machine. Clients know them by the URLs of the proxy."""

    address: str = field(kw_only=True)
    proxy: str = field(kw_only=True)
    """The authority of the issuer, HOST:PORT."""
    resource_proxy: str = field(kw_only=True)
    metrics: dict[str, int] = field(default_factory=lambda: {server: free_port() for server in SERVERS})
    """The ports of the metrics."""

    @property
    def issuer(self) -> str:
        return f"https://{self.proxy}"

    @property
    def resource(self) -> str:
        return f"https://{self.resource_proxy}/mcp"

    @property
    def environment(self) -> dict[str, str]:
        ports = {"authserver": self.authserver_port, "resourceserver": self.resourceserver_port}
        own = {f"{server.upper()}_BIND": f"{self.address}:{port}" for server, port in ports.items()}
        own |= {f"{server.upper()}_METRICS_BIND": f"127.0.0.1:{port}" for server, port in self.metrics.items()}
        return {**super().environment, **own}

    def url(self, server: str) -> str:
        """Return where a server of this node listens, without the proxy."""
        port = self.authserver_port if server == "authserver" else self.resourceserver_port
        return f"http://{self.address}:{port}"

    def wait_until_ready(self, server: str) -> None:
        process = self._processes[server]
        url = f"{self.url(server)}/readyz"
        wait_until(lambda: process.poll() is not None or status_of(url) == 200, START_TIMEOUT)
        assert process.poll() is None, self.log(server)

    def restart(self) -> None:
        """Stop both servers, start them again as the units do, and wait until they are ready."""
        self.stop()
        for server in SERVERS:
            self.run(server, "init")
        self.start_all()

    def fallbacks(self, server: str) -> float:
        """Return how many requests a server has counted without Redis since it started."""
        return self.metric(server, FALLBACKS)

    def metric(self, server: str, name: str) -> float:
        """Return the value of a metric without labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics[server]}/metrics") as response:
            found = re.search(rf"^{name} (\S+)$", response.read().decode(), re.MULTILINE)
        assert found is not None, name
        return float(found[1])


@dataclass(frozen=True)
class Fleet:
    """The parts of a running fleet."""

    nodes: tuple[Node, Node]
    postgresql: PostgreSQL
    redis: RedisServer
    nginx: Nginx
    trusted: ssl.SSLContext
    """Trusts the authority of nginx's certificate."""

    @property
    def first(self) -> Node:
        return self.nodes[0]

    @property
    def fallbacks(self) -> float:
        """How many requests all servers have counted without Redis since they started."""
        return sum(self.total(server, FALLBACKS) for server in SERVERS)

    def total(self, server: str, name: str) -> float:
        """Return the sum of a metric without labels of both nodes."""
        return sum(node.metric(server, name) for node in self.nodes)

    @property
    def processes(self) -> dict[int, list[int]]:
        """The process ids of all servers, with their children."""
        pids = [node.pid(server) for node in self.nodes for server in SERVERS]
        return {pid: child_processes(pid) for pid in pids}

    def execute(self, statement: str, *values: str) -> None:
        """Change the database of the authorization server."""
        with psycopg.connect(self.first.settings["AUTHSERVER_DATABASE_URL"]) as connection:
            connection.execute(statement, values)

    def logs(self) -> str:
        """Return the logs of all servers."""
        return "\n".join(node.log(server) for node in self.nodes for server in SERVERS)


@contextlib.contextmanager
def running_fleet(folder: Path) -> Iterator[Fleet]:
    """Run a fleet until the block ends."""
    authority = Authority(folder)
    proxies = [f"127.0.0.1:{free_port()}" for _ in SERVERS]
    ports = [free_port() for _ in SERVERS]
    redis = RedisServer(folder)
    with contextlib.ExitStack() as stack:
        postgresql = stack.enter_context(running_postgresql(folder))
        urls = {server.upper(): postgresql.create_database() for server in SERVERS}
        settings = {
            **_SETTINGS,
            **{f"{name}_DATABASE_URL": url.render_as_string(hide_password=False) for name, url in urls.items()},
            **{f"{name}_LIMITS_URL": redis.url for name in urls},
            "RESOURCESERVER_CA_FILE": str(authority.file),
        }
        first, second = nodes = tuple(
            Node(
                *(folder / f"node-{number}", *ports),
                settings=settings,
                address=address,
                proxy=proxies[0],
                resource_proxy=proxies[1],
            )
            for number, address in enumerate(ADDRESSES, 1)
        )
        replaced = {
            **served_at(*proxies),
            **dict(zip(("10.0.0.11", "10.0.0.12"), ADDRESSES, strict=True)),
            ":9000": f":{ports[0]}",
            ":8000": f":{ports[1]}",
        }
        nginx = Nginx(folder / "proxy", "upstreams-two-nodes.conf", authority, replaced)
        stack.callback(redis.stop)
        redis.start()
        stack.callback(nginx.stop)
        nginx.start(int(proxies[0].rpartition(":")[2]))
        (first.folder / "var").mkdir(parents=True)
        first.init()
        shutil.copytree(first.folder, second.folder)
        for node in nodes:
            stack.callback(node.stop)
            for server in SERVERS:
                node.start(server)
        for node in nodes:
            for server in SERVERS:
                node.wait_until_ready(server)
        trusted = ssl.create_default_context(cafile=authority.file)
        yield Fleet((first, second), postgresql, redis, nginx, trusted)
