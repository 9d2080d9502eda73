"""Attacks on log and audit log: neither contains a secret, a token or a line that a client forged."""

import contextlib
import io
import json
import logging
import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from sqlalchemy import update
from support.attacked import Attacked, assert_refused, encoded
from support.authserver import token_form
from support.logs import logging_put_back

from gatehouse.authserver.db.models import ClientRow
from gatehouse.shared.service.logs import configure_logs
from gatehouse.shared.service.settings import LogFormat


class Unmasked(logging.Handler):
    """A handler that keeps every record unmasked."""

    def __init__(self, records: list[str]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(repr(record.__dict__))


class Logs:
    """The log: the written text, and every record before masking."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.records: list[str] = []

    def configure(self, format_: LogFormat) -> None:
        with contextlib.redirect_stderr(self._stream):
            configure_logs(format_, "DEBUG")
        logging.getLogger().addHandler(Unmasked(self.records))

    @property
    def written(self) -> str:
        return self._stream.getvalue()


@pytest.fixture(params=["json", "console"])
def logs(request: pytest.FixtureRequest) -> Iterator[Logs]:
    """Log as a server does, at DEBUG."""
    with logging_put_back():
        logs = Logs()
        logs.configure(request.param)
        yield logs


@pytest.mark.divergence("D-54")
@pytest.mark.threat("T-106")
def test_neither_log_nor_audit_log_contains_a_secret_or_a_token(attacked: Attacked, logs: Logs) -> None:
    """CWE-532: Authlib logs whole access tokens at DEBUG. The test also checks the records before masking."""
    server = attacked.server
    broken, broken_secret = server.create_client()
    with server.services.database.engine.begin() as connection:
        row = ClientRow.client_id == broken.client_id
        connection.execute(update(ClientRow).values(claims="no claims").where(row))
    tokens = [server.post_token(basic=attacked.basic).json["access_token"] for _ in range(2)]
    secrets = [attacked.secret, broken_secret, "gths_guess", "marker-secret", "bWFya2VyLWFzc2VydGlvbg"]
    server.post_token(basic=(attacked.client.client_id, "gths_guess"))
    server.post_token(token_form(client_id="a", client_secret="marker-secret"))
    server.post_token(token_form(client_id="a", client_assertion=f"eyJh.{secrets[-1]}.c2ln"))
    server.post_token(token_form(), headers={"Authorization": f"Bearer {tokens[0]}"})
    server.post_token(token_form(), query=f"client_secret={attacked.secret}")
    server.post_token(token_form(), basic=(broken.client_id, broken_secret))
    server.http.get(f"/token/{attacked.secret}?access_token={tokens[0]}")
    server.http.get("/livez", headers={"Authorization": f"Bearer {tokens[0]}", "X-Request-Id": attacked.secret})
    audit_log = json.dumps(server.audit(limit=1000))
    written, raw = logs.written, "\n".join(logs.records)
    assert attacked.client.client_id in written
    assert attacked.client.client_id in raw
    assert attacked.client.client_id in audit_log
    signatures = [token.rsplit(".", 1)[1] for token in tokens]
    headers = [encoded(f"{attacked.client.client_id}:{attacked.secret}")]
    for secret in (*secrets, *tokens, *signatures, *headers):
        assert secret not in written
        assert secret not in raw
        assert secret not in audit_log


@pytest.mark.threat("T-106")
def test_a_secret_sent_as_the_client_id_is_not_stored(attacked: Attacked, logs: Logs) -> None:
    """CWE-532: the two are easily confused, and the audit log records the claimed client_id."""
    token = attacked.server.post_token(basic=attacked.basic).json["access_token"]
    for secret in (attacked.secret, token):
        form = token_form(client_id=secret, client_secret=attacked.client.client_id)
        refused = attacked.server.post_token(form)
        assert_refused(refused, "invalid_client", 401)
        [row] = attacked.server.audit(request_id=refused.json["request_id"])
        assert row["reason"] in {"unknown client", "credentials longer than 512 characters"}
        assert secret[:40] not in json.dumps(row)
        assert secret[:40] not in logs.written


@pytest.mark.divergence("D-54")
@pytest.mark.threat("T-106")
def test_authlib_never_logs_at_debug(logs: Logs) -> None:
    """authlib/oauth2/rfc6749/grants/client_credentials.py: `log.debug("Issue token %r to %r", token, client)`."""
    logging.getLogger("gatehouse.control").debug("marker-control")
    logging.getLogger("authlib.oauth2.rfc6749.grants.client_credentials").debug("Issue token %r", "marker-token")
    assert "marker-control" in logs.written
    assert "marker-token" not in logs.written


INJECTIONS = {
    "CRLF": "agent\r\n2026-01-01T00:00:00Z [info] forged",
    "ANSI": "agent\x1b[2J\x1b]0;owned\x07",
    "bare ANSI": "\x1b[31m",
    "C1 control": "agent\x9b31m",
    "backspace": "agent\b\b\b\b\b",
    "line separator": "agent\u2028forged\x85forged\x0bforged",
    "right-to-left": "agent\u202eforged",
}


@pytest.mark.threat("T-114")
@pytest.mark.parametrize("client_id", INJECTIONS.values(), ids=INJECTIONS.keys())
@pytest.mark.parametrize("way", ["Basic", "post"])
def test_a_client_id_cannot_forge_a_line_of_a_log_or_report(
    attacked: Attacked, logs: Logs, client_id: str, way: str
) -> None:
    """CWE-117, and CWE-150 for the terminal that displays the log."""
    server = attacked.server
    if way == "Basic":
        response = server.post_token(basic=(quote(client_id), "gths_wrong"))
    else:
        response = server.post_token(token_form(client_id=client_id, client_secret="gths_wrong"))
    assert_refused(response, "invalid_client", 401)
    forged = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")
    assert forged.search(response.text + "".join(value for _, value in response.headers)) is None
    [actor] = [row["actor"] for row in server.audit(request_id=response.json["request_id"])]
    assert actor.isprintable()
    assert "\\x" in actor or "\\u" in actor
    assert response.json["request_id"] in logs.written
    assert forged.search(logs.written) is None
    assert len(logs.written.splitlines()) == 1


@pytest.mark.parametrize("name", ["scope", "resource", "grant_type"])
def test_no_parameter_can_forge_a_line_of_a_log_or_report(attacked: Attacked, logs: Logs, name: str) -> None:
    """CWE-117."""
    for injection in INJECTIONS.values():
        response = attacked.server.post_token({**token_form(), name: f"{injection}-marker"}, attacked.basic)
        assert response.status_code == 400
        assert "marker" not in response.text + str(response.headers)
        [row] = attacked.server.audit(request_id=response.json["request_id"])
        assert "marker" not in json.dumps(row)
    assert "/token" in logs.written
    assert "marker" not in logs.written


def test_request_headers_reach_neither_log_nor_audit_log(attacked: Attacked, logs: Logs) -> None:
    """CWE-117: the client controls these headers."""
    headers = {"User-Agent": "marker\x1b[2J", "X-Forwarded-For": "marker", "Referer": "https://marker.example"}
    attacked.accepted(attacked.server.post_token(basic=attacked.basic, headers=headers))
    assert "/token" in logs.written
    assert "token.issue" in {row["action"] for row in attacked.server.audit()}
    assert "marker" not in logs.written + json.dumps(attacked.server.audit())


def test_input_is_truncated_before_it_is_logged(attacked: Attacked, logs: Logs) -> None:
    """CWE-779: a form may have 64 KiB, but a log line or an audit row must stay short."""
    form = token_form(client_id="a" * 60_000, client_secret="gths_wrong")
    response = attacked.server.post_token(form)
    assert_refused(response, "invalid_client", 401)
    [row] = attacked.server.audit(request_id=response.json["request_id"])
    assert len(row["actor"]) <= 255
    many = " ".join(f"scope{number}" for number in range(5_000))
    refused = attacked.server.post_token(token_form(scope=many), attacked.basic)
    [row] = attacked.server.audit(request_id=refused.json["request_id"])
    assert len(row["reason"]) < 1024
    assert max(len(line) for line in logs.written.splitlines()) < 4096
