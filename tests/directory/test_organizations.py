"""Organizations, their settings and their users."""

from typing import Any

import pytest
from support.clock import FakeClock
from support.directory import Caller, count_rows

pytestmark = pytest.mark.anyio


async def test_a_created_organization_is_listed_in_its_environment(caller: Caller, clock: FakeClock) -> None:
    here = (await caller("create_environment", name="here"))["environment_id"]
    there = (await caller("create_environment", name="there"))["environment_id"]
    created = await caller("create_organization", environment_id=here, name="Łódź & Søns", external_id="crm:1")
    assert created.items() >= {"environment_id": here, "name": "Łódź & Søns", "external_id": "crm:1"}.items()
    listed = await caller("list_organizations", environment_id=here)
    assert listed == {"organizations": [created], "next_page_token": None}
    assert (await caller("list_organizations", environment_id=there))["organizations"] == []


@pytest.mark.both_databases
async def test_external_ids_are_unique_per_environment(caller: Caller) -> None:
    here = (await caller("create_environment", name="here"))["environment_id"]
    there = (await caller("create_environment", name="there"))["environment_id"]
    await caller("create_organization", environment_id=here, name="A", external_id="crm-1")
    answer = await caller.failure("create_organization", environment_id=here, name="B", external_id="crm-1")
    assert "An organization with that external_id exists" in answer
    assert await caller("create_organization", environment_id=there, name="A", external_id="crm-1")
    # Without an external_id, two organizations may have the same name.
    assert await caller("create_organization", environment_id=here, name="A")


@pytest.mark.threat("T-050")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("z" * 129, id="too long"),
        pytest.param("a\x00b", id="NUL"),
        pytest.param("a\nb", id="line feed"),
        pytest.param("a\x1b[31mb", id="ANSI escape"),
        pytest.param("a\x7fb", id="delete"),
        pytest.param("a\x9b31mb", id="C1 control sequence introducer"),
        pytest.param("a\x85b", id="C1 next line"),
        pytest.param("\u202egnp.exe\u2066", id="bidirectional"),
        pytest.param("Acme\U000e0049\U000e0067", id="tags, which only an agent reads"),
        pytest.param("Ac\u200bme", id="zero-width space"),
        pytest.param("Acme\ufe0f", id="variation selector"),
        pytest.param("Acme\U000e0101", id="variation selector supplement"),
        pytest.param("\u3164", id="Hangul filler"),
        pytest.param("Ac\u2800me", id="blank Braille pattern"),
        pytest.param("Acme\u0378", id="unassigned"),
        pytest.param(" \u3000", id="spaces only"),
        pytest.param("\u200d", id="a joiner only"),
    ],
)
async def test_a_name_with_invisible_characters_is_rejected(caller: Caller, name: str) -> None:
    """CWE-150, CWE-451, CVE-2021-42574: a reviewer cannot see what the name contains (OWASP LLM01:2025)."""
    environment = (await caller("create_environment", name="staging"))["environment_id"]
    seen = [
        "<b>O'Hara & \u201cS\u00f8ns\u201d</b>",
        "\u0645\u06cc\u200c\u062e",
        "\U0001f468\u200d\U0001f33e",
        "\u5c71\u3000\u592a",
    ]
    for visible in seen:
        assert await caller("create_organization", environment_id=environment, name=visible)
    assert "name" in await caller.failure("create_organization", environment_id=environment, name=name)
    assert count_rows(caller.server, "organization") == len(seen)


async def test_settings_have_defaults_and_change_individually(acme: Caller) -> None:
    organization = await acme.organization()

    async def settings() -> dict[str, Any]:
        details = await acme("get_organization_details", organization_id=organization)
        assert (details["organization_id"], details["environment_id"]) == (organization, acme.here)
        shown: dict[str, Any] = details["settings"]
        return shown

    expected = {
        "organization_id": organization,
        "mfa_required": False,
        "allowed_email_domains": [],
        "session_lifetime_minutes": 720,
    }
    assert await settings() == expected
    change = "update_organization_settings"
    for sent, stored in (
        ({"mfa_required": True}, True),
        ({"session_lifetime_minutes": 30}, 30),
        ({"allowed_email_domains": ["Example.org", "example.com", "example.com"]}, ["example.com", "example.org"]),
        ({"mfa_required": False}, False),
        ({"allowed_email_domains": []}, []),
    ):
        expected = {**expected, next(iter(sent)): stored}
        assert await acme(change, organization_id=organization, **sent) == expected
        assert await settings() == expected
    assert "nothing to change" in await acme.failure(change, organization_id=organization)
    assert "domain" in await acme.failure(change, organization_id=organization, allowed_email_domains=["a@example.com"])


async def test_a_users_email_must_have_an_allowed_domain(acme: Caller) -> None:
    organization = await acme.organization()
    create = "create_organization_user"
    assert await acme(create, organization_id=organization, email="ada@elsewhere.org")
    domains = {"allowed_email_domains": ["example.com"]}
    await acme("update_organization_settings", organization_id=organization, **domains)
    for email in ("bob@elsewhere.org", "bob@sub.example.com", "bob@notexample.com"):
        answer = await acme.failure(create, organization_id=organization, email=email)
        assert answer == "The organization does not allow that email domain. Call get_organization_details."
    assert await acme(create, organization_id=organization, email="Bob@Example.com")


@pytest.mark.threat("T-027")
async def test_a_users_role_must_exist_in_the_environment(acme: Caller) -> None:
    organization = await acme.organization()
    await acme("create_environment_role", environment_id=acme.there, name="owner")
    user = {"organization_id": organization, "email": "ada@example.com", "name": "Ada", "role": "owner"}
    assert "There is no such role" in await acme.failure("create_organization_user", **user)
    await acme("create_environment_role", environment_id=acme.here, name="owner")
    created = await acme("create_organization_user", **user)
    assert created.items() >= user.items()
    assert "A user with that email exists" in await acme.failure("create_organization_user", **user)
    other = await acme.organization()
    assert await acme("create_organization_user", **{**user, "organization_id": other})
    assert (await acme("list_organization_users", organization_id=organization))["users"] == [created]
