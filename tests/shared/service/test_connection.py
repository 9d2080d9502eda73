"""Connections of the worker: requests, refusals and the orderly close."""

import asyncio
import inspect
import socket
from collections.abc import Callable
from typing import Any

import gunicorn
import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.asgi import protocol
from gunicorn.asgi.protocol import ASGIProtocol, BodyReceiver
from gunicorn.workers.gasgi import ASGIWorker
from support.clock import FakeClock
from support.worker import GET, POST, Client, MakeWorker, refusing

from gatehouse.shared.service.connection import (
    READ_AHEAD,
    Connection,
    gunicorn_scan,
    has_unread_data,
    scan_response_headers,
)
from gatehouse.shared.service.connections import BODY_TIMEOUT, DRAIN_IDLE
from gatehouse.shared.service.gunicorn import SupervisingArbiter
from gatehouse.shared.service.worker import Worker

pytestmark = pytest.mark.anyio

SECRET = b"gths_0123456789abcdefghij"


# gunicorn's internals


def test_gunicorn_has_the_internals_that_we_override() -> None:
    """The pin is exact, so this fails only with a new gunicorn: read its asgi/protocol.py and gasgi.py again."""
    ours = {
        (base, name)
        for base, derived in ((ASGIProtocol, Connection), (ASGIWorker, Worker), (Arbiter, SupervisingArbiter))
        for name, value in vars(derived).items()
        if inspect.isfunction(value)
    }
    own = {
        "_wait",
        "_allowed",
        "_drop_received",
        "_refuse",
        "_forget",
        "_wake",
        "expire",
        "abort",
        "close_unless_received",
    }
    own |= {
        "_start_application",
        "_accept",
        "_accept_one",
        "_make_room",
        "_open",
        "_pause",
        "_accept_again",
        "_stop_accepting",
        "_drain",
    }
    gone = sorted(f"{base.__name__}.{name}" for base, name in ours if name not in own and not hasattr(base, name))
    assert not gone, f"gunicorn {gunicorn.__version__} does not call what connection.py and worker.py override: {gone}"


_HEADERS = (
    [],
    [(b"content-type", b"text/plain"), (b"Content-Length", b"5"), (b"vary", b"Origin")],
    [(b"content-length", b"5"), (b"content-length", b"6")],
    [(b"transfer-encoding", b"chunked"), (b"x", b"")],
    [(b"x", b"a\tb"), (b"x", b"\xff")],
    [(b"x", b"a\r\nset-cookie: b")],
    [(b"x", b"a\x00")],
    [(b"a b", b"c"), (b"x", b"\n")],
    [(b"", b"c")],
)


@pytest.mark.parametrize("headers", _HEADERS)
def test_response_headers_are_judged_as_gunicorn_judges_them(headers: list[tuple[bytes, bytes]]) -> None:
    def outcome(scan: Callable[[list[tuple[bytes, bytes]]], object]) -> object:
        try:
            return scan(headers)
        except Exception as error:  # noqa: BLE001 - whatever gunicorn raises
            return type(error), str(error)

    expected = outcome(gunicorn_scan)
    # The second time, from the cache.
    assert [outcome(scan_response_headers), outcome(protocol._scan_response_headers)] == [expected, expected]


async def test_gunicorn_has_the_attributes_that_we_read(worker: MakeWorker) -> None:
    client = worker().connect()
    names = "_closed _current_request _body_receiver _request_ready _callback_parser _reading_paused transport"
    names += " _max_buffer_size"
    gone = [name for name in names.split() if not hasattr(client.connection, name)]
    gone += [name for name in ("_complete", "_chunks", "signal_disconnect") if not hasattr(BodyReceiver, name)]
    assert not gone, f"gunicorn {gunicorn.__version__} lacks attributes that connection.py reads: {gone}"
    await client.leave()


# Requests


async def test_a_connection_serves_one_request_after_the_other(worker: MakeWorker) -> None:
    client = worker().connect()
    for _ in range(3):
        answer = await client.send(POST + b"x" * 10)
        assert answer.endswith(b"\r\n\r\n10")
        assert b"Connection" not in answer
    assert client.state == "open"
    await client.leave()


async def test_pipelined_requests_are_answered_in_order(worker: MakeWorker) -> None:
    client = worker().connect()
    answer = await client.send(POST + b"x" * 10 + GET + GET[:10])
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert (await client.send(GET[10:])).endswith(b"\r\n\r\n0")
    await client.leave()


async def test_a_request_of_any_size_may_follow_before_the_answer(worker: MakeWorker) -> None:
    """The parser in C keeps 64 KiB of it. As soon as it has more, reading pauses."""
    size = 3 * READ_AHEAD
    large = POST.replace(b"10", b"%d" % size) + b"x" * size
    client = worker().connect()
    answer = await client.send(GET + large + GET + large[:READ_AHEAD])
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert b"\r\n\r\n%d" % size in answer
    assert (await client.send(large[READ_AHEAD:])).endswith(b"\r\n\r\n%d" % size)
    client.connection.data_received(GET + GET + b"x")
    assert not client.connection._reading_paused
    client.connection.data_received(b"y" * READ_AHEAD)
    assert client.connection._reading_paused
    await client.leave()


async def test_requests_that_follow_do_not_fill_the_memory(worker: MakeWorker) -> None:
    """Each answer makes room for more, but only as much as the parser can keep."""
    client = worker().connect()
    client.connection.data_received(GET * (4 * READ_AHEAD // len(GET)))
    for _ in range(3):
        await asyncio.sleep(0)
        assert client.connection._reading_paused
    await client.leave()


async def test_an_answer_before_the_end_of_the_body_announces_the_close(worker: MakeWorker) -> None:
    client = worker(refusing).connect()
    answer = await client.send(POST + b"x")
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\nno")
    assert client.state == "half-closed"
    assert await client.send(b"x" * 9 + GET) == b""
    await client.leave()


async def test_tls_is_closed_on_both_sides_at_once(worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no half-closed connections; the alert that announces the close follows what is written."""
    client = worker(refusing).connect()
    monkeypatch.setattr(client.transport, "can_write_eof", lambda: False)
    answer = await client.send(POST + b"x")
    assert answer.endswith(b"\r\n\r\nno")
    assert client.state == "closed"
    assert await client.send(b"x" * 9 + GET) == b""
    await client.leave()


async def test_a_body_may_end_after_the_response_began(worker: MakeWorker, clock: FakeClock) -> None:
    async def early(_scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await receive()
        await send({"type": "http.response.body", "body": b"ok"})

    owner = worker(early)
    client = owner.connect()
    await client.send(POST)
    clock.advance(BODY_TIMEOUT)
    owner.connections.expire()
    answer = await client.send(b"x" * 10)
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"ok")
    assert client.state == "half-closed"
    await client.leave()


async def test_a_websocket_handshake_is_an_ordinary_request(worker: MakeWorker) -> None:
    """RFC 9110 7.8: a server may ignore Upgrade. The application answers, records and logs the request."""
    client = worker().connect()
    handshake = (
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAA=\r\n\r\n"
    )
    assert (await client.send(GET[:-2] + handshake)).startswith(b"HTTP/1.1 200 OK")
    await client.leave()


# Refusals


@pytest.mark.threat("T-134")
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(b"%s\r\n\r\n", 400, id="no HTTP"),
        pytest.param(b"GET /%s HTTP/9.9\r\nHost: x\r\n\r\n", 400, id="unsupported version"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="HTTP/2"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\x00\r\n\r\n", 400, id="NUL in a header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nBearer %s\r\n\r\n", 400, id="header without a colon"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nHost: %s\r\n\r\n", 400, id="two hosts"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\n\r\n", 400, id="length no number"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n", 400, id="bad chunk"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: %s\r\n\r\n", None, id="transfer coding"),
        *(
            pytest.param(
                b"POST / HTTP/1.1\r\nTransfer-Encoding: %b, chunked\r\n\r\n1\r\n%%s" % coding, 501, id=f"{coding!r}"
            )
            for coding in (b"gzip", b"deflate", b"compress", b"identity")
        ),
        pytest.param(b"GET /%s" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414, id="long request line"),
        pytest.param(b"GET / HTTP/1.1\r\nX: %s" + b"a" * 20000 + b"\r\n\r\n", 431, id="long header"),
    ],
)
async def test_a_malformed_request_is_refused_without_an_echo(
    worker: MakeWorker, request_: bytes, status: int | None
) -> None:
    """CWE-209: a token that was sent in the wrong place must not come back in a page, a log or an event."""
    owner = worker()
    client = owner.connect()
    answer = await client.send(request_.replace(b"%s", SECRET))
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501") if status is None else b"HTTP/1.1 %d" % status), answer
    assert SECRET not in answer
    assert b"\r\nX-Request-Id: req_" in answer
    assert client.state == "half-closed"
    (event,) = owner.events.recorded
    assert SECRET.decode() not in str(event)
    await client.leave()


async def test_garbage_after_a_request_does_not_disturb_its_answer(worker: MakeWorker) -> None:
    client = worker().connect()
    answer = await client.send(GET + b"NONSENSE\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400" in answer
    await client.leave()


async def test_a_response_in_progress_is_cut_instead_of_mixed_with_a_refusal(worker: MakeWorker) -> None:
    async def streaming(_scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await receive()
        await asyncio.Event().wait()

    client = worker(streaming).connect()
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b"part" in await client.send(head)
    assert await client.send(b"zz\r\n") == b""
    assert client.state == "half-closed"
    client.connection._task.cancel()
    await client.leave()


async def test_an_application_that_fails_is_answered_for(worker: MakeWorker) -> None:
    async def failing(_scope: Any, _receive: Any, _send: Any) -> None:
        raise ValueError(SECRET)

    owner = worker(failing)
    client = owner.connect()
    answer = await client.send(GET)
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"server_error" in answer
    assert [event.outcome for event in owner.events.recorded] == ["failed"]
    await client.leave()


# Stop


async def test_a_stopping_server_announces_each_close(worker: MakeWorker, clock: FakeClock) -> None:
    owner = worker()
    client = owner.connect()
    await client.send(GET)
    owner.connections.draining = True
    owner.connections.close_idle()
    assert client.state == "open"
    assert b"\r\nConnection: close\r\n" in await client.send(GET)
    assert client.state == "half-closed"
    await client.leave()


async def test_a_response_that_did_not_announce_it_does_not_close(worker: MakeWorker) -> None:
    finish = asyncio.Event()

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await finish.wait()
        await send({"type": "http.response.body", "body": b"ok"})

    owner = worker(slow)
    client = owner.connect()
    await client.send(GET)
    owner.connections.draining = True
    finish.set()
    assert b"Connection" not in await client.send(b"")
    assert client.state == "open"
    assert b"\r\nConnection: close\r\n" in await client.send(GET)
    await client.leave()


async def test_a_stopping_server_closes_idle_connections(
    worker: MakeWorker, clock: FakeClock, unread: set[Connection]
) -> None:
    owner = worker()
    silent, idle, received = (owner.connect() for _ in range(3))
    for client in (idle, received):
        await client.send(GET)
    unread.add(received.connection)
    owner.connections.draining = True
    clock.advance(DRAIN_IDLE)
    owner.connections.close_idle()
    assert [client.state for client in (silent, idle, received)] == ["half-closed", "half-closed", "open"]
    for client in (silent, idle, received):
        await client.leave()


async def test_data_that_the_event_loop_has_not_read_is_seen(
    monkeypatch: pytest.MonkeyPatch, worker: MakeWorker
) -> None:
    client = worker().connect()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(client.transport, "get_extra_info", lambda _: ours)
        assert not has_unread_data(client.connection)
        theirs.send(b"G")
        assert has_unread_data(client.connection)
    # A TLS connection of uvloop has no socket once it is lost.
    monkeypatch.setattr(client.transport, "get_extra_info", lambda _: None)
    assert not has_unread_data(client.connection)
    await client.leave()


async def test_every_task_of_a_connection_ends_with_it(worker: MakeWorker) -> None:
    owner = worker()
    before = asyncio.all_tasks()
    clients: list[Client] = [owner.connect() for _ in range(3)]
    await clients[0].send(GET)
    await clients[1].send(POST + b"x")
    for client in clients:
        await client.leave()
    assert asyncio.all_tasks() == before
    assert owner.nr_conns == 0
