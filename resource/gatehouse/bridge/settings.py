"""The settings of a client: of the bridge and of `resourceserver token`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

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


class BridgeSettings(CommandSettings):
    """Settings of a client. Each field is read from the variable `BRIDGE_` plus its name in upper case."""

    model_config = SettingsConfigDict(env_prefix="BRIDGE_", env_ignore_empty=True)

    confidential = frozenset({"client_secret", "private_key"})

    client_id: str | None = Field(
        None, description="The client_id. Not needed with a JSON credentials file, or with a platform token."
    )
    client_secret: SecretStr | None = Field(None, description="The client secret, in place of a credentials file.")
    private_key: SecretStr | None = Field(None, description="A private key in PEM, in place of a credentials file.")
    token_file: Path | None = Field(
        None,
        description="File with the token that the platform issues to this workload, in place of credentials. It is "
        "read for each token request. `--token-file` takes precedence.",
    )
    ca_file: Path | None = Field(
        None,
        description="File with the certificates (PEM) of the authorities to trust. Default: those of SSL_CERT_FILE or "
        "SSL_CERT_DIR, otherwise those of the operating system.",
    )
    log_level: LogLevel = Field(
        "WARNING", description="Minimum level of log messages on standard error: DEBUG, INFO or WARNING."
    )


class GitHubSettings(CommandSettings):
    """What GitHub Actions sets in a job that may request tokens (`permissions: id-token: write`)."""

    model_config = SettingsConfigDict(env_prefix="ACTIONS_ID_TOKEN_REQUEST_", env_ignore_empty=True)

    confidential = frozenset({"token"})

    url: str | None = Field(default=None, description="Where the job requests its token.")
    token: SecretStr | None = Field(default=None, description="The bearer token of that request.")
