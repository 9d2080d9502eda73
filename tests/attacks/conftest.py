"""Fixtures of the attack tests."""

import pytest
from support.attacked import Attacked
from support.authserver import AuthServer
from support.mcp_target import Target
from support.resourceserver import ResourceServer


@pytest.fixture
def attacked(authserver: AuthServer) -> Attacked:
    return Attacked(authserver)


@pytest.fixture
async def target(resourceserver: ResourceServer) -> Target:
    return Target(resourceserver)
