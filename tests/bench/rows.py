"""The rows of the benchmark. Each starts its servers, and returns the rounds and figures."""

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bench import assertions, peers
from bench.contest import Contestant, Schedule, exchange, medians, run_contest
from bench.load import Load, post_form, post_json, write_requests
from bench.measuring import Round
from bench.servers import Server, Stack, basic
from bench.verdicts import P99, Figure, Target, ratios
from joserfc.jwk import ECKey

Version = Literal["2025-11-25", "2026-07-28"]

SCOPE = "env:read env:write"


@dataclass
class Outcome:
    """What a row found."""

    rounds: dict[str, list[Round]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)


@dataclass
class Bench:
    """The servers and the schedule of one row. The servers are stopped when `exits` is closed."""

    folder: Path
    schedule: Schedule
    exits: ExitStack
    progress: Callable[[str], None]
    missing: list[str] = field(default_factory=list)
    """The peers that are not installed, with the reason."""

    def installation(self, *servers: str, name: str = "ours", **settings: str) -> Stack:
        """Create an installation, and start these of its servers."""
        stack = Stack(self.folder / name, **settings)
        stack.init()
        self.exits.callback(stack.stop)
        for server in servers:
            stack.start(server)
            stack.wait_until_ready(server)
        return stack

    def peer(self, peer: peers.Peer, options: Mapping[str, Any], *, at_mcp: bool = False) -> Iterable[Server]:
        """Start a peer. Returns its server, or nothing if it is not installed."""
        try:
            return [self.exits.enter_context(peer.running(self.folder, options, at_mcp=at_mcp))]
        except peers.NotInstalled as reason:
            self.missing.append(f"{peer.name}: {reason}")
            self.progress(f"{peer.name} is skipped: {reason}")
            return []

    def contest(
        self, contestants: list[Contestant], targets: Mapping[str, Target | None], p99: Target | None = P99
    ) -> Outcome:
        """Run a contest of the first contestant with the others."""
        rounds = run_contest(contestants, self.schedule, self.folder / "requests", self.progress)
        return Outcome(rounds, ratios(medians(rounds), targets, p99))


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the benchmark."""

    name: str
    title: str
    run: Callable[[Bench], Outcome]


def token_answer(body: bytes) -> dict[str, Any]:
    """Return what a token response says, with the claims that every issuer must choose alike."""
    response = json.loads(body)
    payload = response["access_token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    same = {name: claims[name] for name in ("sub", "client_id", "aud", "scope")}
    return {**same, "lifetime": claims["exp"] - claims["iat"], "expires_in": response["expires_in"]}


def by_secret(name: str, server: Server, client: Mapping[str, Any]) -> Contestant:
    """Request tokens by client_secret_basic."""
    url = f"{server.url}/token"
    request = post_form(url, {"grant_type": "client_credentials", "scope": "env:read"}, basic(client))

    def prepare(file: Path, _: int) -> Load:
        write_requests(file, [request])
        return Load(url, file, '"access_token"')

    return Contestant(name, server, prepare, token_answer)


def by_key(name: str, server: Server, client_id: str, key: Path) -> Contestant:
    """Request tokens by private_key_jwt, each with a new assertion."""
    url = f"{server.url}/token"

    def prepare(file: Path, number: int) -> Load:
        write_requests(file, assertions.requests(url, server.url, client_id, key, number))
        return Load(url, file, '"access_token"', once=True)

    return Contestant(name, server, prepare, token_answer)


def oidc_client(client: Mapping[str, Any], **members: Any) -> dict[str, Any]:
    """Return a client of ours as it is registered with oidc-provider."""
    return {
        "client_id": client["client_id"],
        "grant_types": ["client_credentials"],
        "redirect_uris": [],
        "response_types": [],
        "scope": SCOPE,
        "token_endpoint_auth_method": client["token_endpoint_auth_method"],
        **members,
    }


def oidc_servers(bench: Bench, ours: Stack, client: dict[str, Any]) -> Iterable[tuple[str, Server]]:
    """Start oidc-provider without and with our duties, with one client. Yields the names and servers."""
    for peer, duties in ((peers.OIDC, None), (peers.OIDC_DUTIES, str(bench.folder / "oidc-provider.db"))):
        options = {"resource": ours.resource, "clients": [client], "duties": duties}
        for server in bench.peer(peer, options):
            yield peer.name, server


def token_secret(bench: Bench) -> Outcome:
    """`/token` by client_secret_basic, one client."""
    ours = bench.installation("authserver")
    client = ours.create_client("bench", SCOPE)
    registered = oidc_client(client, client_secret=client["client_secret"])
    theirs = [by_secret(name, server, client) for name, server in oidc_servers(bench, ours, registered)]
    targets = {peers.OIDC.name: Target(0.95, 1.2), peers.OIDC_DUTIES.name: Target(0.9, 0.9)}
    return bench.contest([by_secret("ours", ours.authserver, client), *theirs], targets)


def token_jwt(bench: Bench) -> Outcome:
    """`/token` by private_key_jwt, one client, a new assertion in each request."""
    ours = bench.installation("authserver")
    key = bench.folder / "bench.pem"
    client = ours.create_client("bench", SCOPE, "--generate-key", str(key))
    registered = oidc_client(client, jwks=_public_keys(key), token_endpoint_auth_signing_alg="ES256")
    client_id = client["client_id"]
    theirs = [by_key(name, server, client_id, key) for name, server in oidc_servers(bench, ours, registered)]
    targets = {peers.OIDC.name: Target(1.3, 1.7), peers.OIDC_DUTIES.name: Target(1.0, 1.0)}
    return bench.contest([by_key("ours", ours.authserver, client_id, key), *theirs], targets, Target(1.0, 2.5))


def _public_keys(key: Path) -> dict[str, Any]:
    return {"keys": [ECKey.import_key(key.read_bytes()).as_dict(private=False)]}


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

        def prepare(file: Path, _: int) -> Load:
            issued = (self.ours.token(self.client) for _ in range(tokens))
            write_requests(file, (call_request(server.url, token, tool, version, {}) for token in issued))
            return Load(server.url, file, contained or self.client["client_id"])

        return Contestant(name, server, prepare, same_identity if tool == "whoami" else result_of)

    def create_environments(self, number: int) -> str:
        """Create environments in the client's workspace, and return the id of the last one."""
        url, token = self.ours.resource, self.ours.token(self.client)
        created: dict[str, Any] = {}
        for name in (f"env-{position}" for position in range(number)):
            request = call_request(url, token, "create_environment", "2025-11-25", {"name": name})
            created = result_of(exchange(url, request)[1])
        return str(created["environment_id"])


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
    "2026-07-28": {peers.PYTHON_SDK: Target(0.35, 0.45)},
    "2025-11-25": {peers.PYTHON_SDK: Target(0.22, 0.30)},
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
    return bench.contest(contestants, {peer.name: target for peer, target in MCP_PEERS[version].items()})


def list_environments(bench: Bench) -> Outcome:
    """`tools/call` of a tool that reads three rows, compared with a peer's tool that reads nothing."""
    version: Version = "2026-07-28"
    ours = bench.installation("authserver", "resourceserver")
    caller = Caller.create(ours)
    contained = caller.create_environments(3)
    reading = caller.calls("ours", ours.resourceserver, version, tool="list_environments", contained=contained)
    contestants = [_uncompared(reading)]
    name, options = f"whoami of {peers.PYTHON_SDK.name}", {"issuer": ours.issuer, "resource": ours.resource}
    servers = bench.peer(peers.PYTHON_SDK, options, at_mcp=True)
    contestants += [_uncompared(caller.calls(name, server, version)) for server in servers]
    return bench.contest(contestants, {name: Target(1.0, 1.5)})


def _uncompared(one: Contestant) -> Contestant:
    """Check the answers of a contestant, but do not compare them with others'."""

    def answer(body: bytes) -> None:
        one.answer(body)

    return Contestant(one.name, one.server, one.prepare, answer)


ROWS = (
    Row("token-secret", "`/token`, client_secret_basic", token_secret),
    Row("token-jwt", "`/token`, private_key_jwt, a new assertion each", token_jwt),
    Row("whoami-2026", "`tools/call` whoami, 2026-07-28", partial(whoami, "2026-07-28")),
    Row("whoami-2025", "`tools/call` whoami, 2025-11-25", partial(whoami, "2025-11-25")),
    Row("list-environments", "`tools/call` list_environments, which reads the directory", list_environments),
)
