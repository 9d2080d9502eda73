"""The settings of the authorization server (environment, or `--env-file`)."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict
from sqlalchemy import URL

from gatehouse.shared.claims import MAX_LIFETIME
from gatehouse.shared.database import parse_database_url
from gatehouse.shared.logs import LogFormat, LogLevel
from gatehouse.shared.settings import ServerSettings, check_issuer, parse_bind


class Settings(ServerSettings):
    """Every field is the variable `AUTHSERVER_` and its name."""

    model_config = SettingsConfigDict(env_prefix="AUTHSERVER_")

    issuer: str = Field(
        "http://127.0.0.1:9000",
        description="The issuer identifier: the URL that clients and resource servers know this server by.",
    )
    bind: str = Field("127.0.0.1:9000", description="HOST:PORT to listen on, behind the proxy that ends TLS.")
    workers: int = Field(2, ge=1, le=64, description="Processes. One for each core is a good start.")
    threads: int = Field(4, ge=1, le=64, description="Threads in each process.")
    database_url: str = Field(
        "sqlite:///var/authserver.db",
        description="sqlite:///FILE, or postgresql://USER@HOST/NAME for several nodes.",
    )
    keys_dir: Path = Field(Path("keys"), description="Folder of the sealing key, a file that only its owner can read.")
    sealing_key: SecretStr | None = Field(
        None, description="The sealing key itself, 32 bytes in base64url, in place of the file in KEYS_DIR."
    )
    signing_algorithm: Literal["ES256", "RS256", "EdDSA"] = Field(
        "ES256", description="What access tokens are signed with. ES256 is known to every resource server."
    )
    token_ttl: int = Field(
        300,
        ge=1,
        le=MAX_LIFETIME,
        description="Seconds that a token lives, for clients without a TTL of their own.",
    )
    log_format: LogFormat = Field("console", description="console for people, json for a collector.")
    log_level: LogLevel = Field("INFO", description="Least severity that is logged.")

    @field_validator("issuer")
    @classmethod
    def _check_issuer(cls, value: str) -> str:
        return check_issuer(value)

    @field_validator("bind")
    @classmethod
    def _check_bind(cls, value: str) -> str:
        parse_bind(value)
        return value

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: str) -> str:
        parse_database_url(value)
        return value

    @property
    def database(self) -> URL:
        """The parsed database URL."""
        return parse_database_url(self.database_url)
