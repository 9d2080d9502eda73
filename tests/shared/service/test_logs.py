"""Logs: one line per event, without secrets."""

import json
import logging

import pytest
import structlog
from support.logs import Read

from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.logs import configure_logs
from gatehouse.shared.service.settings import LogFormat

TOKEN = SigningKey.generate("ES256").sign("at+jwt", {"sub": "agent_1"})
SECRET = "gths_" + "aB3-_" * 8
FORMATS: tuple[LogFormat, ...] = ("json", "console")


def one_json_line(read: Read) -> dict[str, object]:
    [line] = read().splitlines()
    event: dict[str, object] = json.loads(line)
    return event


def test_an_event_is_one_json_line_with_time_and_level(read: Read) -> None:
    configure_logs("json")
    structlog.stdlib.get_logger("test").warning("refused", client_id="agent_1", status=401)
    event = one_json_line(read)
    assert str(event.pop("timestamp")).endswith("Z")
    assert event == {
        "event": "refused",
        "level": "warning",
        "client_id": "agent_1",
        "status": 401,
    }


def test_standard_library_records_are_processed_like_others(read: Read) -> None:
    configure_logs("json")
    logging.getLogger("some.library").error("failed: %s", "why")
    event = one_json_line(read)
    assert (event["event"], event["level"]) == ("failed: why", "error")


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("text", "secret"),
    [
        pytest.param(f"issued {TOKEN} to agent", TOKEN, id="a-token"),
        pytest.param(f"access_token={TOKEN}&x=1", TOKEN, id="a-token-in-a-query"),
        pytest.param(f"(({TOKEN.rpartition('.')[0]}))", TOKEN.split(".")[1], id="a-token-without-its-signature"),
        pytest.param(f"secret {SECRET}.", SECRET, id="a-client-secret"),
        pytest.param("Authorization: Basic YWdlbnQ6aHVudGVyMg==", "YWdlbnQ6aHVudGVyMg", id="basic"),
        pytest.param("authorization: bearer opaque-token-123", "opaque-token-123", id="bearer"),
    ],
)
def test_a_secret_is_masked_in_every_position(read: Read, format_: LogFormat, text: str, secret: str) -> None:
    configure_logs(format_)
    log = structlog.stdlib.get_logger("test")
    log.info(text)
    log.info("in a value", value=text)
    log.info("deep", value={"headers": [text], "more": (text,)})
    log.info("bytes and objects", value=text.encode(), error=ValueError(text))
    logging.getLogger("some.library").info("%s", text)
    log.error("with a traceback", exc_info=ValueError(text))
    logging.getLogger("some.library").error("with a traceback", exc_info=ValueError(text))
    output = read()
    assert secret not in output
    assert output.count("[masked]") >= 8


@pytest.mark.parametrize("format_", FORMATS)
def test_other_text_is_not_masked(read: Read, format_: LogFormat) -> None:
    configure_logs(format_)
    structlog.stdlib.get_logger("test").info("request", path="/token", jti="Zm9v", ms=1.5, ok=True, none=None)
    output = read()
    assert "[masked]" not in output
    assert "/token" in output
    assert "Zm9v" in output


@pytest.mark.threat("T-114")
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("forgery", ["x\nforged", "x\r\nforged", "x\x1b[2Jforged", "x\x00forged"], ids=repr)
def test_control_characters_cannot_forge_a_line(read: Read, format_: LogFormat, forgery: str) -> None:
    """CWE-117, CWE-150: text from a client in a value or in the message of a library."""
    configure_logs(format_)
    structlog.stdlib.get_logger("test").info("refused", client_id=forgery)
    logging.getLogger("some.library").info("unknown client %s", forgery)
    lines = read().splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


@pytest.mark.threat("T-114")
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("forgery", ["x\n2026-01-01 forged", "x\r2026-01-01 forged", "x\x1b[2Jforged"], ids=repr)
def test_an_exceptions_text_cannot_forge_a_line(read: Read, format_: LogFormat, forgery: str) -> None:
    """CWE-117, CWE-150: a custom tool may raise an error that contains text from a client."""
    configure_logs(format_)

    def fail() -> None:
        raise ValueError(forgery)

    try:
        fail()
    except ValueError:
        logging.getLogger("some.library").exception("failed")
    event, *traceback = read().splitlines()
    assert "failed" in event
    assert all(line.isprintable() for line in (event, *traceback))
    assert format_ == "json" or len(traceback) > 2
    assert all(line.startswith("  ") for line in traceback)


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING"])
def test_authlib_never_logs_below_info(read: Read, level: str) -> None:
    """Authlib writes whole access tokens at DEBUG. The control: other loggers may log at DEBUG."""
    configure_logs("json", level)  # type: ignore[arg-type]
    logging.getLogger("authlib.oauth2").debug("Issue token %r", "opaque")
    assert read() == ""
    logging.getLogger("other").debug("seen")
    assert ("seen" in read()) == (level == "DEBUG")
    logging.getLogger("authlib.oauth2").warning("seen")
    assert "seen" in read()


def test_the_level_applies_to_both_loggers(read: Read) -> None:
    configure_logs("json", "WARNING")
    structlog.stdlib.get_logger("test").info("unseen")
    logging.getLogger("test").info("unseen")
    logging.getLogger("httpx2").info("HTTP Request: GET https://as.example.com")
    assert read() == ""
    structlog.stdlib.get_logger("test").warning("seen")
    logging.getLogger("test").warning("seen")
    assert len(read().splitlines()) == 2
