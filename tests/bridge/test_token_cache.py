"""The access tokens that `resourceserver token` keeps in files."""

import json
import math
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.clock import FakeClock

from gatehouse.bridge.token_cache import RESERVE, CacheUnusable, StoredToken, TokenCache, cache_key, default_folder

KEY = cache_key("https://as.example.com", "https://mcp.example.com/mcp", "agent_1", "", "0" * 64)


class Cache:
    """A cache in a folder of a test, and what it told the user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / KEY
        # The files have real times.
        self.clock = FakeClock(time.time())
        self.warnings: list[str] = []
        self.requests = 0

    def open(self) -> TokenCache:
        return TokenCache(self.folder, self.warnings.append, self.clock)

    def request(self, lifetime: float = 300) -> StoredToken:
        self.requests += 1
        return StoredToken(f"token-{self.requests}", "env:read", self.clock() + lifetime)

    def value(self, lifetime: float = 300) -> str:
        """Return the token that a new process gets."""
        return self.open().get_or_request(KEY, lambda: self.request(lifetime), 0).value


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "gatehouse" / "tokens")


def test_a_token_is_used_again_until_a_minute_before_it_expires(cache: Cache) -> None:
    assert [cache.value() for _ in range(3)] == ["token-1"] * 3
    cache.clock.advance(300 - RESERVE - 1)
    assert cache.value() == "token-1"
    cache.clock.advance(1)
    assert cache.value() == "token-2"
    assert cache.warnings == []


def test_a_kept_token_is_complete(cache: Cache) -> None:
    token = StoredToken("a.b.c", "env:read env:write", cache.clock() + 300)
    cache.open().put(KEY, token)
    assert cache.open().get(KEY) == token


@pytest.mark.parametrize("lifetime", [RESERVE, 1, 0, math.inf, 86401])
def test_a_token_with_an_unusable_lifetime_is_not_kept(cache: Cache, lifetime: float) -> None:
    assert [cache.value(lifetime), cache.value(lifetime)] == ["token-1", "token-2"]
    assert not cache.file.exists()


@pytest.mark.threat("T-119")
def test_only_the_owner_can_access_what_is_kept(cache: Cache) -> None:
    before = os.umask(0)
    try:
        cache.value()
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (cache.folder, *cache.folder.iterdir())}
    assert modes == {cache.folder: 0o700, cache.file: 0o600, cache.folder / f"{KEY}.lock": 0o600}


@pytest.mark.threat("T-119")
@pytest.mark.parametrize("mode", [0o750, 0o705, 0o770, 0o701])
def test_a_folder_that_others_can_access_is_not_used(cache: Cache, mode: int) -> None:
    cache.value()
    cache.folder.chmod(mode)
    with pytest.raises(CacheUnusable, match=f"Run: chmod 700 {cache.folder}"):
        cache.open()


@pytest.mark.threat("T-119")
def test_a_link_in_place_of_the_folder_is_not_used(cache: Cache, tmp_path: Path) -> None:
    cache.value()
    cache.folder.rename(tmp_path / "elsewhere")
    cache.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheUnusable, match="is not a folder that you own"):
        cache.open()


@pytest.mark.threat("T-119")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(cache: Cache) -> None:
    cache.value()
    os.chown(cache.folder, 65534, 65534)
    with pytest.raises(CacheUnusable, match="is not a folder that you own"):
        cache.open()


@pytest.mark.threat("T-119")
def test_a_folder_that_others_can_replace_is_not_used(cache: Cache) -> None:
    cache.value()
    cache.folder.parent.chmod(0o777)
    with pytest.raises(
        CacheUnusable, match=f"Others can replace {cache.folder}. Run: chmod go-w {cache.folder.parent}"
    ):
        cache.open()


@pytest.mark.threat("T-119")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("above", [1, 2])
def test_a_folder_below_one_of_another_user_is_not_used(cache: Cache, above: int) -> None:
    """Its owner could replace it while a token is requested, and would own the file that root then writes, as with
    `sudo -E` in the home folder of a user.
    """
    cache.value()
    parent = cache.folder.parents[above - 1]
    os.chown(parent, 65534, 65534)
    with pytest.raises(CacheUnusable, match=f"^{parent} belongs to another user. Set XDG_CACHE_HOME"):
        cache.open()


def test_a_file_in_place_of_a_folder_is_reported(cache: Cache) -> None:
    cache.folder.parent.parent.mkdir(exist_ok=True)
    cache.folder.parent.write_text("")
    with pytest.raises(CacheUnusable, match="cannot be used: File exists"):
        cache.open()


@pytest.mark.threat("T-119")
def test_a_file_that_others_can_read_is_not_trusted_and_replaced(cache: Cache) -> None:
    cache.value()
    cache.file.chmod(0o644)
    assert cache.value() == "token-2"
    (warning,) = cache.warnings
    assert "accessible to others" in warning
    assert "token-" not in str(cache.warnings)
    assert stat.S_IMODE(cache.file.stat().st_mode) == 0o600
    assert cache.value() == "token-2"


@pytest.mark.threat("T-119")
def test_a_link_out_of_the_folder_is_not_followed_and_replaced(cache: Cache, tmp_path: Path) -> None:
    """CWE-59."""
    cache.value()
    outside = tmp_path / "outside"
    cache.file.rename(outside)
    cache.file.symlink_to(outside)
    kept = outside.read_bytes()
    assert cache.value() == "token-2"
    assert outside.read_bytes() == kept
    assert not cache.file.is_symlink()
    assert cache.value() == "token-2"


@pytest.mark.threat("T-119")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_trusted_and_replaced(cache: Cache) -> None:
    cache.value()
    os.chown(cache.file, 65534, 65534)
    assert cache.value() == "token-2"
    assert cache.file.stat().st_uid == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"access_token": "a b"},
        {"access_token": "a\r\nX-Evil: 1"},
        {"access_token": ""},
        {"access_token": "x" * 8193},
        {"access_token": None},
        {"scope": None},
        {"expires_at": None},
        {"expires_at": "2000000000"},
        {"expires_at": True},
        {"expires_at": 1e300},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_changed_file_is_ignored_and_replaced(cache: Cache, changes: dict[str, Any]) -> None:
    cache.value()
    cache.file.write_text(json.dumps({**json.loads(cache.file.read_text()), **changes}))
    assert [cache.value(), cache.value()] == ["token-2", "token-2"]


@pytest.mark.parametrize("document", [b"", b"[]", b"{", b"\xff", b"null", b'{"access_token":"a","access_token":"b"}'])
def test_a_corrupt_file_is_ignored_and_replaced(cache: Cache, document: bytes) -> None:
    cache.value()
    cache.file.write_bytes(document)
    assert [cache.value(), cache.value()] == ["token-2", "token-2"]


def test_a_token_from_a_clock_that_was_ahead_is_not_used(cache: Cache) -> None:
    cache.value()
    cache.clock.advance(-86400)
    assert cache.value() == "token-2"


@pytest.mark.parametrize("change", range(5))
def test_a_key_names_everything_that_a_token_depends_on(change: int) -> None:
    parts = ["https://as.example.com", "https://mcp.example.com/mcp", "agent_1", "env:read", "0" * 64]
    other = [*parts[:change], "x", *parts[change + 1 :]]
    assert cache_key(*parts) == cache_key(*parts)  # type: ignore[arg-type]
    assert cache_key(*parts) != cache_key(*other)  # type: ignore[arg-type]


def test_callers_at_once_share_one_request(cache: Cache) -> None:
    started, finish = threading.Event(), threading.Event()
    values: list[str] = []

    def slow() -> StoredToken:
        started.set()
        assert finish.wait(30)
        return cache.request()

    def call(request: Callable[[], StoredToken]) -> None:
        values.append(cache.open().get_or_request(KEY, request, 30).value)

    first = threading.Thread(target=call, args=[slow])
    first.start()
    assert started.wait(30)
    others = [threading.Thread(target=call, args=[cache.request]) for _ in range(8)]
    for thread in others:
        thread.start()
    finish.set()
    for thread in (first, *others):
        thread.join(30)
    assert values == ["token-1"] * 9
    assert cache.requests == 1


def test_a_caller_that_waited_too_long_makes_a_request_of_its_own(cache: Cache) -> None:
    def holding_the_lock() -> StoredToken:
        assert cache.value() == "token-1"
        assert not cache.file.exists()
        return StoredToken("first", "", cache.clock() + 300)

    assert cache.open().get_or_request(KEY, holding_the_lock, 0).value == "first"
    assert cache.value() == "first"


def test_a_failed_request_keeps_nothing_and_releases_the_lock(cache: Cache) -> None:
    def fail() -> StoredToken:
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        cache.open().get_or_request(KEY, fail, 0)
    assert cache.value() == "token-1"


def test_a_token_is_used_although_it_cannot_be_kept(cache: Cache) -> None:
    cache.open()
    (cache.folder / KEY).mkdir()
    assert cache.value() == "token-1"
    assert any("The token is not kept" in warning for warning in cache.warnings)


def test_a_lock_that_is_a_link_is_not_followed(cache: Cache, tmp_path: Path) -> None:
    """CWE-59."""
    cache.open()
    (cache.folder / f"{KEY}.lock").symlink_to(tmp_path / "created")
    assert cache.value() == "token-1"
    assert not (tmp_path / "created").exists()
    assert "cannot be used" in cache.warnings[0]


def test_files_that_nobody_used_for_a_day_are_deleted(cache: Cache) -> None:
    opened = cache.open()
    for name in ("a" * 64, f"{'a' * 64}.lock", ".unfinished-x", "b" * 64, "README"):
        (cache.folder / name).touch()
        os.utime(cache.folder / name, times=(cache.clock(), cache.clock() - 86401))
    os.utime(cache.folder / ("b" * 64), times=(cache.clock(), cache.clock() - 86399))
    opened.put(KEY, cache.request())
    assert {path.name for path in cache.folder.iterdir()} == {"b" * 64, "README", KEY}


def test_the_folder_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == tmp_path / ".cache" / "gatehouse" / "tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "gatehouse" / "tokens"
    # XDG Base Directory Specification: all paths must be absolute.
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == tmp_path / ".cache" / "gatehouse" / "tokens"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user that its image does not know."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)
    with pytest.raises(CacheUnusable, match=r"has no home folder\. Set XDG_CACHE_HOME"):
        default_folder()


@pytest.mark.threat("T-120")
def test_the_repr_of_a_kept_token_contains_no_secret(cache: Cache) -> None:
    assert "token-1" not in repr(cache.request())
