"""Mixed requests to both servers at a constant rate, each with the only right answer."""

import asyncio
import random
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jwt
from bench import servers
from bench.call_rows import Version, call_request
from bench.load import get, post, post_form
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from local_stack import LocalStack
from support.assertions import ASSERTION_TYPE
from support.connections import Answer, Connections

from gatehouse.shared.protocol.redaction import mask

REFUSED_AFTER = 10.0
"""Seconds from a revocation until every worker refuses the token: a poll interval of 5 s, and at most 5 s of a fetch
(docs/threat-model.md)."""

_TOKENS = 50
"""Tokens that an agent keeps for its calls: with five agents, calls use new and old ones."""

_MARGIN = 20
"""Seconds before `exp` in which a token is no longer used, because a call takes a moment."""

_LARGE_FORM, _LARGE_CALL = 64 * 1024 + 1, 1024 * 1024 + 1
"""Bytes: one more than the limits of the servers."""

claims_of = lru_cache(maxsize=1024)(servers.claims_of)
_load_key = lru_cache(maxsize=8)(lambda file: load_pem_private_key(file.read_bytes(), None))


@dataclass
class Agent:
    """A client with its current credential and its tokens."""

    client_id: str
    secret: str | None = None
    private_key: Path | None = None
    tokens: list[str] = field(default_factory=list)

    @classmethod
    def create(cls, stack: LocalStack, name: str, scope: str, *options: str) -> "Agent":
        """Register a client."""
        created = stack.create_client(name, scope, *options)
        file = created.get("private_key_file")
        return cls(created["client_id"], created.get("client_secret"), stack.folder / file if file else None)

    def token_request(self, issuer: str, secret: str | None = None) -> bytes:
        """Return a token request as it is sent, with the current credential or with another secret."""
        form = {"grant_type": "client_credentials"}
        if self.private_key is None:
            return post_form(f"{issuer}/token", form, self.basic(secret))
        now = int(time.time())
        claims = {"iss": self.client_id, "sub": self.client_id, "aud": issuer, "iat": now, "exp": now + 60}
        assertion = jwt.encode({**claims, "jti": secrets.token_hex(16)}, _load_key(self.private_key), "ES256")
        form |= {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion}
        return post_form(f"{issuer}/token", form, {})

    def basic(self, secret: str | None = None) -> dict[str, str]:
        """Return the header of client_secret_basic."""
        return servers.basic({"client_id": self.client_id, "client_secret": secret or self.secret})

    def keep(self, token: str) -> None:
        """Keep a token for calls in place of a random one."""
        if len(self.tokens) < _TOKENS:
            self.tokens.append(token)
        else:
            self.tokens[random.randrange(_TOKENS)] = token

    def token(self) -> str:
        """Return a random token that is not about to expire. Raises IndexError if there is none."""
        soonest = time.time() + _MARGIN
        self.tokens = [token for token in self.tokens if claims_of(token)["exp"] > soonest]
        return random.choice(self.tokens)


@dataclass
class Record:
    """The number of requests, their latencies, and what failed."""

    number: Counter[str] = field(default_factory=Counter)
    """Requests by kind."""
    failures: list[str] = field(default_factory=list)
    _latencies: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, answer: Answer) -> None:
        """Count an answer."""
        self.number[kind] += 1
        self._latencies[kind].append(answer.milliseconds)

    def take(self) -> Mapping[str, list[float]]:
        """Return the milliseconds of each kind of request since the last time."""
        taken, self._latencies = self._latencies, defaultdict(list)
        return taken


class Unexpected(Exception):
    """An answer that is not the right one. It is recorded."""


@dataclass
class Traffic:
    """The agents and their requests."""

    stack: LocalStack
    by_secret: list[Agent]
    by_key: list[Agent]
    reader: Agent
    """May only read."""
    revoker: Agent
    """Revokes its own tokens."""
    resource_credential: Mapping[str, str]
    environment_id: str
    rate: float = 1.0
    """How much faster than `rates`."""
    record: Record = field(default_factory=Record)

    def __post_init__(self) -> None:
        self.authserver = Connections(self.stack.issuer)
        self.resourceserver = Connections(self.stack.resource)
        self._written = 0

    @property
    def rates(self) -> Mapping[Callable[[], Awaitable[object]], float]:
        """How often a second each of these begins."""
        return {
            self.issue_by_secret: 30,
            self.issue_by_key: 15,
            self.issue_to_reader: 1,
            self.identify_2026: 40,
            self.identify_2025: 40,
            self.read_2026: 8,
            self.read_2025: 8,
            self.write_twice: 2,
            self.introspect: 2,
            self.fetch_documents: 1,
            self.try_wrong_secret: 2,
            self.try_garbage: 2,
            self.try_forbidden_tool: 2,
            self.try_unknown_tool: 2,
            self.try_large_bodies: 0.5,
            self.revoke: 1,
        }

    async def run(self) -> None:
        """Send requests until cancelled."""
        for agent in [*self.by_secret, *self.by_key, self.reader]:
            agent.keep(await self.issue(agent))
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, (story, rate) in enumerate(self.rates.items()):
                    tasks.create_task(self._repeat(tasks, story, 1 / rate / self.rate, number / 100))
        finally:
            self.authserver.close()
            self.resourceserver.close()

    async def _repeat(
        self, tasks: asyncio.TaskGroup, story: Callable[[], Awaitable[object]], pause: float, phase: float
    ) -> None:
        due = time.monotonic() + phase
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.create_task(self.attempt(story))
            due += pause

    async def attempt(self, story: Callable[[], Awaitable[object]]) -> None:
        """Run a story, and record its failure."""
        try:
            await story()
        except Unexpected as error:
            self.record.failures.append(str(error))
        except (OSError, EOFError, TimeoutError) as error:
            self.record.failures.append(f"{story.__name__}: {type(error).__name__}: {error}")

    async def send(
        self, kind: str, connections: Connections, request: bytes, status: int = 200, contained: str = ""
    ) -> Answer:
        """Send a request. Raises Unexpected if the answer is not the right one."""
        answer = await connections.exchange(request)
        self.record.add(kind, answer)
        if answer.status != status or contained.encode() not in answer.body:
            # The recording is part of the documentation, and what should have been refused may be a token.
            body = mask(answer.body.decode(errors="replace"))[:300]
            raise Unexpected(f"{kind}: {answer.status} and not {status} with {contained!r}: {body!r}")
        return answer

    # Tokens

    async def issue(self, agent: Agent) -> str:
        """Request a token, and return it."""
        kind = "token by key" if agent.private_key else "token by secret"
        request = agent.token_request(self.stack.issuer)
        token: str = (await self.send(kind, self.authserver, request)).json()["access_token"]
        return token

    async def issue_by_secret(self) -> None:
        agent = random.choice(self.by_secret)
        agent.keep(await self.issue(agent))

    async def issue_by_key(self) -> None:
        agent = random.choice(self.by_key)
        agent.keep(await self.issue(agent))

    async def issue_to_reader(self) -> None:
        self.reader.keep(await self.issue(self.reader))

    async def introspect(self) -> None:
        agent = self._caller()
        header = servers.basic(self.resource_credential)
        request = post_form(f"{self.stack.issuer}/introspect", {"token": agent.token()}, header)
        await self.send("introspection", self.authserver, request, contained='"active":true')

    async def fetch_documents(self) -> None:
        for path in ("/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/readyz"):
            await self.send("document", self.authserver, get(f"{self.stack.issuer}{path}", {}))
        base = self.stack.resource.removesuffix("/mcp")
        for path in ("/.well-known/oauth-protected-resource/mcp", "/readyz"):
            await self.send("document", self.resourceserver, get(f"{base}{path}", {}))

    # Calls

    def _caller(self) -> Agent:
        return random.choice([agent for agent in (*self.by_secret, *self.by_key) if agent.tokens])

    async def call(
        self,
        kind: str,
        token: str,
        tool: str,
        version: Version = "2026-07-28",
        status: int = 200,
        contained: str = '"isError":false',
        **arguments: Any,
    ) -> Answer:
        """Call a tool."""
        request = call_request(self.stack.resource, token, tool, version, arguments)
        return await self.send(kind, self.resourceserver, request, status, contained)

    async def identify_2026(self) -> None:
        agent = self._caller()
        await self.call("whoami, 2026-07-28", agent.token(), "whoami", contained=agent.client_id)

    async def identify_2025(self) -> None:
        agent = self._caller()
        await self.call("whoami, 2025-11-25", agent.token(), "whoami", "2025-11-25", contained=agent.client_id)

    async def read_2026(self) -> None:
        token = self._caller().token()
        await self.call("read, 2026-07-28", token, "list_environments", contained=self.environment_id)

    async def read_2025(self) -> None:
        token = self._caller().token()
        await self.call("read, 2025-11-25", token, "list_environments", "2025-11-25", contained=self.environment_id)

    async def write_twice(self) -> None:
        """Repeat a write with its idempotency key: the response is the same."""
        self._written += 1
        versions: tuple[Version, Version] = ("2026-07-28", "2025-11-25")
        arguments = {
            "environment_id": self.environment_id,
            "uri": f"https://app.example.com/{self._written}",
            "idempotency_key": secrets.token_hex(16),
        }
        token, version = self._caller().token(), versions[self._written % 2]
        for kind in ("write", "repeated write"):
            await self.call(kind, token, "set_initiate_login_uri", version, contained=arguments["uri"], **arguments)

    # Refusals

    async def try_wrong_secret(self, kind: str = "wrong secret", agent: Agent | None = None, secret: str = "") -> None:
        chosen = agent or random.choice(self.by_secret)
        wrong = secret or f"{str(chosen.secret)[:-4]}{secrets.token_hex(2)}"
        request = chosen.token_request(self.stack.issuer, wrong)
        await self.send(kind, self.authserver, request, 401, '"invalid_client"')

    async def try_garbage(self) -> None:
        await self.call("garbage token", secrets.token_urlsafe(300), "whoami", status=401, contained="")

    async def try_forbidden_tool(self) -> None:
        arguments = {"environment_id": self.environment_id, "uri": "https://app.example.com/forbidden"}
        token = self.reader.token()
        await self.call("forbidden tool", token, "set_initiate_login_uri", status=403, contained="", **arguments)

    async def try_unknown_tool(self) -> None:
        await self.call("unknown tool", self._caller().token(), "erase_everything", status=400, contained="-32602")

    async def try_large_bodies(self) -> None:
        form = post(f"{self.stack.issuer}/token", b"a" * _LARGE_FORM, {})
        await self.send("body too large", self.authserver, form, 413)
        header = {"Authorization": f"Bearer {self._caller().token()}", "Content-Type": "application/json"}
        await self.send(
            "body too large", self.resourceserver, post(self.stack.resource, b" " * _LARGE_CALL, header), 413
        )

    # Revocation

    async def revoke(self) -> None:
        """Revoke a token that is in use, as its client."""
        token = await self.issue(self.revoker)
        await self.call("whoami, 2026-07-28", token, "whoami", contained=self.revoker.client_id)
        request = post_form(f"{self.stack.issuer}/revoke", {"token": token}, self.revoker.basic())
        await self.send("revocation", self.authserver, request)
        await self.see_refused(token)

    async def see_refused(self, token: str) -> None:
        """See that a token that was revoked now is refused after the documented delay."""
        await asyncio.sleep(REFUSED_AFTER)
        for _ in range(4):
            await self.call("revoked token", token, "whoami", status=401, contained="")
