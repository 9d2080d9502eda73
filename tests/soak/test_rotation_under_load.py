"""Rotation of keys and secrets under load: no request fails.

The wall clock of both servers, their commands and the agents runs ten times as fast, so that keys pass through all
states in minutes: a key is published 7 minutes before it signs, and for more than an hour after.
"""

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import httpx2
import pytest
from local_stack import LocalStack
from support.fast_clock.sitecustomize import fast_clock
from support.limits import VARIABLES
from support.load import Load
from support.rotation import Admin

pytestmark = [pytest.mark.soak, pytest.mark.anyio]

SPEED = 10
KEY_ROTATIONS = 5
SECRET_ROTATIONS = 2
"""The number of secret rotations, and of client key rotations."""

RATE = 20.0
ENOUGH = 5000
"""The minimum number of token requests, and of calls."""

PATIENCE = 900.0
"""Seconds after which the test fails."""


@pytest.fixture
def fast_stack(tmp_path: Path) -> Iterator[LocalStack]:
    setting = f"{SPEED}@{time.time()}"
    folder = Path(__file__).parents[1] / "support" / "fast_clock"
    running = LocalStack(tmp_path, settings={**VARIABLES, "FAST_CLOCK": setting, "PYTHONPATH": str(folder)})
    running.init()
    try:
        running.start_all()
        yield running
    finally:
        running.stop()


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
