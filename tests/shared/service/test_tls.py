"""Outgoing TLS: whose certificates are trusted, and what is said about one that is not."""

import ssl
from pathlib import Path

import pytest
from support.certificates import Authority

from gatehouse.shared.service.settings import InvalidSettings
from gatehouse.shared.service.tls import certificate_problem, current_tls_context, tls_context

SETTING = "RESOURCESERVER_CA_FILE"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def handshake(context: ssl.SSLContext, authority: Authority, host: str = "localhost") -> None:
    """Connect to a server of the authority in memory. Raises the error that a client sees."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname=host)
    server = authority.server_context().wrap_bio(to_server, to_client, server_side=True)
    pending = [client, server]
    while pending:
        for side in list(pending):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            pending.remove(side)


def test_the_setting_names_the_trusted_authorities(authority: Authority) -> None:
    handshake(tls_context(authority.file, SETTING), authority)
    assert tls_context(authority.file, SETTING) is tls_context(authority.file, SETTING)


def test_an_authority_that_is_replaced_is_read_again_where_that_is_asked_for(
    authority: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "mounted.pem"
    file.write_bytes(authority.file.read_bytes())
    handshake(current_tls_context(file, SETTING), authority)
    following = Authority(tmp_path)
    file.write_bytes(following.file.read_bytes())
    handshake(current_tls_context(file, SETTING), following)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(current_tls_context(file, SETTING), authority)


def test_the_authorities_of_the_system_are_read_once() -> None:
    assert current_tls_context(None, SETTING) is tls_context(None, SETTING)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_the_environment_names_the_trusted_authorities(
    authority: Authority, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = authority.file if variable == "SSL_CERT_FILE" else authority.hashed_folder()
    monkeypatch.setenv(variable, str(place))
    handshake(tls_context(None, SETTING), authority)


def test_the_setting_wins_over_the_environment(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path).file))
    handshake(tls_context(authority.file, SETTING), authority)


def test_an_untrusted_certificate_is_called_that(authority: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError) as failure:
        handshake(tls_context(None, SETTING), authority)
    wrapped = ConnectionError()
    wrapped.__cause__ = failure.value
    problem = certificate_problem(wrapped, "as.example.com", SETTING)
    assert problem is not None
    assert problem.startswith("the certificate of as.example.com is not trusted (")
    assert f"set {SETTING} or SSL_CERT_FILE" in problem


def test_a_certificate_of_another_host_is_not_a_matter_of_trust(authority: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError) as failure:
        handshake(tls_context(authority.file, SETTING), authority, "other.example.com")
    problem = certificate_problem(failure.value, "other.example.com", SETTING)
    assert problem is not None
    assert problem.startswith("the certificate of other.example.com is not valid (Hostname mismatch")
    assert SETTING not in problem


def test_a_server_without_tls_is_called_that() -> None:
    assert "does not speak TLS" in str(certificate_problem(ssl.SSLError(1, "WRONG_VERSION_NUMBER"), "h", SETTING))


def test_a_connection_failure_is_not_a_certificate_problem() -> None:
    assert certificate_problem(ConnectionRefusedError(), "h", SETTING) is None


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file"), (b"", "no certificate"), (b"not PEM", "no certificate")]
)
def test_an_unusable_authority_file_is_named(content: bytes | None, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidSettings, match=rf"{SETTING}=.*ca\.pem.*{problem}"):
        tls_context(file, SETTING)


def test_a_missing_authority_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    with pytest.raises(InvalidSettings, match=r"SSL_CERT_DIR=.*: not a folder"):
        tls_context(None, SETTING)
