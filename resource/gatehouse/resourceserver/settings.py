"""The settings of the resource server (environment, or `--env-file`)."""

import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from gatehouse.shared.protocol.resource_identifiers import is_loopback, parse_resource_identifier
from gatehouse.shared.protocol.scopes import parse_scope
from gatehouse.shared.protocol.status_list import LIFETIME, POLL_INTERVAL, WINDOW
from gatehouse.shared.service.origins import parse_origins
from gatehouse.shared.service.setting_values import RateText, check_internal_url, check_issuer, check_public_url
from gatehouse.shared.service.settings import ServerSettings

CA_FILE_SETTING = "RESOURCESERVER_CA_FILE"
"""The variable of `Settings.ca_file`, for messages about certificates."""

_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)


class Settings(ServerSettings):
    """Settings of the server. Each field is read from the variable `RESOURCESERVER_` plus its name in upper case."""

    model_config = SettingsConfigDict(env_prefix="RESOURCESERVER_")

    resource: str = Field(
        "http://127.0.0.1:8000/mcp",
        description="The resource identifier: the URL that clients call, and the audience of every accepted token.",
    )
    issuer: str = Field(
        "http://127.0.0.1:9000", description="The issuer identifier of the only trusted authorization server."
    )
    issuer_internal_url: str | None = Field(
        None,
        description="Where this server fetches the issuer's keys and status lists, if not at the issuer: "
        "scheme, host and port, such as http://authserver:9000 between two containers. With http, anyone on that "
        "network path can forge keys and thereby tokens.",
    )
    ca_file: Path | None = Field(
        None,
        description="File with the certificates (PEM) of the authorities that the issuer's certificate may come from. "
        "Default: those of SSL_CERT_FILE or SSL_CERT_DIR, otherwise those of the operating system.",
    )
    bind: str = Field("127.0.0.1:8000", description="HOST:PORT to listen on.")
    database_url: str = Field(
        "sqlite:///var/resourceserver.db", description="sqlite:///FILE, or postgresql://USER@HOST/NAME."
    )
    audit_keys: Path = Field(
        Path("keys/resourceserver-audit.json"),
        description="File of the keys that authenticate audit events, which nobody else may read.",
    )
    tools: str = Field(
        "gatehouse.directory.catalogue", description="Module whose CATALOGUE is served, for example mypackage.mytools."
    )
    upstream: Path | None = Field(
        None,
        description="The policy file (TOML) of an MCP server in any language, whose tools are served instead of a "
        "module's. The server reads it again when it changes.",
    )
    upstream_poll_interval: int = Field(
        30,
        ge=1,
        le=3600,
        description="Seconds between two lists of the upstream's tools. A changed tool may stay in use for that long.",
    )
    session_key: Path = Field(
        Path("keys/resourceserver-session.json"),
        description="File of the key that encrypts the ids of callers' sessions at an upstream, "
        "which nobody else may read.",
    )
    caller_keys: Path = Field(
        Path("keys/resourceserver-caller.json"),
        description="File of the keys that sign the identity of callers for an upstream, which nobody else may read.",
    )
    baseline_scopes: str | None = Field(
        None,
        description="Scopes that every 401 names, together with the operation's own. Default: all of the catalogue, "
        "because client SDKs replace their scope with what a 401 names.",
    )
    allowed_origins: str = Field(
        "",
        description="Origins of web pages that may call the server, separated by spaces, such as "
        "https://app.example.com. The resource's own origin is always allowed.",
    )

    limit_calls: RateText = Field(
        "600/minute",
        description="Requests to the MCP endpoint per client, counted once its token is verified, or off. Past the "
        "limit, the response is 429.",
    )
    limit_tool_calls: RateText = Field(
        "300/minute",
        description="Calls of one tool per client, or off. A tool may declare another limit.",
    )
    limit_concurrent_calls: int = Field(
        32,
        ge=0,
        le=4096,
        description="Requests of one client that a worker process serves at once; 0 for any number.",
    )

    status_poll_interval: int = Field(
        POLL_INTERVAL, ge=1, le=60, description="Seconds between two polls of the issuer's status lists."
    )
    status_max_age: int = Field(
        900,
        ge=2 * WINDOW,
        le=LIFETIME,
        description="Maximum age of a status list, in seconds since it was issued.",
    )
    status_failure: Literal["closed", "open"] = Field(
        "closed",
        description="What to do with a token whose status list is too old: "
        "closed (refuse it with 503) or open (accept it).",
    )

    @field_validator("resource")
    @classmethod
    def _check_resource(cls, value: str) -> str:
        resource = check_public_url(parse_resource_identifier(value))
        path = urlsplit(resource).path
        if path in {"/livez", "/readyz"} or path.startswith("/.well-known/") or "%" in path:
            raise ValueError("has a path that this server reserves, or that is percent-encoded")
        return resource

    @field_validator("issuer")
    @classmethod
    def _check_issuer(cls, value: str) -> str:
        return check_issuer(value)

    @field_validator("issuer_internal_url")
    @classmethod
    def _check_issuer_internal_url(cls, value: str | None) -> str | None:
        return None if value is None else check_internal_url(value)

    @field_validator("tools")
    @classmethod
    def _check_tools(cls, value: str) -> str:
        if _MODULE.fullmatch(value) is None or value.endswith(".py"):
            raise ValueError("must be the name of a module, such as mypackage.mytools, without a folder or .py")
        return value

    @field_validator("baseline_scopes")
    @classmethod
    def _check_baseline_scopes(cls, value: str | None) -> str | None:
        if value is not None:
            parse_scope(value)
        return value

    @model_validator(mode="after")
    def _check_served(self) -> Self:
        if self.upstream is not None and "tools" in self.model_fields_set:
            raise ValueError("set either RESOURCESERVER_TOOLS (--tools) or RESOURCESERVER_UPSTREAM (--upstream)")
        return self

    @model_validator(mode="after")
    def _check_transport(self) -> Self:
        self.check_transport(self.resource)
        return self

    def address_at_issuer(self, url: str) -> str:
        """Return where a URL of the issuer is fetched: at the internal address, if there is one."""
        return f"{self.issuer_internal_url or self.issuer}{url.removeprefix(self.issuer)}"

    @property
    def endpoint_path(self) -> str:
        """The path of the MCP endpoint: that of the resource identifier."""
        return urlsplit(self.resource).path or "/"

    @property
    def hosts(self) -> frozenset[str]:
        """Accepted values of `Host`: the resource's own; on loopback, every name of this machine."""
        parts = urlsplit(self.resource)
        name, port = parts.netloc.removesuffix(f":{parts.port}"), parts.port
        names = {name, "127.0.0.1", "localhost", "[::1]"} if is_loopback(self.resource) else {name}
        # `Host` may contain a default port (RFC 9110 4.2.3); the canonical resource identifier never does.
        ports = {f":{port}"} if port else {"", ":443" if parts.scheme == "https" else ":80"}
        return frozenset(name + port for name in names for port in ports)

    @property
    def origins(self) -> frozenset[str]:
        """Accepted values of `Origin` (MCP 2026-07-28, Streamable HTTP, "Security & Endpoint")."""
        scheme = urlsplit(self.resource).scheme
        return frozenset({f"{scheme}://{host}" for host in self.hosts} | parse_origins(self.allowed_origins))
