"""A contest: the same load on several servers, in interleaved rounds, and what each used per right response."""

import http.client
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from bench.load import Load, WrongAnswers, send
from bench.measuring import Round, Usage, median, processes, usage, worker_memory
from bench.servers import SERVER_CPU, Server

ResultT = TypeVar("ResultT")

CHECKED_AFTER = 0.3
"""Seconds after the load at which the CPU time is read, so that audit rows that are still queued count."""

_MOST_PER_SECOND = 5000
"""More than any server here answers with one CPU, if each request must be a new one."""

_WARM = 5000
"""Responses after which a just-in-time compiler has compiled what a request runs, also on a busy machine."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server under load."""

    name: str
    server: Server
    prepare: Callable[[Path, int], Load]
    """Writes at most this number of requests to a file, and returns the load. Called before each round."""
    answer: Callable[[bytes], Any]
    """Returns from the body of a response what must be the same for all contestants. Raises KeyError if it is wrong."""
    helpers: Callable[[], Sequence[int]] = tuple
    """Returns the processes of the server that are in other process groups."""
    behind: Callable[[], Sequence[int]] = tuple
    """Returns the processes of the server behind a gateway, on the same CPU. Their time is not the gateway's."""

    def uncompared(self) -> "Contestant":
        """Return the contestant without the comparison: its answers are checked, and may differ from others'."""
        return replace(self, answer=lambda body: (self.answer(body), None)[1])


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long a contest takes."""

    rounds: int
    seconds: int
    warm_up: int


def run_contest(
    contestants: Sequence[Contestant], schedule: Schedule, folder: Path, progress: Callable[[str], None]
) -> dict[str, list[Round]]:
    """Run all rounds. Return those of each contestant.

    Raises:
        WrongAnswers: a server does not do what it should; the text names it.
    """
    folder.mkdir(exist_ok=True)
    files = {one.name: folder / f"{number}.requests" for number, one in enumerate(contestants)}
    _compare(contestants, files)
    rates = {one.name: _warm_up(one, files[one.name], schedule.warm_up) for one in contestants}
    results: dict[str, list[Round]] = {one.name: [] for one in contestants}
    for number in range(1, schedule.rounds + 1):
        for one in reversed(contestants):
            enough = int(2 * rates[one.name] * schedule.seconds) + 1000
            result = _round(one, files[one.name], schedule.seconds, enough)
            results[one.name].append(result)
            rates[one.name] = max(rates[one.name], result.rps)
            progress(
                f"round {number} of {schedule.rounds}: {one.name}: {result.cpu_us:.0f} us, {result.rps:.0f}/s, "
                f"p50 {result.p50_ms:.1f} ms, p99 {result.p99_ms:.1f} ms, {result.memory_mib:.0f} MiB"
                + (f", CPU {SERVER_CPU} is {result.others:.0%} busy with others" if result.others > 0.05 else "")
            )
    return results


def medians(results: Mapping[str, Sequence[Round]]) -> dict[str, Round]:
    """Return the median round of each contestant."""
    return {name: median(rounds) for name, rounds in results.items()}


def _compare(contestants: Sequence[Contestant], files: Mapping[str, Path]) -> None:
    """Check that all servers answer the same, apart from those that are not compared."""
    answers = {one.name: _named(one, partial(_first_answer, one, files[one.name])) for one in contestants}
    first, expected = next(iter(answers.items()))
    for name, answer in answers.items():
        if answer is not None and answer != expected:
            raise WrongAnswers(f"{name} answers {answer}, and {first} answers {expected}")


def _first_answer(one: Contestant, file: Path) -> Any:
    load = one.prepare(file, 1)
    with file.open("rb") as requests:
        request = requests.read(int(requests.readline()))
    status, body = exchange(load.url, request)
    if status != load.status or load.contained.encode() not in body:
        raise WrongAnswers(f"status {status}: {body[:300]!r}")
    try:
        return one.answer(body)
    except (KeyError, ValueError) as error:
        raise WrongAnswers(f"{type(error).__name__}: {error}: {body[:300]!r}") from None


def exchange(url: str, request: bytes) -> tuple[int, bytes]:
    """Send one prepared request, and return the status and the body of the response."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


def _warm_up(one: Contestant, file: Path, seconds: int) -> float:
    """Send requests for some seconds, and until there were enough. Return the requests per second.

    With 0 seconds, it sends none, and returns the most that are possible.
    """
    if not seconds:
        return _MOST_PER_SECOND
    answered, enough = 0, _MOST_PER_SECOND * seconds
    while True:
        load = one.prepare(file, enough)
        right = _named(one, partial(send, load, seconds)).right
        answered, enough = answered + right, 3 * right + 1000
        if answered >= _WARM:
            return right / seconds


def _round(one: Contestant, file: Path, seconds: int, enough: int) -> Round:
    load = one.prepare(file, enough)
    before, behind = _usages(one)
    sent = _named(one, lambda: send(load, seconds))
    time.sleep(CHECKED_AFTER)
    after, behind_after = _usages(one)
    used, used_behind = after.since(before), behind_after.since(behind)
    return Round(
        cpu_us=used / sent.right * 1e6,
        rps=sent.right / sent.seconds,
        p50_ms=sent.p50_ms,
        p99_ms=sent.p99_ms,
        memory_mib=worker_memory(one.server.group),
        others=max(0.0, after.busy - before.busy - used - used_behind) / (sent.seconds + CHECKED_AFTER),
        behind_us=used_behind / sent.right * 1e6,
    )


def _usages(one: Contestant) -> tuple[Usage, Usage]:
    own = [*processes(one.server.group), *one.helpers()]
    return usage(own, SERVER_CPU), usage(one.behind(), SERVER_CPU)


def _named(one: Contestant, do: Callable[[], ResultT]) -> ResultT:
    try:
        return do()
    except WrongAnswers as wrong:
        raise WrongAnswers(f"{one.name}: {wrong}") from None
