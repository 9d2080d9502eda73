"""Pages of lists, and the limits on their length."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert
from support.clock import FakeClock
from support.directory import Caller

from gatehouse.directory.models import (
    Base,
    ConnectionRow,
    EnvironmentRoleRow,
    EnvironmentScopeRow,
    McpServerRow,
    WorkspaceMemberRow,
)

pytestmark = pytest.mark.anyio


@pytest.mark.both_databases
async def test_pages_contain_every_entry_once_oldest_first(caller: Caller, clock: FakeClock) -> None:
    names = []
    for number in (3, 1, 4, 0, 2):
        clock.advance(1)
        names.append(f"env-{number}")
        await caller("create_environment", name=names[-1])
    for page_size, lengths in ((2, [2, 2, 1]), (5, [5]), (4, [4, 1]), (1, [1] * 5)):
        pages, page_token = [], None
        while not pages or page_token is not None:
            sent = {"page_size": page_size, **({"page_token": page_token} if page_token else {})}
            page = await caller("list_environments", **sent)
            pages.append([environment["name"] for environment in page["environments"]])
            page_token = page["next_page_token"]
        assert [len(page) for page in pages] == lengths
        assert [name for page in pages for name in page] == names


async def test_organizations_are_paged(caller: Caller, clock: FakeClock) -> None:
    environment = (await caller("create_environment", name="staging"))["environment_id"]
    for name in ("A", "B", "C"):
        clock.advance(1)
        await caller("create_organization", environment_id=environment, name=name)
    first = await caller("list_organizations", environment_id=environment, page_size=2)
    rest = await caller("list_organizations", environment_id=environment, page_token=first["next_page_token"])
    assert [o["name"] for o in first["organizations"] + rest["organizations"]] == ["A", "B", "C"]
    assert rest["next_page_token"] is None


@pytest.mark.parametrize(
    "page_token",
    [
        pytest.param("!!!", id="not base64"),
        pytest.param("zzzzz", id="bad length"),
        pytest.param("\u00ff", id="not ASCII"),
        pytest.param("AAAA", id="NUL bytes"),
        pytest.param("JyBPUiAxPTEgLS0", id="SQL"),
        pytest.param("b3JnXzAxbWNjNXJtMDBqZXlkN2NkcnY2NmhreGdz", id="of another list"),
    ],
)
async def test_an_invalid_page_token_is_rejected(caller: Caller, page_token: str) -> None:
    assert await caller("list_environments")
    answer = await caller.failure("list_environments", page_token=page_token)
    assert answer == "This list did not return that page_token. Omit it to start at the beginning."


def rows_of(
    table: type[Base], prefix: str, **values: Callable[[int], Any]
) -> Callable[[Caller, int], tuple[type[Base], list[dict[str, Any]]]]:
    """Return a function that creates rows of a table, in the environment `here` or in the workspace."""
    (key,) = table.__table__.primary_key
    owner = {"workspace_id", "environment_id"} & set(table.__table__.columns.keys())

    def make(caller: Caller, count: int) -> tuple[type[Base], list[dict[str, Any]]]:
        owners = {"workspace_id": caller.workspace_id, "environment_id": caller.here}
        return table, [
            {
                key.name: f"{prefix}_{number:026}",
                **{name: owners[name] for name in owner},
                **{name: value(number) for name, value in values.items()},
                "created_at": 0,
            }
            for number in range(count)
        ]

    return make


LIMITED = {
    "create_environment_role": (
        rows_of(EnvironmentRoleRow, "role", name=str, description=str),
        {"name": "new"},
        *("list_environment_roles", "roles", "roles in an environment", 100),
    ),
    "create_environment_scope": (
        rows_of(EnvironmentScopeRow, "scp", name=str, description=str),
        {"name": "new"},
        *("list_environment_scopes", "scopes", "scopes in an environment", 100),
    ),
    "register_mcp_server": (
        rows_of(McpServerRow, "mcps", name=str, url=str, scopes=lambda _: []),
        {"name": "new", "url": "https://new.example.com/mcp"},
        *("list_mcp_servers", "mcp_servers", "MCP servers in an environment", 100),
    ),
    "create_environment_oidc_connection": (
        rows_of(
            *(ConnectionRow, "conn"),
            kind=lambda _: "oidc",
            display_name=str,
            issuer=str,
            client_id=str,
            scopes=lambda _: ["openid"],
            token_endpoint_auth_method=lambda _: "none",
        ),
        {"display_name": "new", "issuer": "https://new.example.com", "client_id": "new"},
        *("list_environment_connections", "connections", "connections in an environment", 100),
    ),
    "invite_workspace_member": (
        rows_of(WorkspaceMemberRow, "usr", email=str, role=lambda _: "member", status=lambda _: "invited"),
        {"email": "new@example.com"},
        *("list_workspace_members", "members", "members in a workspace", 1000),
    ),
}


@pytest.mark.threat("T-041")
@pytest.mark.both_databases
@pytest.mark.parametrize("tool", LIMITED)
async def test_limits_apply_and_full_lists_are_paged(acme: Caller, tool: str) -> None:
    make, arguments, listing, key, things, limit = LIMITED[tool]
    within = {} if "members" in things else {"environment_id": acme.here}
    table, rows = make(acme, limit)
    with acme.server.admin_database.write() as session:
        session.execute(insert(table), rows[1:])
    assert await acme(tool, **within, **arguments)
    answer = await acme.failure(tool, **within, **arguments)
    assert answer == f"There can be at most {limit} {things}. Remove or change an existing one instead."
    seen: list[str] = []
    page_token: dict[str, str] = {}
    while not seen or page_token:
        page = await acme(listing, **within, **page_token, page_size=100 if limit > 100 else 40)
        seen += [next(iter(entry.values())) for entry in page[key]]
        page_token = {"page_token": page["next_page_token"]} if page["next_page_token"] else {}
    assert len(seen) == len(set(seen)) == limit
    assert seen == sorted(seen)
