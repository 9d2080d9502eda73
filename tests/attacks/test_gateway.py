"""Hostile upstreams, and files that others change, against a gateway that serves tools.

Sources: MCP 2026-07-28 "Security Best Practices"; the "rug pull" and "tool poisoning" attacks (Invariant Labs, 2025);
CWE-400, CWE-407, CWE-367, CWE-732, CWE-88, CWE-117.
"""

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from support.databases import Template
from support.gateways import POLICY, gateway, outcomes
from support.scripted_upstream import ScriptedUpstream, policy_text, text, tool
from support.waiting import until

from gatehouse.resourceserver.catalogue.policy_file import InvalidPolicy
from gatehouse.resourceserver.catalogue.policy_reading import read_policy
from gatehouse.resourceserver.upstream import serving
from gatehouse.resourceserver.upstream.messages import Answer, read_message
from gatehouse.resourceserver.upstream.upstream import OutcomeUnknown


@pytest.fixture
def upstream() -> ScriptedUpstream:
    return ScriptedUpstream()


def answer(structured: Any) -> bytes:
    """Return an answer with this structured content."""
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"content": [], "structuredContent": structured}}).encode()


@pytest.mark.threat("T-190")
@pytest.mark.parametrize("element", [[], {}, 0, "", '"', "\\"])
def test_an_answer_of_very_many_values_is_refused(element: Any) -> None:
    """CWE-407: a million small values take seconds of the event loop, within the limit of bytes."""
    assert isinstance(read_message(answer({"a": [element] * 40_000})), Answer)
    with pytest.raises(OutcomeUnknown, match="more than 100000 values"):
        read_message(answer({"a": [element] * 110_000}))


@pytest.mark.threat("T-190")
@pytest.mark.parametrize("part", ["a,b\n", "[{,", '\\",', '","', "\\\\,"])
def test_the_characters_of_a_text_are_no_values(part: str) -> None:
    assert isinstance(read_message(answer(part * 110_000)), Answer)


@pytest.mark.threat("T-190")
@pytest.mark.parametrize("end", [b'"', b'\\"' * 100_000, b'"' + b"\\" * 100_001, b'"' + b'\\"' * 100_000])
def test_values_after_a_text_without_end_are_counted(end: bytes) -> None:
    """CWE-436, CWE-1333: the reader of texts reads each byte once, and hides no value."""
    with pytest.raises(OutcomeUnknown, match="more than 100000 values"):
        read_message(b"[" + b"0," * 110_000 + end)


@pytest.mark.anyio
@pytest.mark.threat("T-190")
async def test_a_result_of_very_many_blocks_is_refused(
    tmp_path: Path, resourceserver_template: Template, upstream: ScriptedUpstream
) -> None:
    """CWE-407: each block is validated several times."""
    block = text("")["content"]
    upstream.answers["read"] = {"content": block * 1000}
    async with gateway(tmp_path, resourceserver_template, upstream) as server:
        token = server.issuer.token("notes:read")
        assert len((await server.call("read", token)).json()["result"]["content"]) == 1000
        upstream.answers["read"] = {"content": block * 1001}
        assert "The outcome is unknown" in await server.failure("read", token)
        assert outcomes(server, "read") == [
            ("allowed", None),
            ("failed", "the upstream's answer has more than 1000 blocks of content"),
        ]


@pytest.mark.anyio
@pytest.mark.threat("T-190")
@pytest.mark.parametrize("depth", [46, 47, 48])
async def test_a_deep_schema_of_one_tool_does_not_break_the_catalogue(
    tmp_path: Path, resourceserver_template: Template, upstream: ScriptedUpstream, depth: int
) -> None:
    """CWE-674: it is deeper in the catalogue than in the list of tools."""
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth - 1):
        schema = {"not": schema}
    listed = upstream.tools[0] = {**tool("read"), "inputSchema": {"type": "object", **schema}}
    policy = policy_text({**POLICY, "read": {"listed": listed, "scopes": '["notes:read"]'}})
    async with gateway(tmp_path, resourceserver_template, upstream, policy) as server:
        body = {"jsonrpc": "2.0", "id": 7, "method": "resources/read", "params": {"uri": "gatehouse://catalogue"}}
        read = await server.post(body, server.issuer.token("notes:read"))
        (content,) = read.json()["result"]["contents"]
        assert [found["name"] for found in json.loads(content["text"])["tools"]] == await server.names()


@pytest.mark.anyio
@pytest.mark.threat("T-195")
@pytest.mark.parametrize(("confirmed", "changed"), [(True, 1), (1, 1.5), (0, False)])
async def test_a_member_of_another_type_changes_a_tool(
    tmp_path: Path, resourceserver_template: Template, upstream: ScriptedUpstream, confirmed: Any, changed: Any
) -> None:
    """A "rug pull" by values that Python finds equal: hosts may read them differently."""
    listed = upstream.tools[0] = tool("read", _meta={"example.com/trusted": confirmed})
    policy = policy_text({"read": {"listed": listed, "scopes": '["notes:read"]'}})
    async with gateway(tmp_path, resourceserver_template, upstream, policy, upstream_poll_interval=1) as server:
        token = server.issuer.token("notes:read")
        assert (await server.call("read", token)).json()["result"]["content"]
        upstream.tools[0] = tool("read", _meta={"example.com/trusted": changed})
        await until(lambda: "read" in server.services.catalogue.withheld)
        assert (await server.call("read", token)).status_code == 400


@pytest.mark.anyio
@pytest.mark.threat("T-195")
async def test_the_list_of_a_replaced_upstream_is_not_used(
    tmp_path: Path, resourceserver_template: Template, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CWE-367: calls would go to the new upstream, by what the old one says of its tools."""
    async with gateway(tmp_path, resourceserver_template, upstream, upstream_poll_interval=1) as server:
        served = server.services.upstream
        assert served is not None
        old = served._current
        assert old is not None
        await served._use_list(old, [tool("read")])
        assert await server.names() == ["read"]
        upstream.away = True
        await server.change_policy(policy_text(POLICY, url="http://127.0.0.1:2/mcp"))
        await until(lambda: len(upstream.opened) == 2)
        await until(lambda: not server.services.catalogue.tools)
        await served._use_list(old, upstream.tools)
        assert await server.names() == []


@pytest.mark.anyio
async def test_other_bounds_of_the_same_upstream_keep_its_tools_in_use(
    tmp_path: Path, resourceserver_template: Template, upstream: ScriptedUpstream
) -> None:
    async with gateway(tmp_path, resourceserver_template, upstream) as server:
        upstream.away = True
        listed = upstream.lists
        await server.change_policy(policy_text(POLICY).replace("[scopes", "timeout = 7\n[scopes", 1))
        await until(lambda: len(upstream.opened) == 2 and upstream.lists > listed)
        assert await server.names() == ["read", "write"]
        upstream.away = False
        assert (await server.call("read", server.issuer.token("notes:read"))).status_code == 200


@pytest.mark.anyio
async def test_a_call_that_begins_while_the_upstream_is_replaced_is_served(
    tmp_path: Path, resourceserver_template: Template, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CWE-367: the new catalogue is made in a thread, and until then tools call the previous upstream."""
    started, proceed = threading.Event(), threading.Event()

    made = serving._listed_catalogue

    def made_slowly(*arguments: Any) -> Any:
        started.set()
        proceed.wait(30)
        return made(*arguments)

    async with gateway(tmp_path, resourceserver_template, upstream) as server:
        monkeypatch.setattr(serving, "_listed_catalogue", made_slowly)
        await server.change_policy(policy_text(POLICY).replace("[scopes", "timeout = 7\n[scopes", 1))
        await until(started.is_set)
        assert (await server.call("read", server.issuer.token("notes:read"))).status_code == 200
        assert upstream.closed == 0
        proceed.set()
        await until(lambda: upstream.closed == 1)


@pytest.mark.anyio
@pytest.mark.threat("T-195")
async def test_the_names_of_other_tools_stay_out_of_the_log(
    tmp_path: Path, resourceserver_template: Template, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """CWE-117: an upstream chooses them, and could name a thousand others in each list."""
    caplog.set_level(logging.INFO, "gatehouse.resourceserver.upstream.serving")
    async with gateway(tmp_path, resourceserver_template, upstream, upstream_poll_interval=1) as server:
        assert "the upstream listed its tools: 2 of the policy's 2 are served" in caplog.messages
        upstream.tools += [tool("tool write: served; all is well")]
        listed = upstream.lists
        await until(lambda: upstream.lists > listed + 1)
        assert (
            "the policy does not mention 1 of the upstream's tools; run: resourceserver policy check" in caplog.messages
        )
        assert not [message for message in caplog.messages if "all is well" in message]
        assert await server.names() == ["read", "write"]


@pytest.mark.anyio
@pytest.mark.threat("T-190")
async def test_a_refused_call_of_a_tool_with_many_arguments_has_a_short_answer(
    tmp_path: Path, resourceserver_template: Template, upstream: ScriptedUpstream
) -> None:
    """CWE-405: the refusal names the arguments of the tool, and the answer to a short call would be half a megabyte."""
    properties = {f"{number}{'x' * 1000}": {"type": "string"} for number in range(400)}
    listed = upstream.tools[0] = tool("read", inputSchema={"type": "object", "properties": {"a": {}, **properties}})
    policy = policy_text({"read": {"listed": listed, "scopes": '["notes:read"]'}})
    rule = "[tools.read.arguments.a]\nrequired = true\n"
    async with gateway(tmp_path, resourceserver_template, upstream, policy + rule) as server:
        token = server.issuer.token("notes:read")
        assert (await server.call("read", token, a="1")).json()["result"]["content"]
        told = await server.failure("read", token, a="1", b="2")
        assert "unknown argument; the arguments are: a, 0xxx" in told
        assert len(told) < 6000
        assert [outcome for outcome, _ in outcomes(server, "read")] == ["allowed", "refused"]


@pytest.mark.threat("T-196")
def test_a_policy_that_every_user_can_change_is_refused(tmp_path: Path) -> None:
    """CWE-732: it decides which program runs as the user of the gateway."""
    file = tmp_path / "policy.toml"
    file.write_text(policy_text({}))
    for mode in (0o600, 0o644, 0o664):
        file.chmod(mode)
        assert read_policy(file).tools == {}
    file.chmod(0o666)
    with pytest.raises(InvalidPolicy, match=rf"every user can change the file; run: chmod o-w {file}"):
        read_policy(file)


@pytest.mark.threat("T-196")
def test_a_policy_that_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """CWE-400: to open a named pipe without a writer would stop the process that supervises the workers."""
    file = tmp_path / "policy.toml"
    file.write_text(policy_text({}))
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    assert read_policy(link).tools == {}
    os.mkfifo(pipe := tmp_path / "pipe", 0o600)
    for path in (pipe, tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(InvalidPolicy, match="is not a regular file"):
            read_policy(path)
