"""The file of `--env-file`: an ambiguous line prevents the start, because its setting would not apply."""

import os
from pathlib import Path

import pytest

from gatehouse.authserver.settings import Settings
from gatehouse.shared.service.env_file import InvalidEnvFile, read_env_file
from gatehouse.shared.service.settings import InvalidSettings
from gatehouse.shared.service.settings_reading import load_settings

GOOD = b"# both servers\n\nAUTHSERVER_TOKEN_TTL=60\nexport AUTHSERVER_THREADS='8'\nEMPTY=\n\n"


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    file = tmp_path / "y.env"
    file.write_bytes(GOOD)
    return file


def test_names_comments_and_empty_lines_are_read(env_file: Path) -> None:
    assert read_env_file(env_file) == {"AUTHSERVER_TOKEN_TTL": "60", "AUTHSERVER_THREADS": "8", "EMPTY": ""}
    assert load_settings(Settings, env_file).token_ttl == 60


def test_without_a_file_nothing_is_read() -> None:
    assert read_env_file(None) == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(b"AUTHSERVER_BIND: 127.0.0.1:9000\n", "line 7: not NAME=VALUE", id="YAML"),
        pytest.param(b"AUTHSERVER_BIND\n", "line 7: not NAME=VALUE", id="bare name"),
        pytest.param(b"bind to loopback please\n", "line 7: not NAME=VALUE", id="words"),
        pytest.param(b"\xef\xbb\xbfAUTHSERVER_BIND=x\n", "line 7: not NAME=VALUE", id="byte order mark"),
        pytest.param(b"\n\n'A B'=x\n", "line 9: not NAME=VALUE", id="a name with a space"),
        pytest.param(b"AUTHSERVER_BIND='127.0.0.1:9000\n", "line 7: not NAME=VALUE", id="open quote"),
        pytest.param(b"AUTHSERVER_BIND=\x00\n", "line 7: a NUL character", id="NUL"),
        pytest.param(b"\nAUTHSERVER_BIND=\xff\n", "line 8: not text in UTF-8", id="Latin-1"),
    ],
)
def test_an_invalid_line_is_refused_with_its_file_and_number(
    env_file: Path, text: bytes, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """python-dotenv skips such a line with a warning in the log."""
    assert load_settings(Settings, env_file)
    env_file.write_bytes(GOOD + text)
    with pytest.raises(InvalidSettings) as refusal:
        load_settings(Settings, env_file)
    assert str(refusal.value) == f"{env_file}, {problem}"
    assert caplog.records == []


def test_all_invalid_lines_are_listed_and_none_is_repeated(env_file: Path) -> None:
    env_file.write_text("AUTHSERVER_SEALING_KEY: hunter2\nA=1\nhunter2\n")
    with pytest.raises(InvalidEnvFile) as refusal:
        read_env_file(env_file)
    assert str(refusal.value) == f"{env_file}, line 1: not NAME=VALUE\n{env_file}, line 3: not NAME=VALUE"


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InvalidEnvFile, match="pipe: not a regular file"):
        read_env_file(pipe)
