"""Agents that request tokens and call a tool at a constant rate, and record every failure."""

import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import jwt
from local_stack import LocalStack

from support.assertions import ASSERTION_TYPE

_MARGIN = 20
"""Seconds before `exp` in which a token is no longer used, because a call takes a moment."""

_KEPT = 400
"""Tokens that an agent keeps, so that calls use both new and old ones."""


@dataclass
class Tally:
    """The requests of all agents."""

    token_requests: int = 0
    calls: int = 0
    keys: Counter[str] = field(default_factory=Counter)
    """Calls by the `kid` of their token."""
    credentials: Counter[str] = field(default_factory=Counter)
    """Token requests by the start of the secret, or by the file name of the private key."""
    failures: list[str] = field(default_factory=list)

    @property
    def least(self) -> int:
        """The smaller of the two numbers."""
        return min(self.token_requests, self.calls)

    def line(self) -> str:
        """Return a summary."""
        return (
            f"{self.token_requests} token requests with {len(self.credentials)} credentials, "
            f"{self.calls} calls with tokens of {len(self.keys)} keys, {len(self.failures)} failures"
        )


@dataclass
class LoadedAgent:
    """A client with its current credential and its tokens."""

    load: "Load"
    http: httpx2.AsyncClient
    client_id: str
    secret: str | None = None
    private_key: Path | None = None
    _tokens: list[tuple[float, str]] = field(default_factory=list)

    async def request_token(self) -> None:
        """Request a token, and keep it."""
        tally, form = self.load.tally, {"grant_type": "client_credentials"}
        auth, used = None, self.private_key.name if self.private_key else str(self.secret)[:12]
        if self.private_key is not None:
            form |= {"client_assertion_type": ASSERTION_TYPE, "client_assertion": self._assertion(self.private_key)}
        else:
            auth = (self.client_id, str(self.secret))
        response = await self.http.post(f"{self.load.stack.issuer}/token", data=form, auth=auth)
        tally.token_requests += 1
        tally.credentials[used] += 1
        self.load.answered("token", response.status_code == 200)
        if response.status_code != 200:
            tally.failures.append(f"token by {used}: {response.status_code} {response.text[:300]}")
            return
        answer = response.json()
        self._tokens.append((self.load.clock() + answer["expires_in"], answer["access_token"]))
        del self._tokens[:-_KEPT]

    def _assertion(self, private_key: Path) -> str:
        now = int(self.load.clock())
        claims = {"iss": self.client_id, "sub": self.client_id, "aud": self.load.stack.issuer}
        claims |= {"iat": now, "exp": now + 300, "jti": uuid.uuid4().hex}
        return jwt.encode(claims, private_key.read_text(encoding="ascii"), algorithm="ES256")

    async def call(self) -> None:
        """Call a tool with a random token that is not about to expire."""
        tally, now = self.load.tally, self.load.clock()
        self._tokens = [kept for kept in self._tokens if kept[0] - _MARGIN > now]
        if not self._tokens:
            return
        expires_at, token = kept = random.choice(self._tokens)
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "whoami", "arguments": {}}}
        response = await self.http.post(self.load.stack.resource, json=body, headers=headers)
        if response.status_code == 401 and self.load.keys_are_revoked:
            if kept in self._tokens:
                self._tokens.remove(kept)
            return
        kid = jwt.get_unverified_header(token)["kid"]
        tally.calls += 1
        tally.keys[kid] += 1
        succeeded = response.status_code == 200 and not response.json()["result"]["isError"]
        self.load.answered("call", succeeded)
        if not succeeded:
            left = round(expires_at - now)
            tally.failures.append(f"call {left} s before exp, kid {kid}: {response.status_code} {response.text[:300]}")


@dataclass
class Load:
    """Any number of agents that send requests at a constant total rate."""

    stack: LocalStack
    rate: float
    """Token requests per second, and calls per second."""
    clock: Callable[[], float] = time.time
    keys_are_revoked: bool = False
    """Whether tokens may be revoked early: then a 401 is not a failure, and the agent drops the token."""
    answered: Callable[[str, bool], None] = lambda kind, succeeded: None
    """Called for each answer with its kind, `token` or `call`, and whether the request succeeded."""
    tally: Tally = field(default_factory=Tally)
    agents: list[LoadedAgent] = field(default_factory=list)

    def add(self, http: httpx2.AsyncClient, created: dict[str, Any]) -> LoadedAgent:
        """Add an agent with the credential that `authserver client create` printed."""
        file = created.get("private_key_file")
        private_key = self.stack.folder / file if file else None
        agent = LoadedAgent(self, http, created["client_id"], created.get("client_secret"), private_key)
        self.agents.append(agent)
        return agent

    async def run(self) -> None:
        """Send requests until cancelled. An exception of a request counts as a failure."""
        pause = len(self.agents) / self.rate
        async with anyio.create_task_group() as tasks:
            for number, agent in enumerate(self.agents):
                for act, phase in ((agent.request_token, number), (agent.call, number + 0.5)):
                    tasks.start_soon(self._repeat, act, pause, phase / self.rate)

    async def _repeat(self, act: Callable[[], Awaitable[None]], pause: float, phase: float) -> None:
        due = time.monotonic() + phase
        while True:
            await anyio.sleep(max(0.0, due - time.monotonic()))
            try:
                await act()
            except httpx2.HTTPError as error:
                self.tally.failures.append(f"{act.__name__}: {type(error).__name__}: {error}")
            due += pause
