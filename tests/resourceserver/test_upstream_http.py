"""An upstream over Streamable HTTP: what is sent to it, and what its answers mean."""

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from local_stack import free_port
from support.certificates import Authority
from support.clock import FakeClock
from support.http_upstreams import Progressed, refused, running
from support.sdk_upstream import sdk_upstream
from support.upstreams import (
    LEGACY,
    MODERN,
    RESULT,
    TOOL,
    answered,
    body_of,
    call_of,
    error,
    events,
    hang,
    hang_up,
    progressed,
    result,
    scripted_upstream,
    status,
    upstream_settings,
)

from gatehouse.resourceserver.catalogue.policy_file import HeaderCredential
from gatehouse.resourceserver.upstream.caller_identity import CallerIdentity, create_caller_keys
from gatehouse.resourceserver.upstream.http.http_upstream import HttpUpstream, upstream_digest
from gatehouse.resourceserver.upstream.http.response import NOT_EXECUTED
from gatehouse.resourceserver.upstream.upstream import (
    OutcomeUnknown,
    UpstreamBusy,
    UpstreamRefused,
    UpstreamUnavailable,
)
from gatehouse.shared.protocol.encoding import decode_base64url

pytestmark = pytest.mark.anyio


# Servers of the SDK


@pytest.mark.parametrize("kind", ["modern", "stateless"])
async def test_tools_are_listed_and_called(kind: Literal["modern", "stateless"]) -> None:
    async with sdk_upstream(kind) as server, running(server.url) as upstream:
        tools = {tool["name"]: tool for tool in await upstream.list_tools()}
        assert tools.keys() >= {"echo", "route", "count", "steps"}
        echoed = await upstream.call_tool(call_of(tools["echo"], text="é 日本"))
        assert echoed["structuredContent"] == {"text": "é 日本"}
        failed = await upstream.call_tool(call_of(tools["fail"]))
        assert failed["isError"] is True


async def test_an_argument_is_mirrored_in_a_header() -> None:
    async with sdk_upstream("modern") as server, running(server.url) as upstream:
        tools = {tool["name"]: tool for tool in await upstream.list_tools()}
        for region in ("eu-west", " Zürich\r\nX: y", "=?base64?eA==?="):
            routed = await upstream.call_tool(call_of(tools["route"], region=region))
            assert routed["structuredContent"] == {"result": region}


@pytest.mark.parametrize("kind", ["modern", "stateless"])
async def test_progress_arrives_in_order(kind: Literal["modern", "stateless"]) -> None:
    progress = Progressed()
    async with sdk_upstream(kind) as server, running(server.url) as upstream:
        await upstream.call_tool(call_of("steps", notify=progress))
    assert progress.steps == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]


@pytest.mark.parametrize("kind", ["modern", "stateless"])
async def test_a_cancelled_call_is_cancelled_at_the_upstream(kind: Literal["modern", "stateless"]) -> None:
    async with sdk_upstream(kind) as server, running(server.url) as upstream:
        call = asyncio.create_task(upstream.call_tool(call_of("wait", notify=Progressed())))
        with anyio.fail_after(20):
            await server.started.wait()
            call.cancel()
            if kind == "modern":
                await server.cancelled.wait()
            with pytest.raises(asyncio.CancelledError):
                await call


# What is sent


async def test_a_modern_call_has_the_required_headers() -> None:
    described = {
        "name": "tool é",
        "inputSchema": {
            "type": "object",
            "properties": {"tenant": {"type": "string", "x-mcp-header": "Tenant"}},
        },
    }
    async with scripted_upstream() as server, running(server.url) as upstream:
        for _ in range(2):
            assert await upstream.call_tool(call_of(described, tenant="a\nb")) == RESULT
        await upstream.call_tool(call_of({**described, "inputSchema": {}}))
    first, again, other = server.of("tools/call")
    assert first.headers["mcp-protocol-version"] == MODERN
    assert first.headers["mcp-method"] == "tools/call"
    assert first.headers["mcp-name"] == "=?base64?dG9vbCDDqQ==?="
    assert first.headers["mcp-param-tenant"] == again.headers["mcp-param-tenant"] == "=?base64?YQpi?="
    assert "mcp-param-tenant" not in other.headers
    assert first.headers["accept"] == "application/json, text/event-stream"
    assert first.headers["accept-encoding"] == "identity"
    assert not {"authorization", "cookie", "mcp-session-id"} & first.headers.keys()
    assert first.body["id"] != again.body["id"]


async def test_a_tool_with_invalid_headers_is_not_listed() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number", "x-mcp-header": "A"}}}
    tools = [TOOL, {"name": "bad", "inputSchema": schema}]
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("tools/list", result({"tools": tools}))
        assert await upstream.list_tools() == [TOOL]
        await upstream.call_tool(call_of(tools[1], a=1.5))
        assert not [name for name in server.of("tools/call")[0].headers if name.startswith("mcp-param")]
    async with scripted_upstream(LEGACY) as server, running(server.url) as upstream:
        server.answer("tools/list", result({"tools": tools}))
        assert await upstream.list_tools() == tools


async def test_a_legacy_call_has_no_modern_header() -> None:
    async with scripted_upstream(LEGACY) as server, running(server.url) as upstream:
        assert await upstream.call_tool(call_of()) == RESULT
        assert [received.method for received in server.received] == [
            "server/discover",
            "initialize",
            "notifications/initialized",
            "tools/call",
        ]
    initialize, sent = server.of("initialize")[0], server.of("tools/call")[0]
    assert "mcp-protocol-version" not in initialize.headers
    assert initialize.body["params"]["capabilities"] == {}
    assert sent.headers["mcp-protocol-version"] == LEGACY
    assert not {"mcp-method", "mcp-name"} & sent.headers.keys()
    assert "_meta" not in sent.body["params"]


async def test_arguments_that_json_does_not_have_are_not_sent() -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        assert "cannot be written as JSON" in str(await refused(upstream, a=float("nan")))
        assert not server.of("tools/call")


async def test_an_upstream_is_told_who_calls_only_if_its_policy_says_so(tmp_path: Path) -> None:
    create_caller_keys(tmp_path / "keys.json")
    identity = CallerIdentity.read(tmp_path / "keys.json", "https://gateway.example.com/mcp", FakeClock())
    async with scripted_upstream() as server:
        for told in (True, False):
            upstream = HttpUpstream(upstream_settings(server.url, caller_identity=told), identity=identity)
            async with upstream.running():
                await upstream.list_tools()
                await upstream.call_tool(call_of(client_id="alice"))
        async with running(server.url, caller_identity=True) as upstream:
            assert "no key to sign it with" in str(await refused(upstream))
    told_call, other = server.of("tools/call")
    claims = json.loads(decode_base64url(told_call.headers["gatehouse-caller"].split(".")[1]))
    assert (claims["sub"], claims["aud"]) == ("alice", server.url)
    assert "gatehouse-caller" not in other.headers.keys() | server.of("tools/list")[0].headers.keys()


# What an answer means


@pytest.mark.parametrize("code", sorted(NOT_EXECUTED - {400, 404}))
async def test_a_status_of_a_request_that_was_not_processed(code: int) -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("tools/call", status(code))
        failure = await refused(upstream)
        assert isinstance(failure, UpstreamUnavailable)
        assert str(failure) == f"the upstream did not accept the request (HTTP status {code})"
        assert len(server.of("tools/call")) == 1


@pytest.mark.parametrize("code", [202, 204, 301, 302, 303, 304, 402, 409, 422, 429, 500, 502, 503, 504])
async def test_any_other_status_leaves_the_outcome_unknown(code: int) -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("tools/call", status(code, location="http://127.0.0.1:1/", retry_after="1"))
        failure = await refused(upstream)
        assert isinstance(failure, OutcomeUnknown)
        assert str(failure) == f"the upstream answered with the HTTP status {code}"
        assert len(server.of("tools/call")) == 1


@pytest.mark.parametrize(
    ("code", "reason"), [(401, "credential"), (403, "refuses"), (307, "upstream.url"), (308, "url")]
)
async def test_a_refusal_of_the_gateway_executes_nothing(code: int, reason: str) -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("tools/call", status(code, location="http://127.0.0.1:1/"))
        failure = await refused(upstream)
        assert isinstance(failure, UpstreamUnavailable)
        assert reason in str(failure)
        assert len(server.of("tools/call")) == 1


@pytest.mark.parametrize("http_status", [200, 400, 404, 500])
async def test_an_error_of_the_upstream_keeps_its_code(http_status: int) -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("tools/call", error(-32602, http_status))
        failure = await refused(upstream)
        assert isinstance(failure, UpstreamRefused)
        assert failure.code == -32602
        assert "secret" not in str(failure)


@pytest.mark.parametrize(
    "body",
    [
        body_of(lambda _: {"jsonrpc": "2.0", "id": 99, "error": {"code": 1}}, 500),
        body_of(lambda request: {"jsonrpc": "2.0", "id": request["id"], "result": {}}, 500),
        body_of(lambda _: {"jsonrpc": "2.0", "method": "notifications/message"}, 500),
        status(500, b"{", "application/json"),
        status(500, b"x" * 100_000, "application/json"),
        status(500, b"{}", "application/json, text/html"),
    ],
)
async def test_an_error_status_with_another_body_is_only_a_status(body: Any) -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("tools/call", body)
        assert str(await refused(upstream)) == "the upstream answered with the HTTP status 500"


async def test_an_answer_in_an_event_stream_is_read() -> None:
    progress = Progressed()
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer(
            "tools/call",
            events(
                b": comment\nretry: 1\nid: 7\ndata:\n\n",
                progressed(1, 3, "one"),
                progressed(1, 3, "again"),
                progressed(0.5, 3, "less"),
                progressed(2, 3, "of another", token=99),
                lambda _: {"jsonrpc": "2.0", "method": "notifications/message", "params": {}},
                progressed(3),
                answered(RESULT),
            ),
        )
        assert await upstream.call_tool(call_of(notify=progress)) == RESULT
    assert progress.steps == [(1, 3, "one"), (3, None, None)]


async def test_progress_that_no_caller_wants_is_ignored() -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("tools/call", events(progressed(1), answered(RESULT)))
        assert await upstream.call_tool(call_of()) == RESULT


async def test_a_connection_is_used_again_after_either_kind_of_answer() -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        await upstream.list_tools()
        server.answer("tools/call", events(answered(RESULT)), result(RESULT))
        for _ in range(2):
            await upstream.call_tool(call_of())
            # The rest of the event stream is read in the background.
            await anyio.wait_all_tasks_blocked()
    assert {received.connection for received in server.received} == {1}


@pytest.mark.parametrize("rest", [b": more\n", b"x" * 10_000])
async def test_an_event_stream_that_stays_open_after_its_answer_is_closed(
    rest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatehouse.resourceserver.upstream.http.exchange.COURTESY", 0.1)
    async with scripted_upstream() as server:
        async with running(server.url) as upstream:
            server.answer("tools/call", events(answered(RESULT), rest, end=False))
            assert await upstream.call_tool(call_of()) == RESULT
        with anyio.fail_after(20):
            await server.closed.wait()


async def test_an_upstream_can_be_used_outside_of_its_context() -> None:
    async with scripted_upstream() as server:
        upstream = HttpUpstream(upstream_settings(server.url))
        server.answer("tools/call", events(answered(RESULT)))
        assert await upstream.call_tool(call_of()) == RESULT
        async with upstream.running():
            pass
    async with scripted_upstream(LEGACY) as server:
        upstream = HttpUpstream(upstream_settings(server.url))
        server.answer("tools/call", hang_up)
        assert isinstance(await refused(upstream), OutcomeUnknown)
        assert not server.of("notifications/cancelled")
        async with upstream.running():
            pass


# Requests of the server


@pytest.mark.divergence("D-91")
async def test_a_request_of_a_legacy_server_is_refused_and_the_call_goes_on() -> None:
    def sampling(_: Any) -> Any:
        return {"jsonrpc": "2.0", "id": "s1", "method": "sampling/createMessage", "params": {}}

    async with scripted_upstream(LEGACY) as server, running(server.url) as upstream:
        server.answer("tools/call", events(sampling, answered(RESULT)))
        assert await upstream.call_tool(call_of()) == RESULT
        [reply] = await server.until("answer")
        assert (reply.body["id"], reply.body["error"]["code"]) == ("s1", -32601)
        server.answer("tools/call", events(*[sampling] * 17, answered(RESULT)))
        assert "sent a request, or too many" in str(await refused(upstream))


async def test_a_modern_server_must_not_send_requests() -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        server.answer("tools/call", events(lambda _: ping, answered(RESULT)), body_of(lambda _: ping))
        assert "sent a request" in str(await refused(upstream))
        assert "another message in place of the answer" in str(await refused(upstream))
        assert not server.of("answer")


async def test_input_that_the_upstream_requires_is_refused_clearly() -> None:
    async with scripted_upstream() as server, running(server.url) as upstream:
        server.answer("tools/call", result({"resultType": "input_required", "inputRequests": {}}))
        failure = await refused(upstream)
        assert isinstance(failure, OutcomeUnknown)
        assert "requests input, which the gateway does not carry" in str(failure)


# No connection


async def test_an_upstream_that_does_not_listen_is_unavailable() -> None:
    port = free_port()
    async with running(f"http://127.0.0.1:{port}/mcp") as upstream:
        failure = await refused(upstream)
        assert isinstance(failure, UpstreamUnavailable)
        assert str(failure) == f"no connection to the upstream at 127.0.0.1:{port}"


async def test_calls_beyond_the_connections_are_refused_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatehouse.resourceserver.upstream.http.exchange._CONNECTIONS", 1)
    async with scripted_upstream() as server, running(server.url, timeout=1) as upstream:
        await upstream.list_tools()
        server.answer("tools/call", hang)
        call = asyncio.create_task(upstream.call_tool(call_of()))
        await server.until("tools/call")
        assert isinstance(await refused(upstream), UpstreamBusy)
        assert len(server.of("tools/call")) == 1
        call.cancel()
        await asyncio.wait([call])


async def test_a_certificate_must_come_from_a_trusted_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with scripted_upstream(tls=authority.server_context()) as server:
        async with running(server.url, ca_file=authority.file) as upstream:
            assert await upstream.call_tool(call_of()) == RESULT
        async with running(server.url) as upstream:
            assert "set upstream.ca_file or SSL_CERT_FILE" in str(await refused(upstream))
        async with running(server.url, ca_file=tmp_path / "none.pem") as upstream:
            assert "upstream.ca_file=" in str(await refused(upstream))


async def test_an_upstream_that_requires_a_client_certificate_gives_no_answer(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = authority.server_context()
    context.load_verify_locations(authority.file)
    context.verify_mode = ssl.CERT_REQUIRED
    async with (
        scripted_upstream(tls=context) as server,
        running(server.url, ca_file=authority.file) as upstream,
    ):
        failure = await refused(upstream)
        assert isinstance(failure, UpstreamUnavailable)
        assert str(failure).startswith("the connection to the upstream broke")


def test_the_digest_of_an_upstream_depends_on_url_and_credential(tmp_path: Path) -> None:
    key = HeaderCredential("X-Api-Key", tmp_path / "a")
    settings = [
        upstream_settings("http://127.0.0.1:1/mcp"),
        upstream_settings("http://127.0.0.1:2/mcp"),
        upstream_settings("http://127.0.0.1:1/mcp", credential=key),
    ]
    assert len({upstream_digest(one) for one in settings}) == 3
    assert upstream_digest(settings[0]) == upstream_digest(
        upstream_settings("http://127.0.0.1:1/mcp", ca_file=tmp_path / "ca.pem", timeout=1)
    )
