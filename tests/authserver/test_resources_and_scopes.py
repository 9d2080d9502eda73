"""The resource and the scopes that a token request is granted (RFC 8707 2, RFC 6749 3.3)."""

import pytest
from support.authserver import OTHER_RESOURCE, RESOURCE, AuthServer, token_form
from werkzeug.test import TestResponse

from gatehouse.authserver.clients.registration import remove_grant
from gatehouse.authserver.clients.registry import Client

Registered = tuple[Client, str]


def ask(server: AuthServer, registered: Registered, *resources: str, **parameters: str) -> TestResponse:
    form = [*token_form(**parameters).items(), *(("resource", resource) for resource in resources)]
    client, secret = registered
    return server.post_token(form, basic=(client.client_id, secret))


def assert_refused(response: TestResponse, error: str) -> str:
    assert response.status_code == 400, response.text
    assert response.json["error"] == error
    assert response.headers["Cache-Control"] == "no-store"
    return str(response.json["error_description"])


@pytest.mark.divergence("D-38", "D-39")
@pytest.mark.parametrize(
    ("granted", "requested", "scope"),
    [
        pytest.param("env:read org:read", "env:read", "env:read", id="part of the grant"),
        pytest.param("env:read", "env:read org:read", "env:read", id="more than the grant"),
        pytest.param("env:read org:read", "org:read env:read", "env:read org:read", id="all, sorted"),
        pytest.param("env:read", "env:read env:read", "env:read", id="repeated"),
        pytest.param("env:read", "env:read no:such", "env:read", id="with an unknown scope"),
        pytest.param("env:write", "env:read", "env:read", id="implied"),
        pytest.param("env:write", "env:read env:write", "env:read env:write", id="implied and granted"),
        pytest.param("env:read", "env:write env:read", "env:read", id="never upwards in the hierarchy"),
        pytest.param("env:write org:read", None, "env:write org:read", id="no scope parameter"),
    ],
)
def test_the_grant_is_the_intersection_of_requested_and_allowed_scopes(
    authserver: AuthServer, granted: str, requested: str | None, scope: str
) -> None:
    registered = authserver.create_client(granted)
    assert ask(authserver, registered, scope=granted).json["scope"] == granted
    parameters = {} if requested is None else {"scope": requested}
    response = ask(authserver, registered, **parameters)
    assert response.json["scope"] == scope
    assert authserver.read_token(response)[1]["scope"] == scope


def test_implication_is_transitive(authserver: AuthServer) -> None:
    authserver.add_resource(OTHER_RESOURCE, admin=("env:write",), env_write=("env:read",), env_read=())
    registered = authserver.create_client("admin", OTHER_RESOURCE)
    assert ask(authserver, registered, scope="env:read").json["scope"] == "env:read"


@pytest.mark.divergence("D-39")
@pytest.mark.parametrize("requested", ["env:write", "no:such", "env:write org:read"])
def test_an_empty_intersection_is_invalid_scope(authserver: AuthServer, requested: str) -> None:
    registered = authserver.create_client("env:read")
    assert ask(authserver, registered, scope=f"env:read {requested}").status_code == 200
    description = assert_refused(ask(authserver, registered, scope=requested), "invalid_scope")
    assert "Ask its admin" in description


@pytest.mark.divergence("D-38")
@pytest.mark.parametrize(
    ("granted", "requested"),
    [("env:read", "env:read org:read"), ("env:read", "env:read env:write"), ("env:write", "env:read no:such")],
)
def test_a_strict_client_is_refused_scopes_it_was_not_granted(
    authserver: AuthServer, granted: str, requested: str
) -> None:
    narrowed = authserver.create_client(granted, strict=False)
    strict = authserver.create_client(granted, strict=True)
    assert ask(authserver, strict, scope=granted).json["scope"] == granted
    assert ask(authserver, narrowed, scope=requested).status_code == 200
    assert_refused(ask(authserver, strict, scope=requested), "invalid_scope")


def test_a_strict_client_gets_implied_scopes(authserver: AuthServer) -> None:
    strict = authserver.create_client("env:write", strict=True)
    assert ask(authserver, strict, scope="env:read env:write").json["scope"] == "env:read env:write"
    assert ask(authserver, strict).json["scope"] == "env:write"


@pytest.mark.parametrize(
    "scope",
    [
        pytest.param(" ", id="only a space"),
        pytest.param(" env:read", id="leading space"),
        pytest.param("env:read ", id="trailing space"),
        pytest.param("env:read  org:read", id="doubled space"),
        pytest.param('env:read"', id="quote"),
        pytest.param("env:read\\", id="backslash"),
        pytest.param("env:réad", id="not ASCII"),
        pytest.param("a" * 129, id="too long"),
    ],
)
def test_a_scope_outside_the_grammar_is_invalid_scope(authserver: AuthServer, scope: str) -> None:
    registered = authserver.create_client("env:read org:read")
    assert ask(authserver, registered, scope="env:read org:read").status_code == 200
    assert_refused(ask(authserver, registered, scope=scope), "invalid_scope")


def test_scopes_that_do_not_fit_into_a_token_are_refused(authserver: AuthServer) -> None:
    """The resource server limits the length of the header, and would refuse a longer token."""
    names = [f"scope_{number:03}_{'x' * 100}" for number in range(80)]
    authserver.add_resource(OTHER_RESOURCE, **dict.fromkeys(names, ()))
    scopes = [name.replace("_", ":") for name in names]
    registered = authserver.create_client(" ".join(scopes), OTHER_RESOURCE)
    assert ask(authserver, registered, scope=" ".join(scopes[:20])).status_code == 200
    assert "fewer" in assert_refused(ask(authserver, registered), "invalid_scope")


def test_the_only_resource_of_a_client_need_not_be_named(authserver: AuthServer) -> None:
    registered = authserver.create_client()
    assert authserver.read_token(ask(authserver, registered))[1]["aud"] == RESOURCE


@pytest.mark.divergence("D-37")
def test_a_client_of_several_resources_must_name_one(authserver: AuthServer) -> None:
    authserver.add_resource(OTHER_RESOURCE)
    registered = authserver.create_client("env:read")
    authserver.add_grant(registered[0], "org:read", OTHER_RESOURCE)
    for resource, scope in ((RESOURCE, "env:read"), (OTHER_RESOURCE, "org:read")):
        response = ask(authserver, registered, resource)
        assert authserver.read_token(response)[1]["aud"] == resource
        assert response.json["scope"] == scope
    assert_refused(ask(authserver, registered), "invalid_target")


def test_a_scope_of_one_resource_is_not_granted_at_another(authserver: AuthServer) -> None:
    authserver.add_resource(OTHER_RESOURCE)
    registered = authserver.create_client("env:read")
    authserver.add_grant(registered[0], "org:read", OTHER_RESOURCE)
    assert ask(authserver, registered, OTHER_RESOURCE, scope="org:read").status_code == 200
    assert_refused(ask(authserver, registered, RESOURCE, scope="org:read"), "invalid_scope")


def test_the_hierarchy_of_one_resource_does_not_apply_at_another(authserver: AuthServer) -> None:
    authserver.add_resource(OTHER_RESOURCE, env_read=(), env_write=())
    registered = authserver.create_client("env:write")
    authserver.add_grant(registered[0], "env:write", OTHER_RESOURCE)
    assert ask(authserver, registered, RESOURCE, scope="env:read").status_code == 200
    assert_refused(ask(authserver, registered, OTHER_RESOURCE, scope="env:read"), "invalid_scope")


def test_a_client_without_any_grant_gets_no_token(authserver: AuthServer) -> None:
    registered, holder = authserver.create_client(), authserver.create_client()
    assert ask(authserver, holder).status_code == ask(authserver, holder, RESOURCE).status_code == 200
    with authserver.services.database.write() as session:
        remove_grant(session, authserver.admin, registered[0].client_id, RESOURCE, "env:read")
    assert_refused(ask(authserver, registered), "invalid_target")
    assert_refused(ask(authserver, registered, RESOURCE), "invalid_target")


@pytest.mark.parametrize(
    "resources",
    [
        pytest.param([RESOURCE, OTHER_RESOURCE], id="two of the client's"),
        pytest.param([RESOURCE, RESOURCE], id="the same resource twice"),
        pytest.param([RESOURCE, "https://evil.example.com"], id="another one after it"),
    ],
)
def test_a_request_names_one_resource(authserver: AuthServer, resources: list[str]) -> None:
    authserver.add_resource(OTHER_RESOURCE)
    registered = authserver.create_client()
    authserver.add_grant(registered[0], "env:read", OTHER_RESOURCE)
    assert ask(authserver, registered, resources[0]).status_code == 200
    assert "one" in assert_refused(ask(authserver, registered, *resources), "invalid_target")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("HTTPS://mcp.example.com/mcp", id="scheme case"),
        pytest.param("https://MCP.Example.com/mcp", id="host case"),
        pytest.param("https://mcp.example.com:443/mcp", id="default port"),
    ],
)
def test_a_resource_is_recognised_in_equivalent_spellings(authserver: AuthServer, text: str) -> None:
    """The audience of the token is the registered identifier."""
    response = ask(authserver, authserver.create_client(), text)
    assert authserver.read_token(response)[1]["aud"] == RESOURCE


@pytest.mark.parametrize("text", ["https://root.example.com", "https://root.example.com/"])
def test_an_empty_path_and_a_slash_are_one_resource(authserver: AuthServer, text: str) -> None:
    authserver.add_resource("https://root.example.com/")
    registered = authserver.create_client(resource="https://root.example.com")
    assert authserver.read_token(ask(authserver, registered, text))[1]["aud"] == "https://root.example.com"


@pytest.mark.divergence("D-37")
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"{RESOURCE}/", id="trailing slash"),
        pytest.param("https://mcp.example.com/MCP", id="path case"),
        pytest.param("https://mcp.example.com/%6Dcp", id="percent-encoded path"),
        pytest.param("https://mcp.example.com", id="no path"),
        pytest.param("https://mcp.example.com/mcp/more", id="longer path"),
        pytest.param("http://mcp.example.com/mcp", id="http"),
        pytest.param("https://mcp.example.com:8443/mcp", id="other port"),
        pytest.param("https://mcp.example.com.evil.example/mcp", id="longer host"),
        pytest.param("https://mcp.example.com./mcp", id="trailing dot of the host"),
        pytest.param(OTHER_RESOURCE, id="registered, not granted"),
        pytest.param("https://unregistered.example.com/mcp", id="unregistered"),
    ],
)
def test_another_resource_is_invalid_target(authserver: AuthServer, text: str) -> None:
    authserver.add_resource(OTHER_RESOURCE)
    registered = authserver.create_client()
    assert ask(authserver, registered, RESOURCE).status_code == 200
    assert "no grant at this resource" in assert_refused(ask(authserver, registered, text), "invalid_target")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"{RESOURCE}#fragment", id="fragment"),
        pytest.param(f"{RESOURCE}#", id="empty fragment"),
        pytest.param(f"{RESOURCE}?a=b", id="query"),
        pytest.param("/mcp", id="relative"),
        pytest.param("mcp.example.com/mcp", id="no scheme"),
        pytest.param("urn:example:mcp", id="urn"),
        pytest.param("https:///mcp", id="no host"),
        pytest.param("https://mcp.example.com@evil.example/mcp", id="user information"),
        pytest.param("https://mcp.example.com:99999/mcp", id="no such port"),
        pytest.param("https://mcp.example.com/a/../mcp", id="dot segments"),
        pytest.param("https://mcp.exämple.com/mcp", id="not ASCII"),
        pytest.param("https://mcp.example.com/mcp\n", id="newline"),
        pytest.param("https://mcp.example.com\\@evil.example/mcp", id="backslash"),
        pytest.param("https://mcp.example.com/" + "a" * 600, id="too long"),
    ],
)
def test_a_malformed_resource_is_invalid_target(authserver: AuthServer, text: str) -> None:
    """RFC 8707 2: an absolute URI without fragment. Userinfo and the like are refused too."""
    registered = authserver.create_client()
    assert ask(authserver, registered, RESOURCE).status_code == 200
    assert "resource" in assert_refused(ask(authserver, registered, text), "invalid_target")


def test_a_scope_that_its_resource_no_longer_declares_implies_nothing(authserver: AuthServer) -> None:
    """A catalogue that drops a broad scope must end its effect for clients that still hold it."""
    client, secret = authserver.create_client("env:write")
    basic = (client.client_id, secret)
    assert authserver.post_token(token_form(scope="env:read"), basic).status_code == 200
    after, after_secret = authserver.create_client("env:write")
    authserver.add_resource(RESOURCE, env_read=())
    response = authserver.post_token(token_form(scope="env:read"), (after.client_id, after_secret))
    assert (response.status_code, response.json["error"]) == (400, "invalid_scope")
    assert authserver.post_token(basic=(after.client_id, after_secret)).json["scope"] == "env:write"
    assert authserver.audit(client="admin:tester")[-1]["detail"]["undeclared"] == ["env:write", "org:read"]
