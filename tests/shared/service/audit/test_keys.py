"""The file of the audit keys."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gatehouse.shared.service.audit.keys import MAX_KID, AuditKeyFile, AuditKeys, create_audit_keys, rotate_audit_keys
from gatehouse.shared.service.settings import InvalidSettings

EXPIRY = 1_800_000_000

KEY = {"kty": "oct", "kid": "one", "k": "A" * 43}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "audit.json"


def test_a_new_file_has_one_random_key_and_is_private(path: Path) -> None:
    assert create_audit_keys(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    [jwk] = json.loads(path.read_bytes())["keys"]
    assert (jwk["kty"], jwk["alg"], len(jwk["k"])) == ("oct", "HS256", 43)
    assert AuditKeys.read(path).kid == jwk["kid"]
    assert list(path.parent.iterdir()) == [path]


def test_existing_keys_are_not_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_audit_keys(path)
    before = path.read_bytes()
    assert not create_audit_keys(path)
    # Another process creates them between the check and the write.
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert not create_audit_keys(path)
    assert path.read_bytes() == before


def test_a_rotation_adds_a_current_key_and_keeps_the_others(path: Path) -> None:
    create_audit_keys(path)
    old = AuditKeys.read(path)
    kid = rotate_audit_keys(path, EXPIRY)
    new = AuditKeys.read(path)
    assert new.kid == kid != old.kid
    assert kid not in old
    assert new.authenticate(old.kid, "x") == old.authenticate(old.kid, "x") != new.authenticate(kid, "x")
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_retired_key_has_an_expiry(path: Path) -> None:
    create_audit_keys(path)
    first = AuditKeys.read(path).kid
    second = rotate_audit_keys(path, EXPIRY)
    third = rotate_audit_keys(path, EXPIRY + 60)
    keys = AuditKeys.read(path)
    assert [keys.expiry(kid) for kid in (first, second, third)] == [EXPIRY * 1000, (EXPIRY + 60) * 1000, None]
    assert keys.expired(EXPIRY * 1000 - 1) == []
    assert keys.expired(EXPIRY * 1000) == [first]
    assert keys.expired((EXPIRY + 60) * 1000) == [first, second]
    assert keys.expired((EXPIRY + 60) * 1000, since=EXPIRY * 1000) == [second]


def test_a_process_reads_the_keys_again_after_a_rotation(path: Path) -> None:
    file = AuditKeyFile(path)
    with pytest.raises(InvalidSettings, match="no audit keys"):
        file.current()
    create_audit_keys(path)
    first = file.current().kid
    assert file.reload() is file.current()
    second = rotate_audit_keys(path, EXPIRY)
    assert file.current().kid == first
    assert (file.reload().kid, file.current().kid) == (second, second)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.chmod(0o644) or path.touch()])
def test_a_process_keeps_its_keys_when_the_new_ones_are_unusable(path: Path, spoil: Callable[[Path], object]) -> None:
    create_audit_keys(path)
    file = AuditKeyFile(path)
    kid = file.current().kid
    spoil(path)
    for _ in range(2):
        with pytest.raises(InvalidSettings):
            file.reload()
    assert file.current().kid == kid


def test_a_code_depends_on_every_value_and_on_its_place() -> None:
    keys = AuditKeys({"one": bytes(32)})
    codes = [
        keys.authenticate("one", *values)
        for values in (
            (),
            ("",),
            (None,),
            ("a", "b"),
            ("ab",),
            ("b", "a"),
            ("1",),
            (1,),
            ('a","b',),
            ("é",),
            ("\\u00e9",),
        )
    ]
    assert len(set(codes)) == len(codes)
    with pytest.raises(KeyError):
        keys.authenticate("two", "a")


def test_missing_keys_are_reported_with_a_remediation(path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"init command .* restore the file"):
        AuditKeys.read(path)


def test_keys_that_others_can_read_are_refused(path: Path) -> None:
    create_audit_keys(path)
    path.chmod(0o644)
    with pytest.raises(InvalidSettings, match="chmod 600"):
        AuditKeys.read(path)
    with pytest.raises(InvalidSettings, match="chmod 600"):
        rotate_audit_keys(path, EXPIRY)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        '{"keys": []}',
        '{"keys": 1}',
        '{"keys": ["one"]}',
        *(
            json.dumps({"keys": keys})
            for keys in (
                [{**KEY, "kty": "EC"}],
                [{**KEY, "kid": ""}],
                [{**KEY, "kid": 1}],
                [{**KEY, "kid": ["one"]}],
                [{**KEY, "kid": "k" * (MAX_KID + 1)}],
                [{**KEY, "k": "AAAA"}],
                [{**KEY, "k": "!" * 43}],
                [{**KEY, "k": None}],
                [{"kty": "oct", "kid": "one"}],
                [KEY, KEY],
                [KEY, {**KEY, "kid": "two"}],
                [{**KEY, "exp": "soon"}, {**KEY, "kid": "two"}],
                [{**KEY, "exp": True}, {**KEY, "kid": "two"}],
                [{**KEY, "exp": EXPIRY}],
            )
        ),
    ],
)
def test_a_malformed_file_is_refused(path: Path, document: str) -> None:
    path.parent.mkdir()
    path.write_text(document)
    path.chmod(0o600)
    with pytest.raises(InvalidSettings, match="not a JWK set"):
        AuditKeys.read(path)
