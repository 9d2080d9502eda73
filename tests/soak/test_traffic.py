"""What the traffic of a soak records."""

from pathlib import Path
from typing import cast

import pytest
from local_stack import LocalStack
from soak.traffic import Agent, Traffic
from support.connections import Answer, Connections

from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.redaction import MASK

pytestmark = pytest.mark.anyio


class Granting:
    """Answers every request with a token."""

    def __init__(self, token: str) -> None:
        self.token = token

    async def exchange(self, _: bytes) -> Answer:
        return Answer(200, f'{{"access_token":"{self.token}"}}'.encode(), 1.0)


async def test_the_recording_of_a_wrong_answer_contains_no_token(tmp_path: Path) -> None:
    agent = Agent("agent_1", "gths_none")
    traffic = Traffic(LocalStack(tmp_path), [agent], [], agent, agent, {}, "env_1")
    token = SigningKey.generate("ES256").sign("at+jwt", {"sub": "agent_1"})
    traffic.authserver = cast("Connections", Granting(token))
    await traffic.attempt(traffic.try_wrong_secret)
    [failure] = traffic.record.failures
    assert failure.startswith("wrong secret: 200 and not 401")
    assert MASK in failure
    assert "eyJ" not in failure
