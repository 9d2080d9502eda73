"""Client authentication at the token endpoint (RFC 6749 2.3; MCP client-credentials extension).

One method for each client, the registered one. Whatever fails, the caller is told the same, and the same work was
done: which it was stands in the audit log.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gatehouse.authserver.clients.assertions import AssertionVerifier, Signed
from gatehouse.authserver.clients.registry import Client, ClientRegistry
from gatehouse.authserver.clients.request_credentials import AssertionCredentials, Credentials, read_credentials
from gatehouse.authserver.credentials.last_use import LastUse, StoredCredential
from gatehouse.authserver.credentials.lifecycle import by_last_use, inactive_reason
from gatehouse.authserver.credentials.secrets import StoredSecret, find
from gatehouse.authserver.db.models import ClientKeyRow, ClientSecretRow
from gatehouse.authserver.errors import invalid_client
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.remediation import client_command

AUTH_METHODS = ("client_secret_basic", "client_secret_post", "private_key_jwt")
"""What a client can be registered for (`token_endpoint_auth_method`, RFC 7591 2)."""


@dataclass(frozen=True, slots=True)
class AuthenticatedClient:
    """A client that proved who it is, or that an admin at the command line vouches for."""

    client: Client


@dataclass(frozen=True, slots=True)
class ClientAuthenticator:
    """Judges the credentials of token requests."""

    registry: ClientRegistry
    assertions: AssertionVerifier
    last_use: LastUse
    clock: Clock

    def authenticate(self, authorization: str | None, form: Mapping[str, str], keys: KeyRing) -> AuthenticatedClient:
        """Authenticate the client of a token request.

        Raises:
            OAuthError: `invalid_client`, with the failed check as private reason; `invalid_request` for two methods
                in one request (RFC 6749 2.3).
        """
        credentials = read_credentials(authorization, form)
        client = self.registry.find(credentials.client_id)
        proof = self._examine(credentials, client, keys)
        if client is None:
            raise invalid_client("unknown client", "authserver client list")
        if client.token_endpoint_auth_method != credentials.method:
            raise invalid_client(
                f"used {credentials.method}, registered for {client.token_endpoint_auth_method}",
                client_command("show", client.client_id),
            )
        used: tuple[StoredCredential, *tuple[str, ...]]
        if isinstance(proof, Signed):
            used = ClientKeyRow, client.client_id, self.assertions.accept(proof, client).thumbprint
        else:
            used = ClientSecretRow, self._accept(proof, client).secret_id
        if client.disabled:
            raise invalid_client("client is disabled", client_command("enable", client.client_id))
        self.last_use.note(*used)
        return AuthenticatedClient(client)

    def _examine(self, credentials: Credentials, client: Client | None, keys: KeyRing) -> Signed | StoredSecret | None:
        """Do the costly part before anything is known of the client, so that an unknown one costs the same."""
        if isinstance(credentials, AssertionCredentials):
            return self.assertions.examine(credentials, client.keys if client else ())
        stored = by_last_use(client.secrets if client else (), self.clock())
        return find(credentials.secret, stored, keys.peppers)

    def _accept(self, secret: StoredSecret | None, client: Client) -> StoredSecret:
        if secret is None:
            raise invalid_client("wrong secret", _compare_secrets(client.client_id))
        if secret.lifetime.is_inactive(self.clock()):
            raise invalid_client(
                f"the secret {secret.secret_id} {inactive_reason(secret.lifetime)}", _newer_secret(client.client_id)
            )
        return secret


def _compare_secrets(client_id: str) -> str:
    """Return the remediation of a wrong secret. A command that may be pasted must not end the secret that is right."""
    known = client_command("secret list", client_id)
    return (
        f"Compare how the caller's secret begins with: {known}. Only if it is lost: authserver client secret rotate, "
        "which ends the present secret at once."
    )


def _newer_secret(client_id: str) -> str:
    """Return the remediation of a secret that is over. Nothing that may be pasted ends the one that is not."""
    known = client_command("secret list", client_id)
    return f"Give the caller the client's newer secret: {known}. Only if it is lost: authserver client secret rotate."
