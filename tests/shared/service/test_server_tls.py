"""The TLS of a server that serves https itself."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.certificates import Authority

from gatehouse.shared.service.server_tls import server_context
from gatehouse.shared.service.settings import InvalidSettings


def test_the_context_serves_http_1_over_modern_tls(tmp_path: Path) -> None:
    file = Authority(tmp_path).server_file
    context = server_context(file, file, "AUTHSERVER_")
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE, "clients authenticate at the token endpoint"


@pytest.mark.parametrize(
    ("certificate", "key", "problem"),
    [
        ("none.pem", "server.pem", r"^AUTHSERVER_TLS_CERTIFICATE=.*none.pem: No such file"),
        ("server.pem", "none.pem", r"^AUTHSERVER_TLS_KEY=.*none.pem: No such file"),
        ("server.pem", "exposed.pem", r"^AUTHSERVER_TLS_KEY: The TLS key .* is accessible to others"),
        ("server.pem", "other/server.pem", r"^AUTHSERVER_TLS_CERTIFICATE=.*are not a certificate chain"),
        ("server.pem", "locked.pem", r"^AUTHSERVER_TLS_CERTIFICATE=.*without a passphrase"),
        ("empty.pem", "server.pem", r"^AUTHSERVER_TLS_CERTIFICATE=.*are not a certificate chain"),
    ],
)
def test_unusable_files_are_named(certificate: str, key: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    good = Authority(tmp_path).server_file
    Authority(tmp_path / "other")
    for name in ("exposed.pem", "locked.pem", "empty.pem"):
        (tmp_path / name).touch(mode=0o600)
    (tmp_path / "exposed.pem").write_bytes(good.read_bytes())
    (tmp_path / "exposed.pem").chmod(0o644)
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"hunter2"),
    )
    (tmp_path / "locked.pem").write_bytes(locked)
    with pytest.raises(InvalidSettings, match=problem):
        server_context(tmp_path / certificate, tmp_path / key, "AUTHSERVER_")
