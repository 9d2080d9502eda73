"""Clients that send nothing, half a header or half a body do not delay other callers."""

import asyncio
import resource
from contextlib import ExitStack
from pathlib import Path

import pytest
from local_stack import LocalStack, child_processes
from support.availability import Stack, Target, http
from support.callers import Caller, Tally, calling, held_open
from support.limits import VARIABLES

pytestmark = pytest.mark.anyio

ATTACK = 25.0
"""Seconds of an attack: longer than the limits of header and body, so that connections are closed and opened again."""


def callers(target: Target, tally: Tally) -> list[Caller]:
    """Return callers that keep their connection, and callers that do not."""
    return [Caller(target.url, request, tally, keep) for request in target.requests for keep in (True, False)]


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a server's workers."""
    fields = [
        Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        for child in child_processes(pid)
    ]
    return sum(int(stat[11]) + int(stat[12]) for stat in fields) / 100


def leave_files(pid: int, number: int) -> None:
    """Let a process open this many more files."""
    highest = max(int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + number, highest + 1 + number))


@pytest.mark.parametrize("server", ["resourceserver", "authserver"])
async def test_other_callers_are_answered_within_a_second(stack: Stack, server: str) -> None:
    [target] = [target for target in stack.targets() if target.name == server]
    head, _, _ = target.requests[0].partition(b"\r\n\r\n")
    half_body = head.replace(b"Content-Length: ", b"Content-Length: 9") + b"\r\n\r\n{"
    tally = Tally()
    with ExitStack() as attack:
        for number, sent in ((500, b""), (500, head[:30]), (100, half_body)):
            attack.enter_context(held_open(target.url, number, sent))
        async with calling(callers(target, tally)):
            await asyncio.sleep(ATTACK)
    print(f"\n{server}, 500 silent, 500 half headers, 100 half bodies: {tally.line()}")
    assert not tally.failures
    assert max(tally.seconds) < 1


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a server's workers."""
    pages = sum(
        int(Path(f"/proc/{child}/statm").read_text(encoding="ascii").split()[1]) for child in child_processes(pid)
    )
    return pages * resource.getpagesize()


@pytest.mark.parametrize(("length", "sent"), [(1024, 1000), (64, 63)])
async def test_strangers_with_large_bodies_need_little_memory(stack: Stack, length: int, sent: int) -> None:
    """300 clients without a token that send almost the whole body. Sizes in KiB."""
    [target] = [target for target in stack.targets() if target.name == "resourceserver"]
    request = http("POST", target.url, "Content-Type: application/json", body=" " * length * 1024)
    pid = stack.servers.pid("resourceserver")
    before = most = resident_bytes(pid)
    with held_open(target.url, 300, request[: -(length - sent) * 1024]):
        # For 10 s, longer than all that is sent takes to arrive.
        for _ in range(100):
            await asyncio.sleep(0.1)
            most = max(most, resident_bytes(pid))
    print(f"\n300 strangers with {sent} of {length} KiB: {(most - before) / 2**20:.0f} MiB more memory")
    assert most - before < 100 * 2**20


@pytest.mark.parametrize("server", ["resourceserver", "authserver"])
async def test_without_file_descriptors_the_worker_neither_spins_nor_floods_the_log(stack: Stack, server: str) -> None:
    [target] = [target for target in stack.targets() if target.name == server]
    servers, tally = stack.servers, Tally()
    pid = servers.pid(server)
    for worker in child_processes(pid):
        leave_files(worker, 20)
    logged, used = len(servers.log(server)), cpu_seconds(pid)
    with held_open(target.url, 200, b""):
        await asyncio.sleep(ATTACK)
    logged, used = len(servers.log(server)) - logged, cpu_seconds(pid) - used
    async with calling(callers(target, tally)):
        await tally.wait_for_answers(100)
    print(f"\n{server}, no file descriptors for {ATTACK:.0f} s: {logged} bytes logged, {used:.1f} s CPU")
    print(f"then: {tally.line()}")
    assert logged < 20_000
    assert used < ATTACK / 2
    assert not tally.failures


@pytest.mark.parametrize("server", ["resourceserver", "authserver"])
async def test_at_the_connection_limit_idle_clients_make_room(tmp_path: Path, server: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    servers = LocalStack(tmp_path / "stack", settings=VARIABLES)
    try:
        stack = Stack(servers)
        servers.start_all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        [target] = [target for target in stack.targets() if target.name == server]
        tally = Tally()
        with held_open(target.url, 300, b"", retry=1):
            async with calling(callers(target, tally)):
                await asyncio.sleep(ATTACK)
        print(f"\n{server}, 300 clients for 2 x 100 connections: {tally.line()}")
        assert not tally.failures
        assert max(tally.seconds) < 1
        assert "Too many open files" not in servers.log(server)
    finally:
        servers.stop()
