"""The settings of both servers, from the environment or `--env-file`. All problems are reported at once."""

import os
from collections.abc import Container, Iterator, Mapping
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
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
from gatehouse.shared.service.files import UnsafeFile, is_exposed, read_private_file, secret_text
from gatehouse.shared.service.origins import parse_origins
from gatehouse.shared.service.rates import parse_rate
from gatehouse.shared.service.shared_counts import check_limits_url
from gatehouse.shared.service.source_address import parse_proxies

if TYPE_CHECKING:
    from sqlalchemy import URL

LogFormat = Literal["console", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING"]

SettingsT = TypeVar("SettingsT", bound="CommandSettings")

_MAX_NAMED_CLIENTS = 100
"""Clients that labels of metrics may name."""

_FILE = "_FILE"
"""At the end of a variable: it names a file that holds the value of the setting."""

_MAX_SECRET = 16 * 1024
"""Bytes of a file that holds a secret."""


def _check_rate(value: str) -> str:
    parse_rate(value)
    return value


RateText = Annotated[str, AfterValidator(_check_rate)]
"""A setting that `parse_rate` reads."""


class InvalidSettings(ValueError):
    """One line for each problem: the setting, what is wrong, and how to fix it."""


class CommandSettings(BaseSettings):
    """The settings of a command. Frozen. A file may hold the settings of several commands."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    forbidden_variables: ClassVar[Mapping[str, str]] = {}
    """Variables of other libraries that disable a protection, each with its effect."""

    confidential: ClassVar[frozenset[str]] = frozenset()
    """Fields whose values are never shown, because they may hold a secret. Each can be in a file: see `_FILE`."""

    private: ClassVar[frozenset[str]] = frozenset()
    """Fields that a file may only set if no one but its owner can read it."""


class ServerSettings(CommandSettings):
    """The settings that both servers have."""

    confidential: ClassVar[frozenset[str]] = frozenset({"database_url", "limits_url"})

    bind: str = Field(description="HOST:PORT to listen on.")
    workers: int = Field(2, ge=1, le=64, description="Number of worker processes. Start with one per CPU core.")
    database_url: str = Field(description="sqlite:///FILE, or postgresql://USER@HOST/NAME.")
    tls_certificate: Path | None = Field(
        None,
        description="File with the certificate of the server and its chain (PEM), to serve https without a proxy. "
        "SIGHUP reads it again.",
    )
    tls_key: Path | None = Field(
        None, description="File with the private key of that certificate (PEM), which nobody else may read."
    )
    audit_retention: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Days after which audit events are deleted, once a day. 0 keeps them forever.",
    )
    allowed_origins: str = Field("", description="Origins of web pages that may call the server, separated by spaces.")
    limits_url: str | None = Field(
        None,
        description="Redis or Valkey server where the workers of all nodes count together: redis://HOST:PORT/NUMBER, "
        "or rediss:// with TLS. Default: each worker counts for itself and allows its share of each limit, which is "
        "the rate divided by the number of workers. So does each worker while the server is away or needs more than "
        "50 ms.",
    )
    trusted_proxies: str = Field(
        "",
        description="Addresses and networks of the proxies whose X-Forwarded-For is believed, separated by spaces, "
        "such as 10.0.0.7 10.1.0.0/16. Default: none, so the source address of a request is that of its connection.",
    )
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

    @field_validator("limits_url")
    @classmethod
    def _check_limits_url(cls, value: str | None) -> str | None:
        return None if value is None else check_limits_url(value)

    @field_validator("trusted_proxies")
    @classmethod
    def _check_trusted_proxies(cls, value: str) -> str:
        parse_proxies(value)
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
    secrets, unusable = _read_secret_files(settings_class, in_file)
    problems += unusable
    try:
        settings = settings_class(_env_file=env_file, **{**secrets, **options})  # type: ignore[call-arg]
    except ValidationError as error:
        problems += _invalid_values(settings_class, error, secrets)
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


def _read_secret_files(
    settings_class: type[CommandSettings], in_file: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Return the settings whose values are in files of their own, and what is wrong with the others of these."""
    given = {name.upper(): value for name, value in (*in_file.items(), *os.environ.items())}
    if settings_class.model_config.get("env_ignore_empty"):
        given = {name: value for name, value in given.items() if value}
    secrets: dict[str, str] = {}
    problems = []
    for field in sorted(settings_class.confidential):
        variable = f"{_prefix(settings_class)}{field.upper()}"
        if (path := given.get(f"{variable}{_FILE}")) is None:
            continue
        if variable in given:
            problems.append(f"{variable}, {variable}{_FILE}: both are set; unset one")
            continue
        try:
            secrets[field] = _read_secret(Path(path))
        except ValueError as error:
            problems.append(f"{variable}{_FILE}={_shown(path)}: {error}")
    return secrets, problems


def _read_secret(path: Path) -> str:
    """Return the secret in a file that nobody else can read or replace. Raises ValueError."""
    try:
        document = read_private_file(path, "file", limit=_MAX_SECRET + 1, private_folder=True)
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except UnsafeFile as error:
        raise ValueError(str(error)) from None
    if len(document) > _MAX_SECRET:
        raise ValueError(f"the file is larger than {_MAX_SECRET // 1024} KiB")
    if not (text := secret_text(document)):
        raise ValueError("the file is empty")
    return text


def _invalid_values(
    settings_class: type[CommandSettings], error: ValidationError, in_files: Container[str]
) -> Iterator[str]:
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
        variable = f"{_prefix(settings_class)}{field.upper()}{_FILE if field in in_files else ''}"
        yield f"{variable}{value}: {_explain(problem, schemas[field])}"


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
    known += [f"{name.upper()}{_FILE}" for name in settings_class.confidential]
    for name in sorted({name.upper() for name in (*os.environ, *in_file)}):
        if name.startswith(prefix) and name.removeprefix(prefix) not in known:
            alike = get_close_matches(name.removeprefix(prefix), known, 1)
            remediation = f"did you mean {prefix}{alike[0]}?" if alike else "remove it or correct its name"
            yield f"{printable(name)}: there is no such setting; {remediation}"


def explain_settings(settings_class: type[CommandSettings], env_file: Path | None = None) -> list[dict[str, str]]:
    """Return every setting with its value, the source of the value, the default, and the purpose.

    A value that is or may contain a secret is shown as `set`. If it is in a file of its own, the variable that names
    the file is its source. The public identifiers come first.

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
        if name in settings_class.confidential and f"{variable}{_FILE}" in {**in_file, **environment}:
            source = value = f"{variable}{_FILE}"
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


def check_tls(public_url: str, settings: ServerSettings, prefix: str) -> None:
    """Check that a server that speaks TLS itself has a certificate, its key and an https URL. Raises ValueError."""
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise ValueError(f"{prefix}TLS_CERTIFICATE, {prefix}TLS_KEY: set both, or neither")
    if settings.tls_certificate is not None and urlsplit(public_url).scheme == "http":
        raise ValueError(f"{prefix}TLS_CERTIFICATE: clients know this server as {public_url}; change that to https")


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
