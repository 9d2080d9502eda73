"""Rotation of keys and secrets under load: no request fails.

The wall clock of both servers, their commands and the agents runs ten times as fast, so that keys pass through all
states in minutes: a key is published 7 minutes before it signs, and for more than an hour after.
"""

import json
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

from gatehouse.shared.protocol.jws import SigningKey

pytestmark = [pytest.mark.soak, pytest.mark.anyio]

SPEED = 10
KEY_ROTATIONS = 5
SECRET_ROTATIONS = 2
"""The number of secret rotations, and of client key rotations."""

RATE = 20.0
ENOUGH = 5000
"""The minimum number of token requests, and of calls."""

A_WHILE = 5.0
"""Seconds that an agent uses the old credential while the new one exists, and the new one while the old one does."""

PATIENCE = 900.0
"""Seconds after which the test fails."""


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
    """Rotates credentials and keys, and waits until the server has applied the change."""

    def __init__(self, stack: LocalStack) -> None:
        self.stack = stack

    async def run_json(self, *arguments: str) -> Any:
        return await anyio.to_thread.run_sync(self.stack.run_json, *arguments)

    async def keys(self) -> dict[str, str]:
        return {key["kid"]: key["state"] for key in await self.run_json("authserver", "key", "list")}

    async def rotate_key(self) -> str:
        """Rotate the signing key, wait until the new one signs, and return its kid."""
        kid: str = (await self.run_json("authserver", "key", "rotate"))["kid"]
        while (await self.keys())[kid] != "active":  # noqa: ASYNC110 - another process decides it
            await anyio.sleep(1)
        return kid

    async def rotate_secret(self, agent: LoadedAgent) -> None:
        """Create a secret, give it to the agent after a delay, and revoke the old one after another delay."""
        secret = ("authserver", "client", "secret")
        (old,) = [known for known in await self.run_json(*secret, "list", agent.client_id) if not known["expires_at"]]
        made = await self.run_json(*secret, "rotate", agent.client_id, "--grace-period", "7d")
        await anyio.sleep(A_WHILE)
        agent.secret = made["client_secret"]
        await anyio.sleep(A_WHILE)
        await self.run_json(*secret, "revoke", agent.client_id, old["secret_id"], "--yes")

    async def replace_key(self, agent: LoadedAgent, name: str) -> None:
        """Replace an agent's key in the same way."""
        key, private, public = SigningKey.generate("ES256"), self.stack.folder / name, self.stack.folder / "jwks.json"
        private.write_bytes(key.private_pem())
        public.write_text(json.dumps({"keys": [key.public_jwk()]}))
        client_key = ("authserver", "client", "key")
        (old,) = [
            known for known in await self.run_json(*client_key, "list", agent.client_id) if not known["expires_at"]
        ]
        await self.run_json(*client_key, "rotate", agent.client_id, "--jwks", str(public), "--grace-period", "7d")
        await anyio.sleep(A_WHILE)
        agent.private_key = private
        await anyio.sleep(A_WHILE)
        await self.run_json(*client_key, "revoke", agent.client_id, old["thumbprint"], "--yes")


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        yield client


async def test_no_request_fails_while_keys_and_secrets_are_rotated(
    fast_stack: LocalStack, http: httpx2.AsyncClient
) -> None:
    stack, admin = fast_stack, Admin(fast_stack)
    load = Load(stack, RATE, fast_clock(stack.settings["FAST_CLOCK"]))
    by_secret = load.add(http, stack.create_client("by-secret", "env:read"))
    load.add(http, stack.create_client("by-secret-for-an-hour", "env:read", "--ttl", "3600"))
    by_key = load.add(http, stack.create_client("by-key", "env:read", "--generate-key", "by-key.pem"))
    with anyio.fail_after(PATIENCE):
        first = next(iter(await admin.keys()))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.run)
            kids = [first]
            for rotation in range(KEY_ROTATIONS):
                kids.append(await admin.rotate_key())
                print(f"\n{rotation + 1} key rotations: {load.tally.line()}", flush=True)
                if rotation < SECRET_ROTATIONS:
                    await admin.rotate_secret(by_secret)
                    await admin.replace_key(by_key, f"by-key-{rotation}.pem")
            # The first key is removed after its last token has expired.
            while first in await admin.keys() or load.tally.least < ENOUGH:  # noqa: ASYNC110 - another process
                await anyio.sleep(2)
            tasks.cancel_scope.cancel()
    print(f"\n{load.tally.line()}", flush=True)
    assert load.tally.failures == []
    assert set(kids) == set(load.tally.keys)
    assert len(load.tally.credentials) == 3 + 2 * SECRET_ROTATIONS
