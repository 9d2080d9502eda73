"""The owner process: all workers use the same programs, and a worker or the owner may go away at any moment."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from support.programs import make_call, members, settings, transport, until

from gatehouse.resourceserver.upstream.stdio import owner_client, owner_server
from gatehouse.resourceserver.upstream.stdio.owner_client import OwnerUpstream
from gatehouse.resourceserver.upstream.stdio.owner_messages import (
    InvalidFrame,
    read_error,
    read_frame,
    read_settings,
    write_error,
    write_frame,
    write_settings,
)
from gatehouse.resourceserver.upstream.upstream import (
    OutcomeUnknown,
    UpstreamBusy,
    UpstreamRefused,
    UpstreamUnavailable,
)

pytestmark = pytest.mark.anyio


def members_of(*options: str, **changes: Any) -> dict[str, Any]:
    """Return settings as the owner process gets them."""
    return write_settings(settings(transport(*options), **changes), {"PATH": os.defpath})


class Owner:
    """An owner in this process, with the writing end of its settings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = asyncio.StreamReader()
        self.stopped = asyncio.Event()

    def change(self, members: dict[str, Any] | None) -> None:
        self.source.feed_data(json.dumps(members).encode() + b"\n")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        serving = asyncio.create_task(owner_server.run(self.path, self.source, self.stopped))
        await until(self.path.is_socket)
        try:
            yield
        finally:
            self.stopped.set()
            await serving


@pytest.fixture
async def served(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Owner]:
    owner = Owner(tmp_path / "socket")
    async with owner.running():
        owner.change(members_of())
        yield owner


@asynccontextmanager
async def worker(of: Owner, **changes: Any) -> AsyncIterator[OwnerUpstream]:
    upstream = OwnerUpstream(of.path, settings(transport(), **changes))
    async with upstream.running():
        yield upstream


async def pid_of(upstream: OwnerUpstream, caller: str = "alice") -> int:
    pid: int = (await upstream.call_tool(make_call("describe", caller)))["structuredContent"]["pid"]
    return pid


async def is_served(upstream: OwnerUpstream) -> bool:
    try:
        await pid_of(upstream)
    except UpstreamUnavailable:
        return False
    return True


async def cancelled(upstream: OwnerUpstream) -> list[int]:
    numbers: list[int] = (await upstream.call_tool(make_call("cancelled")))["structuredContent"]["cancelled"]
    return numbers


# Workers


async def test_a_caller_finds_its_program_from_every_worker(served: Owner) -> None:
    async with worker(served) as one, worker(served) as other:
        assert await pid_of(one) == await pid_of(other)
        assert await pid_of(one, "bob") == await pid_of(other, "bob") != await pid_of(one)


async def test_calls_lists_progress_and_errors_pass(served: Owner) -> None:
    seen: list[Any] = []

    async def notify(*progress: Any) -> None:
        seen.append(progress)

    async with worker(served) as upstream:
        sent = (await upstream.call_tool(make_call("echo", text="é\u2028😀", number=1e15)))["structuredContent"]
        assert sent["arguments"] == {"text": "é\u2028😀", "number": 1e15}
        assert [tool["name"] for tool in await upstream.list_tools()] == ["tool0", "tool1"]
        await upstream.call_tool(make_call("count", notify=notify))
        assert seen == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]
        refusal = '{"jsonrpc":"2.0","id":ID,"error":{"code":-32000,"message":"secret"}}\n'
        with pytest.raises(UpstreamRefused, match="-32000") as raised:
            await upstream.call_tool(make_call("raw", text=refusal))
        assert raised.value.code == -32000
        with pytest.raises(OutcomeUnknown, match="the program ended with status 3"):
            await upstream.call_tool(make_call("die"))
        with pytest.raises(UpstreamUnavailable, match="is not started again for"):
            await pid_of(upstream)


async def test_many_calls_share_one_connection(served: Owner) -> None:
    async with worker(served) as upstream:

        async def use(number: int) -> None:
            result = await upstream.call_tool(make_call("echo", number=number))
            assert result["structuredContent"]["arguments"] == {"number": number}

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(use, number)


async def test_a_cancelled_call_is_cancelled_in_the_program(served: Owner) -> None:
    async with worker(served) as upstream:
        await pid_of(upstream)
        waiting = asyncio.create_task(upstream.call_tool(make_call("wait")))
        await until_received(upstream)
        waiting.cancel()
        await until_cancelled(upstream)


async def until_received(upstream: OwnerUpstream) -> None:
    """Wait until the program of the caller has received a call of `wait`."""
    with anyio.fail_after(30):
        while True:
            result = await upstream.call_tool(make_call("received"))
            if any(message["params"].get("name") == "wait" for message in result["structuredContent"]["received"]):
                return
            await anyio.sleep(0.01)


async def until_cancelled(upstream: OwnerUpstream) -> None:
    with anyio.fail_after(30):
        while not await cancelled(upstream):  # noqa: ASYNC110 - another process changes it
            await anyio.sleep(0.01)


async def test_a_worker_that_goes_away_cancels_its_own_calls_only(served: Owner) -> None:
    async with worker(served) as stays:
        kept = asyncio.create_task(stays.call_tool(make_call("wait", "bob")))
        async with worker(served) as goes:
            await pid_of(goes)
            lost = asyncio.create_task(goes.call_tool(make_call("wait")))
            await until_received(goes)
        with pytest.raises(OutcomeUnknown, match="has ended"):
            await lost
        await until_cancelled(stays)
        assert not kept.done()
        kept.cancel()
        with pytest.raises(UpstreamUnavailable, match="the gateway is being stopped"):
            await pid_of(goes)


async def test_an_owner_that_goes_away_leaves_sent_calls_unknown(served: Owner) -> None:
    async with worker(served) as upstream:
        pid = await pid_of(upstream)
        waiting = asyncio.create_task(upstream.call_tool(make_call("wait")))
        await until_received(upstream)
        served.stopped.set()
        with pytest.raises(OutcomeUnknown):
            await waiting
        await until(lambda: members(pid) == [])
        served.path.unlink(missing_ok=True)
        with pytest.raises(UpstreamUnavailable, match="is not running"):
            await pid_of(upstream)
        again = Owner(served.path)
        async with again.running():
            again.change(members_of())
            assert await pid_of(upstream) != pid


@asynccontextmanager
async def answering(path: Path, sent: bytes) -> AsyncIterator[None]:
    """Listen on a socket, answer with these bytes, and read to the end."""
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(sent)
        if len(sent) == 2:
            writer.write_eof()
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_unix_server(answer, path)
    yield
    server.close()
    await ended.wait()


async def test_an_owner_that_does_not_answer_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    upstream = OwnerUpstream(tmp_path / "socket", settings(transport(), timeout=0.01))
    async with answering(tmp_path / "socket", b""), upstream.running():
        with pytest.raises(OutcomeUnknown, match="did not answer in time"):
            await pid_of(upstream)


async def test_an_answer_to_a_cancelled_call_is_ignored(tmp_path: Path) -> None:
    upstream = OwnerUpstream(tmp_path / "socket", settings(transport()))
    frames = write_frame({"id": 99, "result": {}}) + write_frame({"id": 1, "result": {"content": []}})
    async with answering(tmp_path / "socket", frames), upstream.running():
        assert await upstream.call_tool(make_call("echo")) == {"content": []}


async def test_a_worker_that_has_just_gone_is_sent_nothing() -> None:
    class Gone:
        def write(self, _: bytes) -> None:
            pass

        async def drain(self) -> None:
            raise ConnectionResetError

    await owner_server._send(cast("asyncio.StreamWriter", Gone()), {"id": 1, "result": {}})


@pytest.mark.parametrize("sent", [b"\0\0\0\2[]", b"\0\0\0\1x", b"\xff\xff\xff\xff", b"\0\0"])
async def test_an_owner_that_answers_nonsense_is_left(tmp_path: Path, sent: bytes) -> None:
    upstream = OwnerUpstream(tmp_path / "socket", settings(transport()))
    async with answering(tmp_path / "socket", sent), upstream.running():
        with pytest.raises(OutcomeUnknown, match="has ended"):
            await pid_of(upstream)


@pytest.mark.parametrize(
    "sent", [b"\0\0\0\2[]", b"\0\0\0\2{}", write_frame({"id": "1"}), b"\xff\xff\xff\xff", b"\0\0\0\1"]
)
async def test_a_worker_that_sends_nonsense_is_left(served: Owner, sent: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(served.path)
    writer.write(sent)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    async with worker(served) as upstream:
        assert await pid_of(upstream)


async def test_a_call_that_cannot_be_read_fails_alone(served: Owner, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await asyncio.open_unix_connection(served.path)
    writer.write(write_frame({"id": 1, "call": {}}) + write_frame({"cancel": 7}))
    answer = await read_frame(reader, 1000)
    assert answer == {"id": 1, "error": {"name": "OutcomeUnknown", "text": "an internal error"}}
    writer.close()
    assert "a call of the upstream failed" in caplog.text


@pytest.mark.threat("T-173")
async def test_no_other_user_is_served_or_trusted(served: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    async with worker(served) as upstream:
        assert await pid_of(upstream)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    reader, writer = await asyncio.open_unix_connection(served.path)
    with anyio.fail_after(30):
        assert await reader.read() == b""
    writer.close()
    async with worker(served) as upstream:
        with pytest.raises(UpstreamUnavailable, match="is not the gateway's"):
            await pid_of(upstream)


async def test_two_first_calls_make_one_connection(served: Owner) -> None:
    async with worker(served) as upstream, anyio.create_task_group() as tasks:
        for caller in ("alice", "bob"):
            tasks.start_soon(pid_of, upstream, caller)


# Settings


@pytest.mark.threat("T-173")
@pytest.mark.parametrize("character", ["x", "\x7f"])
async def test_an_answer_of_any_characters_leaves_the_calls_of_others_alone(
    served: Owner, character: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CWE-130: DEL is one byte of JSON, and six once it is escaped. A longer message ends the worker's connection."""
    monkeypatch.setattr(owner_client, "MAX_LIST", 0)
    longest = 60_000
    fine = '{"jsonrpc":"2.0","id":ID,"result":{"content":[],"x":"' + character * (longest // len(character.encode()))
    async with worker(served, max_result=longest + 100) as upstream:
        waiting = asyncio.create_task(upstream.call_tool(make_call("wait", "bob")))
        result = await upstream.call_tool(make_call("raw", text=fine + '"}}\n'))
        assert set(result["x"]) == {character}
        await anyio.sleep(0.05)
        assert not waiting.done()
        waiting.cancel()


async def test_without_settings_no_program_is_started(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "socket")
    async with owner.running(), worker(owner) as upstream:
        with pytest.raises(UpstreamUnavailable, match="the upstream is no program"):
            await pid_of(upstream)


async def test_programs_of_an_earlier_policy_end_when_their_calls_are_done(
    served: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    async with worker(served) as upstream:
        idle, busy = await pid_of(upstream, "bob"), await pid_of(upstream)
        waiting = asyncio.create_task(upstream.call_tool(make_call("wait")))
        await until_received(upstream)
        served.change(members_of("new"))
        with anyio.fail_after(30):
            while (new := await pid_of(upstream, "bob")) == idle:  # noqa: ASYNC110 - another process changes it
                await anyio.sleep(0.01)
        assert new != idle
        assert members(busy)
        assert not waiting.done()
        waiting.cancel()
        await until(lambda: members(busy) == [] and members(idle) == [])
        served.change(members_of() | {"user": "no-such-user"})
        await until(lambda: "the programs of the new policy cannot be started: upstream.user:" in caplog.text)
        with pytest.raises(UpstreamUnavailable, match="its policy cannot be used"):
            await pid_of(upstream, "bob")
        await until(lambda: members(new) == [])
        served.change(members_of())
        with anyio.fail_after(30):
            while not await is_served(upstream):  # noqa: ASYNC110 - another process changes it
                await anyio.sleep(0.01)
        served.change(None)
        with anyio.fail_after(30):
            while await is_served(upstream):  # noqa: ASYNC110 - as above
                await anyio.sleep(0.01)


async def test_the_end_of_the_settings_ends_the_owner(served: Owner) -> None:
    served.source.feed_eof()
    with anyio.fail_after(30):
        await served.stopped.wait()


async def test_the_socket_is_private(served: Owner) -> None:
    assert served.path.stat().st_mode & 0o777 == 0o600


def test_settings_and_errors_survive_their_transport(tmp_path: Path) -> None:
    of = transport(environment=("HOME",), directory=tmp_path, user="u", shared=True)
    sent = json.loads(json.dumps(write_settings(settings(of), {"HOME": "/h", "PATH": "/bin", "TOKEN": "secret"})))
    named = replace(of, environment=("PATH", "HOME"))
    assert read_settings(sent) == (settings(named), {"PATH": "/bin", "HOME": "/h"})
    for error in (UpstreamBusy("a"), UpstreamUnavailable("b"), OutcomeUnknown("c"), UpstreamRefused(-1)):
        read = read_error(write_error(error))
        assert (type(read), str(read)) == (type(error), str(error))


async def test_a_frame_that_is_too_long_is_not_read() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(write_frame({"a": "b" * 100}))
    with pytest.raises(InvalidFrame):
        await read_frame(reader, 50)
