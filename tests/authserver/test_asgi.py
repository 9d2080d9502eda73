"""The ASGI entry: paths, bodies, deadlines, and where the work of a request runs."""

import asyncio
import json
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
from support.assertions import KeyClient, jwks, public_jwk
from support.authserver import FORM, AuthServer, basic_header, token_form
from support.http_client import Exchange, run
from support.logs import logging_put_back
from werkzeug.test import EnvironBuilder, TestResponse

from gatehouse.authserver.clients.registration import set_disabled
from gatehouse.authserver.clients.registry import find_clients
from gatehouse.authserver.credentials import secrets
from gatehouse.authserver.credentials.client_jwks import MAX_CLIENT_KEYS
from gatehouse.authserver.errors import refuse
from gatehouse.authserver.http import Request
from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.cache import MAX_AGE as CACHE_AGE
from gatehouse.shared.service.logs import configure_logs


def token_exchange(server: AuthServer) -> Exchange:
    """Return a token request that is granted."""
    client, secret = server.create_client()
    headers = {"Authorization": basic_header(client.client_id, secret)}
    builder = EnvironBuilder("/token", method="POST", data=token_form(), headers=headers)
    return Exchange(builder.get_environ())


def status_of(server: AuthServer, exchange: Exchange) -> int:
    run(exchange.run(server.app))
    return exchange.response()[0]


def post_raw(server: AuthServer, target: str) -> TestResponse:
    """Send a token request with these bytes as its target."""
    client, secret = server.create_client()
    headers = {"Authorization": basic_header(client.client_id, secret)}
    environ = {"RAW_URI": target}
    return server.http.post("/token", data=token_form(), headers=headers, environ_overrides=environ)


@pytest.mark.divergence("D-65")
@pytest.mark.parametrize(
    "target",
    ["//token", "/%74oken", "/token/", "/./token", "/x/../token", "/token;x", "/token%00", "/TOKEN", "/token%2F", "/"],
)
def test_only_the_exact_bytes_of_a_path_are_served(authserver: AuthServer, target: str) -> None:
    """A proxy's rule for `/token` does not match these spellings."""
    assert post_raw(authserver, "/token").status_code == 200
    response = post_raw(authserver, target)
    assert (response.status_code, response.json["error"]) == (404, "invalid_request")
    [event] = authserver.audit(request_id=response.json["request_id"])
    assert (event["action"], event["object"]) == ("http.request", "(other)")


@pytest.mark.divergence("D-65")
@pytest.mark.parametrize("target", ["http://evil.example/token", "https://as.example.com/token", "*", "token", ""])
def test_a_target_that_is_no_path_is_refused(authserver: AuthServer, target: str) -> None:
    assert post_raw(authserver, "/token").status_code == 200
    exchange = token_exchange(authserver)
    exchange.scope["raw_path"] = target.encode()
    assert status_of(authserver, exchange) == 400
    [*_, event] = authserver.audit(action="http.request")
    assert (event["object"], "request target" in event["reason"]) == ("(other)", True)


@pytest.mark.parametrize("list_id", ["%61" * 12, "0" * 11, "", "a/b"])
def test_the_id_of_a_status_list_is_not_decoded(authserver: AuthServer, list_id: str) -> None:
    response = authserver.http.get("/", environ_overrides={"RAW_URI": f"/status-lists/{list_id}"})
    assert response.status_code == 404


def test_the_query_is_not_part_of_the_path(authserver: AuthServer) -> None:
    assert authserver.http.get("/livez?x=/token").status_code == 200


def test_several_headers_of_one_name_are_one(authserver: AuthServer) -> None:
    """CWE-436: of two Authorization headers, a proxy may check one and the server the other."""
    exchange = token_exchange(authserver)
    assert status_of(authserver, exchange) == 200
    [header] = [pair for pair in exchange.scope["headers"] if pair[0] == b"authorization"]
    for pair in ([header, header], [header, (b"authorization", b"")], [(b"authorization", b"Basic eDp5"), header]):
        twice = token_exchange(authserver)
        twice.scope["headers"] = [*(pair for pair in twice.scope["headers"] if pair[0] != b"authorization"), *pair]
        assert status_of(authserver, twice) == 401


@pytest.mark.parametrize("first", [FORM.encode(), b"", b"text/plain"])
@pytest.mark.parametrize("name", [b"content-type", b"authorization"])
def test_a_second_line_of_a_header_with_one_value_is_refused(authserver: AuthServer, name: bytes, first: bytes) -> None:
    """RFC 9110 5.3: two readers of the request could read different lines, also if one of them is empty."""
    exchange = token_exchange(authserver)
    assert status_of(authserver, token_exchange(authserver)) == 200
    [value] = [value for other, value in exchange.scope["headers"] if other == name]
    others = [pair for pair in exchange.scope["headers"] if pair[0] != name]
    exchange.scope["headers"] = [*others, (name, first), (name, value)]
    assert status_of(authserver, exchange) in {400, 401}


@pytest.mark.parametrize("sizes", [[1] * 40, [0, 10, 0], [0, 0]], ids=["bytes", "some empty", "empty"])
def test_a_body_may_arrive_in_any_number_of_messages(authserver: AuthServer, sizes: list[int]) -> None:
    exchange = token_exchange(authserver)
    body = exchange.input.read()
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    parts = [body[end - size : end] for size, end in zip(sizes, ends, strict=True)] + [body[sum(sizes) :]]
    exchange.receive = messages(parts)
    assert status_of(authserver, exchange) == 200


def messages(parts: list[bytes]) -> Callable[[], Any]:
    left = list(parts)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive


@pytest.mark.parametrize("header", [(b"transfer-encoding", b"chunked"), (b"content-length", b"100")])
def test_an_aborted_body_is_a_400_without_a_traceback(
    authserver: AuthServer, header: tuple[bytes, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    exchange = token_exchange(authserver)
    sent = [{"type": "http.request", "body": exchange.input.read(), "more_body": True}, {"type": "http.disconnect"}]
    exchange.scope["headers"] = [pair for pair in exchange.scope["headers"] if pair[0] != b"content-length"] + [header]

    async def receive() -> dict[str, Any]:
        return sent.pop(0)

    exchange.receive = receive
    with logging_put_back():
        configure_logs("json")
        assert status_of(authserver, exchange) == 400
    [event] = authserver.audit(action="http.request")
    assert "ended before" in event["reason"]
    [line] = map(json.loads, capfd.readouterr().err.splitlines())
    assert (line["event"], line["status"], "exception" in line) == ("request", 400, False)


def test_head_gets_the_headers_of_get_and_no_body(authserver: AuthServer) -> None:
    expected = authserver.http.get("/livez")
    exchange = Exchange(EnvironBuilder("/livez", method="HEAD").get_environ())
    run(exchange.run(authserver.app))
    assert [message.get("body") for message in exchange.messages] == [None, b""]
    assert (b"content-length", str(len(expected.data)).encode()) in exchange.messages[0]["headers"]


def test_a_request_that_the_shutdown_cancels_is_not_answered(
    authserver: AuthServer, capfd: pytest.CaptureFixture[str]
) -> None:
    async def receive() -> dict[str, Any]:
        raise asyncio.CancelledError

    exchange = token_exchange(authserver)
    exchange.receive = receive
    with logging_put_back():
        configure_logs("json")
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(exchange.run(authserver.app))
    assert exchange.messages == []
    line = json.loads(capfd.readouterr().err)
    assert (line["status"], line["outcome"]) == (0, "aborted")


def test_the_worker_records_its_refusals_here(authserver: AuthServer) -> None:
    authserver.app.record(AuditEvent(AuditAction.HTTP_REQUEST, "refused", object="(unread)", reason="ParseError"))
    [event] = authserver.audit(action="http.request")
    assert (event["object"], event["reason"]) == ("(unread)", "ParseError")


@pytest.mark.threat("T-128")
def test_a_request_that_cannot_start_in_time_is_a_503(authserver: AuthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client, secret = authserver.create_client()
    assert authserver.post_token(basic=(client.client_id, secret)).status_code == 200
    monkeypatch.setattr(deadline, "begin", partial(deadline.begin, 0))
    for response in (
        authserver.http.get("/readyz"),
        authserver.post_token(basic=("agent_not_loaded", secret)),
        authserver.http.post("/introspect", data={"token": "x"}, content_type=FORM),
    ):
        assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")
        assert int(response.headers["Retry-After"]) > 0
    assert authserver.http.get("/livez").status_code == 200
    assert authserver.post_token(basic=(client.client_id, secret)).status_code == 200, "needs no thread"


def test_a_server_that_stops_asks_clients_to_try_again(authserver: AuthServer) -> None:
    """Its connections can deliver requests until they are closed."""
    paths = ("/status-lists", "/readyz")
    assert [authserver.http.get(path).status_code for path in paths] == [200, 200]
    authserver.clock.advance(CACHE_AGE)
    authserver.services.threads.stop()
    for path in paths:
        response = authserver.http.get(path)
        assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")
        assert int(response.headers["Retry-After"]) > 0
    assert authserver.http.get("/livez").status_code == 200


def test_a_call_that_waits_for_a_thread_is_cancelled_at_the_deadline(authserver: AuthServer) -> None:
    occupied, release, calls = threading.Barrier(authserver.settings.threads + 1), threading.Event(), []

    def occupy() -> None:
        occupied.wait()
        release.wait()

    async def ask() -> None:
        pool = authserver.services.threads
        busy = [asyncio.ensure_future(Request({}, pool=pool).in_thread(occupy)) for _ in range(pool_size)]
        await asyncio.to_thread(occupied.wait)
        with deadline.renewed(0), pytest.raises(deadline.DeadlineExceeded):
            await Request({}, pool=pool).in_thread(calls.append, "called")
        release.set()
        await asyncio.gather(*busy)
        await Request({}, pool=pool).in_thread(calls.append, "later")

    pool_size = authserver.settings.threads
    run(ask())
    assert calls == ["later"]


def test_a_thread_waits_for_the_event_loop_until_the_deadline() -> None:
    def wait(request: Request) -> None:
        assert request.on_loop(asyncio.sleep(0, "done")) == "done"
        with deadline.renewed(0):
            request.on_loop(asyncio.Event().wait())

    request = Request({})
    with pytest.raises(deadline.DeadlineExceeded):
        run(request.in_thread(wait, request))


def test_a_timeout_inside_a_thread_is_not_taken_for_the_deadline() -> None:
    def fail() -> None:
        raise TimeoutError("of the function")

    with pytest.raises(TimeoutError, match="of the function"):
        run(Request({}).in_thread(fail))


WORK = {
    find_clients.__code__: "load",
    secrets.digest.__code__: "digest",
    jws.verify.__code__: "signature",
    refuse.__code__: "refusal",
}


def places_of(server: AuthServer, ask: Callable[[], TestResponse], status: int = 401) -> list[tuple[str, str]]:
    """Return where each piece of work of a request ran: on the event loop or in a thread."""
    found: list[tuple[str, str]] = []

    def note(frame: FrameType, kind: str, _: Any) -> None:
        work = WORK.get(frame.f_code)
        if kind == "call" and work is not None and (work != "refusal" or work not in dict(found)):
            thread = threading.current_thread().name
            found.append((work, "thread" if thread.startswith("request") else "loop"))

    with server.profiled(note):
        assert ask().status_code == status
    return found


@pytest.mark.threat("T-061")
@pytest.mark.parametrize("cached", [False, True], ids=["cold", "cached"])
@pytest.mark.parametrize("credential", ["secret", "assertion"])
def test_where_work_runs_does_not_depend_on_the_client(authserver: AuthServer, credential: str, cached: bool) -> None:
    """A busy event loop or pool would delay known and unknown clients differently, and so would repeated work."""
    key, *others, stranger = (SigningKey.generate("ES256") for _ in range(4))
    of_key = KeyClient(authserver, key)
    of_several = KeyClient(authserver, key, jwks(*map(public_jwk, [key, *others])))
    client_ids = {
        "secret": authserver.create_client()[0].client_id,
        "other secret": authserver.create_client(auth_method="client_secret_post")[0].client_id,
        "disabled": authserver.create_client()[0].client_id,
        "key": of_key.client.client_id,
        "several keys": of_several.client.client_id,
        "disabled with a key": KeyClient(authserver, key).client.client_id,
        "unknown": "agent_unknown",
    }
    with authserver.services.database.write() as session:
        for name in ("disabled", "disabled with a key"):
            set_disabled(session, authserver.admin, client_ids[name], disabled=True)

    def ask(client_id: str) -> TestResponse:
        if credential == "secret":
            return authserver.post_token(basic=(client_id, "gths_wrong"))
        claims = of_key.claims(iss=client_id, sub=client_id)
        return of_key.post(of_key.assertion(claims, key=stranger))

    authserver.services.keys.ring()
    found = {}
    for name, client_id in client_ids.items():
        if cached:
            ask(client_id)
        found[name] = places_of(authserver, lambda client_id=client_id: ask(client_id))
    load = [] if cached else [("load", "thread")]
    if credential == "secret":
        work = [("digest", "loop")]
    else:
        work = [("signature", "loop"), *[("signature", "thread")] * (MAX_CLIENT_KEYS - 1)]
    expected = [*load, *work, ("refusal", "loop")]
    assert found == dict.fromkeys(client_ids, expected)


@pytest.mark.parametrize("number", [1, 3])
def test_an_accepted_assertion_needs_no_thread(authserver: AuthServer, number: int) -> None:
    keys = [SigningKey.generate("ES256") for _ in range(number)]
    client = KeyClient(authserver, keys[0], jwks(*(public_jwk(key, kid=str(at)) for at, key in enumerate(keys))))
    client.accepted()
    assertion = client.assertion(kid="0")
    found = places_of(authserver, lambda: client.post(assertion), status=200)
    assert found == [("signature", "loop")]


def test_a_slow_signature_leaves_the_event_loop(authserver: AuthServer) -> None:
    assert [SigningKey.generate(alg).is_slow for alg in ("ES256", "EdDSA", "RS256")] == [False, False, True]


def test_an_endpoint_behind_flask_reads_what_the_entry_read(authserver: AuthServer) -> None:
    """Flask sees no Host header: no URL may be derived from it."""
    headers = {"Host": "evil<script>", "Authorization": basic_header("rsc_unknown", "gtrs_wrong")}
    response = authserver.http.post("/introspect", data={"token": "x"}, headers=headers)
    assert (response.status_code, response.json["error"]) == (401, "invalid_client")
