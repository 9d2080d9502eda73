"""The settings of both servers, from the environment or `--env-file`. All problems are reported at once."""

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from gatehouse.shared.protocol.redaction import printable, quoted
from gatehouse.shared.protocol.resource_identifiers import (
    InvalidResourceIdentifier,
    is_loopback,
    is_protected_transport,
    parse_resource_identifier,
)
from gatehouse.shared.service.addresses import split_bind
from gatehouse.shared.service.env_file import InvalidEnvFile, read_env_file
from gatehouse.shared.service.files import is_exposed
from gatehouse.shared.service.origins import parse_origins

if TYPE_CHECKING:
    from sqlalchemy import URL

LogFormat = Literal["console", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING"]

SettingsT = TypeVar("SettingsT", bound="CommandSettings")

_MAX_NAMED_CLIENTS = 100
"""Clients that labels of metrics may name."""


class InvalidSettings(ValueError):
    """One line for each problem: the setting, what is wrong, and how to fix it."""


class CommandSettings(BaseSettings):
    """The settings of a command. Frozen. A file may hold the settings of several commands."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    forbidden_variables: ClassVar[Mapping[str, str]] = {}
    """Variables of other libraries that disable a protection, each with its effect."""

    confidential: ClassVar[frozenset[str]] = frozenset()
    """Fields whose values are never shown, because they may hold a secret."""

    private: ClassVar[frozenset[str]] = frozenset()
    """Fields that a file may only set if no one but its owner can read it."""


class ServerSettings(CommandSettings):
    """The settings that both servers have."""

    confidential: ClassVar[frozenset[str]] = frozenset({"database_url"})

    bind: str = Field(description="HOST:PORT to listen on, behind the proxy that terminates TLS.")
    workers: int = Field(2, ge=1, le=64, description="Number of worker processes. Start with one per CPU core.")
    database_url: str = Field(description="sqlite:///FILE, or postgresql://USER@HOST/NAME.")
    allowed_origins: str = Field("", description="Origins of web pages that may call the server, separated by spaces.")
    log_format: LogFormat = Field("console", description="console (for people) or json (for log collectors).")
    log_level: LogLevel = Field("INFO", description="Minimum level of log messages: DEBUG, INFO or WARNING.")
    metrics_bind: str | None = Field(
        None,
        description="HOST:PORT at which Prometheus reads /metrics, by plain http and without authentication: a "
        "loopback or private address, and not the port of the server. Without it, nothing is measured.",
    )
    metrics_clients: str = Field(
        "",
        description="The client_ids that metrics name, separated by spaces, at most 100. All other clients share the "
        "time series without a client_id.",
    )

    @field_validator("bind")
    @classmethod
    def _check_bind(cls, value: str) -> str:
        return check_bind(value)

    @field_validator("metrics_bind")
    @classmethod
    def _check_metrics_bind(cls, value: str | None) -> str | None:
        return None if value is None else check_private_bind(value)

    @field_validator("metrics_clients")
    @classmethod
    def _check_metrics_clients(cls, value: str) -> str:
        if len(value.split()) > _MAX_NAMED_CLIENTS:
            raise ValueError(f"must be at most {_MAX_NAMED_CLIENTS} client_ids: each adds time series")
        return value

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.metrics_bind is not None and split_bind(self.metrics_bind)[1] == split_bind(self.bind)[1]:
            prefix = _prefix(type(self))
            raise ValueError(f"{prefix}METRICS_BIND={self.metrics_bind}: must have another port than {prefix}BIND")
        return self

    @field_validator("allowed_origins")
    @classmethod
    def _check_allowed_origins(cls, value: str) -> str:
        parse_origins(value)
        return value

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: str) -> str:
        _parse_database_url(value)
        return value

    @property
    def database(self) -> "URL":
        """The parsed database URL."""
        return _parse_database_url(self.database_url)


def _parse_database_url(text: str) -> "URL":
    # SQLAlchemy takes long to import, and the bridge has settings, but no database.
    from gatehouse.shared.service.database import parse_database_url  # noqa: PLC0415

    return parse_database_url(text)


def load_settings(settings_class: type[SettingsT], env_file: Path | None = None, **options: Any) -> SettingsT:
    """Read and check the settings of a server or a command. `options` of the command take precedence.

    Raises:
        InvalidSettings: names every unusable setting, its value and how to fix it. The value of one that holds a
            secret, or could, is not repeated.
    """
    in_file = _read(env_file)
    problems = [
        f"{name}={_shown(value)}: {effect}; unset it"
        for name, effect in settings_class.forbidden_variables.items()
        if (value := os.environ.get(name))
    ]
    problems += _exposed(settings_class, env_file, in_file)
    problems += _unknown_names(settings_class, in_file)
    try:
        settings = settings_class(_env_file=env_file, **options)  # type: ignore[call-arg]
    except ValidationError as error:
        problems += _invalid_values(settings_class, error)
    if problems:
        raise InvalidSettings("\n".join(problems))
    return settings


def _read(env_file: Path | None) -> Mapping[str, str]:
    try:
        return read_env_file(env_file)
    except InvalidEnvFile as error:
        # The other problems are unknown without the file.
        raise InvalidSettings(str(error)) from None


def _prefix(settings_class: type[CommandSettings]) -> str:
    return str(settings_class.model_config.get("env_prefix", ""))


def _invalid_values(settings_class: type[CommandSettings], error: ValidationError) -> Iterator[str]:
    schemas = settings_class.model_json_schema()["properties"]
    for problem in error.errors(include_url=False):
        if not problem["loc"]:
            # A problem of several settings names them itself.
            yield problem["msg"].removeprefix("Value error, ")
            continue
        field = str(problem["loc"][0])
        # For a missing setting, pydantic reports all other settings as the input.
        hidden = field in settings_class.confidential or problem["type"] == "missing"
        value = "" if hidden else f"={_shown(problem['input'])}"
        yield f"{_prefix(settings_class)}{field.upper()}{value}: {_explain(problem, schemas[field])}"


def _explain(problem: ErrorDetails, schema: Mapping[str, Any]) -> str:
    """Say what a value must be, in the words of the settings' own checks."""
    if "minimum" in schema:
        return f"must be {schema['minimum']} to {schema['maximum']}"
    if problem["type"] == "literal_error":
        return f"must be {problem['ctx']['expected'].replace(chr(39), '')}"
    return problem["msg"].removeprefix("Value error, ")


def _shown(value: object) -> str:
    """Return a value to print: a URL can hold a password before its `@`."""
    text = str(value)
    return "(not shown)" if "@" in text else quoted(text)


def _exposed(settings_class: type[CommandSettings], env_file: Path | None, in_file: Mapping[str, str]) -> Iterator[str]:
    """Name each secret in a file that others can read."""
    private = {_prefix(settings_class) + name.upper() for name in settings_class.private}
    if env_file is not None and is_exposed(env_file.stat()):
        for name in sorted(private & {name.upper() for name, value in in_file.items() if value}):
            yield f"{name}: {env_file}, which holds it, is readable by others. Run: chmod 600 {env_file}"


def _unknown_names(settings_class: type[CommandSettings], in_file: Mapping[str, str]) -> Iterator[str]:
    """Name each variable with this server's prefix that is not a setting: a misspelt limit would have no effect."""
    prefix = _prefix(settings_class)
    known = [name.upper() for name in settings_class.model_fields]
    for name in sorted({name.upper() for name in (*os.environ, *in_file)}):
        if name.startswith(prefix) and name.removeprefix(prefix) not in known:
            alike = get_close_matches(name.removeprefix(prefix), known, 1)
            remediation = f"did you mean {prefix}{alike[0]}?" if alike else "remove it or correct its name"
            yield f"{printable(name)}: there is no such setting; {remediation}"


def explain_settings(settings_class: type[CommandSettings], env_file: Path | None = None) -> list[dict[str, str]]:
    """Return every setting with its value, the source of the value, the default, and the purpose.

    A value that is or may contain a secret is shown as `set`. The public identifiers come first.

    Raises:
        InvalidSettings: the file is malformed.
    """
    prefix, in_file = _prefix(settings_class), {name.upper(): value for name, value in _read(env_file).items()}
    environment = {name.upper(): value for name, value in os.environ.items()}
    fields = settings_class.model_fields
    records = []
    for name in sorted(fields, key=lambda name: name not in {"resource", "issuer"}):
        variable, default = prefix + name.upper(), fields[name].default
        source = "environment" if variable in environment else "file" if variable in in_file else "default"
        value = {**in_file, **environment}.get(variable)
        if value is not None:
            value = "set" if name in settings_class.confidential else _shown(value)
        default = "" if default is None else str(default)
        records.append(
            {
                "setting": variable,
                "value": default if value is None else value,
                "source": source,
                "default": default,
                "description": fields[name].description or "",
            }
        )
    return records


def check_public_url(value: str) -> str:
    """Check a URL that is published to clients: an issuer or a resource.

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
        ValueError: as `check_public_url`, or for a path: the metadata of such an issuer has another URL (RFC 8414 3.1),
            which this server does not serve.
    """
    if value.endswith("/"):
        raise ValueError("ends with a slash; remove it, because issuers are compared exactly (RFC 8414 3.3)")
    if urlsplit(check_public_url(value)).path:
        raise ValueError("has a path; an issuer is the root of its host, such as https://auth.example.com")
    return value


def check_internal_url(value: str) -> str:
    """Check the address of another server in an internal network, and return it in canonical form. Raises ValueError.

    It may be plain http beyond this machine, unlike every other URL.
    """
    try:
        address = parse_resource_identifier(value)
    except InvalidResourceIdentifier:
        address = ""
    if not address or urlsplit(address).path:
        raise ValueError("must be scheme, host and port, such as http://authserver:9000")
    return address


def check_reach(public_url: str, bind: str, bind_name: str) -> None:
    """Refuse to serve plain HTTP beyond this machine (docs/threat-model.md; OAuth 2.1 1.5). Raises ValueError."""
    if urlsplit(public_url).scheme == "http" and not is_loopback(f"http://{bind}"):
        raise ValueError(f"{bind_name}={bind}: plain http is for this machine only; bind loopback, or use https")


def check_bind(value: str) -> str:
    """Check a `HOST:PORT`, as in `127.0.0.1:9000` or `[::1]:9000`. Raises ValueError."""
    host, _, port = value.rpartition(":")
    if not host or "," in host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:9000")
    return value


def check_private_bind(value: str) -> str:
    """Check a `HOST:PORT` that is not for everyone. Raises ValueError, also for a public address.

    A name is accepted, and so is 0.0.0.0, which a container needs: what it is reachable from is up to its network.
    """
    host = split_bind(check_bind(value))[0]
    try:
        is_public = ip_address(host).is_global
    except ValueError:
        is_public = False
    if is_public:
        raise ValueError("must be a loopback or private address, such as 127.0.0.1:9100")
    return value
