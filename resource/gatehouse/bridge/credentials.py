"""The client's credentials, from the environment or from a file that only its owner can read."""

from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from mcp.client.auth.extensions.client_credentials import SignedJWTParameters
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.service.files import UnsafeFile, read_private_file, secret_text
from gatehouse.shared.service.settings import CommandSettings, LogLevel

CA_FILE_SETTING: Final = "BRIDGE_CA_FILE"
"""The variable of `BridgeSettings.ca_file`, for messages about certificates."""


@dataclass(frozen=True, slots=True)
class SettingNames:
    """What the settings of a client are called, for messages."""

    credentials: str
    client_id: str
    issuer: str
    ca_file: str | None
    """None if only SSL_CERT_FILE names the authorities."""


BRIDGE: Final = SettingNames("--credentials", "BRIDGE_CLIENT_ID", "--issuer", CA_FILE_SETTING)

_MAX_LENGTH: Final = 16 * 1024
"""Bytes of a credentials file."""

_ASSERTION_LIFETIME: Final = 60
"""Seconds. An assertion is sent immediately; the rest allows for clock differences."""

_REPLACED: Final = "\N{REPLACEMENT CHARACTER}"
"""Marks bytes of a file that are not text."""

_SECRET_METHODS: Final = frozenset({"client_secret_basic", "client_secret_post"})


class BridgeSettings(CommandSettings):
    """Settings of the bridge. Each field is read from the variable `BRIDGE_` plus its name in upper case."""

    model_config = SettingsConfigDict(env_prefix="BRIDGE_", env_ignore_empty=True)

    confidential = frozenset({"client_secret", "private_key"})

    client_id: str | None = Field(None, description="The client_id. Not needed with a JSON credentials file.")
    client_secret: SecretStr | None = Field(None, description="The client secret, in place of a credentials file.")
    private_key: SecretStr | None = Field(None, description="A private key in PEM, in place of a credentials file.")
    ca_file: Path | None = Field(
        None,
        description="File with the certificates (PEM) of the authorities to trust. Default: those of SSL_CERT_FILE or "
        "SSL_CERT_DIR, otherwise those of the operating system.",
    )
    log_level: LogLevel = Field(
        "WARNING", description="Minimum level of log messages on standard error: DEBUG, INFO or WARNING."
    )


class InvalidCredentials(ValueError):
    """Credentials are missing or unusable. The message says how to fix it and contains no secret."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A client_id, and the secret or private key that authenticates it."""

    client_id: str
    source: str
    """The file or variable that the credential was read from, for messages."""
    method: str
    """`client_secret_basic`, `client_secret_post` or `private_key_jwt`."""
    secret: str = field(default="", repr=False)
    private_key: str = field(default="", repr=False)
    """PEM."""
    algorithm: str = ""

    async def authenticate(self, issuer: str) -> tuple[dict[str, str], dict[str, str]]:
        """Return the form parameters and headers that authenticate a token request to the issuer."""
        if self.method == "private_key_jwt":
            signed = SignedJWTParameters(
                issuer=self.client_id,
                subject=self.client_id,
                signing_key=self.private_key,
                signing_algorithm=self.algorithm,
                lifetime_seconds=_ASSERTION_LIFETIME,
            )
            return {
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                "client_assertion": await signed.create_assertion_provider()(issuer),
            }, {}
        if self.method == "client_secret_post":
            return {"client_id": self.client_id, "client_secret": self.secret}, {}
        # Both parts are form-encoded before they are joined (RFC 6749 section 2.3.1).
        pair = f"{quote(self.client_id, safe='')}:{quote(self.secret, safe='')}"
        return {}, {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def read_credentials(settings: BridgeSettings, file: Path | None) -> Credentials:
    """Read the credentials from the settings or from a file.

    Raises:
        InvalidCredentials: there are none or several, or the file is not private or has invalid contents.
    """
    secret, key = settings.client_secret, settings.private_key
    given = [
        name
        for name, value in (("BRIDGE_CLIENT_SECRET", secret), ("BRIDGE_PRIVATE_KEY", key), ("--credentials", file))
        if value is not None
    ]
    if len(given) > 1:
        raise InvalidCredentials(f"Set either {given[0]} or {given[1]}, not both.")
    if file is not None:
        return read_credentials_file(file, settings.client_id)
    if key is not None:
        return _from_key(secret_text(key.get_secret_value().encode()), "BRIDGE_PRIVATE_KEY", settings.client_id, BRIDGE)
    if settings.client_id is None or secret is None:
        raise InvalidCredentials(
            "No credentials. Set BRIDGE_CLIENT_ID and either BRIDGE_CLIENT_SECRET or BRIDGE_PRIVATE_KEY, or use"
            " --credentials FILE with the output of `authserver client create --output json` or a private key in PEM."
        )
    # A variable from a mounted file often ends with a line break.
    text = secret_text(secret.get_secret_value().encode())
    return Credentials(settings.client_id, "BRIDGE_CLIENT_SECRET", "client_secret_basic", secret=text)


def read_credentials_file(file: Path, client_id: str | None, names: SettingNames = BRIDGE) -> Credentials:
    """Read the credentials from a file: the output of `authserver client create --output json`, or a private key.

    Args:
        file: the file.
        client_id: the client. Needed with a private key, and optional with JSON, which names it.
        names: for messages.

    Raises:
        InvalidCredentials: there is no such file, or it is not private or has invalid contents.
    """
    document = _read_private(file)
    if document.startswith("-----BEGIN"):
        return _from_key(document, str(file), client_id, names)
    return _from_json(document, str(file), client_id, names)


def _read_private(path: Path) -> str:
    """Read a file that only its owner can access. Raises InvalidCredentials."""
    try:
        document = read_private_file(path, "credentials file", limit=_MAX_LENGTH + 1)
    except FileNotFoundError:
        raise InvalidCredentials(f"There is no credentials file {path}.") from None
    except UnsafeFile as error:
        raise InvalidCredentials(str(error)) from None
    if len(document) > _MAX_LENGTH:
        raise InvalidCredentials(f"The credentials file {path} is larger than {_MAX_LENGTH // 1024} KiB.")
    return secret_text(document)


def _from_key(document: str, source: str, client_id: str | None, names: SettingNames) -> Credentials:
    if client_id is None:
        raise InvalidCredentials(f"{source} is a private key: set {names.client_id} to the client that it belongs to.")
    try:
        key = load_pem_private_key(document.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidCredentials(f"{source} is not a private key in PEM, or has a passphrase.") from None
    match key:
        case ec.EllipticCurvePrivateKey(curve=ec.SECP256R1()):
            algorithm = "ES256"
        case rsa.RSAPrivateKey():
            algorithm = "RS256"
        case ed25519.Ed25519PrivateKey():
            algorithm = "EdDSA"
        case _:
            raise InvalidCredentials(f"The key in {source} is not a P-256, RSA or Ed25519 key.")
    return Credentials(client_id, source, "private_key_jwt", private_key=document, algorithm=algorithm)


def _from_json(document: str, source: str, client_id: str | None, names: SettingNames) -> Credentials:
    """Parse the output of `authserver client create --output json`."""
    try:
        members = parse_json(document.encode())
    except InvalidJson:
        members = None
    if not isinstance(members, dict) or not _is_text(members.get("client_id")) or _REPLACED in document:
        raise InvalidCredentials(
            f"{source} is neither a private key in PEM nor JSON with client_id and client_secret, as printed by"
            " `authserver client create --output json`."
        )
    if client_id not in {None, members["client_id"]}:
        raise InvalidCredentials(f"{names.client_id} names a different client than {source}. Unset it.")
    if not _is_text(members.get("client_secret")):
        raise InvalidCredentials(
            f"{source} has no client_secret. For a client with a private key, set {names.client_id}, and set"
            f" {names.credentials} to the file that private_key_file names."
        )
    method = members.get("token_endpoint_auth_method", "client_secret_basic")
    if method not in _SECRET_METHODS:
        raise InvalidCredentials(
            f"{source}: token_endpoint_auth_method must be client_secret_basic or client_secret_post."
        )
    return Credentials(members["client_id"], source, method, secret=members["client_secret"])


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""
