"""The client's credentials: from the environment, from a file that only its owner can read, or of its platform."""

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from gatehouse.bridge.platform_token import ASSERTION_TYPE, MAX_PLATFORM_TOKEN, is_compact_jwt, read_token_file
from gatehouse.bridge.settings import BRIDGE, BridgeSettings, SettingNames
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.service.files import UnsafeFile, read_private_file, secret_text

if TYPE_CHECKING:
    import httpx2

_MAX_LENGTH: Final = 16 * 1024
"""Bytes of a credentials file."""

_REPLACED: Final = "\N{REPLACEMENT CHARACTER}"
"""Marks bytes of a file that are not text."""

_SECRET_METHODS: Final = frozenset({"client_secret_basic", "client_secret_post"})


class InvalidCredentials(ValueError):
    """Credentials are missing or unusable. The message says how to fix it and contains no secret."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What authenticates a client: a secret, a private key, or a token of its platform."""

    client_id: str
    """Empty if only the platform token says who the client is."""
    source: str
    """The file or variable that the credential was read from, for messages."""
    method: str
    """`client_secret_basic`, `client_secret_post`, `private_key_jwt` or `workload_identity`."""
    secret: str = field(default="", repr=False)
    """The client secret or the platform token."""
    private_key: str = field(default="", repr=False)
    """PEM."""
    algorithm: str = ""

    async def authenticate(self, issuer: str, http: "httpx2.AsyncClient") -> tuple[dict[str, str], dict[str, str]]:
        """Return the form parameters and headers that authenticate a token request to the issuer.

        `http` is for a credential that must be requested first. Raises BridgeError: it was not issued.
        """
        match self.method:
            case "private_key_jwt":
                # It imports what verifies tokens, which a secret does not need.
                from gatehouse.bridge.assertions import sign_assertion  # noqa: PLC0415

                signed = sign_assertion(self.client_id, self.private_key, self.algorithm, issuer)
                return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": signed}, {}
            case "workload_identity":
                return self.platform_parameters(self.secret), {}
            case "client_secret_post":
                return {"client_id": self.client_id, "client_secret": self.secret}, {}
            case _:
                # Both parts are form-encoded before they are joined (RFC 6749 section 2.3.1).
                pair = f"{quote(self.client_id, safe='')}:{quote(self.secret, safe='')}"
                return {}, {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}

    def platform_parameters(self, token: str) -> dict[str, str]:
        """Return the form parameters with a platform token. It identifies the client, and a client_id must agree."""
        client_id = {"client_id": self.client_id} if self.client_id else {}
        return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": token, **client_id}

    def digest(self) -> str:
        """Return a SHA-256 that differs for every client and credential, in hexadecimal."""
        parts = (self.client_id, self.method, self.secret, self.private_key)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_credentials(
    settings: BridgeSettings, file: Path | None, *, token_file: Path | None = None, github: bool = False
) -> Credentials:
    """Read the credentials that an option names, or those of the settings, which come from the environment.

    Args:
        settings: of the client.
        file: `--credentials`.
        token_file: `--token-file`, which takes precedence over the setting.
        github: `--github-oidc`.

    Raises:
        InvalidCredentials: there are none or several, or the file is not private or has invalid contents.
    """
    secret, key = settings.client_secret, settings.private_key
    options = {"--credentials": file, "--token-file": token_file, "--github-oidc": github or None}
    variables = {
        "BRIDGE_CLIENT_SECRET": secret,
        "BRIDGE_PRIVATE_KEY": key,
        "BRIDGE_TOKEN_FILE": settings.token_file if token_file is None else None,
    }
    _refuse_several(_given(options), _given(variables))
    if github:
        # It imports the HTTP client, which other credentials do not need.
        from gatehouse.bridge.github import read_github_job  # noqa: PLC0415

        return read_github_job(settings.client_id)
    if token_file is not None:
        return _from_token_file(token_file, "--token-file", settings.client_id)
    if settings.token_file is not None:
        return _from_token_file(settings.token_file, "BRIDGE_TOKEN_FILE", settings.client_id)
    if file is not None:
        return read_credentials_file(file, settings.client_id)
    if key is not None:
        return _from_key(secret_text(key.get_secret_value().encode()), "BRIDGE_PRIVATE_KEY", settings.client_id, BRIDGE)
    if secret is not None and settings.client_id is None:
        raise InvalidCredentials("BRIDGE_CLIENT_SECRET is set: set BRIDGE_CLIENT_ID to the client that it belongs to.")
    if settings.client_id is None or secret is None:
        raise InvalidCredentials(
            "No credentials. Set BRIDGE_CLIENT_ID and either BRIDGE_CLIENT_SECRET or BRIDGE_PRIVATE_KEY, or use"
            " --credentials FILE with the output of `authserver client create --output json` or a private key in PEM."
            " A workload with a token of its platform uses --token-file FILE or BRIDGE_TOKEN_FILE; a job of GitHub"
            " Actions, --github-oidc."
        )
    # A variable from a mounted file often ends with a line break.
    text = secret_text(secret.get_secret_value().encode())
    return Credentials(settings.client_id, "BRIDGE_CLIENT_SECRET", "client_secret_basic", secret=text)


def _given(candidates: Mapping[str, object]) -> list[str]:
    return [name for name, value in candidates.items() if value is not None]


def _refuse_several(options: list[str], variables: list[str]) -> None:
    """Refuse more than one kind of credentials. Raises InvalidCredentials.

    A variable may be set by a shell profile or a manifest that the user does not see, so it is named as one.
    """
    if len(options) + len(variables) < 2:
        return
    listed = " and ".join([*options, *(f"{name} (from the environment)" for name in variables)])
    # A secret can come from a file that another variable names.
    unset = " ".join([*variables, *(f"{name}_FILE" for name in variables if name != "BRIDGE_TOKEN_FILE")])
    remedy = f"To use {options[0]}, run: unset {unset}" if len(options) == 1 else "Use one of them."
    raise InvalidCredentials(f"Several credentials are given: {listed}. {remedy}")


def _from_token_file(path: Path, setting: str, client_id: str | None) -> Credentials:
    """Read the platform token in the file that an option or a variable names. Raises InvalidCredentials."""
    try:
        token = read_token_file(path).decode("ascii", "replace").strip()
    except OSError as error:
        reason = error.strerror or "input/output"
        raise InvalidCredentials(f"{setting}: the token file {path} cannot be read ({reason}).") from None
    if not is_compact_jwt(token):
        raise InvalidCredentials(
            f"{setting}: the token file {path} holds no platform token: it must be a JWT of at most"
            f" {MAX_PLATFORM_TOKEN // 1024} KiB."
        )
    return Credentials(client_id or "", str(path), "workload_identity", secret=token)


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
    # Other credentials do not need these.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

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
        hint = f" A platform token is given with --token-file {source}" if is_compact_jwt(document) else ""
        raise InvalidCredentials(
            f"{source} is neither a private key in PEM nor JSON with client_id and client_secret, as printed by"
            f" `authserver client create --output json`.{hint}"
        )
    if client_id not in {None, members["client_id"]}:
        raise InvalidCredentials(
            f"{names.client_id} is {client_id}, but {source} is of the client {members['client_id']}. Unset"
            f" {names.client_id}, or use the file of that client."
        )
    if members.get("token_endpoint_auth_method") == "workload_identity":
        raise InvalidCredentials(
            f"{source} is the client of a workload, which has no secret. Set --token-file to the token of its platform,"
            " or use --github-oidc."
        )
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
