"""The sealing key: what it seals, and where it may come from."""

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.authserver import AuthServer, settings_in

from gatehouse.authserver.keys.encryption import DecryptionFailed, SealingKey, create_sealing_key, load_sealing_key
from gatehouse.authserver.settings import Settings
from gatehouse.resourceserver.settings import Settings as ResourceServerSettings
from gatehouse.shared.service.settings import InvalidSettings
from gatehouse.shared.service.settings_reading import load_settings


def test_a_sealed_value_decrypts_for_its_purpose() -> None:
    key = SealingKey(os.urandom(32))
    sealed = key.seal(b"a private key", "signing_key", "kid")
    assert key.unseal(sealed, "signing_key", "kid") == b"a private key"
    assert b"private" not in sealed
    assert key.seal(b"a private key", "signing_key", "kid") != sealed


@pytest.mark.threat("T-080")
@pytest.mark.parametrize(
    "altered",
    [
        pytest.param(lambda sealed: b"\x02" + sealed[1:], id="version"),
        pytest.param(lambda sealed: sealed[:1] + bytes([sealed[1] ^ 1]) + sealed[2:], id="nonce"),
        pytest.param(lambda sealed: sealed[:13] + bytes([sealed[13] ^ 1]) + sealed[14:], id="ciphertext"),
        pytest.param(lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]), id="tag"),
        pytest.param(lambda sealed: sealed[:-1], id="cut"),
        pytest.param(lambda sealed: sealed + b"\x00", id="longer"),
        pytest.param(lambda sealed: sealed[:5], id="shorter than a nonce"),
        pytest.param(lambda _: b"", id="empty"),
    ],
)
def test_an_altered_sealed_value_does_not_decrypt(altered: Callable[[bytes], bytes]) -> None:
    key = SealingKey(os.urandom(32))
    sealed = key.seal(b"a private key", "signing_key")
    assert key.unseal(sealed, "signing_key") == b"a private key"
    with pytest.raises(DecryptionFailed):
        key.unseal(altered(sealed), "signing_key")


@pytest.mark.parametrize("purpose", [("pepper", "a"), ("signing_key", "b"), ("signing_key",), ("signing_key", "a", "")])
def test_a_sealed_value_is_bound_to_its_purpose_and_key(purpose: tuple[str, ...]) -> None:
    key = SealingKey(os.urandom(32))
    sealed = key.seal(b"a private key", "signing_key", "a")
    assert key.unseal(sealed, "signing_key", "a") == b"a private key"
    with pytest.raises(DecryptionFailed):
        key.unseal(sealed, *purpose)
    with pytest.raises(DecryptionFailed):
        SealingKey(os.urandom(32)).unseal(sealed, "signing_key", "a")


def test_the_sealing_key_file_is_private_and_created_once(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert create_sealing_key(settings)
    path = settings.keys_dir / "sealing.key"
    first = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert settings.keys_dir.stat().st_mode & 0o777 == 0o700
    assert not create_sealing_key(settings)
    assert path.read_bytes() == first
    assert [file.name for file in settings.keys_dir.iterdir()] == ["sealing.key"]


@pytest.mark.threat("T-098")
@pytest.mark.parametrize("mode", [0o604, 0o660, 0o700 | 0o001])
def test_a_sealing_key_that_others_can_access_is_refused(tmp_path: Path, mode: int) -> None:
    settings = settings_in(tmp_path)
    create_sealing_key(settings)
    path = settings.keys_dir / "sealing.key"
    load_sealing_key(settings)
    path.chmod(mode)
    with pytest.raises(InvalidSettings, match=f"chmod 600 {path}"):
        load_sealing_key(settings)


@pytest.mark.threat("T-098")
@pytest.mark.parametrize("mode", [0o604, 0o644, 0o660])
def test_an_env_file_with_the_sealing_key_must_be_private(tmp_path: Path, mode: int) -> None:
    """CWE-732: the key is as exposed there as in its own file."""
    key = base64.urlsafe_b64encode(bytes(32)).decode()
    file = tmp_path / "servers.env"
    file.write_text(f"AUTHSERVER_SEALING_KEY={key}\nAUTHSERVER_TOKEN_TTL=60\n", encoding="ascii")
    file.chmod(0o600)
    assert load_settings(Settings, file).sealing_key is not None
    file.chmod(mode)
    with pytest.raises(InvalidSettings, match=f"AUTHSERVER_SEALING_KEY.*chmod 600 {file}") as refusal:
        load_settings(Settings, file)
    assert key not in str(refusal.value)
    load_settings(ResourceServerSettings, file)
    file.write_text("AUTHSERVER_TOKEN_TTL=60\n", encoding="ascii")
    assert load_settings(Settings, file).token_ttl == 60


@pytest.mark.threat("T-098")
def test_a_symbolic_link_as_the_sealing_key_is_refused(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    create_sealing_key(settings)
    assert load_sealing_key(settings)
    path = settings.keys_dir / "sealing.key"
    elsewhere = path.rename(tmp_path / "elsewhere.key")
    path.symlink_to(elsewhere)
    with pytest.raises(InvalidSettings, match=r"is a link out of its folder.*or set AUTHSERVER_SEALING_KEY"):
        load_sealing_key(settings)


@pytest.mark.parametrize("content", [b"", b"short", b"A" * 42, b"A" * 44, b"!" * 43, b"\xff" * 43, b"A" * 1000])
def test_a_malformed_sealing_key_is_refused_and_not_repeated(tmp_path: Path, content: bytes) -> None:
    settings = settings_in(tmp_path)
    create_sealing_key(settings)
    assert load_sealing_key(settings)
    (settings.keys_dir / "sealing.key").write_bytes(content)
    with pytest.raises(InvalidSettings, match="must be 32 bytes in base64url") as refused:
        load_sealing_key(settings)
    assert not content or content.decode("latin-1") not in str(refused.value)


def test_a_missing_sealing_key_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="authserver init"):
        load_sealing_key(settings_in(tmp_path))


def test_the_environment_can_hold_the_sealing_key(tmp_path: Path) -> None:
    text = base64.urlsafe_b64encode(b"k" * 32).rstrip(b"=").decode()
    settings = settings_in(tmp_path, sealing_key=text)
    assert not create_sealing_key(settings)
    assert not settings.keys_dir.exists()
    sealed = load_sealing_key(settings).seal(b"x", "purpose")
    assert SealingKey(b"k" * 32).unseal(sealed, "purpose") == b"x"
    assert text not in repr(settings)


@pytest.mark.threat("T-090")
def test_the_same_sealing_key_twice_is_refused(tmp_path: Path) -> None:
    """NIST SP 800-57 part 1, 5.3.5: a leaked key is replaced. Rotating to the same key would only look like it."""
    old, new = (base64.urlsafe_b64encode(key * 32).rstrip(b"=").decode() for key in (b"o", b"n"))
    load_sealing_key(settings_in(tmp_path, sealing_key=f"{old},{new}"))
    for again in (old, f" {old}="):
        with pytest.raises(InvalidSettings, match="one key twice") as refused:
            load_sealing_key(settings_in(tmp_path, sealing_key=f"{old},{again}"))
        assert old not in str(refused.value)


def test_a_sealing_key_in_a_folder_writable_by_others_is_refused(authserver: AuthServer) -> None:
    assert load_sealing_key(authserver.settings)
    authserver.settings.keys_dir.chmod(0o770)
    with pytest.raises(InvalidSettings, match="chmod go-w"):
        load_sealing_key(authserver.settings)


def test_a_pipe_as_the_sealing_key_is_refused_without_blocking(authserver: AuthServer) -> None:
    path = authserver.settings.keys_dir / "sealing.key"
    assert load_sealing_key(authserver.settings)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(InvalidSettings, match="not a regular file that you own"):
        load_sealing_key(authserver.settings)
