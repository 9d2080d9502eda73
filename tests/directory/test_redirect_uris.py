"""Redirect URIs and other registered addresses (RFC 9700 section 2.1, RFC 8252 sections 7 and 8)."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import insert
from support.resourceserver import ResourceServer

from gatehouse.directory.addresses import InitiateLoginUri, IssuerUrl, McpServerUrl, RedirectUri
from gatehouse.directory.models import RedirectUriRow


def accepted(kind: Any, text: str) -> str | None:
    """Return the parsed value, or None if it is rejected. The error message must not repeat the text."""
    try:
        value: str = TypeAdapter(kind).validate_python(text)
    except ValidationError as error:
        (problem,) = error.errors(include_input=False, include_context=False, include_url=False)
        assert problem["msg"]
        assert len(text) < 12 or text not in problem["msg"]
        return None
    return value


@pytest.mark.divergence("D-28")
@pytest.mark.threat("T-037")
@pytest.mark.parametrize(
    "uri",
    [
        "https://app.example.com/callback",
        "https://app.example.com",
        "https://app.example.com:8443/callback?tenant=a%20b",
        "HTTPS://App.example.com/callback",
        "http://127.0.0.1/callback",
        "http://127.0.0.1:49152/callback",
        "http://[::1]:49152/callback",
        "http://localhost:3000/callback",
        "com.example.app:/oauth2redirect/example-provider",
        "https://app.example.com/" + "a" * 1000,
    ],
)
def test_a_redirect_uri_is_stored_unchanged(uri: str) -> None:
    assert accepted(RedirectUri, uri) == uri


@pytest.mark.divergence("D-27")
@pytest.mark.threat("T-037")
@pytest.mark.parametrize(
    "uri",
    [
        pytest.param("", id="empty"),
        pytest.param("/callback", id="relative"),
        pytest.param("//app.example.com/callback", id="without scheme"),
        pytest.param("app.example.com/callback", id="host only"),
        pytest.param("http://app.example.com/callback", id="plain http"),
        pytest.param("http://127.0.0.1.example.com/callback", id="looks like loopback"),
        pytest.param("http://127.0.0.1@app.example.com/callback", id="loopback as user"),
        pytest.param("http://localhost.example.com/callback", id="looks like localhost"),
        pytest.param("https://app.example.com/callback#part", id="fragment"),
        pytest.param("https://app.example.com/callback#", id="empty fragment"),
        pytest.param("https://*.example.com/callback", id="wildcard host"),
        pytest.param("https://app.example.com/*", id="wildcard path"),
        pytest.param("https://user:password@app.example.com/callback", id="user information"),
        pytest.param("https://app.example.com/a/../callback", id="dot segments"),
        pytest.param("https://app.example.com/a/%2e%2E/callback", id="encoded dot segments"),
        pytest.param("https://app.example.com\\@evil.example/callback", id="backslash"),
        pytest.param("https://app.example.com/call back", id="space"),
        pytest.param("https://app.example.com/callback\n", id="line feed"),
        pytest.param("https://app.example.com/\u00e9", id="not ASCII"),
        pytest.param("https://\u0430pp.example.com/callback", id="homograph"),
        pytest.param("https://app.example.com/%zz", id="broken escape"),
        pytest.param("https:///callback", id="no host"),
        pytest.param("https:/callback", id="one slash"),
        pytest.param("https:callback", id="no slash"),
        pytest.param("https://%61pp.example.com/callback", id="escaped host"),
        pytest.param("https://[::1/callback", id="broken IPv6"),
        pytest.param("https://app.example.com:99999/callback", id="invalid port"),
        pytest.param("javascript:alert(1)", id="javascript"),
        pytest.param("data:text/html,hello", id="data"),
        pytest.param("file:///etc/passwd", id="file"),
        pytest.param("myapp:/callback", id="private scheme without a dot"),
        pytest.param("com.example.app://callback", id="private scheme with an authority"),
        pytest.param("com.example.app:callback", id="private scheme without a path"),
        pytest.param("urn:ietf:wg:oauth:2.0:oob", id="out of band"),
        pytest.param("https://app.example.com/" + "a" * 1001, id="too long"),
    ],
)
def test_an_invalid_redirect_uri_is_rejected(uri: str) -> None:
    assert accepted(RedirectUri, "https://app.example.com/callback")
    assert accepted(RedirectUri, uri) is None


def test_an_initiate_login_uri_must_be_https() -> None:
    """OpenID Connect Core section 4: initiate_login_uri."""
    assert accepted(InitiateLoginUri, "https://app.example.com/login?a=b") == "https://app.example.com/login?a=b"
    for uri in ("http://127.0.0.1/login", "com.example.app:/login", "https://app.example.com/#", "https://*/"):
        assert accepted(InitiateLoginUri, uri) is None


@pytest.mark.threat("T-038")
def test_an_issuer_must_be_https_and_is_stored_unchanged() -> None:
    for issuer in ("https://idp.example.com", "https://idp.example.com/", "https://idp.example.com/t/v2.0"):
        assert accepted(IssuerUrl, issuer) == issuer
    for issuer in (
        *("http://127.0.0.1:9000", "https://idp.example.com?a=b", "https://idp.example.com#a", "https://*.example.com"),
        *("https://a@idp.example.com", "idp.example.com", "https://", "https://[::1", "https://idp.example.com/../x"),
    ):
        assert accepted(IssuerUrl, issuer) is None


def test_an_mcp_server_url_is_stored_in_canonical_form() -> None:
    """RFC 8707 section 2; MCP 2026-07-28, "Canonical Server URI"."""
    for text, canonical in (
        ("HTTPS://MCP.Example.com:443/mcp", "https://mcp.example.com/mcp"),
        ("https://mcp.example.com/", "https://mcp.example.com"),
        ("http://localhost:8000/mcp", "http://localhost:8000/mcp"),
    ):
        assert accepted(McpServerUrl, text) == canonical
    for text in ("http://mcp.example.com/mcp", "https://mcp.example.com/mcp#a", "https://mcp.example.com/mcp?a=b"):
        assert accepted(McpServerUrl, text) is None


@pytest.mark.threat("T-037")
@pytest.mark.anyio
async def test_a_uri_is_added_once_and_removed_by_exact_match(resourceserver: ResourceServer) -> None:
    token = resourceserver.issuer.token(workspace_id=resourceserver.create_workspace())
    environment = (await resourceserver.result("create_environment", token, name="a"))["environment_id"]
    sent = {"environment_id": environment, "uri": "https://app.example.com/callback"}
    added = await resourceserver.result("add_redirect_uri", token, **sent)
    assert await resourceserver.result("add_redirect_uri", token, **sent) == added
    logout = await resourceserver.result("add_post_logout_redirect_uri", token, **sent)
    assert logout["redirect_uri_id"] != added["redirect_uri_id"]
    other = {**sent, "uri": "https://app.example.com/callback/"}
    assert "There is no such redirect URI" in await resourceserver.failure("remove_redirect_uri", token, **other)
    assert await resourceserver.result("remove_redirect_uri", token, **sent) == added
    assert "Call list_redirect_uris" in await resourceserver.failure("remove_redirect_uri", token, **sent)
    assert await resourceserver.result("list_redirect_uris", token, environment_id=environment) == {
        "environment_id": environment,
        "initiate_login_uri": None,
        "redirect_uris": [],
        "post_logout_redirect_uris": [logout],
    }
    nothing_set = await resourceserver.failure("remove_initiate_login_uri", token, environment_id=environment)
    assert "There is no such initiate login URI" in nothing_set


@pytest.mark.threat("T-037")
@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["redirect_uri", "post_logout_redirect_uri"])
async def test_a_uri_belongs_to_its_environment(resourceserver: ResourceServer, kind: str) -> None:
    """Two tenants may register the same URI. Neither adds or removes it for the other."""
    tokens = [
        resourceserver.issuer.token(workspace_id=resourceserver.create_workspace(name)) for name in ("acme", "globex")
    ]
    sent, added = [], []
    for token in tokens:
        environment = (await resourceserver.result("create_environment", token, name="a"))["environment_id"]
        sent.append({"environment_id": environment, "uri": "https://app.example.com/callback"})
        if len(sent) == 2:
            nothing_there = await resourceserver.failure(f"remove_{kind}", token, **sent[1])
            assert "There is no such" in nothing_there
        added.append(await resourceserver.result(f"add_{kind}", token, **sent[-1]))
    assert [uri["environment_id"] for uri in added] == [arguments["environment_id"] for arguments in sent]
    assert await resourceserver.result(f"remove_{kind}", tokens[1], **sent[1]) == added[1]
    listed = await resourceserver.result("list_redirect_uris", tokens[0], environment_id=sent[0]["environment_id"])
    assert listed[f"{kind}s"] == [added[0]]


@pytest.mark.threat("T-041")
@pytest.mark.both_databases
@pytest.mark.anyio
async def test_an_environment_has_at_most_100_redirect_uris(resourceserver: ResourceServer) -> None:
    token = resourceserver.issuer.token(workspace_id=resourceserver.create_workspace())
    full, other = [
        (await resourceserver.result("create_environment", token, name=name))["environment_id"] for name in ("a", "b")
    ]
    row = {"environment_id": full, "kind": "redirect", "created_at": 0}
    with resourceserver.admin_database.write() as session:
        session.execute(
            insert(RedirectUriRow),
            [{**row, "redirect_uri_id": f"uri_{n:026}", "uri": f"https://a.example/{n}"} for n in range(99)],
        )
    sent = {"environment_id": full, "uri": "https://a.example/last"}
    assert await resourceserver.result("add_redirect_uri", token, **sent)
    for tool in ("add_redirect_uri", "add_post_logout_redirect_uri"):
        answer = await resourceserver.failure(tool, token, environment_id=full, uri="https://a.example/more")
        assert answer.startswith("There can be at most 100 redirect URIs in an environment.")
        assert await resourceserver.result(tool, token, environment_id=other, uri="https://a.example/more")
    # Adding an existing URI is not limited.
    assert await resourceserver.result("add_redirect_uri", token, **sent)
    await resourceserver.result("remove_redirect_uri", token, environment_id=full, uri="https://a.example/0")
    assert await resourceserver.result("add_redirect_uri", token, environment_id=full, uri="https://a.example/more")
