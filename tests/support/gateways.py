"""A gateway in this process: a resource server whose tools are those of an upstream that a test decides."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from gatehouse.resourceserver.app import UpstreamSource, build_app, create_services
from gatehouse.resourceserver.upstream.policy_watch import PolicyWatch
from gatehouse.resourceserver.upstream.serving import unlisted_catalogue
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import Issuer, ResourceServer, lifespan, settings_in
from support.scripted_upstream import ScriptedUpstream, policy_text, tool
from support.waiting import until

POLICY = {
    "read": {"listed": tool("read"), "scopes": '["notes:read"]'},
    "write": {"listed": tool("write"), "scopes": '["notes:write"]'},
}
"""The tools of a policy that serves both tools of a ScriptedUpstream."""


class Gateway(ResourceServer):
    """A resource server whose tools are those of an upstream."""

    policies: PolicyWatch

    async def tools(self, scope: str) -> list[dict[str, Any]]:
        """Return what `tools/list` shows to a caller with these scopes."""
        body = {"jsonrpc": "2.0", "id": 7, "method": "tools/list"}
        response = await self.post(body, self.issuer.token(scope))
        found: list[dict[str, Any]] = response.json()["result"]["tools"]
        return found

    async def names(self, scope: str = "notes:write") -> list[str]:
        return [found["name"] for found in await self.tools(scope)]

    async def change_policy(self, content: str) -> None:
        """Replace the policy file, and wait until it is in force."""
        path = self.settings.upstream
        assert path is not None
        path.write_text(content)
        os.utime(path, ns=(1, self.policies.accepted.version))
        version = self.policies.accepted.version
        self.policies.supervise()
        self.policies.supervise()
        assert self.policies.accepted.version == version + 1


@asynccontextmanager
async def gateway(
    folder: Path, template: Template, upstream: ScriptedUpstream, policy: str = policy_text(POLICY), **changes: Any
) -> AsyncIterator[Gateway]:
    """Run a gateway in this process until the block ends."""
    file = folder / "policy.toml"
    file.write_text(policy)
    policies = PolicyWatch(file, lambda _: None)
    settings = settings_in(folder, database_url=template.install(folder), upstream=file, **changes)
    issuer = Issuer(FakeClock())
    services = create_services(
        settings,
        unlisted_catalogue(policies.newest().policy),
        issuer.clock,
        issuer.fetch_from,
        monotonic=issuer.clock,
        upstream=UpstreamSource(policies, upstream.open),
    )
    app = build_app(services)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(lifespan(app))
        http = await stack.enter_async_context(httpx2.AsyncClient(transport=httpx2.ASGITransport(app)))
        server = Gateway(app, services, issuer, http)
        server.policies = policies
        stack.callback(server.admin_database.close)
        if not upstream.away:
            await until(lambda: bool(services.catalogue.tools))
        yield server


def outcomes(server: ResourceServer, tool_name: str) -> list[tuple[str, str | None]]:
    """Return outcome and reason of the calls of a tool, oldest first."""
    events = [event for event in server.audit(action="tool.call") if event["object"] == tool_name]
    return [(event["outcome"], event["reason"]) for event in events]
