"""What the bridge reads from its environment."""

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from gatehouse.shared.service.logs import LogLevel
from gatehouse.shared.service.settings import CommandSettings


class BridgeSettings(CommandSettings):
    """Every field is the variable `BRIDGE_` and its name: assistants start a program with variables of its own."""

    model_config = SettingsConfigDict(env_prefix="BRIDGE_", env_ignore_empty=True)

    confidential = frozenset({"client_secret", "private_key"})

    client_id: str | None = Field(None, description="The client_id; not needed with a credentials file of JSON.")
    client_secret: SecretStr | None = Field(None, description="The client secret, in place of a credentials file.")
    private_key: SecretStr | None = Field(None, description="A private key in PEM, in place of a credentials file.")
    log_level: LogLevel = Field("WARNING", description="Least severity that is logged, to standard error.")
