"""How both servers read their settings: environment or `--env-file`, judged as a whole, every problem at once."""

from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from gatehouse.shared.resource_identifiers import (
    InvalidResourceIdentifier,
    is_protected_transport,
    parse_resource_identifier,
)

SettingsT = TypeVar("SettingsT", bound="ServerSettings")


class InvalidSettings(ValueError):
    """One line for each problem: the setting, what is wrong, and the mend."""


class ServerSettings(BaseSettings):
    """Settings are frozen. Other names in an env file are passed over, so that both servers can share one."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


def load_settings(settings_class: type[SettingsT], env_file: Path | None = None) -> SettingsT:
    """Read and check the settings of a server.

    Raises:
        InvalidSettings: names every setting that cannot be used, with the mend. Values are not repeated: one of
            them may be a secret.
    """
    prefix = str(settings_class.model_config.get("env_prefix", ""))
    try:
        return settings_class(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_input=False, include_url=False):
            name = prefix + "_".join(str(part) for part in problem["loc"]).upper()
            lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}")
        raise InvalidSettings("\n".join(lines)) from None


def check_public_url(value: str) -> str:
    """Check a URL that clients are told: an issuer or a resource.

    Raises:
        ValueError: no absolute URL, plain http that leaves this machine, or a query, fragment or user information.
    """
    if "?" in value or "#" in value:
        raise ValueError("has a query or a fragment; remove it (RFC 8414 2)")
    try:
        parse_resource_identifier(value)
    except InvalidResourceIdentifier:
        raise ValueError("must be https://HOST, without user information") from None
    if not is_protected_transport(value):
        raise ValueError("must be https; plain http is for loopback addresses only (OAuth 2.1, 1.5)")
    return value


def check_issuer(value: str) -> str:
    """Check an issuer identifier (RFC 8414 2).

    Raises:
        ValueError: as `check_public_url`, or for a path: the metadata of such an issuer stands elsewhere (RFC 8414
            3.1), where this server does not serve it.
    """
    if value.endswith("/"):
        raise ValueError("ends with a slash; remove it, because issuers are compared to the letter (RFC 8414 3.3)")
    if urlsplit(check_public_url(value)).path:
        raise ValueError("has a path; an issuer is the root of its host, such as https://auth.example.com")
    return value


def parse_bind(value: str) -> tuple[str, int]:
    """Split `HOST:PORT`, as in `127.0.0.1:9000` or `[::1]:9000`.

    Raises:
        ValueError: no host, or no port between 0 and 65535.
    """
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:9000")
    return host, int(port)
