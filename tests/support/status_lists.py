"""Status lists in tests: allocators, published bits, and threads that stop at a statement."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from gatehouse.authserver.clients.registration import set_disabled
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.tokens.issue import Index, StatusIndexAllocator
from gatehouse.authserver.tokens.status_lists import load_bits
from gatehouse.shared.protocol.status_list import is_set
from support.authserver import AuthServer
from support.http_client import run


class Indices:
    """The allocator of another process, for use in any thread."""

    def __init__(self, server: AuthServer, **options: Any) -> None:
        self.allocator = StatusIndexAllocator(server.services.database, server.clock, **options)
        server.opened.callback(self.allocator.close)

    def allocate(self, client: Client, now: float) -> Index:
        return run(self.allocator.allocate(client, now))


def indices_of(server: AuthServer) -> Indices:
    return Indices(server)


def bit(server: AuthServer, index: Index) -> bool:
    with server.services.database.read() as session:
        return is_set(load_bits(session, index.list_id), index.idx)


def change_client(server: AuthServer, client: Client, *, disabled: bool) -> Client:
    with server.services.database.write() as session:
        return set_disabled(session, server.admin, client.client_id, disabled=disabled)


@contextmanager
def paused_at_a_statement(server: AuthServer, action: Callable[[], Any]) -> Iterator[None]:
    """Run an action in a thread that stops before its first statement, until the block ends."""
    paused, resume = threading.Event(), threading.Event()

    def pause(*_: Any) -> None:
        paused.set()
        resume.wait()

    event.listen(server.services.database.engine, "before_cursor_execute", pause)
    thread = threading.Thread(target=action)
    thread.start()
    try:
        paused.wait()
        yield
    finally:
        resume.set()
        thread.join()
        event.remove(server.services.database.engine, "before_cursor_execute", pause)
