"""How long a connection waits for its client, and how many there are."""

import asyncio
from typing import Any

import pytest
from support.clock import FakeClock
from support.worker import GET, POST, MakeWorker, answering_after, refusing

from gatehouse.shared.service.connections import (
    BODY_TIMEOUT,
    CLOSE_TIMEOUT,
    HEADER_TIMEOUT,
    IDLE_TIMEOUT,
    REDUCED_FOR,
    WRITE_TIMEOUT,
    connection_limit,
)

pytestmark = pytest.mark.anyio


@pytest.mark.threat("T-133")
@pytest.mark.parametrize(
    ("sent", "seconds", "answer"),
    [
        pytest.param([], HEADER_TIMEOUT, b"", id="nothing sent"),
        pytest.param([GET[:10]], HEADER_TIMEOUT, b"HTTP/1.1 408", id="half a header"),
        pytest.param([GET, GET[:10]], HEADER_TIMEOUT, b"HTTP/1.1 408", id="half of the next header"),
        pytest.param([GET + GET[:10]], HEADER_TIMEOUT, b"HTTP/1.1 408", id="half of a pipelined header"),
        pytest.param([POST + b"x"], BODY_TIMEOUT, b"HTTP/1.1 408", id="half a body"),
        pytest.param([GET], IDLE_TIMEOUT, b"", id="idle"),
    ],
)
async def test_a_client_has_limited_time(
    worker: MakeWorker, clock: FakeClock, sent: list[bytes], seconds: float, answer: bytes
) -> None:
    owner = worker()
    client = owner.connect()
    for data in sent:
        await client.send(data)
    clock.advance(seconds - 1)
    owner.connections.expire()
    assert client.state == "open"
    clock.advance(1)
    owner.connections.expire()
    assert (await client.send(b"")).startswith(answer)
    assert client.state == "half-closed"
    clock.advance(CLOSE_TIMEOUT)
    owner.connections.expire()
    assert client.state == "closed"
    assert not owner.connections.open
    assert not owner.connections.waiting
    await client.leave()


async def test_a_trickle_of_bytes_extends_no_deadline(worker: MakeWorker, clock: FakeClock) -> None:
    owner = worker()
    header, body = owner.connect(), owner.connect()
    await body.send(POST)
    for number in range(7):
        await header.send(GET[number : number + 1])
        await body.send(b"x")
        clock.advance(3)
        owner.connections.expire()
    assert (header.state, body.state) == ("closed", "half-closed")
    await header.leave()
    await body.leave()


async def test_a_request_in_progress_has_no_deadline_of_the_client(worker: MakeWorker, clock: FakeClock) -> None:
    finish = asyncio.Event()
    owner = worker(answering_after(finish))
    client = owner.connect()
    await client.send(POST + b"x" * 10)
    clock.advance(1000)
    owner.connections.expire()
    finish.set()
    assert (await client.send(b"")).endswith(b"\r\n\r\n10")
    await client.leave()


async def test_a_body_that_the_application_does_not_read_is_not_late(worker: MakeWorker, clock: FakeClock) -> None:
    finish = asyncio.Event()
    owner = worker(answering_after(finish))
    client = owner.connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n" + b"x" * 300000)
    clock.advance(BODY_TIMEOUT)
    owner.connections.expire()
    finish.set()
    assert (await client.send(b"x" * 100000)).endswith(b"\r\n\r\n400000")
    await client.leave()


@pytest.mark.threat("T-133")
async def test_a_client_that_does_not_read_is_disconnected(worker: MakeWorker, clock: FakeClock) -> None:
    async def streaming(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            await gate.wait()

    gate = asyncio.Event()
    owner = worker(streaming)
    client = owner.connect()
    await client.send(GET)
    client.connection.pause_writing()
    client.connection.resume_writing()
    clock.advance(WRITE_TIMEOUT)
    owner.connections.expire()
    assert client.state == "open"
    client.connection.pause_writing()
    clock.advance(WRITE_TIMEOUT)
    owner.connections.expire()
    assert client.state == "closed"
    gate.set()
    client.connection.resume_writing()
    await client.leave()


async def test_a_response_may_take_its_time_after_the_close(worker: MakeWorker, clock: FakeClock) -> None:
    owner = worker(refusing)
    client = owner.connect()
    await client.send(POST)
    client.connection.pause_writing()
    client.transport.unsent = 1
    clock.advance(CLOSE_TIMEOUT)
    owner.connections.expire()
    assert client.state == "half-closed"
    clock.advance(WRITE_TIMEOUT)
    owner.connections.expire()
    assert client.state == "closed"
    await client.leave()


@pytest.mark.parametrize(("files", "connections_"), [(20000, 4096), (1024, 768), (256, 128), (1, 1)])
def test_connections_leave_room_for_other_files(files: int, connections_: int) -> None:
    assert connection_limit(files) == connections_


@pytest.mark.threat("T-133")
async def test_room_is_made_by_the_client_that_is_waited_for_the_longest(worker: MakeWorker, clock: FakeClock) -> None:
    owner = worker()
    clients = [owner.connect() for _ in range(4)]
    await clients[0].send(GET)
    await clients[1].send(GET[:9])
    closed = []
    assert owner.connections.has_waiting
    while owner.connections.make_room():
        closed += [number for number, client in enumerate(clients) if client.state == "closed" and number not in closed]
    assert closed == [1, 2, 3, 0]
    assert not owner.connections.has_waiting
    for client in clients:
        await client.leave()


async def test_without_files_fewer_connections_are_kept_for_a_minute(worker: MakeWorker, clock: FakeClock) -> None:
    owner = worker(limit=100)
    clients = [owner.connect() for _ in range(20)]
    owner.connections.reduce()
    assert owner.connections.limit == 12
    assert [client.state for client in clients] == ["closed"] * 8 + ["open"] * 12
    clock.advance(1)
    owner.connections.expire()
    assert owner.connections.limit == 12
    clock.advance(REDUCED_FOR - 1)
    owner.connections.expire()
    assert owner.connections.limit == 100
    for client in clients:
        await client.leave()


@pytest.mark.threat("T-133")
@pytest.mark.parametrize("act", ["expire", "close_idle"])
async def test_a_connection_that_cannot_be_closed_stops_no_other(
    worker: MakeWorker, clock: FakeClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    def fail() -> None:
        raise OSError(9, "Bad file descriptor")

    owner = worker()
    clients = [owner.connect() for _ in range(4)]
    for client in clients:
        await client.send(GET)
    # One fails in order, and another one at the abort as well.
    for number in (0, 2):
        monkeypatch.setattr(clients[number].transport, "write_eof", fail)
    monkeypatch.setattr(clients[2].transport, "abort", fail)
    clock.advance(IDLE_TIMEOUT)
    getattr(owner.connections, act)()
    assert [client.state for client in clients] == ["closed", "half-closed", "open", "half-closed"]
    assert {client.connection for client in clients} - owner.connections.open == {
        clients[0].connection,
        clients[2].connection,
    }
    assert [record.getMessage() for record in caplog.records] == ["a connection cannot be closed in order"] * 2
    getattr(owner.connections, act)()
    assert len(caplog.records) == 2, "not tried again"
    for client in clients:
        await client.leave()
