"""Both servers as real processes with metrics, and the requests that are counted."""

import json
import re
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from local_stack import child_processes, free_port

from support.prepared_stack import PreparedStack, initialized
from support.waiting import wait_until

SERVERS = ("authserver", "resourceserver")


def status_of(url: str, data: bytes | None = None, headers: Mapping[str, str] = MappingProxyType({})) -> int:
    """Send a request on a connection of its own, and return the status; 0 if no server listens."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, dict(headers))) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


class MeasuredStack:
    """Both servers with metrics, and the requests that a journey sends."""

    def __init__(self, folder: Path) -> None:
        self.binds = {server: f"127.0.0.1:{free_port()}" for server in SERVERS}
        settings = {f"{server.upper()}_METRICS_BIND": bind for server, bind in self.binds.items()}
        self.stack: PreparedStack = initialized(folder, **settings)
        self.agent = self.stack.create_client("agent", "env:read")
        self.stack.start_all()
        for bind in self.binds.values():
            wait_until(lambda bind=bind: status_of(f"http://{bind}/metrics") == 200)

    def post_token(self, secret: str | None = None) -> int:
        pair = f"{self.agent['client_id']}:{secret or self.agent['client_secret']}"
        headers = {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
        return status_of(f"{self.stack.issuer}/token", b"grant_type=client_credentials", headers)

    def access_token(self) -> str:
        """Return a token of the agent, issued by a command, which is not counted."""
        issue = ("token", "issue", "--client", self.agent["client_id"], "--resource", self.stack.resource)
        token: str = self.stack.run_json("authserver", *issue)["access_token"]
        return token

    def post_mcp(self, token: str = "none", tool: str = "whoami") -> int:
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
        }
        params = {"name": tool, "arguments": {}}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        return status_of(self.stack.resource, json.dumps(call).encode(), headers)

    def total(self, server: str, name: str, **labels: str) -> float:
        """Return the sum of the time series of a metric that have these labels."""
        with urllib.request.urlopen(f"http://{self.binds[server]}/metrics") as response:
            text = response.read().decode()
        lines = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
        return sum(
            float(value)
            for found, value in lines
            if labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found)).items()
        )

    def workers(self, server: str) -> list[int]:
        """Return the process ids of the workers: the children that do not serve the metrics."""
        return [pid for pid in child_processes(self.stack.pid(server)) if _is_worker(pid)]

    def metrics_process(self, server: str) -> int:
        [pid] = set(child_processes(self.stack.pid(server))) - set(self.workers(server))
        return pid


def _is_worker(pid: int) -> bool:
    try:
        return b"metrics_server" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        # It ended after it was listed.
        return False
