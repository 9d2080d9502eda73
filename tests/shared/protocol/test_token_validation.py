"""`authserver token inspect` and the resource server use the same validation."""

from typing import Any

import pytest
from support.clock import FakeClock
from support.resourceserver import ISSUER, LIST, RESOURCE, Issuer

from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.tokens.inspect import Inspection
from gatehouse.authserver.tokens.issue import Index
from gatehouse.resourceserver.bearer.jwks import KeySource
from gatehouse.resourceserver.bearer.verifier import TokenRefused, Verifier
from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.protocol.status_list import LIST_SIZE, is_set, list_uri
from gatehouse.shared.service.checks import passed

pytestmark = pytest.mark.anyio

REVOKED = 7
CLIENTS = {
    name: Client(name, name, "client_secret_basic", None, False, {}, False, 0, False, (), (), {}, {})
    for name in ("agent_1", "agent_2")
}


def status(idx: int, uri: str = LIST) -> dict[str, Any]:
    return {"status": {"status_list": {"idx": idx, "uri": uri}}}


async def accepted_by_verifier(issuer: Issuer, token: str) -> bool:
    source = KeySource(issuer.fetch, issuer.clock)
    await source.refresh()
    statuses = issuer.statuses(source)
    await statuses.refresh()
    try:
        await Verifier(ISSUER, RESOURCE, source, statuses, issuer.clock).verify(token)
    except TokenRefused:
        return False
    return True


async def reported_valid(issuer: Issuer, token: str) -> bool:
    fetched = await issuer.fetch(None)
    keys = parse_key_set(fetched.document)

    def is_active(index: Index) -> bool:
        bits = issuer.lists.get(list_uri(ISSUER, index.list_id), b"")
        return index.idx < len(bits) * 8 and not is_set(bytes(bits), index.idx)

    return passed(Inspection(token, ISSUER, keys, CLIENTS.get, frozenset({RESOURCE}), issuer.clock, is_active).run())


@pytest.mark.threat("T-012")
@pytest.mark.parametrize(
    ("changes", "seconds", "accepted"),
    [
        pytest.param({}, 0, True, id="valid"),
        pytest.param({}, 300 + LEEWAY - 0.001, True, id="to the end of the leeway"),
        pytest.param({}, 300 + LEEWAY, False, id="expired"),
        pytest.param({}, -LEEWAY, True, id="as early as the leeway"),
        pytest.param({}, -LEEWAY - 0.001, False, id="too early"),
        pytest.param({"cnf": {"jkt": "a"}}, 0, False, id="bound to a key"),
        pytest.param({"nbf": 0}, 0, False, id="nbf"),
        pytest.param({"nbf": None}, 0, True, id="no nbf"),
        pytest.param({"iss": "https://evil.example"}, 0, False, id="another issuer"),
        pytest.param({"aud": f"{RESOURCE}/"}, 0, False, id="another audience"),
        pytest.param({"aud": [RESOURCE]}, 0, False, id="a list of audiences"),
        pytest.param({"exp": 1_800_000_000 + MAX_LIFETIME}, 0, True, id="the longest lifetime"),
        pytest.param({"exp": 1_800_000_001 + MAX_LIFETIME}, 0, False, id="a longer lifetime"),
        pytest.param({"exp": 1_800_000_000}, 0, False, id="no lifetime"),
        pytest.param({"sub": "agent_2"}, 0, False, id="another subject"),
        pytest.param({"jti": None}, 0, False, id="a claim is missing"),
        pytest.param({"status": None}, 0, False, id="no status"),
        pytest.param(status(REVOKED), 0, False, id="revoked"),
        pytest.param(status(LIST_SIZE - 1), 0, True, id="the last index of its list"),
        pytest.param(status(LIST_SIZE), 0, False, id="beyond its list"),
        pytest.param(status(2, "https://evil.example/status-lists/0123456789ab"), 0, False, id="a list elsewhere"),
    ],
)
async def test_inspection_and_resource_server_always_agree(
    clock: FakeClock, changes: dict[str, Any], seconds: float, accepted: bool
) -> None:
    """RFC 9068 4; RFC 7800 3.1 (`cnf`)."""
    issuer = Issuer(clock)
    issuer.revoke(REVOKED)
    assert await accepted_by_verifier(issuer, issuer.token())
    token = issuer.token(**changes)
    clock.advance(seconds)
    assert (await accepted_by_verifier(issuer, token), await reported_valid(issuer, token)) == (accepted, accepted)
