"""Fetches of the key sets of trusted issuers, from real servers: which addresses, with what, and what is refused."""

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.certificates import Authority
from support.document_server import JSON, Answer, DocumentServer, slowly

from gatehouse.authserver.workloads.key_fetching import METADATA, FetchStopped, KeySetClient, fetch_keys
from gatehouse.authserver.workloads.registry import KeyLocation
from gatehouse.shared.protocol.encoding import encode_base64url
from gatehouse.shared.service import deadline
from gatehouse.shared.service.fetch import FetchFailed

KEYS = b'{"keys": ["those of the issuer"]}'
JWKS = "/openid/v1/jwks"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJhcGkifQ.c2lnbmF0dXJl"
SECOND_TOKEN = f"{TOKEN}-"
KIB = 1024


@pytest.fixture
def issuer() -> Iterator[DocumentServer]:
    """An issuer with metadata and keys."""
    with closing(DocumentServer()) as running:
        publish(running)
        yield running


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def publish(server: DocumentServer, **changes: Any) -> None:
    """Let a server publish metadata, with changes, and keys."""
    metadata = {"issuer": server.url, "jwks_uri": f"{server.url}{JWKS}", **changes}
    server.answers[METADATA] = Answer(json.dumps(metadata).encode())
    server.answers[JWKS] = Answer(KEYS)


def location(
    jwks_uri: str | None = None, ca_file: Path | None = None, bearer_token_file: Path | None = None
) -> KeyLocation:
    files = [None if file is None else str(file) for file in (ca_file, bearer_token_file)]
    return KeyLocation(jwks_uri is None, jwks_uri, *files)


def failure(server: DocumentServer, where: KeyLocation | None = None) -> str:
    """Return why the keys of an issuer cannot be fetched."""
    with pytest.raises(FetchFailed) as failed:
        fetch_keys(server.url, where or location())
    return str(failed.value)


def test_the_metadata_of_the_issuer_name_its_keys(issuer: DocumentServer) -> None:
    assert fetch_keys(issuer.url, location()) == KEYS
    assert issuer.paths() == [METADATA, JWKS]
    assert not any("authorization" in request.headers for request in issuer.requests)


@pytest.mark.parametrize("path", ["/", "/tenant", "/tenant/"])
def test_the_metadata_are_below_the_path_of_the_issuer(issuer: DocumentServer, path: str) -> None:
    """OpenID Connect Discovery 4.1: a slash at the end is removed first, but it is part of the name."""
    publish(issuer, issuer=f"{issuer.url}{path}")
    issuer.answers[f"{path.rstrip('/')}{METADATA}"] = issuer.answers[METADATA]
    assert fetch_keys(f"{issuer.url}{path}", location()) == KEYS
    assert issuer.paths() == [f"{path.rstrip('/')}{METADATA}", JWKS]


def test_a_pinned_address_is_fetched_alone_and_may_be_on_another_host(issuer: DocumentServer) -> None:
    assert fetch_keys("https://issuer.example.com", location(f"{issuer.url}{JWKS}")) == KEYS
    assert issuer.paths() == [JWKS]


@pytest.mark.threat("T-207")
@pytest.mark.parametrize(
    "other",
    ["https://other.example.com", "{url}/", "{url}/tenant", "HTTP{rest}", None, 7, ["{url}"]],
    ids=["another", "slash", "path", "case", "missing", "number", "array"],
)
def test_metadata_of_another_issuer_are_refused(issuer: DocumentServer, other: Any) -> None:
    """RFC 8414 3.3 (mix-up): a document of another issuer names the keys of that one."""
    assert fetch_keys(issuer.url, location()) == KEYS
    if isinstance(other, str):
        other = other.format(url=issuer.url, rest=issuer.url.removeprefix("http"))
    publish(issuer, issuer=other)
    assert f"{METADATA}: its issuer is " in failure(issuer)
    assert issuer.paths() == [METADATA, JWKS, METADATA]


@pytest.mark.parametrize(("named", "given"), [("{url}/", "{url}"), ("{url}", "{url}/")])
def test_an_issuer_that_differs_by_a_slash_is_named(issuer: DocumentServer, named: str, given: str) -> None:
    named, given = (name.format(url=issuer.url) for name in (named, given))
    publish(issuer, issuer=named)
    with pytest.raises(FetchFailed) as failed:
        fetch_keys(given, location())
    advice = "Add it" if named.endswith("/") else "Leave it out"
    told = f"its issuer is {named}, not {given}; they differ by the slash at the end. {advice}: --issuer {named}"
    assert str(failed.value) == f"{issuer.url}{METADATA}: {told}"
    assert fetch_keys(named, location()) == KEYS


ELSEWHERE = {
    "127.0.0.1:{other}": "is on another host; if it is right, set --jwks-uri",
    "127.0.0.1": "is on another host; if it is right, set --jwks-uri",
    "localhost:{port}": "is on another host; if it is right, set --jwks-uri",
    "user@127.0.0.1:{port}": "its jwks_uri is not an https URL",
    "127.0.0.1:{port}.example.com": "its jwks_uri is not an https URL",
}


@pytest.mark.threat("T-207")
@pytest.mark.parametrize("address", ELSEWHERE)
def test_keys_on_another_host_are_refused_unless_pinned(issuer: DocumentServer, address: str) -> None:
    """The certificate of the issuer's host speaks for the issuer, and no other."""
    assert fetch_keys(issuer.url, location()) == KEYS
    with closing(DocumentServer()) as other:
        other.answers[JWKS] = Answer(KEYS)
        port, other_port = urlsplit(issuer.url).port, urlsplit(other.url).port
        publish(issuer, jwks_uri=f"http://{address.format(port=port, other=other_port)}{JWKS}")
        assert failure(issuer).endswith(ELSEWHERE[address])
        assert other.requests == []
        assert fetch_keys(issuer.url, location(f"{other.url}{JWKS}")) == KEYS
    assert issuer.paths() == [METADATA, JWKS, METADATA]


@pytest.mark.parametrize(
    "jwks_uri",
    [
        None,
        7,
        "",
        JWKS,
        "file:///etc/passwd",
        "ftp://127.0.0.1/jwks",
        "http://issuer.example.com/jwks",
        "https://user:password@issuer.example.com/jwks",
        "https://[::1/jwks",
        "https://issuer.exa\tmple.com/jwks",
        "https://issuer.example.com/j wks",
        "https://issuer.example.com/jwks#keys",
        f"https://issuer.example.com/{'a' * 2048}",
    ],
)
def test_an_unusable_address_of_the_keys_is_refused(issuer: DocumentServer, jwks_uri: Any) -> None:
    assert fetch_keys(issuer.url, location()) == KEYS
    publish(issuer, jwks_uri=jwks_uri)
    assert failure(issuer).endswith("its jwks_uri is not an https URL")
    assert issuer.paths() == [METADATA, JWKS, METADATA]


@pytest.mark.parametrize(
    "document", [b"", b"<html>", b"[]", b"null", b"\xff{}", b'{"issuer": "a", "issuer": "b"}', b"[" * 10_000]
)
def test_metadata_that_are_no_json_object_are_refused(issuer: DocumentServer, document: bytes) -> None:
    assert fetch_keys(issuer.url, location()) == KEYS
    issuer.answers[METADATA] = Answer(document)
    assert failure(issuer).startswith(f"{issuer.url}{METADATA}: ")
    assert issuer.paths() == [METADATA, JWKS, METADATA]


BAD_ANSWERS = {
    "redirect": Answer(KEYS, 302, {**JSON, "Location": "/elsewhere"}),
    "another-host": Answer(KEYS, 307, {**JSON, "Location": "http://localhost:1/elsewhere"}),
    "no-content": Answer(b"", 204),
    "unchanged": Answer(b"", 304),
    "forbidden": Answer(b"{}", 403),
    "html": Answer(KEYS, headers={"Content-Type": "text/html"}),
    "compressed": Answer(KEYS, headers={**JSON, "Content-Encoding": "gzip"}),
    "too-large": Answer(KEYS.ljust(64 * KIB + 1)),
    "cut-off": Answer(raw=[b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"]),
}


@pytest.mark.threat("T-207")
@pytest.mark.parametrize("path", [METADATA, JWKS])
@pytest.mark.parametrize("bad", BAD_ANSWERS)
def test_a_bad_response_is_a_failure(issuer: DocumentServer, path: str, bad: str) -> None:
    issuer.answers["/elsewhere"] = Answer(KEYS)
    assert fetch_keys(issuer.url, location()) == KEYS
    issuer.answers[path] = BAD_ANSWERS[bad]
    assert failure(issuer).startswith(f"{issuer.url}{path}: ")
    assert "/elsewhere" not in issuer.paths()


def test_64_kib_of_keys_are_read(issuer: DocumentServer) -> None:
    issuer.answers[JWKS] = Answer(KEYS.ljust(64 * KIB))
    assert fetch_keys(issuer.url, location()) == KEYS.ljust(64 * KIB)


@pytest.mark.threat("T-207")
@pytest.mark.parametrize("path", [METADATA, JWKS])
def test_a_slow_response_is_a_failure(issuer: DocumentServer, path: str) -> None:
    assert fetch_keys(issuer.url, location()) == KEYS
    issuer.answers[path] = slowly(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    with deadline.renewed(0.2):
        assert f"{issuer.url}{path}: no answer within" in failure(issuer)


def test_an_issuer_that_is_down_is_a_failure(issuer: DocumentServer) -> None:
    issuer.close()
    assert failure(issuer) == f"{issuer.url}{METADATA}: no connection; is the issuer up?"


def test_the_ca_file_names_the_authorities_of_the_issuer(authority: Authority) -> None:
    with closing(DocumentServer(authority.server_context())) as issuer:
        publish(issuer)
        assert fetch_keys(issuer.url, location(ca_file=authority.file)) == KEYS
        assert "is not trusted" in failure(issuer)
        assert "set --ca-file or SSL_CERT_FILE" in failure(issuer)


def test_the_ca_file_is_read_again_for_each_fetch(authority: Authority, tmp_path: Path) -> None:
    """A cluster replaces its authority, and the file, while the server runs."""
    (tmp_path / "next").mkdir()
    following = Authority(tmp_path / "next", "Next CA")
    file = tmp_path / "mounted.pem"
    file.write_bytes(authority.file.read_bytes())
    for current in (authority, following):
        with closing(DocumentServer(current.server_context())) as issuer:
            publish(issuer)
            file.write_bytes(current.file.read_bytes())
            assert fetch_keys(issuer.url, location(ca_file=file)) == KEYS
    with closing(DocumentServer(authority.server_context())) as issuer:
        publish(issuer)
        assert "is not trusted" in failure(issuer, location(ca_file=file)), (
            "the first authority is not trusted any more"
        )


@pytest.mark.parametrize("content", [None, b"", b"not PEM"])
def test_an_unusable_ca_file_is_a_failure(issuer: DocumentServer, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    assert failure(issuer, location(ca_file=file)).startswith("--ca-file=")
    assert issuer.requests == []


def test_a_certificate_of_another_host_is_a_failure(authority: Authority) -> None:
    with closing(DocumentServer(authority.server_context())) as issuer:
        publish(issuer)
        assert fetch_keys(issuer.url, location(ca_file=authority.file)) == KEYS
        # 127.1 is resolved to the same address, but the certificate does not name it.
        with pytest.raises(FetchFailed, match=r"the certificate of 127\.1:\d+ is not valid"):
            fetch_keys(issuer.url.replace("127.0.0.1", "127.1"), location(ca_file=authority.file))
        assert issuer.paths() == [METADATA, JWKS]


def test_the_token_of_the_pod_is_sent_for_both_documents(issuer: DocumentServer, tmp_path: Path) -> None:
    """As the API server of a cluster requires it. kubelet replaces the token by moving a link."""
    (tmp_path / "..first").write_text(f"{TOKEN}\n")
    (tmp_path / "..second").write_text(SECOND_TOKEN)
    file = tmp_path / "token"
    for name, sent in (("..first", TOKEN), ("..second", SECOND_TOKEN)):
        file.unlink(missing_ok=True)
        file.symlink_to(name)
        assert fetch_keys(issuer.url, location(bearer_token_file=file)) == KEYS
        assert [request.headers["authorization"] for request in issuer.requests[-2:]] == [f"Bearer {sent}"] * 2


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "\n",
        "two tokens",
        f"{TOKEN}\n{TOKEN}",
        f"{TOKEN}\r\nX-Injected: yes",
        "tokén",
        "token\0",
        "a" * (16 * KIB + 1),
    ],
)
def test_an_unusable_token_file_is_a_failure(issuer: DocumentServer, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    found = failure(issuer, location(bearer_token_file=file))
    assert found.startswith(f"{file}: ")
    assert TOKEN not in found
    assert issuer.requests == []


@pytest.mark.threat("T-213")
def test_no_other_secret_is_sent_in_place_of_a_token(issuer: DocumentServer, tmp_path: Path) -> None:
    """Anyone who can write to the database, or gives an export to an admin, can name any file and any server. The
    sealing key, which must not follow from the database, is also one line of the characters of a bearer token.
    """
    file = tmp_path / "token"
    file.write_text(TOKEN)
    assert fetch_keys(issuer.url, location(bearer_token_file=file)) == KEYS
    known = len(issuer.requests)
    for secret in (f"{encode_base64url(os.urandom(32))}\n", "hunter2", "postgresql.example.com", "AKIA.abc.def"):
        file.write_text(secret)
        assert failure(issuer, location(bearer_token_file=file)) == f"{file}: not one line with a token, which is a JWT"
    assert len(issuer.requests) == known


@pytest.mark.threat("T-207")
def test_the_token_goes_nowhere_else(issuer: DocumentServer, tmp_path: Path) -> None:
    """Neither to where a redirect leads, nor to another host that the metadata name."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    where = location(bearer_token_file=file)
    assert fetch_keys(issuer.url, where) == KEYS
    with closing(DocumentServer()) as other:
        publish(issuer, jwks_uri=f"{other.url}{JWKS}")
        assert TOKEN not in failure(issuer, where)
        publish(issuer)
        issuer.answers[JWKS] = Answer(KEYS, 307, {**JSON, "Location": f"{other.url}{JWKS}"})
        assert TOKEN not in failure(issuer, where)
        assert other.requests == []


def test_a_fetch_that_hangs_ends_when_the_server_stops(issuer: DocumentServer) -> None:
    client = KeySetClient()
    issuer.open.clear()
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(client.fetch, issuer.url, location())
        assert issuer.arrived.acquire(timeout=30)
        client.stop()
        with pytest.raises(FetchStopped):
            hanging.result(30)
    assert issuer.paths() == [METADATA]


def test_no_fetch_begins_after_the_server_stopped(issuer: DocumentServer) -> None:
    client = KeySetClient()
    assert client.fetch(issuer.url, location()) == KEYS
    client.stop()
    with pytest.raises(FetchStopped):
        client.fetch(issuer.url, location())
    assert issuer.paths() == [METADATA, JWKS]


def test_fetches_in_several_threads_do_not_disturb_each_other(issuer: DocumentServer) -> None:
    client, together = KeySetClient(), threading.Barrier(4)

    def fetch(_: int) -> bytes:
        together.wait(30)
        return client.fetch(issuer.url, location())

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(fetch, range(4))) == [KEYS] * 4
