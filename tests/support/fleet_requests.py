"""Requests to single nodes of a fleet, and to its proxy: a load whose answers have times, and a session of the SDK."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2
import jwt
from mcp.shared.exceptions import MCPError

from support.fleet import Fleet, Node
from support.load import Load
from support.mcp_client import connect
from support.waiting import wait_until

LIMIT = 40.0
"""Seconds for what a load must reach."""

_BODY = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}


async def post_token(http: httpx2.AsyncClient, node: Node, client: dict[str, Any], **form: str) -> httpx2.Response:
    """Request a token of a node: by the client's secret, or by what the form has in place of it."""
    pair = None if form else (client["client_id"], client["client_secret"])
    return await http.post(
        f"{node.url('authserver')}/token", data={"grant_type": "client_credentials", **form}, auth=pair
    )


async def obtain(http: httpx2.AsyncClient, node: Node, client: dict[str, Any]) -> str:
    """Return a new token that a node issued."""
    token: str = (await post_token(http, node, client)).raise_for_status().json()["access_token"]
    return token


async def call(http: httpx2.AsyncClient, node: Node, token: str, tool: str = "whoami") -> int:
    """Call a tool at a node, and return the status. Each call has a connection of its own, so any worker answers."""
    headers = {
        # As nginx passes it.
        "Host": node.resource_proxy,
        "Authorization": f"Bearer {token}",
        "Accept": "application/json, text/event-stream",
        "Connection": "close",
    }
    body = {**_BODY, "params": {"name": tool, "arguments": {}}}
    return (await http.post(f"{node.url('resourceserver')}/mcp", json=body, headers=headers)).status_code


async def call_everywhere(http: httpx2.AsyncClient, fleet: Fleet, tokens: Iterable[str]) -> set[int]:
    """Call a tool at each node with each token, and return the statuses."""
    return {await call(http, node, token) for node in fleet.nodes for token in tokens}


async def rotate_key(fleet: Fleet) -> list[str]:
    """Rotate the signing key, while each node always accepts the tokens of both.

    Returns tokens of the old key that expire soon.
    """
    first = fleet.first
    lasting = first.create_client("rotating", "env:read")
    short = first.create_client("rotating-short", "env:read", "--ttl", "1")
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:

        async def issue(client: dict[str, Any]) -> dict[str, str]:
            tokens = [await obtain(http, node, client) for node in fleet.nodes]
            assert await call_everywhere(http, fleet, tokens) == {200}
            return {token: jwt.get_unverified_header(token)["kid"] for token in tokens}

        issued = await issue(lasting)
        [old] = set(issued.values())
        new, published = first.run_json("authserver", "key", "rotate")["kid"], time.time()
        issued |= await issue(lasting)
        ending = await issue(short)
        assert {*issued.values(), *ending.values()} == {old}
        # In place of the 7 minutes until the new key signs: a moment until every worker has it, and an older date.
        await asyncio.to_thread(wait_until, lambda: all(_key_sets_fetched(node) > published for node in fleet.nodes))
        fleet.execute("UPDATE signing_key SET published_at = published_at - 420 WHERE kid = %s", new)
        while set((latest := await issue(lasting)).values()) != {new}:
            issued |= latest
            # The new key may sign from here on.
            ending = {token: kid for token, kid in (await issue(short)).items() if kid == old} or ending
            await asyncio.sleep(0.2)
        assert await call_everywhere(http, fleet, [*[*issued][:4], *[*issued][-4:], *latest]) == {200}
    return [*ending]


def _key_sets_fetched(node: Node) -> float:
    return node.metric("resourceserver", "gatehouse_key_set_fetched_timestamp_seconds")


KINDS = ("token", "call")


@dataclass
class Watch:
    """A load, with the time of each of its answers."""

    load: Load
    answers: list[tuple[float, str, bool]] = field(default_factory=list)
    """Monotonic time, kind, and whether the request succeeded."""
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.load.answered = self._record

    def _record(self, kind: str, succeeded: bool) -> None:
        self.answers.append((time.monotonic(), kind, succeeded))
        self._answered.set()

    @property
    def failures(self) -> list[str]:
        """The requests that failed."""
        return self.load.tally.failures

    async def wait_for(self, number: int, *, succeeded: bool = True) -> None:
        """Wait until this many more requests of each kind have succeeded, or failed. Raises TimeoutError."""
        since = time.monotonic()
        with anyio.move_on_after(LIMIT):
            while any(len(self.times(kind, since, succeeded=succeeded)) < number for kind in KINDS):
                self._answered.clear()
                await self._answered.wait()
            return
        raise TimeoutError(f"{self.load.tally.line()}: {self.failures[-3:]}")

    def times(self, kind: str, since: float, *, succeeded: bool = True) -> list[float]:
        """Return the monotonic times of the answers since another time."""
        return [at for at, *answer in self.answers if answer == [kind, succeeded] and at >= since]


@contextlib.asynccontextmanager
async def under_load(fleet: Fleet, clients: Iterable[dict[str, Any]], rate: float) -> AsyncIterator[Watch]:
    """Send `rate` token requests and as many calls per second to the proxy until the block ends."""
    watch = Watch(Load(fleet.first, rate))
    async with (
        httpx2.AsyncClient(timeout=30, trust_env=False, verify=fleet.trusted) as http,
        anyio.create_task_group() as tasks,
    ):
        for client in clients:
            watch.load.add(http, client)
        tasks.start_soon(watch.load.run)
        yield watch
        tasks.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def mcp_session(fleet: Fleet, client: dict[str, Any]) -> AsyncIterator[list[str]]:
    """Call a tool again and again in a session of the SDK. Yields the results: `called`, or the error."""
    results: list[str] = []

    async def repeat() -> None:
        async with connect(fleet.first, client, "2026-07-28", fleet.trusted) as agent:
            while True:
                try:
                    await agent.call("whoami")
                    results.append("called")
                except MCPError as error:
                    results.append(f"{error.error.code}: {error.error.message}")
                await anyio.sleep(0.1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(repeat)
        yield results
        tasks.cancel_scope.cancel()
