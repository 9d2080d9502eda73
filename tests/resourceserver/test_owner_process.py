"""The process that owns the programs of a node: how the server starts it, and how it ends."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.logs import logging_put_back
from support.programs import exists, kill, make_call, members, settings, transport, until
from support.waiting import wait_until

from gatehouse.resourceserver.catalogue.policy_file import HttpTransport, InvalidPolicy
from gatehouse.resourceserver.upstream.stdio import owner_process, owner_server
from gatehouse.resourceserver.upstream.stdio.launch import check_launch, stdio_transport
from gatehouse.resourceserver.upstream.stdio.owner_client import OwnerUpstream
from gatehouse.resourceserver.upstream.stdio.owner_process import ProgramOwner
from gatehouse.resourceserver.upstream.upstream import UpstreamUnavailable

pytestmark = pytest.mark.anyio


class Master:
    """The process that starts the workers: an owner, the settings of the accepted policy, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.current = settings(transport())
        self.now = 0.0
        self.owner = ProgramOwner(lambda: self.current, "json", "INFO", str(folder))

    def supervise(self) -> None:
        self.owner.supervise(lambda: self.now)

    def change(self, *options: str) -> None:
        self.current = settings(transport(*options))
        self.supervise()

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self.owner._owner is not None
        return self.owner._owner.process


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: that of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="gh-") as created:
        yield Path(created)


@pytest.fixture
def master(folder: Path) -> Iterator[Master]:
    master = Master(folder)
    yield master
    master.owner.stop()
    assert not list(folder.iterdir())


HTTP = settings(transport())
HTTP = replace(HTTP, transport=HttpTransport("http://127.0.0.1:9/mcp", None, None))


def test_the_folder_is_private(master: Master) -> None:
    assert master.owner.socket.parent.stat().st_mode & 0o777 == 0o700


async def test_the_process_serves_until_it_is_stopped(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESOURCESERVER_SEALING_KEY", "secret")
    upstream = OwnerUpstream(master.owner.socket, master.current)
    async with upstream.running():
        master.supervise()
        first = master.process.pid
        await until(master.owner.socket.is_socket)
        assert b"SEALING" not in environment(first)
        program = (await describe(upstream))["pid"]
        master.supervise()
        assert master.process.pid == first
        assert (await describe(upstream))["pid"] == program
        master.change("later")
        await until(lambda: members(program) == [])
        described = await describe(upstream)
        assert described["arguments"] == ["later"]
        kill(first)
        await until(lambda: members(described["pid"]) == [])
        master.supervise()
        assert master.process.pid == first, "not started again within five seconds"
        master.now = 5.0
        master.supervise()
        again = await describe(upstream)
        assert again["arguments"] == ["later"]
        master.current = HTTP
        master.supervise()
        await until(lambda: members(again["pid"]) == [])
        master.change("last")
        last = await describe(upstream)
        master.owner.stop()
        await until(lambda: members(last["pid"]) == [])


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


async def describe(upstream: OwnerUpstream) -> dict[str, Any]:
    """Describe a program of the caller, when the owner has started it."""
    with anyio.fail_after(60):
        while True:
            try:
                described: dict[str, Any] = (await upstream.call_tool(make_call("describe")))["structuredContent"]
            except UpstreamUnavailable:
                await anyio.sleep(0.01)
            else:
                return described


def test_an_upstream_over_http_needs_no_process(master: Master) -> None:
    master.current = HTTP
    master.supervise()
    assert master.owner._owner is None


def test_the_owner_and_its_programs_end_with_the_server(folder: Path) -> None:
    code = (
        "import signal, sys\n"
        "from gatehouse.resourceserver.catalogue.policy_file import StdioTransport, UpstreamSettings\n"
        "from gatehouse.resourceserver.upstream.stdio.owner_process import ProgramOwner\n"
        "transport = StdioTransport(tuple(sys.argv[2:]), (), None, None, False)\n"
        "settings = UpstreamSettings(transport, 60, 9999, 9, 600, False)\n"
        "owner = ProgramOwner(lambda: settings, 'json', 'INFO', sys.argv[1])\n"
        "owner.supervise()\n"
        "print(owner.socket, owner._owner.process.pid, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *transport("keep").command], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        path, owner_pid = server.stdout.readline().split()

        async def use() -> int:
            upstream = OwnerUpstream(Path(path), settings(transport()))
            async with upstream.running():
                pid: int = (await describe(upstream))["pid"]
                return pid

        program = asyncio.run(use())
        server.kill()
    wait_until(lambda: not exists(int(owner_pid)) and not members(program) and not list(folder.iterdir()))


def test_an_owner_that_does_not_end_is_killed(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_process, "_STOP_TIMEOUT", 0.01)
    monkeypatch.setattr(owner_process, "_PROGRAM", "import signal; signal.pause()")
    # A process inherits what its parent ignores.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        master.supervise()
    finally:
        signal.signal(signal.SIGTERM, before)
    process = master.process
    master.owner.stop()
    assert process.returncode == -signal.SIGKILL


def test_a_server_goes_on_if_the_owner_cannot_be_started(
    master: Master, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with monkeypatch.context() as without_python:
        without_python.setattr(sys, "executable", str(tmp_path / "no-python"))
        master.supervise()
    assert "cannot be started: No such file or directory" in caplog.text
    monkeypatch.setattr(owner_process, "_PROGRAM", "")
    master.now = 5.0
    master.supervise()
    os.waitid(os.P_PID, master.process.pid, os.WEXITED | os.WNOWAIT)
    with monkeypatch.context() as not_noticed_yet:
        not_noticed_yet.setattr(master.process, "poll", lambda: None)
        master.change("later")
    master.now = 10.0
    master.supervise()
    assert "has ended; it is started again" in caplog.text


def test_an_impossible_user_is_found_when_a_policy_is_checked() -> None:
    check_launch(HTTP)
    check_launch(settings(transport()))
    with pytest.raises(InvalidPolicy, match=r"upstream\.user"):
        check_launch(settings(transport(user="no-such-user")))
    with pytest.raises(TypeError):
        stdio_transport(HTTP)


def test_main_serves_until_it_is_terminated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, for the parts that run nowhere else."""
    ours, theirs = socket.socketpair()
    path = tmp_path / "owner" / "socket"
    path.parent.mkdir()

    def run(parent: int, then: Callable[[], None]) -> None:
        monkeypatch.setattr(sys, "argv", ["owner", str(path), str(parent), "json", "INFO"])
        monkeypatch.setattr(sys, "stdin", os.fdopen(os.dup(theirs.fileno()), "rb", buffering=0))
        monkeypatch.setattr(owner_server.OwnerServer, "change", lambda *_: then())
        ours.sendall(b"{}\n")
        with logging_put_back():
            owner_server.main()

    run(os.getppid(), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert path.parent.exists()
    run(os.getppid() + 1, lambda: None)
    assert not path.parent.exists(), "nobody else removes the folder of a server that was killed"
    ours.close()
    theirs.close()
