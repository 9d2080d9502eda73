"""Rows of `tools/call`, compared with MCP servers built on other SDKs."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench import peers
from bench.contest import Contestant, exchange, medians
from bench.load import Load, post_json, write_requests
from bench.row import Bench, Outcome
from bench.servers import SCOPE, UNCOUNTED, Server, Stack, claims_of, running
from bench.verdicts import Figure, Target
from local_stack import free_port

Version = Literal["2025-11-25", "2026-07-28"]


def call_request(url: str, token: str, tool: str, version: Version, arguments: Mapping[str, Any]) -> bytes:
    """Return a tools/call of a protocol version as it is sent."""
    headers = {
        "Accept": "application/json, text/event-stream",
        "Authorization": f"Bearer {token}",
        "MCP-Protocol-Version": version,
    }
    params: dict[str, Any] = {"name": tool, "arguments": dict(arguments)}
    if version == "2026-07-28":
        headers |= {"Mcp-Method": "tools/call", "Mcp-Name": tool}
        params["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    return post_json(url, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, headers)


@dataclass(frozen=True, slots=True)
class Caller:
    """A client of our authorization server that calls tools, of ours or of a peer."""

    ours: Stack
    client: Mapping[str, Any]

    @classmethod
    def create(cls, ours: Stack) -> "Caller":
        """Register a client with a workspace."""
        workspace = ours.run_json("resourceserver", "workspace", "create", "--name", "bench")["workspace_id"]
        return cls(ours, ours.create_client("bench", SCOPE, "--claim", f"workspace_id={workspace}"))

    def calls(
        self, name: str, server: Server, version: Version, *, tool: str = "whoami", tokens: int = 1, contained: str = ""
    ) -> Contestant:
        """Call a tool without arguments, with a number of tokens in turn. The tokens are new in each round."""

        def prepare(file: Path, number: int) -> Load:
            issued = self.ours.tokens(self.client, min(tokens, number))
            write_requests(file, (call_request(server.url, token, tool, version, {}) for token in issued))
            return Load(server.url, file, contained or self.client["client_id"])

        return Contestant(name, server, prepare, same_identity if tool == "whoami" else result_of)

    def create_environments(self, number: int) -> str:
        """Create environments in the client's workspace, and return the id of the last one."""
        created = [self.call("create_environment", name=f"env-{position}") for position in range(number)]
        return str(created[-1]["environment_id"])

    def call(self, tool: str, **arguments: Any) -> Any:
        """Call one of our tools once, and return its result. Raises KeyError if it fails."""
        url, token = self.ours.resource, self.ours.tokens(self.client)[0]
        return result_of(exchange(url, call_request(url, token, tool, "2025-11-25", arguments))[1])


def result_of(body: bytes) -> Any:
    """Return the structured result of a call. Raises KeyError if there is none."""
    result = json.loads(body)["result"]
    if result.get("isError"):
        raise KeyError(f"the call failed: {result}")
    return result["structuredContent"]


def same_identity(body: bytes) -> Any:
    """Return the result of `whoami` without the expiry, which differs between two tokens."""
    result = result_of(body)
    if not isinstance(result.pop("expires_at"), int):
        raise KeyError("expires_at")
    return result


MCP_PEERS: Mapping[Version, Mapping[peers.Peer, Target | None]] = {
    "2026-07-28": {
        peers.PYTHON_SDK: Target(0.35, 0.45),
        peers.FASTMCP: Target(0.22, 0.30),
        peers.TYPESCRIPT_2: None,
    },
    "2025-11-25": {
        peers.PYTHON_SDK: Target(0.22, 0.30),
        peers.FASTMCP: Target(0.22, 0.30),
        peers.TYPESCRIPT_1: None,
        peers.TYPESCRIPT_2: None,
    },
}
"""The peers that serve `whoami` in each protocol version."""


def whoami(version: Version, bench: Bench) -> Outcome:
    """`tools/call` of a tool that reads nothing."""
    ours = bench.installation("authserver", "resourceserver")
    caller = Caller.create(ours)
    contestants = [caller.calls("ours", ours.resourceserver, version)]
    options = {"issuer": ours.issuer, "resource": ours.resource}
    for peer in MCP_PEERS[version]:
        contestants += [caller.calls(peer.name, server, version) for server in bench.peer(peer, options, at_mcp=True)]
    uncounted = Caller.create(bench.installation("authserver", "resourceserver", name=UNCOUNTED, counts=False))
    contestants += [uncounted.calls(UNCOUNTED, uncounted.ours.resourceserver, version).uncompared()]
    targets = {peer.name: target for peer, target in MCP_PEERS[version].items()}
    outcome = bench.contest(contestants, {**targets, UNCOUNTED: None})
    return outcome.with_memory("ours", Target(125, 145))


def overhead(bench: Bench) -> Outcome:
    """What gate, policy, audit log and log line are of a call: the same server composed without them is the rest."""
    version: Version = "2026-07-28"
    ours = bench.installation("authserver", "resourceserver")
    caller = Caller.create(ours)
    port = free_port()
    program = str(Path(__file__).parent / "bare_server.py")
    claims = json.dumps(claims_of(ours.tokens(caller.client)[0]))
    command = [sys.executable, program, f"127.0.0.1:{port}", claims]
    url = f"http://127.0.0.1:{port}/mcp"
    bare = bench.exits.enter_context(running(command, url, ours.folder, ours.environment, "bare"))
    contestants = [caller.calls("ours", ours.resourceserver, version), caller.calls("bare", bare, version)]
    outcome = bench.contest(contestants, {})
    figures = medians(outcome.rounds)
    share = 100 * (1 - figures["bare"].cpu_us / figures["ours"].cpu_us)
    checks = Figure("gate, policy, audit log and log line, share of a call", share, "%", Target(30, 50))
    return replace(outcome, figures=[checks, *outcome.figures])


def list_environments(bench: Bench) -> Outcome:
    """`tools/call` of a tool that reads three rows, compared with a peer's tool that reads nothing."""
    version: Version = "2026-07-28"
    ours = bench.installation("authserver", "resourceserver")
    caller = Caller.create(ours)
    contained = caller.create_environments(3)
    reading = caller.calls("ours", ours.resourceserver, version, tool="list_environments", contained=contained)
    contestants = [reading.uncompared()]
    name, options = f"whoami of {peers.PYTHON_SDK.name}", {"issuer": ours.issuer, "resource": ours.resource}
    servers = bench.peer(peers.PYTHON_SDK, options, at_mcp=True)
    contestants += [caller.calls(name, server, version).uncompared() for server in servers]
    return bench.contest(contestants, {name: Target(1.0, 1.5)})
