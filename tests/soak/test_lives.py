"""Keys and secrets are replaced while agents ask for tokens and call tools: not one request fails.

The wall clock of both servers, their commands and the agents runs ten times as fast, so that keys live through all of
their states in minutes: a key is published 7 minutes before it signs, and for more than an hour after.
"""

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from local_stack import LocalStack
from support.fast_clock.sitecustomize import fast_clock
from support.load import Load, LoadedAgent

pytestmark = [pytest.mark.soak, pytest.mark.anyio]

SPEED = 10
KEY_ROTATIONS = 5
SECRET_ROTATIONS = 0
RATE = 20.0
ENOUGH = 5000
"""Token requests, and calls, at least."""

PATIENCE = 900.0
"""Seconds after which the journey is given up."""


@pytest.fixture
def fast_stack(tmp_path: Path) -> Iterator[LocalStack]:
    setting = f"{SPEED}@{time.time()}"
    folder = Path(__file__).parents[1] / "support" / "fast_clock"
    running = LocalStack(tmp_path, settings={"FAST_CLOCK": setting, "PYTHONPATH": str(folder)})
    running.init()
    try:
        running.start_all()
        yield running
    finally:
        running.stop()


class Admin:
    """Rotates, and waits for what follows by itself."""

    def __init__(self, stack: LocalStack) -> None:
        self.stack = stack

    async def run_json(self, *arguments: str) -> Any:
        return await anyio.to_thread.run_sync(self.stack.run_json, *arguments)

    async def keys(self) -> dict[str, str]:
        return {key["kid"]: key["state"] for key in await self.run_json("authserver", "key", "list")}

    async def rotate_key(self) -> str:
        """Have a new key sign, and return its kid."""
        kid: str = (await self.run_json("authserver", "key", "rotate"))["kid"]
        while (await self.keys())[kid] != "active":  # noqa: ASYNC110 - another process decides it
            await anyio.sleep(1)
        return kid

    async def rotate_secret(self, agent: LoadedAgent) -> None:
        """Give an agent a new secret, a while after it was made: until then the old one has to work."""
        rotate = ("authserver", "client", "secret", "rotate", agent.client_id, "--overlap", "7d")
        made = await self.run_json(*rotate)
        await anyio.sleep(10)
        agent.secret = made["client_secret"]
        await anyio.sleep(5)
        for secret in await self.run_json("authserver", "client", "secret", "list", agent.client_id):
            if not made["client_secret"].startswith(secret["prefix"]):
                await self.run_json(
                    "authserver", "client", "secret", "expire", agent.client_id, secret["secret_id"], "--yes"
                )


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        yield client


async def test_no_request_fails_while_keys_and_secrets_are_replaced(
    fast_stack: LocalStack, http: httpx2.AsyncClient
) -> None:
    stack, admin = fast_stack, Admin(fast_stack)
    load = Load(stack, RATE, fast_clock(stack.settings["FAST_CLOCK"]))
    by_secret = load.add(http, stack.create_client("by-secret", "env:read"))
    load.add(http, stack.create_client("by-secret-for-an-hour", "env:read", "--ttl", "3600"))
    load.add(http, stack.create_client("by-key", "env:read", "--generate-key", "by-key.pem"))
    with anyio.fail_after(PATIENCE):
        first = next(iter(await admin.keys()))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.run)
            made = [first]
            for rotation in range(KEY_ROTATIONS):
                made.append(await admin.rotate_key())
                print(f"\n{rotation + 1} key rotations: {load.tally.line()}", flush=True)
                if rotation < SECRET_ROTATIONS:
                    await admin.rotate_secret(by_secret)
            # The life of the first key ends when its last token has.
            while first in await admin.keys() or load.tally.least < ENOUGH:  # noqa: ASYNC110 - another process
                await anyio.sleep(2)
            tasks.cancel_scope.cancel()
    print(f"\n{load.tally.line()}", flush=True)
    assert load.tally.failures == []
    assert set(made) == set(load.tally.keys)
    assert len(load.tally.credentials) == 2 + SECRET_ROTATIONS + 1
