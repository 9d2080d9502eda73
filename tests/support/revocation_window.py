"""Measures on running servers how long a token is accepted after its revocation."""

import statistics
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import anyio
import httpx2
import jwt
from local_stack import LocalStack

from support.load import Load, Tally

What = Literal["token", "client", "key"]

BETWEEN_CALLS = 0.2
"""Seconds between two calls with one token: the accuracy of the measurement."""

_PATIENCE = 30.0
"""Seconds after which a token that is still accepted is a failure."""

_LOADED_AGENTS = 4

_REFUSALS = 12
"""Consecutive refusals that end a watch. Each call uses a new connection: by then every worker has answered."""


@dataclass
class Windows:
    """Seconds from the commit of a revocation to the last accepted call."""

    what: What
    seconds: list[float] = field(default_factory=list)
    calls: int = 0
    load: Tally | None = None
    """The requests of the load in the background."""

    def line(self) -> str:
        """Return a row of the report."""
        ordered = sorted(self.seconds)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        return (
            f"{self.what}: n={len(ordered)} calls={self.calls} "
            f"p50={statistics.median(ordered):.1f} s p99={p99:.1f} s max={ordered[-1]:.1f} s"
        )


async def ping(http: httpx2.AsyncClient, stack: LocalStack, token: str) -> int:
    """Return the status of a call that needs only a valid token."""
    headers = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json, text/event-stream",
        "Connection": "close",
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    return (await http.post(stack.resource, json=body, headers=headers)).status_code


async def obtain(http: httpx2.AsyncClient, stack: LocalStack, client: dict[str, Any]) -> str:
    """Return a new token of a client."""
    form = {"grant_type": "client_credentials"}
    response = await http.post(f"{stack.issuer}/token", data=form, auth=(client["client_id"], client["client_secret"]))
    token: str = response.raise_for_status().json()["access_token"]
    return token


async def measure(stack: LocalStack, what: What, samples: int, apart: float, rate: float = 0) -> Windows:
    """Revoke `samples` tokens: on their own, with their clients, or with the key that signed them.

    Each token is watched until every worker refuses it. Revocations of tokens and clients start `apart` seconds after
    each other; keys are revoked one by one, because each revocation affects every token. `rate` is the load in the
    background, in token requests and calls per second.
    """
    windows = Windows(what)
    clients = [stack.create_client(f"measured-{number}", "env:read") for number in range(samples)]
    load = Load(stack, rate, keys_are_revoked=what == "key")
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as http, anyio.create_task_group() as tasks:
        if rate:
            for number in range(_LOADED_AGENTS):
                load.add(http, stack.create_client(f"loaded-{number}", "env:read"))
            tasks.start_soon(load.run)
        async with anyio.create_task_group() as watches:
            for client in clients:
                if what == "key":
                    await _watch(http, stack, client, windows)
                else:
                    watches.start_soon(_watch, http, stack, client, windows)
                    await anyio.sleep(apart)
        tasks.cancel_scope.cancel()
    windows.load = load.tally
    return windows


async def _watch(http: httpx2.AsyncClient, stack: LocalStack, client: dict[str, Any], windows: Windows) -> None:
    token = await obtain(http, stack, client)
    for _ in range(4):
        status = await ping(http, stack, token)
        assert status == 200, status
    revoked_at: list[float] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_revoke, http, stack, client, token, windows.what, revoked_at)
        last_accepted, refusals, began_at = time.time(), 0, time.time()
        while refusals < _REFUSALS and time.time() < began_at + _PATIENCE:
            sent_at = time.time()
            status = await ping(http, stack, token)
            assert status in {200, 401}, status
            refusals = refusals + 1 if status == 401 else 0
            last_accepted = sent_at if status == 200 else last_accepted
            windows.calls += 1
            await anyio.sleep(BETWEEN_CALLS)
    assert refusals == _REFUSALS, f"{windows.what}: still accepted {time.time() - revoked_at[0]:.0f} s after it"
    windows.seconds.append(last_accepted - revoked_at[0])


async def _revoke(
    http: httpx2.AsyncClient,
    stack: LocalStack,
    client: dict[str, Any],
    token: str,
    what: What,
    revoked_at: list[float],
) -> None:
    """Revoke a token, its client or its key, and record when the change was committed."""
    client_id = client["client_id"]
    if what == "token":
        basic = (client_id, client["client_secret"])
        answer = await http.post(f"{stack.issuer}/revoke", data={"token": token}, auth=basic)
        assert answer.status_code == 200, answer.text
        revoked_at.append(time.time())
        return
    if what == "client":
        action, target = "client.disable", client_id
        await anyio.to_thread.run_sync(stack.run, "authserver", "client", "disable", client_id)
    else:
        action, target = "key.revoke", jwt.get_unverified_header(token)["kid"]
        await anyio.to_thread.run_sync(stack.run, "authserver", "key", "revoke", target, "--yes")
    # The command ends long after its commit. The audit log has the time.
    events = await anyio.to_thread.run_sync(stack.run_json, "authserver", "audit", "--action", action)
    [event] = [event for event in events if event["object"] == target]
    revoked_at.append(datetime.fromisoformat(event["time"]).timestamp())
