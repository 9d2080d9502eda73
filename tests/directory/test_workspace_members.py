"""Members of a workspace."""

import pytest
from support.clock import FakeClock
from support.directory import Caller

pytestmark = pytest.mark.anyio


async def test_an_invitation_is_recorded_and_can_be_revoked(acme: Caller, clock: FakeClock) -> None:
    invited = await acme("invite_workspace_member", email="Ada.O'Hara+1@Example.COM")
    assert invited.pop("user_id").startswith("usr_")
    assert invited == {
        "email": "ada.o'hara+1@example.com",
        "role": "member",
        "status": "invited",
        "created_at": int(clock()),
    }
    (listed,) = (await acme("list_workspace_members"))["members"]
    assert await acme("remove_workspace_member", user_id=listed["user_id"]) == listed
    assert (await acme("list_workspace_members"))["members"] == []
    assert "There is no such member" in await acme.failure("remove_workspace_member", user_id=listed["user_id"])


@pytest.mark.both_databases
async def test_an_email_is_invited_once_per_workspace_in_any_case(acme: Caller, other: Caller) -> None:
    await acme("invite_workspace_member", email="ada@example.com")
    assert "A member with that email exists" in await acme.failure("invite_workspace_member", email="ADA@example.com")
    assert await other("invite_workspace_member", email="ada@example.com")


@pytest.mark.parametrize(
    "email",
    [
        *("", "ada", "@example.com", "ada@", "ada@localhost", "ada@example.com\n", "ada@example.com,bob@example.com"),
        *("Ada <ada@example.com>", "a b@example.com", "ada@-example.com", "ada@example..com", ".ada@example.com"),
        *("ada..l@example.com", "\u00e4da@example.com", "ada@ex\u0430mple.com", "ada@[127.0.0.1]", '"a"@example.com'),
        "a" * 243 + "@example.com",
    ],
)
async def test_an_invalid_email_is_rejected(acme: Caller, email: str) -> None:
    assert "email" in await acme.failure("invite_workspace_member", email=email)
    organization = await acme.organization()
    assert "email" in await acme.failure("create_organization_user", organization_id=organization, email=email)
    assert await acme("invite_workspace_member", email="ada@example.com")
