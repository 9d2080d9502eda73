"""How both servers read their settings: environment or `--env-file`, judged as a whole, every problem at once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL

from gatehouse.shared.database import parse_database_url
from gatehouse.shared.logs import LogFormat, LogLevel
from gatehouse.shared.redaction import mask, printable
from gatehouse.shared.resource_identifiers import (
    InvalidResourceIdentifier,
    is_loopback,
    is_protected_transport,
    parse_resource_identifier,
)

_MAX_SHOWN = 100
"""Characters of a value that a message repeats."""

SettingsT = TypeVar("SettingsT", bound="CommandSettings")


class InvalidSettings(ValueError):
    """One line for each problem: the setting, what is wrong, and the mend."""


class CommandSettings(BaseSettings):
    """What a command reads from its environment. Frozen; a file may hold the settings of several."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    forbidden_variables: ClassVar[Mapping[str, str]] = {}
    """Variables that other libraries read and that take a protection away, each with what it does."""

    confidential: ClassVar[frozenset[str]] = frozenset()
    """Fields whose values are never shown: they hold a secret, or may."""


class ServerSettings(CommandSettings):
    """What both servers are set up with."""

    confidential: ClassVar[frozenset[str]] = frozenset({"database_url"})

    bind: str = Field(description="HOST:PORT to listen on, behind the proxy that ends TLS.")
    workers: int = Field(2, ge=1, le=64, description="Processes. One for each core is a good start.")
    database_url: str = Field(description="sqlite:///FILE, or postgresql://USER@HOST/NAME.")
    log_format: LogFormat = Field("console", description="console for people, json for a collector.")
    log_level: LogLevel = Field("INFO", description="Least severity that is logged.")

    @field_validator("bind")
    @classmethod
    def _check_bind(cls, value: str) -> str:
        return check_bind(value)

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: str) -> str:
        parse_database_url(value)
        return value

    @property
    def database(self) -> URL:
        """The parsed database URL."""
        return parse_database_url(self.database_url)


def load_settings(settings_class: type[SettingsT], env_file: Path | None = None) -> SettingsT:
    """Read and check the settings of a server, or of a command with settings of its own.

    Raises:
        InvalidSettings: names every setting that cannot be used, with its value and the mend. The value of one that
            holds a secret, or could, is not repeated.
    """
    prefix = str(settings_class.model_config.get("env_prefix", ""))
    problems = [
        f"{name}={_shown(value)}: {effect}; unset it"
        for name, effect in settings_class.forbidden_variables.items()
        if (value := os.environ.get(name))
    ]
    unknown = _unknown_names(settings_class, prefix, env_file)
    problems += [f"{name}: there is no such setting; remove it or mend its name" for name in unknown]
    if problems:
        raise InvalidSettings("\n".join(problems))
    try:
        return settings_class(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            message = problem["msg"].removeprefix("Value error, ")
            if not problem["loc"]:
                # A problem of several settings together names them itself.
                lines.append(message)
                continue
            field = str(problem["loc"][0])
            value = "" if field in settings_class.confidential else f"={_shown(problem['input'])}"
            lines.append(f"{prefix}{field.upper()}{value}: {message}")
        raise InvalidSettings("\n".join(lines)) from None


def _shown(value: object) -> str:
    """Return a value as it may be printed: a URL can carry a password before its `@`."""
    text = str(value)
    return "(not shown)" if "@" in text else printable(mask(text[:_MAX_SHOWN]))


def _unknown_names(settings_class: type[CommandSettings], prefix: str, env_file: Path | None) -> list[str]:
    """Return the names that begin as these settings do and are none: a misspelt limit limits nothing."""
    names = {name.upper() for name in (*os.environ, *(dotenv_values(env_file) if env_file else ()))}
    known = {prefix + name.upper() for name in settings_class.model_fields}
    return sorted(name for name in names - known if name.startswith(prefix))


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


def check_reach(public_url: str, bind: str, bind_name: str) -> None:
    """Refuse to offer plain HTTP beyond this machine (docs/threat-model.md; OAuth 2.1 1.5). Raises ValueError."""
    if urlsplit(public_url).scheme == "http" and not is_loopback(f"http://{bind}"):
        raise ValueError(f"{bind_name}={bind}: plain http is for this machine only; bind loopback, or use https")


def check_bind(value: str) -> str:
    """Check a `HOST:PORT`, as in `127.0.0.1:9000` or `[::1]:9000`. Raises ValueError."""
    host, _, port = value.rpartition(":")
    if not host or "," in host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:9000")
    return value
