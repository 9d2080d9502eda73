"""How long an issued token is missing from the audit log, and what kill -9 loses."""

import base64
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from support.availability import Stack

TOKENS = 1000
THREADS = 4
PAUSE = 0.02
"""Seconds between two requests of a thread: a steady load, of which no request waits for another one."""

PRECISION = 0.002
"""Seconds between two looks at the audit log: SQLite announces no commit to another process."""


class Watch(threading.Thread):
    """Notes when each issued token becomes visible in the audit log."""

    def __init__(self, file: Path) -> None:
        super().__init__(daemon=True)
        self._file = file
        self.visible: dict[str, float] = {}
        self._changed = threading.Condition()
        self._ended = threading.Event()

    def run(self) -> None:
        with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)) as reader:
            last = 0
            ended = False
            while not ended:
                # After the end, it looks once more.
                ended = self._ended.wait(PRECISION)
                query = "SELECT id, jti FROM audit_event WHERE id > ? AND action = 'token.issue' ORDER BY id"
                rows = reader.execute(query, (last,)).fetchall()
                now = time.monotonic()
                last = rows[-1][0] if rows else last
                with self._changed:
                    self.visible.update((jti, now) for _, jti in rows)
                    self._changed.notify_all()

    def wait_for(self, number: int) -> None:
        """Wait until this many tokens are visible."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.visible) >= number, 60), f"{len(self.visible)} of {number}"

    def end(self) -> None:
        self._ended.set()
        self.join()


@contextmanager
def watching(file: Path) -> Iterator[Watch]:
    watch = Watch(file)
    watch.start()
    yield watch
    watch.end()


def request_tokens(stack: Stack, number: int, sent: dict[str, float]) -> None:
    """Request tokens, and note when each request was sent. Ends when the server does."""
    for _ in range(number):
        started = time.monotonic()
        try:
            token = stack.request_token()
        except OSError:
            return
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        sent[claims["jti"]] = started
        time.sleep(PAUSE)


def start_requests(stack: Stack, number: int, sent: dict[str, float]) -> list[threading.Thread]:
    threads = [threading.Thread(target=request_tokens, args=(stack, number, sent)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    return threads


def percentiles(delays: list[float]) -> str:
    ordered = sorted(delays)
    names = {"p50": len(ordered) // 2, "p99": len(ordered) * 99 // 100, "longest": len(ordered) - 1}
    return ", ".join(f"{name} {ordered[position] * 1000:.0f} ms" for name, position in names.items())


def test_an_issued_token_is_soon_in_the_audit_log(stack: Stack) -> None:
    sent: dict[str, float] = {}
    with watching(stack.servers.folder / "var" / "authserver.db") as watch:
        for thread in start_requests(stack, TOKENS // THREADS, sent):
            thread.join()
        watch.wait_for(len(sent))
    assert len(sent) == TOKENS
    assert sent.keys() <= watch.visible.keys(), "none is lost"
    delays = [watch.visible[jti] - started for jti, started in sent.items()]
    print(f"\n{TOKENS} tokens, from the request to the visible row: {percentiles(delays)}")


@pytest.mark.threat("T-139")
def test_kill_minus_nine_loses_only_the_last_events(stack: Stack) -> None:
    sent: dict[str, float] = {}
    with watching(stack.servers.folder / "var" / "authserver.db") as watch:
        threads = start_requests(stack, TOKENS, sent)
        watch.wait_for(TOKENS // 2)
        killed = time.monotonic()
        stack.servers.kill("authserver")
        for thread in threads:
            thread.join()
    lost = [killed - started for jti, started in sent.items() if jti not in watch.visible]
    oldest = max(lost, default=0.0)
    print(
        f"\nkill -9 after {len(sent)} tokens: {len(lost)} events lost, requested at most {oldest * 1000:.0f} ms before"
    )
    assert oldest < 1
