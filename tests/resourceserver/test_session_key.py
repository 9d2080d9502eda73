"""The key that encrypts the ids of callers' sessions."""

from pathlib import Path

import pytest

from gatehouse.resourceserver.upstream.http.session_key import SessionKey, create_session_key
from gatehouse.shared.service.settings import InvalidSettings


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "session.json"
    create_session_key(path)
    return path


def test_a_session_key_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "sessions.json"
    assert create_session_key(path)
    content = path.read_bytes()
    assert not create_session_key(path)
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_of_two_processes_one_creates_the_session_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sessions.json"
    create_session_key(path)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert not create_session_key(path)


def test_a_text_is_encrypted_for_one_purpose(key_file: Path) -> None:
    key = SessionKey.read(key_file)
    encrypted = key.encrypt("id", "upstream", "alice")
    assert encrypted != key.encrypt("id", "upstream", "alice")
    assert key.decrypt(encrypted, "upstream", "alice") == "id"
    for purpose in (("upstream", "bob"), ("upstream",), ("upstreamalice",)):
        assert key.decrypt(encrypted, *purpose) is None
    for altered in (b"", encrypted[:10], encrypted[:-1] + bytes([encrypted[-1] ^ 1])):
        assert key.decrypt(altered, "upstream", "alice") is None
    assert key.digest("id") == key.digest("id") != key.digest("other")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"kty":"oct"}', b'{"kty":"oct","k":"AAAA"}', b'{"kty":"EC","k":"' + b"A" * 43 + b'"}'],
)
def test_a_malformed_session_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sessions.json"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(InvalidSettings, match="not a JWK with kty oct"):
        SessionKey.read(path)


def test_a_session_key_that_others_can_read_is_refused(key_file: Path) -> None:
    key_file.chmod(0o644)
    with pytest.raises(InvalidSettings, match="accessible to others"):
        SessionKey.read(key_file)
