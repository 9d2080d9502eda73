"""Upstreams that lie, flood, stall or smuggle. Each first answers faultlessly, and the gateway survives each of them.

Sources: MCP 2026-07-28 "Security Best Practices"; CWE-400, CWE-409, CWE-444, CWE-113, CWE-601, CWE-918, CWE-436.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.upstreams import (
    LEGACY,
    MODERN,
    RESULT,
    TOOL,
    Respond,
    ScriptedUpstream,
    answered,
    body_of,
    call_of,
    events,
    forever,
    hang,
    http_response,
    message,
    progressed,
    raw,
    result,
    scripted_upstream,
    status,
    upstream_settings,
)

from gatehouse.resourceserver.upstream.http.http_upstream import HttpUpstream
from gatehouse.resourceserver.upstream.upstream import OutcomeUnknown, UpstreamError, UpstreamUnavailable

pytestmark = pytest.mark.anyio

MAX_RESULT = 64 * 1024
SECRET = "sekret-of-the-upstream"
"""In each hostile answer. No error text may repeat it."""


@asynccontextmanager
async def attacked(version: str = MODERN, **changes: Any) -> AsyncIterator[tuple[ScriptedUpstream, HttpUpstream]]:
    """Run a hostile server, and the gateway's client of it, which has had a faultless answer to the same call."""
    async with scripted_upstream(version) as server:
        upstream = HttpUpstream(upstream_settings(server.url, max_result=MAX_RESULT, **changes))
        async with upstream.running():
            assert await upstream.call_tool(call_of()) == RESULT
            yield server, upstream


async def outcome(server: ScriptedUpstream, upstream: HttpUpstream, attack: Respond) -> UpstreamError:
    """Return the error that a call ends with. It was sent once, and the next call works."""
    sent = len(server.of("tools/call"))
    server.answer("tools/call", attack)
    with pytest.raises(UpstreamError) as caught:
        await upstream.call_tool(call_of())
    assert SECRET not in str(caught.value)
    assert len(server.of("tools/call")) == sent + 1
    assert await upstream.call_tool(call_of()) == RESULT
    return caught.value


def unlimited(*lines: bytes) -> bytes:
    """Return the head of a response that ends with its connection."""
    return b"\r\n".join([b"HTTP/1.1 200 X", *lines, b"", b""])


JSON, EVENTS = b"content-type: application/json", b"content-type: text/event-stream"
FILLER = SECRET.encode() * 2000


@pytest.mark.threat("T-190")
@pytest.mark.parametrize("version", [MODERN, LEGACY])
@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(forever(unlimited(JSON), FILLER), id="endless JSON"),
        pytest.param(forever(unlimited(EVENTS), b"data: " + FILLER + b"\n"), id="an endless event"),
        pytest.param(forever(unlimited(EVENTS) + b"data: ", FILLER), id="an endless line"),
        pytest.param(forever(unlimited(EVENTS), b": ping\n\n" * 500), id="endless comments"),
        pytest.param(forever(unlimited(EVENTS), b"id: 1\nretry: 1\ndata:\n\n" * 500), id="endless empty events"),
        pytest.param(result({"content": FILLER.decode() * 3}), id="a huge result"),
        pytest.param(
            raw(b"HTTP/1.1 200 X\r\n" + JSON + b"\r\ncontent-length: 99999999\r\n\r\n" + FILLER * 3), id="length"
        ),
    ],
)
async def test_an_answer_beyond_the_limit_ends_the_call(attack: Respond, version: str) -> None:
    """CWE-400, CWE-770."""
    async with attacked(version) as (server, upstream):
        error = await outcome(server, upstream, attack)
        assert isinstance(error, OutcomeUnknown)
        assert str(error) == f"the upstream sent an answer of more than {MAX_RESULT} bytes"


@pytest.mark.threat("T-190")
@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(hang, id="silence"),
        pytest.param(raw(b"HTTP/1.1 200 X\r\n"), id="an unfinished head"),
        pytest.param(raw(unlimited(JSON) + b'{"jsonrpc"'), id="an unfinished document"),
        pytest.param(raw(http_response(b"", 200).replace(b"length: 0", b"length: 9")), id="a missing body"),
        pytest.param(events(b": ping\n\n", end=False), id="a silent stream"),
        pytest.param(events(progressed(1), end=False), id="a silent stream after progress"),
        pytest.param(forever(b"", b"HTTP/1.1 102 X\r\n\r\n"), id="endless informational responses"),
    ],
)
async def test_a_slow_upstream_ends_the_call(attack: Respond) -> None:
    """CWE-400: slow responses would occupy the connections of the gateway."""

    async def stays_open(received: Any, writer: asyncio.StreamWriter) -> None:
        await attack(received, writer)
        await hang(received, writer)

    async with attacked(timeout=0.5) as (server, upstream):
        error = await outcome(server, upstream, stays_open)
        assert isinstance(error, OutcomeUnknown)
        assert str(error) == "the upstream did not answer within 0.5 s"


@pytest.mark.threat("T-190")
@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(status(200, gzip.compress(b"0" * 10**7), "application/json", content_encoding="gzip"), id="gzip"),
        pytest.param(
            status(200, gzip.compress(b"data: x\n\n" * 10**6), "text/event-stream", content_encoding="x-gzip"),
            id="events",
        ),
        pytest.param(result(RESULT, content_encoding="identity, br"), id="two encodings"),
        pytest.param(result(RESULT, content_encoding="identity", Content_Encoding="gzip"), id="two headers"),
    ],
)
async def test_a_compressed_answer_is_refused(attack: Respond) -> None:
    """CWE-409: a small answer could unpack to any size."""
    async with attacked() as (server, upstream):
        error = await outcome(server, upstream, attack)
        assert str(error) == "the upstream sent a compressed answer, which the request does not accept"


def twice(request: Any) -> bytes:
    return b'{"jsonrpc":"2.0","id":%d,"result":{"content":[]},"result":{"content":["%s"]}}' % (
        request["id"],
        SECRET.encode(),
    )


def document(make: Callable[[Any], bytes]) -> Respond:
    async def respond(received: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http_response(make(received.body)))

    return respond


@pytest.mark.threat("T-191")
@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(document(twice), id="a member twice"),
        pytest.param(document(lambda _: SECRET.encode()), id="no JSON"),
        pytest.param(document(lambda _: b""), id="nothing"),
        pytest.param(document(lambda request: json.dumps([answered(RESULT)(request)]).encode()), id="a batch"),
        pytest.param(document(lambda request: json.dumps(answered(RESULT)(request)).encode("utf-16")), id="UTF-16"),
        pytest.param(document(lambda _: b"[" * 50_000), id="depth"),
        pytest.param(
            document(lambda request: json.dumps(answered({"a": float("inf")})(request)).encode()), id="infinity"
        ),
        pytest.param(message(result=SECRET), id="a result that is no object"),
        pytest.param(message(result=RESULT, error={"code": 1, "message": SECRET}), id="result and error"),
        pytest.param(message(result=RESULT, method="ping"), id="answer and request"),
        pytest.param(message(result=RESULT, id=10**9), id="another id"),
        pytest.param(
            body_of(lambda request: {**answered(RESULT)(request), "id": str(request["id"])}), id="a text as id"
        ),
        pytest.param(
            body_of(lambda request: {**answered(RESULT)(request), "id": float(request["id"])}), id="1.0 as id"
        ),
        pytest.param(message(result=RESULT, id=None), id="null as id"),
        pytest.param(message(result=RESULT, jsonrpc="2.1"), id="another protocol"),
        pytest.param(events(lambda request: {**answered(RESULT)(request), "id": 10**9}), id="another id in a stream"),
        pytest.param(events(b"data: " + SECRET.encode() + b"\n\n", answered(RESULT)), id="no JSON in a stream"),
        pytest.param(events(b"event: endpoint\ndata: /other\n\n"), id="an event of another transport"),
        pytest.param(status(200, b"{}", "text/html"), id="HTML"),
        pytest.param(status(200, b"{}", None), id="no type"),
        pytest.param(raw(SECRET.encode() + b"\r\n\r\n"), id="no HTTP"),
        pytest.param(raw(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n" + FILLER), id="an upgrade"),
        pytest.param(raw(b"HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n"), id="an unknown status"),
        pytest.param(
            raw(http_response(b"{}").replace(b"t-length: 2", b"t-length: 2\r\ncontent-length: 3")), id="two lengths"
        ),
        pytest.param(raw(b"HTTP/1.1 200 X\r\nx: " + b"y" * 200_000 + b"\r\n\r\n"), id="a huge header"),
    ],
)
async def test_a_malformed_answer_leaves_the_outcome_unknown(attack: Respond) -> None:
    """CWE-436: two parsers could read it differently. JSON-RPC 2.0, 5: the id is that of the request."""
    async with attacked() as (server, upstream):
        assert isinstance(await outcome(server, upstream, attack), OutcomeUnknown)


@pytest.mark.threat("T-191")
async def test_the_answer_of_one_call_never_reaches_another() -> None:
    """An upstream that answers a call with the id of one in flight on another connection."""
    async with attacked() as (server, upstream):
        server.answer("tools/call", hang)
        waiting = asyncio.create_task(upstream.call_tool(call_of(client_id="victim")))
        *_, held = await server.until("tools/call", 2)
        attack = message(result={"content": [{"type": "text", "text": SECRET}]}, id=held.body["id"])
        assert str(await outcome(server, upstream, attack)) == "the upstream answered another request"
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])


@pytest.mark.threat("T-191")
async def test_a_second_answer_on_a_connection_answers_no_other_call() -> None:
    """CWE-444: response splitting, an answer for a request that was not sent yet."""
    async with attacked() as (server, upstream):

        async def split(received: Any, writer: asyncio.StreamWriter) -> None:
            forged = {"jsonrpc": "2.0", "id": received.body["id"] + 1, "result": {"content": [SECRET]}}
            answer = json.dumps({"jsonrpc": "2.0", "id": received.body["id"], "result": RESULT}).encode()
            writer.write(http_response(answer) + http_response(json.dumps(forged).encode()))

        server.answer("tools/call", split)
        assert await upstream.call_tool(call_of()) == RESULT
        with pytest.raises(OutcomeUnknown, match="answered another request"):
            await upstream.call_tool(call_of())
        assert await upstream.call_tool(call_of()) == RESULT


@pytest.mark.threat("T-194")
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(code: int) -> None:
    """CWE-601, CWE-918: it would send the arguments and the credential elsewhere."""
    async with scripted_upstream() as elsewhere, attacked() as (server, upstream):
        error = await outcome(server, upstream, status(code, location=f"{elsewhere.url}?{SECRET}"))
        assert isinstance(error, UpstreamUnavailable) == (code in {307, 308})
        assert not elsewhere.received


@pytest.mark.threat("T-194")
async def test_a_cookie_is_not_kept() -> None:
    """CWE-384: the upstream could join the calls of different callers."""
    async with attacked() as (server, upstream):
        server.answer("tools/call", result(RESULT, set_cookie=f"id={SECRET}"))
        for _ in range(2):
            await upstream.call_tool(call_of())
        assert not [received for received in server.received if "cookie" in received.headers]


@pytest.mark.threat("T-194")
async def test_an_argument_cannot_add_a_header() -> None:
    """CWE-113."""
    schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
    described = {"name": "echo", "inputSchema": schema}
    async with attacked() as (server, upstream):
        await upstream.call_tool(call_of(described, region="eu"))
        for region in ("eu\r\nAuthorization: Bearer x", "eu\nHost: evil", "eu\0", "\u0130", "\r\n\r\nPOST / HTTP/1.1"):
            await upstream.call_tool(call_of(described, region=region))
        plain, *attacks = server.of("tools/call")[1:]
        assert plain.headers["mcp-param-region"] == "eu"
        for received in attacks:
            assert received.headers.keys() == plain.headers.keys()
            assert received.headers["mcp-param-region"].startswith("=?base64?")


@pytest.mark.threat("T-190")
async def test_a_flood_of_progress_ends_the_call() -> None:
    """CWE-400: the caller would get every notification."""
    told: list[float] = []

    async def notify(progress: float, *_: object) -> None:
        told.append(progress)

    async with attacked() as (server, upstream):
        flood = [progressed(number, None, SECRET * 10) for number in range(10_000)]
        server.answer("tools/call", events(*flood, answered(RESULT)))
        with pytest.raises(OutcomeUnknown, match="more than 65536 bytes"):
            await upstream.call_tool(call_of(notify=notify))
        assert told == sorted(told)
        assert len(told) < MAX_RESULT / 300


@pytest.mark.threat("T-190")
@pytest.mark.parametrize(
    "attack",
    [
        result({"tools": [TOOL, TOOL]}),
        result({"tools": [TOOL], "nextCursor": "a"}),
        result({"tools": [{**TOOL, "name": SECRET + "\u202e"}]}),
        result({"tools": [{**TOOL, "inputSchema": SECRET}]}),
    ],
)
async def test_a_list_of_tools_that_never_ends_or_is_ambiguous_is_refused(attack: Respond) -> None:
    """CWE-835, CWE-436, CWE-1007."""
    async with attacked() as (server, upstream):
        assert await upstream.list_tools() == [TOOL]
        server.answer("tools/list", *[attack] * 2)
        with pytest.raises(OutcomeUnknown) as caught:
            await upstream.list_tools()
        assert SECRET not in str(caught.value)


@pytest.mark.threat("T-194")
async def test_a_hostile_handshake_gives_no_session() -> None:
    """CWE-113: the session id is sent back in a header."""
    async with attacked(LEGACY) as (server, upstream):
        server.stateful = True
        for session_id in ("a b", "é", "x" * 2000, "a, b"):
            server.answer("tools/list", status(404))
            server.answer("initialize", result({"protocolVersion": LEGACY}, mcp_session_id=session_id))
            with pytest.raises(UpstreamUnavailable, match="not visible ASCII"):
                await upstream.list_tools()
            server.stateful = False
            await upstream.list_tools()
