"""The gate: which status, challenge and error each refusal has."""

import pytest
from support.resourceserver import ResourceServer

pytestmark = pytest.mark.anyio

METADATA_URL = "https://mcp.example.com/.well-known/oauth-protected-resource/mcp"


async def test_a_call_with_a_sufficient_token_runs(resourceserver: ResourceServer) -> None:
    result = await resourceserver.result("whoami", resourceserver.issuer.token("env:read"))
    assert result["client_id"] == "agent_1"
    assert result["scopes"] == ["env:read"]
