"""MCP resources: the catalogue for every caller, and the same authorization as for tools."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support import ungated
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import RESOURCE, ResourceServer, modern_request, running_resource_server
from support.ungated import proven, without_gate

from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.resourceserver.catalogue import (
    ANY_VALID_TOKEN,
    CATALOGUE_URI,
    Catalogue,
    InvalidCatalogue,
    Resource,
    Scope,
    declare_resource,
)
from gatehouse.shared.service.audit.writer import AuditUnavailable, AuditWriter

pytestmark = pytest.mark.anyio

PLANS_URI = "gatehouse://plans"
SCOPES = [Scope("plan:write", "Make plans", ("plan:read",)), Scope("plan:read", "See plans")]


@pytest.fixture(params=["2025-11-25", "2026-07-28"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def plans(**changes: Any) -> Resource:
    options = {"name": "plans", "description": "What is planned.", "scopes": ["plan:read"], **changes}
    return declare_resource(PLANS_URI, lambda identifier: {"resource": identifier, "plans": ["secret plan"]}, **options)


@pytest.fixture
async def planning(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, anyio_backend: str
) -> AsyncIterator[ResourceServer]:
    """A server with a resource that needs plan:read."""
    catalogue = Catalogue("test", SCOPES, [], [plans()])
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, catalogue) as server:
        yield server


async def ask(
    server: ResourceServer, version: str, method: str, token: str | None = None, **params: Any
) -> httpx2.Response:
    body, headers = modern_request(method, **params)
    if version != "2026-07-28":
        body, headers = {**body, "params": params}, {"MCP-Protocol-Version": version}
    return await server.post(body, token, headers)


async def result_of(
    server: ResourceServer, version: str, method: str, scope: str = "plan:read", **params: Any
) -> dict[str, Any]:
    response = await ask(server, version, method, server.issuer.token(scope), **params)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()["result"]
    return result


def not_to_be_kept(result: dict[str, Any], version: str) -> bool:
    return version != "2026-07-28" or (result["cacheScope"], result["ttlMs"]) == ("private", 0)


# The catalogue


@pytest.mark.divergence("D-14")
async def test_any_caller_reads_every_tool_with_its_scopes(resourceserver: ResourceServer, version: str) -> None:
    result = await result_of(resourceserver, version, "resources/read", "no:scope", uri=CATALOGUE_URI)
    (content,) = result["contents"]
    assert (content["uri"], content["mimeType"]) == (CATALOGUE_URI, "application/json")
    document = json.loads(content["text"])
    assert document == CATALOGUE.document(RESOURCE)
    assert {tool["name"]: set(tool["scopes"]) for tool in document["tools"]} == {
        tool.name: tool.scopes for tool in CATALOGUE.tools.values()
    }
    assert not_to_be_kept(result, version)


async def test_the_catalogue_is_listed_and_there_are_no_templates(resourceserver: ResourceServer, version: str) -> None:
    listed = await result_of(resourceserver, version, "resources/list")
    (entry,) = listed["resources"]
    assert (entry["uri"], entry["name"], entry["mimeType"]) == (CATALOGUE_URI, "catalogue", "application/json")
    templates = await result_of(resourceserver, version, "resources/templates/list")
    assert templates["resourceTemplates"] == []
    assert not_to_be_kept(listed, version)
    assert not_to_be_kept(templates, version)


@pytest.mark.parametrize("method", ["resources/list", "resources/templates/list"])
async def test_the_lists_have_one_page(resourceserver: ResourceServer, version: str, method: str) -> None:
    assert "nextCursor" not in await result_of(resourceserver, version, method)
    response = await ask(resourceserver, version, method, resourceserver.issuer.token(), cursor="next")
    assert response.json()["error"]["code"] == -32602


@pytest.mark.both_databases
async def test_a_read_is_recorded(resourceserver: ResourceServer, version: str) -> None:
    token = resourceserver.issuer.token(jti="jti-of-this-read")
    response = await ask(resourceserver, version, "resources/read", token, uri=CATALOGUE_URI)
    await resourceserver.call("no_such_tool", token)  # its refusal is written after what came before
    (event,) = resourceserver.audit(request_id=response.headers["x-request-id"])
    assert (event["action"], event["object"], event["outcome"], event["actor"], event["jti"]) == (
        *("resource.read", CATALOGUE_URI, "allowed", "agent_1", "jti-of-this-read"),
    )


@pytest.mark.both_databases
async def test_a_read_that_cannot_be_recorded_is_not_answered(
    resourceserver: ResourceServer, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise AuditUnavailable("the queue is full")

    assert await result_of(resourceserver, version, "resources/read", uri=CATALOGUE_URI)
    monkeypatch.setattr(AuditWriter, "record", full)
    response = await ask(resourceserver, version, "resources/read", resourceserver.issuer.token(), uri=CATALOGUE_URI)
    assert response.json()["error"]["code"] == -31053
    assert "contents" not in response.text


# Authorization


async def test_a_resource_is_read_with_its_scope_or_one_that_implies_it(planning: ResourceServer, version: str) -> None:
    for scope in ("plan:read", "plan:write"):
        listed = await result_of(planning, version, "resources/list", scope)
        assert [entry["uri"] for entry in listed["resources"]] == [CATALOGUE_URI, PLANS_URI]
        read = await result_of(planning, version, "resources/read", scope, uri=PLANS_URI)
        assert json.loads(read["contents"][0]["text"]) == {"resource": RESOURCE, "plans": ["secret plan"]}


@pytest.mark.threat("T-024")
async def test_gate_and_dispatch_refuse_a_resource_without_its_scope(planning: ResourceServer, version: str) -> None:
    token = planning.issuer.token("other:scope")
    refused = await ask(planning, version, "resources/read", token, uri=PLANS_URI)
    assert refused.status_code == 403
    assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
    assert 'scope="plan:read"' in refused.headers["www-authenticate"]
    assert refused.json()["error"]["data"]["scope"] == "plan:read"
    listed = await result_of(planning, version, "resources/list", "other:scope")
    assert [entry["uri"] for entry in listed["resources"]] == [CATALOGUE_URI]
    async with without_gate(planning.services.server, proven("other:scope")) as http:
        passed = await ungated.ask(http, version, "resources/read", uri=PLANS_URI)
    assert passed["error"]["code"] == -31043
    assert passed["error"]["data"]["scope"] == "plan:read"
    assert "secret plan" not in refused.text + str(passed)
    gate, dispatch, *_ = planning.audit(action="resource.read")
    for event in (gate, dispatch):
        assert (event["object"], event["outcome"], event["reason"]) == (PLANS_URI, "refused", "needs plan:read")
    assert "grant add agent_1" in gate["detail"]["remediation"]


async def test_a_challenge_names_the_scope_of_the_resource(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, version: str
) -> None:
    catalogue = Catalogue("test", [*SCOPES, Scope("a:read", "A")], [], [plans()])
    async with running_resource_server(
        tmp_path / "rs", resourceserver_template, clock, catalogue, baseline_scopes="a:read"
    ) as server:
        for uri, named in ((PLANS_URI, "a:read plan:read"), (CATALOGUE_URI, "a:read"), ("x:y", "a:read")):
            response = await ask(server, version, "resources/read", uri=uri)
            assert response.status_code == 401
            assert f'scope="{named}"' in response.headers["www-authenticate"]


# Unknown resources


@pytest.mark.divergence("D-13")
@pytest.mark.threat("T-024")
@pytest.mark.parametrize(
    "uri",
    [
        *("gatehouse://nothing", "gatehouse://catalogue/", "gatehouse://CATALOGUE", "GATEHOUSE://catalogue"),
        *("gatehouse://catalogue?", "gatehouse://catalogue#", "gatehouse://catalogu%65", "gatehouse://catalogue%00"),
        *("file:///etc/passwd", "catalogue", "whoami"),
    ],
)
async def test_an_unknown_resource_is_invalid_params(resourceserver: ResourceServer, version: str, uri: str) -> None:
    """MCP SEP-2164: -32602 with the URI, not an empty list of contents."""
    token = resourceserver.issuer.token()
    assert await result_of(resourceserver, version, "resources/read", uri=CATALOGUE_URI)
    response = await ask(resourceserver, version, "resources/read", token, uri=uri)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["data"]["uri"]) == (-32602, uri)
    async with without_gate(resourceserver.services.server, proven()) as http:
        passed = await ungated.ask(http, version, "resources/read", uri=uri)
    assert (passed["error"]["code"], passed["error"]["data"]["uri"]) == (-32602, uri)


@pytest.mark.parametrize("params", [{}, {"uri": 5}, {"uri": None}, {"uri": ["gatehouse://catalogue"]}])
async def test_a_malformed_read_is_invalid_params(resourceserver: ResourceServer, params: Any) -> None:
    body = {"jsonrpc": "2.0", "id": 7, "method": "resources/read", "params": params}
    response = await resourceserver.post(body, resourceserver.issuer.token())
    assert response.status_code == 400
    assert response.json()["error"]["code"] == -32602


async def test_a_header_that_names_another_resource_is_refused(resourceserver: ResourceServer) -> None:
    """MCP 2026-07-28: Mcp-Name is params.uri."""
    body, headers = modern_request("resources/read", uri=CATALOGUE_URI)
    token = resourceserver.issuer.token()
    assert (await resourceserver.post(body, token, headers)).status_code == 200
    for wrong in ({**headers, "Mcp-Name": "gatehouse://other"}, {**headers, "Mcp-Name": ""}):
        response = await resourceserver.post(body, token, wrong)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == -32020


# Declarations


@pytest.mark.threat("T-024")
@pytest.mark.parametrize("scopes", [(), [], "", None])
def test_a_resource_without_a_list_of_scopes_is_refused(scopes: Any) -> None:
    with pytest.raises(InvalidCatalogue, match="gatehouse://plans has no scopes"):
        plans(scopes=scopes)
    with pytest.raises(
        InvalidCatalogue, match=r'gatehouse://plans has a string as its scopes. Write a list: \["plan:read"\]'
    ):
        plans(scopes="plan:read")
    assert plans(scopes=ANY_VALID_TOKEN).scopes == frozenset()


def test_a_resource_of_an_unknown_scope_or_a_known_uri_is_refused() -> None:
    with pytest.raises(InvalidCatalogue, match="gatehouse://plans needs the scope plan:burn, which is not declared"):
        Catalogue("test", SCOPES, [], [plans(scopes=["plan:burn"])])
    with pytest.raises(InvalidCatalogue, match="gatehouse://plans is declared twice"):
        Catalogue("test", SCOPES, [], [plans(), plans()])


# Discovery


async def test_discovery_names_the_extension_for_client_credentials(resourceserver: ResourceServer) -> None:
    discovered = await result_of(resourceserver, "2026-07-28", "server/discover")
    assert discovered["capabilities"]["extensions"] == {"io.modelcontextprotocol/oauth-client-credentials": {}}
    assert discovered["capabilities"].keys() == {"tools", "resources", "extensions"}


async def test_the_older_protocol_announces_no_extensions(resourceserver: ResourceServer) -> None:
    client = {"name": "test", "version": "1"}
    initialized = await result_of(
        *(resourceserver, "2025-11-25", "initialize"), protocolVersion="2025-11-25", capabilities={}, clientInfo=client
    )
    assert "extensions" not in initialized["capabilities"]
    assert not initialized["capabilities"]["resources"].get("subscribe")
