"""Both servers speak TLS themselves, with a certificate of a private authority."""

import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest
from local_stack import BIN, LocalStack, Process, child_processes
from support.certificates import Authority
from support.mcp_client import Mode, connect
from support.waiting import wait_until

pytestmark = pytest.mark.anyio

FILES = 64
"""Files that a server may open in the test of its limits: half of them are left for connections."""


@dataclass
class TlsStack(LocalStack):
    """Servers that are known by https URLs on this machine."""

    command: Sequence[str] = ()
    """Starts the servers."""
    authority: Authority = field(kw_only=True)

    @property
    def issuer(self) -> str:
        return f"https://127.0.0.1:{self.authserver_port}"

    @property
    def resource(self) -> str:
        return f"https://127.0.0.1:{self.resourceserver_port}/mcp"

    @property
    def environment(self) -> dict[str, str]:
        file = str(self.authority.server_file)
        names = [
            f"{server}_TLS_{name}" for server in ("AUTHSERVER", "RESOURCESERVER") for name in ("CERTIFICATE", "KEY")
        ]
        return {**super().environment, "SSL_CERT_FILE": str(self.authority.file), **dict.fromkeys(names, file)}

    def _start(self, arguments: Sequence[str], log: int) -> Process:
        command = [*self.command, str(BIN / arguments[0]), *arguments[1:]]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    return authority


@pytest.fixture
def stack(tmp_path: Path, authority: Authority) -> Iterator[TlsStack]:
    stack = TlsStack(tmp_path / "stack", workers=1, authority=authority)
    stack.init()
    try:
        yield stack
    finally:
        stack.stop()


def get(url: str, **options: ssl.SSLContext) -> int:
    with urlopen(url, timeout=20, **options) as response:
        status: int = response.status
    return status


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_client_obtains_a_token_and_calls_a_tool_over_tls(stack: TlsStack, mode: Mode, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    client = stack.create_client("caller", "env:read")
    stack.start_all()
    trusted = ssl.create_default_context(cafile=stack.authority.file)
    async with connect(stack, client, mode, trusted) as agent:
        assert (await agent.call("whoami"))["client_id"] == client["client_id"]
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        get(f"{stack.issuer}/livez", context=ssl.create_default_context(cafile=Authority(tmp_path / "other").file))
    for server in ("authserver", "resourceserver"):
        assert "Traceback" not in stack.log(server)


async def test_a_renewed_certificate_is_served_after_sighup(stack: TlsStack) -> None:
    stack.start("authserver")
    stack.wait_until_ready("authserver")
    address = ("127.0.0.1", stack.authserver_port)
    before = ssl.get_server_certificate(address)
    stack.authority.renew()
    os.kill(stack.pid("authserver"), signal.SIGHUP)
    wait_until(lambda: ssl.get_server_certificate(address) != before)
    renewed = ssl.get_server_certificate(address)
    stack.authority.server_file.write_text("half of a certificate")
    workers = set(child_processes(stack.pid("authserver")))
    os.kill(stack.pid("authserver"), signal.SIGHUP)
    wait_until(lambda: "the new certificate cannot be used" in stack.log("authserver"))
    wait_until(lambda: workers.isdisjoint(child_processes(stack.pid("authserver"))))
    assert ssl.get_server_certificate(address) == renewed
    assert get(f"{stack.issuer}/readyz") == 200


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half-a-hello"])
async def test_handshakes_that_stall_make_room_for_other_clients(stack: TlsStack, sent: bytes) -> None:
    stack.command = ("prlimit", f"--nofile={FILES}:{FILES}")
    stack.start("authserver")
    stack.wait_until_ready("authserver")
    assert f"Serving at most {FILES // 2} connections" in stack.log("authserver")
    with ExitStack() as attack:
        for _ in range(3 * FILES):
            stalled = attack.enter_context(socket.create_connection(("127.0.0.1", stack.authserver_port)))
            stalled.sendall(sent)
        for _ in range(5):
            assert get(f"{stack.issuer}/livez") == 200
    assert "Traceback" not in stack.log("authserver")


async def test_a_handshake_that_stalls_is_ended(stack: TlsStack) -> None:
    stack.start("authserver")
    stack.wait_until_ready("authserver")
    with socket.create_connection(("127.0.0.1", stack.authserver_port), timeout=60) as stalled:
        assert stalled.recv(1) == b""
    assert get(f"{stack.issuer}/livez") == 200


async def test_plain_http_is_not_answered(stack: TlsStack) -> None:
    stack.start("authserver")
    stack.wait_until_ready("authserver")
    with socket.create_connection(("127.0.0.1", stack.authserver_port), timeout=20) as plain:
        plain.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP/1.1" not in plain.recv(1024)


def test_an_unusable_certificate_stops_the_start(stack: TlsStack) -> None:
    stack.authority.server_file.chmod(0o644)
    stack.start("authserver")
    assert stack.wait("authserver") == 1
    assert "AUTHSERVER_TLS_KEY: The TLS key" in stack.log("authserver")
