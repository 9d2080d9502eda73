"""Attacks with the body of an MCP request: malformed, ambiguous, endless or aborted."""

import base64
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.mcp_target import CREATION, LEAKS, Target, creation

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


@pytest.mark.threat("T-021")
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00", id="NUL"),
        pytest.param(CREATION[:-1], id="cut off"),
        pytest.param(CREATION + b"x", id="junk after"),
        pytest.param(CREATION + CREATION, id="two documents"),
        pytest.param(b"\xef\xbb\xbf" + CREATION, id="byte order mark"),
        pytest.param(CREATION.decode().encode("utf-16"), id="UTF-16"),
        pytest.param(CREATION.decode().encode("utf-16-le"), id="UTF-16 without mark"),
        pytest.param(CREATION.decode().encode("utf-32"), id="UTF-32"),
        pytest.param(CREATION.replace(b"probe", b"pr\xffbe"), id="not UTF-8"),
        pytest.param(CREATION.replace(b"probe", b"pr\xc0\xafbe"), id="overlong UTF-8"),
        pytest.param(CREATION.replace(b"probe", b"\xed\xa0\x80"), id="raw surrogate"),
        pytest.param(CREATION.replace(b"probe", b"\\ud800"), id="lone surrogate"),
        pytest.param(CREATION.replace(b"probe", b"\\udc00\\ud800"), id="swapped surrogates"),
        pytest.param(CREATION.replace(b"probe", b"a\x00b"), id="raw NUL in a string"),
        pytest.param(CREATION.replace(b"7", b"NaN"), id="NaN"),
        pytest.param(CREATION.replace(b'"probe"', b"-Infinity"), id="Infinity"),
        pytest.param(CREATION.replace(b'"probe"', b"9" * 5000), id="5000 digits"),
        pytest.param(CREATION.replace(b"7", b"1e999"), id="id beyond floats"),
        pytest.param(CREATION.replace(b'"', b"'"), id="single quotes"),
        pytest.param(CREATION.replace(b"{", b"{/**/", 1), id="comment"),
        pytest.param(b"[" * 200_000, id="deep arrays, open"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="deep arrays"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep objects"),
        pytest.param(CREATION.replace(b'"probe"', b"[" * 400 + b"]" * 400), id="deep for one parser only"),
        pytest.param(b"[" + CREATION + b"]", id="batch"),
        pytest.param(b"[" + CREATION + b"," + CREATION + b"]", id="batch of two"),
        pytest.param(b'"' + base64.b64encode(CREATION) + b'"', id="encoded"),
    ],
)
async def test_a_body_that_is_not_a_strict_json_object_is_refused(target: Target, body: bytes) -> None:
    """RFC 8259: if two parsers read one body differently, the check can be bypassed."""
    error = await target.refuses(body)
    assert error["code"] in {-32700, -32600}


@pytest.mark.threat("T-021")
@pytest.mark.parametrize(
    ("member", "repeated"),
    [
        pytest.param(b'"method": ', b'"method": "ping", "method": ', id="method"),
        pytest.param(b'"method": ', b'"\\u006dethod": "ping", "method": ', id="method, escaped"),
        pytest.param(b'"params": ', b'"params": {"name": "whoami"}, "params": ', id="params"),
        pytest.param(b'"name": "create', b'"name": "whoami", "name": "create', id="name"),
        pytest.param(b'"name": "probe"', b'"name": "first", "name": "probe"', id="argument"),
        pytest.param(b'"id": ', b'"id": 1, "id": ', id="id"),
    ],
)
async def test_a_duplicate_member_is_refused(target: Target, member: bytes, repeated: bytes) -> None:
    """RFC 8259 4: parsers differ about which of two members applies, so gate and SDK could read different calls."""
    body = CREATION.replace(member, repeated, 1)
    assert body != CREATION
    error = await target.refuses(body)
    assert error["code"] == -32700


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"jsonrpc": "1.0"}, id="other version"),
        pytest.param({"jsonrpc": None}, id="no version"),
        pytest.param({"params": ["zzyzx"]}, id="params a list"),
        pytest.param({"params": {"name": "create_environment", "arguments": ["zzyzx"]}}, id="arguments a list"),
        pytest.param({"params": {"name": "create_environment", "_meta": "zzyzx"}}, id="meta a string"),
        pytest.param({"method": "tools/list", "params": "zzyzx"}, id="list with params a string"),
        pytest.param({"method": "ping", "params": ["zzyzx"]}, id="ping with params a list"),
    ],
)
async def test_a_malformed_message_is_refused_without_an_echo(target: Target, change: dict[str, Any]) -> None:
    error = await target.refuses({**creation("zzyzx"), **change})
    assert "zzyzx" not in str(error)


async def endless(size: int, sent: list[int]) -> AsyncIterator[bytes]:
    """Yield chunks of spaces without an end, and note the size of each."""
    while True:
        sent.append(size)
        yield b" " * size


async def test_the_body_limit_applies_without_a_content_length(target: Target) -> None:
    """CWE-770: the server stops reading at the limit, so only the first mebibyte of an endless stream is read."""
    assert (await target.server.post(b" " * (MIB - len(CREATION)) + CREATION, target.token)).status_code == 200
    error = await target.refuses(b" " * (MIB + 1 - len(CREATION)) + CREATION, status=413)
    assert "1024 KiB" in error["message"]
    sent: list[int] = []
    headers = {"Authorization": f"Bearer {target.token}", "Content-Type": "application/json"}
    url = target.server.settings.resource
    response = await target.server.http.post(url, content=endless(65536, sent), headers=headers)
    assert response.status_code == 413
    assert len(sent) <= MIB // 65536 + 2


@pytest.mark.threat("T-136")
@pytest.mark.parametrize("authorization", [None, "Bearer not-a-token"])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_caller_without_a_valid_token_sends_at_most_64_kib(
    target: Target, authorization: str | None, chunked: bool
) -> None:
    """CWE-770: 300 strangers with a mebibyte each must not fill the memory."""
    assert (await target.server.post(b" " * (MIB - len(CREATION)) + CREATION, target.token)).status_code == 200
    sent: list[int] = []
    headers = {"Content-Type": "application/json", **({"Authorization": authorization} if authorization else {})}
    headers |= {} if chunked else {"Content-Length": str(MIB)}
    url = target.server.settings.resource
    response = await target.server.http.post(url, content=endless(4096, sent), headers=headers)
    assert response.status_code == 401
    assert response.json()["id"] is None
    assert "www-authenticate" in response.headers
    assert len(sent) <= (65536 // 4096 + 2 if chunked else 0)


async def test_a_disconnecting_client_causes_no_server_error(
    target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    """CWE-400, CWE-779: aborted uploads must not fill the log with tracebacks."""
    messages = [
        {"type": "http.request", "body": CREATION[:20], "more_body": True},
        {"type": "http.disconnect"},
    ]
    answers: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        answers.append(message)

    headers = [(b"host", b"mcp.example.com"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/mcp",
        "raw_path": b"/mcp",
        "query_string": b"",
        "root_path": "",
    }
    await target.server.app({**scope, "headers": headers}, receive, send)  # type: ignore[arg-type]
    assert [answer["status"] for answer in answers if answer.get("status", 0) >= 500] == []
    assert "Traceback" not in capsys.readouterr().out
    assert target.rows() == 0


@pytest.mark.parametrize(
    "content_type",
    [
        *("", "text/plain", "text/json", "application/x-www-form-urlencoded", "multipart/form-data; charset=utf-8"),
        *(
            "application/jsonp",
            "application/json-patch+json",
            "application/json; charset=utf-16",
            "application/json, x",
        ),
    ],
)
async def test_another_content_type_is_refused(target: Target, content_type: str) -> None:
    """A web page may send three of these cross-origin without a preflight (Fetch, "CORS-safelisted request-header")."""
    await target.refuses(CREATION, {"Content-Type": content_type}, status=415)


@pytest.mark.threat("T-132")
async def test_no_mutation_of_a_request_breaks_the_server(target: Target) -> None:
    """CWE-20: random mutations from a fixed seed."""
    chance, statuses = random.Random(20260728), set()
    tokens = [b"null", b"true", b"-1", b"1.5", b"{}", b"[]", b'""', b"\x00", b"\xff", b"\\u0000", b'"name"', b",", b"}"]
    for _ in range(200):
        body = bytearray(CREATION)
        for _ in range(chance.randint(1, 3)):
            start = chance.randrange(len(body))
            body[start : start + chance.randint(0, 12)] = chance.choice(tokens)
        response = await target.server.post(bytes(body), target.token)
        statuses.add(response.status_code)
        assert not [leak for leak in LEAKS if leak in response.text], (bytes(body), response.text)
    assert {200, 400} <= statuses <= {200, 202, 400}
