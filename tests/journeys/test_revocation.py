"""Revocation under load of one token, or of all tokens of a client, at resource servers that only poll."""

import httpx2
import pytest
from local_stack import LocalStack
from support.revocation_window import BETWEEN_CALLS, What, measure, obtain, ping

pytestmark = pytest.mark.anyio


@pytest.mark.threat("T-014")
@pytest.mark.parametrize("what", ["token", "client", "key"])
async def test_revocations_reach_every_worker_under_load(stack: LocalStack, what: What) -> None:
    """The windows are printed, not checked; `make measure` prints more of them."""
    samples = 1 if what == "key" else 2
    windows = await measure(stack, what, samples, apart=BETWEEN_CALLS)
    print(f"revocation window of a {windows.line()}")
    assert len(windows.seconds) == samples


async def test_a_resource_introspects_a_token_with_its_credential(stack: LocalStack) -> None:
    client = stack.create_client("asked-about", "env:read")
    made = stack.run_json("authserver", "resource", "credential", "create", stack.resource)
    credential = (made["credential_id"], made["secret"])
    async with httpx2.AsyncClient(trust_env=False) as http:
        token = await obtain(http, stack, client)
        assert await ping(http, stack, token) == 200
        asked = await http.post(f"{stack.issuer}/introspect", data={"token": token}, auth=credential)
        assert (asked.json()["active"], asked.json()["client_id"]) == (True, client["client_id"])
        stack.run("authserver", "token", "revoke", "--jti", asked.json()["jti"])
        asked = await http.post(f"{stack.issuer}/introspect", data={"token": token}, auth=credential)
        assert asked.json() == {"active": False}
