"""The settings of the authorization server, from the environment or `--env-file`."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.protocol.jws import SigningAlgorithm
from gatehouse.shared.service.setting_values import RateText, check_issuer
from gatehouse.shared.service.settings import ServerSettings


class Settings(ServerSettings):
    """Each field is set by a variable named `AUTHSERVER_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="AUTHSERVER_")
    forbidden_variables = {  # noqa: RUF012 - declared as a class variable by the base class
        "AUTHLIB_INSECURE_TRANSPORT": "switches off Authlib's check for https",
        "FLASK_DEBUG": "switches on Flask's debugger, which runs code for anyone who reaches it",
    }
    confidential = frozenset({"database_url", "limits_url", "sealing_key"})
    private = frozenset({"sealing_key"})

    issuer: str = Field(
        "http://127.0.0.1:9000",
        description="The issuer identifier: the URL by which clients and resource servers know this server.",
    )
    bind: str = Field("127.0.0.1:9000", description="HOST:PORT to listen on.")
    threads: int = Field(
        4,
        ge=1,
        le=64,
        description="Number of threads in each worker process, for what must wait for the database or for signatures.",
    )
    database_url: str = Field(
        "sqlite:///var/authserver.db", description="sqlite:///FILE, or postgresql://USER@HOST/NAME."
    )
    keys_dir: Path = Field(Path("keys"), description="Folder of the sealing key file, which nobody else may read.")
    sealing_key: SecretStr | None = Field(
        None,
        description="The sealing key itself (32 bytes in base64url), in place of the file in AUTHSERVER_KEYS_DIR; "
        "OLD,NEW while it is rotated.",
    )
    restore_mark: Path | None = Field(
        None,
        description="File outside the database that names the newest audit event, so that a restored backup is "
        "noticed. Default: restore-mark.json in AUTHSERVER_KEYS_DIR.",
    )
    audit_keys: Path = Field(
        None,
        validate_default=True,
        description="File of the keys that authenticate audit events, which nobody else may read. "
        "Default: authserver-audit.json in AUTHSERVER_KEYS_DIR.",
    )
    signing_algorithm: SigningAlgorithm = Field(
        "ES256",
        description="The algorithm of new signing keys. Every resource server supports ES256. "
        "After a change, a key of the new algorithm is published at once and signs 7 minutes later.",
    )
    key_rotation_days: int = Field(
        30, ge=1, le=365, description="Days after which a new signing key replaces the active one."
    )
    token_ttl: int = Field(
        300,
        ge=1,
        le=MAX_LIFETIME,
        description="Lifetime of tokens in seconds, for clients without a TTL of their own.",
    )
    limit_authentication_failures: RateText = Field(
        "10/minute",
        description="Failed authentications per client_id and source address (/64 of IPv6), or off. Past the limit, "
        "the response is 429 instead of 401. A correct credential always passes.",
    )
    limit_token_requests: RateText = Field(
        "60/minute",
        description="Token requests per client, counted after it has authenticated, or off. Past the limit, the "
        "response is 429.",
    )
    limit_revocations: RateText = Field(
        "300/minute",
        description="Requests to /revoke per client, counted after it has authenticated, or off. Past the limit, the "
        "response is 429.",
    )
    limit_introspections: RateText = Field(
        "6000/minute",
        description="Requests to /introspect per resource, counted after it has authenticated, or off. Past the limit, "
        "the response is 429.",
    )
    allowed_origins: str = Field(
        "",
        description="Origins of web pages that may call the token endpoint, separated by spaces, such as "
        "https://app.example.com. They may also read the server's metadata and key set.",
    )

    @field_validator("audit_keys", mode="before")
    @classmethod
    def _find_audit_keys(cls, value: object, info: ValidationInfo) -> object:
        return info.data.get("keys_dir", Path()) / "authserver-audit.json" if value is None else value

    @field_validator("issuer")
    @classmethod
    def _check_issuer(cls, value: str) -> str:
        return check_issuer(value)

    @model_validator(mode="after")
    def _check_transport(self) -> Self:
        self.check_transport(self.issuer)
        return self
