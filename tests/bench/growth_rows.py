"""Rows that compare our servers with themselves: more clients, more tokens, more audit events."""

import random
from pathlib import Path
from typing import Any

from bench.call_rows import Caller
from bench.contest import Contestant
from bench.fill import CLIENT_ID, add_audit_rows, add_clients
from bench.load import Load, write_requests
from bench.row import Bench, Outcome
from bench.servers import SCOPE, Server, Stack
from bench.token_rows import by_secret, secret_request, token_answer
from bench.verdicts import Target

GROWN = Target(1.10, 1.15)
"""CPU time of a large installation relative to a small one."""


def many_clients(bench: Bench) -> Outcome:
    """20,000 of 100,000 clients in turn, and one of them again and again."""
    ours = bench.installation()
    client = ours.create_client("bench", SCOPE)
    add_clients(_database(ours, "authserver"), client["client_id"], 100_000)
    bench.start(ours, "authserver")
    clients = [{**client, "client_id": CLIENT_ID.format(number)} for number in range(1, 100_001, 5)]
    hot = by_secret("one client", ours.authserver, client)
    return bench.contest(
        [_in_turn("20,000 clients", ours.authserver, clients), hot.uncompared()], {hot.name: Target(2.0, 3.0)}, None
    )


def _in_turn(name: str, server: Server, clients: list[dict[str, Any]]) -> Contestant:
    """Request a token for each client in turn, in another order in each round."""

    def prepare(file: Path, _: int) -> Load:
        shuffled = random.sample(clients, len(clients))
        write_requests(file, (secret_request(server, client) for client in shuffled))
        return Load(f"{server.url}/token", file, '"access_token"')

    return Contestant(name, server, prepare, token_answer).uncompared()


def many_tokens(bench: Bench) -> Outcome:
    """`whoami` with 1,000 tokens in turn, and with one."""
    ours = bench.installation("authserver", "resourceserver")
    caller = Caller.create(ours)
    one = caller.calls("one token", ours.resourceserver, "2026-07-28")
    many = caller.calls("1,000 tokens", ours.resourceserver, "2026-07-28", tokens=1000)
    return bench.contest([many, one], {one.name: Target(1.25, 1.4)}, None)


def more_clients(bench: Bench) -> Outcome:
    """`/token` by secret in an installation of 1,000,000 clients, and in one of a single client."""
    small = bench.installation("authserver", name="small")
    client = small.create_client("bench", SCOPE)
    large = bench.installation(name="large")
    grown = large.create_client("bench", SCOPE)
    add_clients(_database(large, "authserver"), grown["client_id"], 1_000_000)
    bench.start(large, "authserver")
    contestants = [
        by_secret("1,000,000 clients", large.authserver, grown),
        by_secret("1 client", small.authserver, client),
    ]
    return bench.contest([one.uncompared() for one in contestants], {"1 client": GROWN}, None)


def more_audit_rows_of_tokens(rows: int, target: Target | None, bench: Bench) -> Outcome:
    """`/token` by secret with a long audit log, and with an empty one."""
    contestants = []
    for name, number in ((f"{rows:,} audit events", rows), ("an empty audit log", 0)):
        ours = bench.installation("authserver", name=name)
        client = ours.create_client("bench", SCOPE)
        ours.tokens(client)
        _lengthen(bench, ours, "authserver", "token.issue", number)
        contestants.append(by_secret(name, ours.authserver, client))
    return bench.contest([one.uncompared() for one in contestants], {"an empty audit log": target}, None)


def more_audit_rows_of_calls(bench: Bench) -> Outcome:
    """`whoami` with a long audit log, and with an empty one."""
    contestants = []
    for name, number in (("1,000,000 audit events", 1_000_000), ("an empty audit log", 0)):
        ours = bench.installation("authserver", "resourceserver", name=name)
        caller = Caller.create(ours)
        caller.call("whoami")
        _lengthen(bench, ours, "resourceserver", "tool.call", number)
        contestants.append(caller.calls(name, ours.resourceserver, "2026-07-28"))
    return bench.contest([one.uncompared() for one in contestants], {"an empty audit log": GROWN}, None)


def _lengthen(bench: Bench, ours: Stack, server: str, action: str, number: int) -> None:
    """Add audit events, and start the server again. It must have written one of this action."""
    ours.stop_one(server)
    if number:
        add_audit_rows(_database(ours, server), action, number)
    bench.start(ours, server)


def _database(ours: Stack, server: str) -> Path:
    return ours.folder / "var" / f"{server}.db"
