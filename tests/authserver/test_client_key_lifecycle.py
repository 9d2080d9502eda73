"""Client keys: rotation with a grace period, expiry and revocation."""

import json
from typing import Any

import pytest
from sqlalchemy import func, select
from support.assertions import KeyClient, jwks, public_jwk
from support.authserver import AuthServer
from support.clock import FakeClock
from support.shell import CREATE, Shell

from gatehouse.authserver.clients import registry
from gatehouse.authserver.clients.registry import existing_client
from gatehouse.authserver.credentials.client_jwks import MAX_CLIENT_KEYS, client_verification_keys
from gatehouse.authserver.credentials.client_keys import revoke_key, rotate_keys
from gatehouse.authserver.credentials.client_secrets import add_secret
from gatehouse.authserver.credentials.lifecycle import MAX_GRACE_PERIOD
from gatehouse.authserver.db.models import ClientKeyRow
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.protocol.jws import SigningKey, VerificationKey
from gatehouse.shared.service.administrator import CommandRefused

DAY = 86400
OLD, NEW, THIRD, OTHER = (SigningKey.generate("ES256") for _ in range(4))


@pytest.fixture
def client(authserver: AuthServer) -> KeyClient:
    client = KeyClient(authserver, OLD)
    client.accepted()
    return client


def replace(client: KeyClient, *keys: dict[str, Any], grace_period: int = 0) -> None:
    """Rotate the keys, and wait until the cached client has expired."""
    server = client.server
    with server.services.database.write() as session:
        rotate_keys(session, server.admin, client.client.client_id, jwks(*keys), grace_period)
    server.clock.advance(1)


def expire(client: KeyClient, which: str) -> None:
    server = client.server
    with server.services.database.write() as session:
        revoke_key(session, server.admin, client.client.client_id, which)
    server.clock.advance(1)


def works(client: KeyClient, key: SigningKey) -> bool:
    response = client.post(client.assertion(key=key))
    assert response.status_code in {200, 401}
    return response.status_code == 200


@pytest.mark.threat("T-099")
@pytest.mark.both_databases
def test_a_rotated_key_works_until_its_grace_period_ends(client: KeyClient, clock: FakeClock) -> None:
    replace(client, public_jwk(NEW), grace_period=7 * DAY)
    assert [works(client, key) for key in (OLD, NEW)] == [True, True]
    clock.advance(7 * DAY - 2)
    assert works(client, OLD)
    # The client is cached; expiry applies to cached keys too.
    clock.advance(1)
    expires_at = clock()
    reason = f"assertion: the key {OLD.kid} expired at {iso_time(expires_at)}"
    client.refused(client.post(client.assertion()), reason)
    client.refused(client.post(client.assertion(kid=OLD.kid)), reason)
    assert works(client, NEW)


def test_without_a_grace_period_old_keys_are_revoked_at_once(client: KeyClient, clock: FakeClock) -> None:
    replace(client, public_jwk(NEW), grace_period=DAY)
    ended_at = clock()
    replace(client, public_jwk(THIRD))
    for key in (OLD, NEW):
        reason = f"assertion: the key {key.kid} was revoked at {iso_time(ended_at)}"
        client.refused(client.post(client.assertion(key=key)), reason)
    assert works(client, THIRD)


def test_a_key_that_is_registered_again_does_not_expire(client: KeyClient, clock: FakeClock) -> None:
    replace(client, public_jwk(NEW), grace_period=60)
    replace(client, public_jwk(OLD, kid="named"), public_jwk(NEW), grace_period=60)
    clock.advance(60)
    assert [works(client, key) for key in (OLD, NEW)] == [True, True]
    assert client.post(client.assertion(kid="named")).status_code == 200


@pytest.mark.threat("T-103")
def test_an_inactive_key_cannot_become_active_again(client: KeyClient) -> None:
    """It may have been revoked because it leaked."""
    replace(client, public_jwk(NEW))
    with pytest.raises(CommandRefused, match=rf"The key {OLD.kid} was revoked at .* Generate a new one\."):
        replace(client, public_jwk(OLD), public_jwk(NEW))
    replace(client, public_jwk(THIRD), public_jwk(NEW))
    assert [works(client, key) for key in (OLD, NEW, THIRD)] == [False, True, True]


@pytest.mark.both_databases
def test_a_client_has_at_most_eight_active_keys(client: KeyClient) -> None:
    made = [SigningKey.generate("ES256") for _ in range(MAX_CLIENT_KEYS)]
    with pytest.raises(CommandRefused, match=f"authserver client key revoke {client.client.client_id} KEY") as refused:
        replace(client, *(public_jwk(key) for key in made), grace_period=DAY)
    assert "more than 8 active keys" in str(refused.value)
    replace(client, *(public_jwk(key) for key in made[1:]), grace_period=DAY)
    assert [works(client, key) for key in (OLD, *made)] == [True, False, *[True] * 7]
    replace(client, *(public_jwk(key) for key in made))
    assert [works(client, key) for key in (OLD, *made)] == [False, *[True] * 8]


def test_a_rotation_checks_keys_like_a_registration(client: KeyClient) -> None:
    with pytest.raises(CommandRefused, match="key 1: it is not an RSA key of 2048 to 4096 bits"):
        replace(client, {"kty": "RSA", "e": "AQAB", "n": "AQAB"})
    with pytest.raises(CommandRefused, match="private or symmetric"):
        replace(client, json.loads(NEW.private_jwk()))
    for grace_period in (-1, MAX_GRACE_PERIOD + 1):
        with pytest.raises(CommandRefused, match="at most 90 days"):
            replace(client, public_jwk(NEW), grace_period=grace_period)
    assert [works(client, key) for key in (OLD, NEW)] == [True, False]
    replace(client, public_jwk(NEW))
    assert works(client, NEW)


def test_a_client_with_a_secret_has_no_keys_to_replace(client: KeyClient) -> None:
    of_secret, secret = client.server.create_client()
    client.client = of_secret
    with pytest.raises(CommandRefused, match="authenticates by client_secret_basic: it has a secret and no keys"):
        replace(client, public_jwk(NEW))
    assert client.server.post_token(basic=(of_secret.client_id, secret)).status_code == 200


@pytest.mark.both_databases
@pytest.mark.parametrize("named_by", ["kid", "thumbprint", "beginning"])
def test_a_key_can_be_revoked_unless_it_is_the_last(client: KeyClient, named_by: str) -> None:
    replace(client, public_jwk(NEW, kid="new"), public_jwk(OLD))
    name = {"kid": "new", "thumbprint": NEW.kid, "beginning": NEW.kid[:8]}[named_by]
    for _ in range(2):
        expire(client, name)
    assert [works(client, key) for key in (OLD, NEW)] == [True, False]
    assert [row["action"] for row in client.server.audit()].count("client.key.revoke") == 1
    with pytest.raises(CommandRefused, match="the only active key") as refused:
        expire(client, OLD.kid)
    assert f"authserver client key rotate {client.client.client_id} --jwks FILE" in str(refused.value)
    assert f"authserver client disable {client.client.client_id}" in str(refused.value)
    assert works(client, OLD)


def test_an_unknown_or_ambiguous_name_revokes_no_key(client: KeyClient) -> None:
    replace(client, public_jwk(NEW, kid="same"), public_jwk(OLD, kid="same"))
    for which, found in (("same", "several keys"), ("", "no key"), (OLD.kid[:7], "no key"), (THIRD.kid, "no key")):
        with pytest.raises(CommandRefused, match=f"names {found} of the client"):
            expire(client, which)
    assert [works(client, key) for key in (OLD, NEW)] == [True, True]
    expire(client, OLD.kid)
    assert [works(client, key) for key in (OLD, NEW)] == [False, True]


def test_a_reused_kid_names_the_newer_key(client: KeyClient) -> None:
    replace(client, public_jwk(NEW, kid="same"), public_jwk(THIRD))
    expire(client, "same")
    replace(client, public_jwk(OTHER, kid="same"), public_jwk(THIRD))
    assert [works(client, key) for key in (NEW, OTHER, THIRD)] == [False, True, True]
    expire(client, "same")
    assert [works(client, key) for key in (NEW, OTHER, THIRD)] == [False, False, True]


@pytest.mark.both_databases
def test_an_assertion_by_an_inactive_key_spends_no_jti(client: KeyClient, clock: FakeClock) -> None:
    replace(client, public_jwk(NEW), grace_period=60)
    jti = {"jti": "one"}
    clock.advance(60)
    assert client.post(client.assertion(client.claims(**jti), key=OLD)).status_code == 401
    assert client.post(client.assertion(client.claims(**jti), key=NEW)).status_code == 200


@pytest.mark.both_databases
def test_a_bounded_number_of_inactive_keys_is_kept(client: KeyClient) -> None:
    for _ in range(MAX_CLIENT_KEYS + 3):
        replace(client, public_jwk(SigningKey.generate("ES256")))
    with client.server.services.database.read() as session:
        kept = session.scalar(select(func.count()).select_from(ClientKeyRow))
    assert kept == MAX_CLIENT_KEYS + 1


def test_an_unchanged_key_is_imported_once(client: KeyClient, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []

    def note(jwk: dict[str, Any]) -> list[VerificationKey]:
        imported.append(jwk["kid"])
        return client_verification_keys(jwk)

    monkeypatch.setattr(registry, "client_verification_keys", note)
    new, renamed = public_jwk(SigningKey.generate("ES256"), kid="new"), public_jwk(OLD, kid="renamed")
    replace(client, renamed, new)
    for _ in range(3):
        client.server.clock.advance(1)
        assert works(client, OLD)
    assert sorted(imported) == ["new", "renamed"]


@pytest.mark.both_databases
def test_every_secret_and_key_of_a_client_is_read_once(client: KeyClient) -> None:
    """The query joins them, although a client is registered for one kind."""
    server, client_id = client.server, client.client.client_id
    replace(client, public_jwk(NEW), grace_period=DAY)
    with server.services.database.write() as session:
        secrets = [add_secret(session, server.admin, server.services.keys.ring(), client_id)[0] for _ in range(2)]
        loaded = existing_client(session, client_id)
    assert {key.thumbprint for key in loaded.keys} == {OLD.kid, NEW.kid}
    assert {secret.secret_id for secret in loaded.secrets} == set(secrets)
    assert (len(loaded.keys), len(loaded.secrets)) == (2, 2)


def test_keys_are_rotated_listed_and_revoked_by_command(shell: Shell) -> None:
    client_id = shell.json(*CREATE, "--generate-key", str(shell.folder / "old.pem"))["client_id"]
    [old] = shell.json("client", "key", "list", client_id)
    assert (old["algs"], old["state"], old["last_used_at"], old["expires_at"]) == (["ES256"], "active", None, None)
    new_file = shell.folder / "new.pem"
    replaced = shell.run("client", "key", "rotate", client_id, "--generate-key", str(new_file), "--grace-period", "7d")
    assert replaced.exit_code == 0
    assert new_file.read_text(encoding="ascii").startswith("-----BEGIN PRIVATE KEY-----")
    listed = {known["kid"]: known for known in shell.json("client", "key", "list", client_id)}
    old = listed.pop(old["kid"])
    [new] = listed.values()
    assert f"The key {old['kid']} is accepted until {old['expires_at']}." in replaced.stderr
    shown = shell.text("client", "show", client_id)
    assert f"key {old['kid']}: last used never, valid until {old['expires_at']}\n" in shown
    assert f"key {new['kid']}: last used never, valid until it is replaced\n" in shown
    assert "Repeat the command with --yes" in shell.refusal("client", "key", "revoke", client_id, old["kid"])
    left = shell.json("client", "key", "revoke", client_id, old["kid"], "--yes")
    assert {known["kid"]: known["state"] for known in left} == {old["kid"]: "inactive", new["kid"]: "active"}
    assert shell.json("client", "show", client_id)["key_ids"] == [new["kid"]]
    event = shell.json("audit", "--action", "client.key.rotate")[0]
    assert event["detail"] == {"added": [new["kid"]], "replaced": [old["kid"]], "grace_period": 7 * DAY}


def test_a_refused_rotation_leaves_no_file(shell: Shell) -> None:
    client_id, path = shell.json(*CREATE)["client_id"], shell.folder / "new.pem"
    replace = ("client", "key", "rotate")
    assert "it has a secret and no keys" in shell.refusal(
        *replace, client_id, "--generate-key", str(path), "--grace-period", "1d"
    )
    assert not path.exists()
    assert "Give --jwks FILE or --generate-key FILE" in shell.refusal(*replace, client_id, code=2)
    assert "--yes" in shell.refusal(*replace, client_id, "--generate-key", str(path))
    client_id = shell.json(*CREATE, "--generate-key", str(shell.folder / "old.pem"))["client_id"]
    assert "Takes effect" in shell.run(*replace, client_id, "--generate-key", str(path), "--yes").stderr
    assert path.exists()


@pytest.mark.parametrize("kid", ["-abcdefgh", "--abcdefg", "-hbcdefgh", "-"])
def test_a_thumbprint_with_a_leading_hyphen_can_be_named(shell: Shell, kid: str) -> None:
    """One thumbprint in 64 does."""
    file = shell.folder / "jwks.json"
    file.write_bytes(jwks(public_jwk(OLD, kid="a"), public_jwk(NEW, kid=kid)))
    client_id = shell.json(*CREATE, "--jwks", str(file))["client_id"]
    left = shell.json("client", "key", "revoke", client_id, kid, "--yes")
    assert {known["kid"]: known["state"] for known in left} == {"a": "active", kid: "inactive"}
    assert f"There is no key {kid}" in shell.refusal("key", "revoke", kid)
