"""The servers of other projects that ours are compared with: how each is installed and started. Programs: peers/."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.servers import Server, running
from local_stack import free_port

PROGRAMS = Path(__file__).parent / "peers"
PYTHON = Path(__file__).parents[2] / ".venv" / "peers" / "bin" / "python"


class NotInstalled(Exception):
    """A peer cannot run on this machine; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A program in peers/, and the packages whose versions the report names."""

    name: str
    program: str
    packages: tuple[str, ...]

    def versions(self) -> str:
        """Return the runtime and the packages with their versions. Raises NotInstalled."""
        if self.program.endswith(".py"):
            return _python_versions(self.packages)
        return _node_versions(self.packages)

    @contextmanager
    def running(self, folder: Path, options: Mapping[str, Any], *, at_mcp: bool = False) -> Iterator[Server]:
        """Run the peer until the block ends. `options` are its argument, to which the port is added.

        Raises:
            NotInstalled: it cannot run here.
            RuntimeError: it did not start.
        """
        self.versions()
        port = free_port()
        url = f"http://127.0.0.1:{port}{'/mcp' if at_mcp else ''}"
        interpreter = str(PYTHON) if self.program.endswith(".py") else str(shutil.which("node"))
        argument = json.dumps({"port": port, "issuer": url, **options})
        command = [interpreter, str(PROGRAMS / self.program), argument]
        environment = {**os.environ, "NODE_ENV": "production"}
        with running(command, url, folder, environment, self.name.replace(" ", "-")) as server:
            yield server


OIDC = Peer("oidc-provider", "oidc_provider.mjs", ("oidc-provider",))
OIDC_DUTIES = Peer("oidc-provider with our duties", "oidc_provider.mjs", ("oidc-provider", "better-sqlite3"))
PYTHON_SDK = Peer("Python SDK + joserfc", "python_sdk.py", ("mcp", "joserfc", "uvicorn", "uvloop", "httptools"))

FASTMCP = Peer("FastMCP + JWTVerifier", "fastmcp_server.py", ("fastmcp-slim", "mcp", "joserfc", "uvicorn", "uvloop"))
FASTMCP_PROXY = Peer("FastMCP's proxy + JWTVerifier", "fastmcp_proxy.py", FASTMCP.packages)
FASTMCP_SHARED = Peer("FastMCP's proxy with one session", "fastmcp_proxy.py", FASTMCP.packages)
TYPESCRIPT_1 = Peer(
    "TypeScript SDK 1.x + jose", "typescript_sdk_1.mjs", ("@modelcontextprotocol/sdk", "express", "jose")
)
TYPESCRIPT_2 = Peer("TypeScript SDK 2.x + jose", "typescript_sdk_2.mjs", ("@modelcontextprotocol/server", "jose"))
ALL = (OIDC, OIDC_DUTIES, PYTHON_SDK, FASTMCP, FASTMCP_PROXY, TYPESCRIPT_1, TYPESCRIPT_2)


def _output(command: Sequence[str | Path]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _python_versions(packages: Sequence[str]) -> str:
    if not PYTHON.exists():
        raise NotInstalled("the environment of the peers in Python is missing; `make bench` creates it")
    code = (
        "import importlib.metadata as m, platform, sys; print(platform.python_version(), *map(m.version, sys.argv[1:]))"
    )
    python, *versions = _output([PYTHON, "-c", code, *packages]).split()
    return _joined("Python", python, packages, versions)


def _node_versions(packages: Sequence[str]) -> str:
    node = shutil.which("node")
    if node is None or not (PROGRAMS / "node_modules").exists():
        raise NotInstalled("Node.js with npm is missing; with them, `make bench` installs the peers")
    manifests = [PROGRAMS / "node_modules" / package / "package.json" for package in packages]
    versions = [json.loads(manifest.read_text(encoding="utf-8"))["version"] for manifest in manifests]
    return _joined("Node.js", _output([node, "--version"]).removeprefix("v"), packages, versions)


def _joined(runtime: str, version: str, packages: Sequence[str], versions: Sequence[str]) -> str:
    return ", ".join(
        f"{name} {number}" for name, number in zip((runtime, *packages), (version, *versions), strict=True)
    )
