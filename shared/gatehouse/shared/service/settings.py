"""The settings of both servers and of commands: their fields, each with its unit and its check."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gatehouse.shared.protocol.resource_identifiers import is_loopback
from gatehouse.shared.service.addresses import split_bind
from gatehouse.shared.service.origins import parse_origins
from gatehouse.shared.service.setting_values import check_bind, check_limits_url, check_private_bind
from gatehouse.shared.service.source_address import parse_proxies

if TYPE_CHECKING:
    from sqlalchemy import URL

LogFormat = Literal["console", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING"]

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
    """Fields whose values are never shown, because they may hold a secret. Each can be in a file of its own."""

    private: ClassVar[frozenset[str]] = frozenset()
    """Fields that a file may only set if no one but its owner can read it."""

    @classmethod
    def variable(cls, field: str) -> str:
        """Return the name of the variable that sets a field."""
        return f"{cls.model_config.get('env_prefix', '')}{field.upper()}"


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
            metrics_bind, bind = self.variable("metrics_bind"), self.variable("bind")
            raise ValueError(f"{metrics_bind}={self.metrics_bind}: must have another port than {bind}")
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

    def check_transport(self, public_url: str) -> None:
        """Check that plain HTTP stays on this machine, and that a server that speaks TLS itself has all it needs.

        Raises:
            ValueError: names the setting (docs/threat-model.md; OAuth 2.1 1.5).
        """
        if urlsplit(public_url).scheme == "http" and not is_loopback(f"http://{self.bind}"):
            raise ValueError(
                f"{self.variable('bind')}={self.bind}: plain http is for this machine only; bind loopback, or use https"
            )
        certificate, key = self.variable("tls_certificate"), self.variable("tls_key")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError(f"{certificate}, {key}: set both, or neither")
        if self.tls_certificate is not None and urlsplit(public_url).scheme == "http":
            raise ValueError(f"{certificate}: clients know this server as {public_url}; change that to https")

    @property
    def database(self) -> "URL":
        """The parsed database URL."""
        return _parse_database_url(self.database_url)


def _parse_database_url(text: str) -> "URL":
    # SQLAlchemy takes long to import, and the bridge has settings, but no database.
    from gatehouse.shared.service.database import parse_database_url  # noqa: PLC0415

    return parse_database_url(text)
