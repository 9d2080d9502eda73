"""The gateway's own credential for an upstream: a header from a file, and the tokens of a client."""

import json
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.upstreams import RESULT, call_of, scripted_upstream, status, upstream_settings

from gatehouse.bridge.credentials import InvalidCredentials, read_credentials_file
from gatehouse.resourceserver.catalogue.policy_file import ClientCredential, HeaderCredential
from gatehouse.resourceserver.upstream.http.credential import ClientToken, FileHeader
from gatehouse.resourceserver.upstream.http.http_upstream import HttpUpstream
from gatehouse.resourceserver.upstream.upstream import UpstreamUnavailable
from gatehouse.shared.service.tls import certificate_problem

pytestmark = pytest.mark.anyio

ISSUER = "https://as.example.com"
RESOURCE = "https://tools.example.com/mcp"


def private(path: Path, content: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(content, encoding="utf-8")
    return path


class FakeIssuer:
    """Issues tokens numbered from 1."""

    def __init__(self) -> None:
        self.forms: list[str] = []
        self.status = 200
        self.metadata: dict[str, Any] = {"issuer": ISSUER, "token_endpoint": f"{ISSUER}/token"}

    def serve(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path != "/token":
            return httpx2.Response(200, json=self.metadata)
        self.forms.append(request.content.decode())
        token = {"access_token": f"token-{len(self.forms)}", "token_type": "Bearer", "expires_in": 300}
        return httpx2.Response(self.status, json=token)

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(transport=httpx2.MockTransport(self.serve))


def client_credential(folder: Path, **changes: Any) -> ClientCredential:
    document = json.dumps({"client_id": "gateway", "client_secret": "gths_secret"})
    defaults: dict[str, Any] = {
        "issuer": ISSUER,
        "file": private(folder / "client.json", document),
        "client_id": None,
        "resource": RESOURCE,
    }
    return ClientCredential(**{**defaults, **changes})


# A header from a file


async def test_a_header_from_a_file_is_sent_and_read_again(tmp_path: Path) -> None:
    file = private(tmp_path / "key", "first\n")
    async with scripted_upstream() as server:
        upstream = HttpUpstream(upstream_settings(server.url, credential=HeaderCredential("X-Api-Key", file)))
        async with upstream.running():
            await upstream.call_tool(call_of())
            private(file, "second key")
            os.utime(file, ns=(1, 1))
            await upstream.call_tool(call_of())
            server.answer("tools/call", status(401))
            with pytest.raises(UpstreamUnavailable, match="did not accept the credential"):
                await upstream.call_tool(call_of())
    assert [received.headers["x-api-key"] for received in server.of("tools/call")] == ["first", *["second key"] * 2]


async def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = FileHeader("X-Api-Key", private(tmp_path / "key", "first"))
    assert await header.headers() == [("X-Api-Key", "first")]
    monkeypatch.delattr("gatehouse.resourceserver.upstream.http.credential.read_private_text")
    assert await header.headers() == [("X-Api-Key", "first")]


@pytest.mark.parametrize("content", ["", "a\nb", "a\rb", "schlüssel", "a\0b", "x" * 8193])
async def test_a_value_that_is_no_header_is_refused(tmp_path: Path, content: str) -> None:
    header = FileHeader("X-Api-Key", private(tmp_path / "key", content))
    with pytest.raises(UpstreamUnavailable, match=r"^upstream\.credential\.file: .* is not one line of at most 8192"):
        await header.headers()


async def test_a_file_that_cannot_be_read_is_reported_by_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UpstreamUnavailable, match=r"^upstream\.credential\.file: there is no file"):
        await FileHeader("X-Api-Key", tmp_path / "none").headers()
    exposed = private(tmp_path / "key", "first")
    exposed.chmod(0o644)
    with pytest.raises(UpstreamUnavailable, match=r"^upstream\.credential\.file: .* accessible to others"):
        await FileHeader("X-Api-Key", exposed).headers()
    with pytest.raises(UpstreamUnavailable, match="cannot be read"):
        await FileHeader("X-Api-Key", exposed / "below").headers()


# A client at another authorization server


async def test_a_token_is_requested_for_the_upstream_and_replaced_once(tmp_path: Path) -> None:
    issuer = FakeIssuer()
    credential = ClientToken(client_credential(tmp_path), issuer.client())
    async with scripted_upstream() as server:
        upstream = HttpUpstream(upstream_settings(server.url), credential=credential)
        async with upstream.running():
            await upstream.call_tool(call_of())
            server.answer("tools/call", status(401))
            assert await upstream.call_tool(call_of()) == RESULT
            server.answer("tools/call", status(401), status(401))
            with pytest.raises(UpstreamUnavailable, match="did not accept the credential"):
                await upstream.call_tool(call_of())
    assert [received.headers["authorization"] for received in server.of("tools/call")] == [
        "Bearer token-1",
        "Bearer token-1",
        "Bearer token-2",
        "Bearer token-2",
        "Bearer token-3",
    ]
    assert all("resource=https%3A%2F%2Ftools.example.com%2Fmcp" in form for form in issuer.forms)


async def test_concurrent_rejections_share_one_new_token(tmp_path: Path) -> None:
    issuer = FakeIssuer()
    credential = ClientToken(client_credential(tmp_path), issuer.client())
    rejected = await credential.headers()
    renewed = [await credential.renewed(rejected) for _ in range(3)]
    assert renewed == [[("Authorization", "Bearer token-2")]] * 3
    await credential.close()


async def test_an_issuer_without_a_token_leaves_the_call_unsent(tmp_path: Path) -> None:
    issuer = FakeIssuer()
    credential = ClientToken(client_credential(tmp_path), issuer.client())
    async with scripted_upstream() as server:
        upstream = HttpUpstream(upstream_settings(server.url), credential=credential)
        async with upstream.running():
            await upstream.call_tool(call_of())
            issuer.status = 500
            server.answer("tools/call", status(401))
            with pytest.raises(UpstreamUnavailable, match="answered status 500 to a token request"):
                await upstream.call_tool(call_of())
    with pytest.raises(UpstreamUnavailable, match="answered status 500"):
        await ClientToken(client_credential(tmp_path), issuer.client()).headers()


async def test_messages_name_the_settings_of_the_policy_file(tmp_path: Path) -> None:
    issuer = FakeIssuer()
    issuer.metadata["issuer"] = "https://other.example.com"
    with pytest.raises(UpstreamUnavailable, match=r"Check upstream\.credential\.issuer\.$"):
        await ClientToken(client_credential(tmp_path), issuer.client()).headers()
    missing = client_credential(tmp_path, file=tmp_path / "none.json")
    with pytest.raises(UpstreamUnavailable, match="There is no credentials file"):
        await ClientToken(missing, issuer.client()).headers()
    key = private(tmp_path / "key.pem", "-----BEGIN PRIVATE KEY-----")
    with pytest.raises(UpstreamUnavailable, match=r"set upstream\.credential\.client_id to the client"):
        await ClientToken(client_credential(tmp_path, file=key), issuer.client()).headers()
    with pytest.raises(UpstreamUnavailable, match=r"^upstream\.credential\.client_id is other, but .* client gateway"):
        await ClientToken(client_credential(tmp_path, client_id="other"), issuer.client()).headers()
    with pytest.raises(InvalidCredentials, match=r"^BRIDGE_CLIENT_ID is other, but"):
        read_credentials_file(tmp_path / "client.json", "other")


async def test_the_client_of_the_issuer_is_created_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = upstream_settings("http://127.0.0.1:1/mcp", credential=client_credential(tmp_path))
    async with HttpUpstream(settings).running():
        pass
    own = ClientToken(client_credential(tmp_path, issuer="http://127.0.0.1:1"))
    with pytest.raises(UpstreamUnavailable, match=r"at http://127\.0\.0\.1:1 does not respond"):
        await own.headers()
    await own.close()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(UpstreamUnavailable, match="SSL_CERT_FILE="):
        await ClientToken(client_credential(tmp_path)).headers()


def test_an_untrusted_issuer_is_reported_with_the_only_setting() -> None:
    import ssl

    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = 18, "self-signed certificate"
    problem = certificate_problem(error, "as.example.com", None)
    assert problem is not None
    assert ": set SSL_CERT_FILE to the certificate file" in problem
