"""Key files of clients: public keys to register, and private keys to generate."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from gatehouse.authserver.credentials.client_jwks import MAX_KEY_FILE, parse_client_keys
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.cli import Refusal

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def key_file_options(function: FunctionT) -> FunctionT:
    """Add `--jwks` and `--generate-key` to a command."""
    for option in (
        click.option(
            "--generate-key",
            type=click.Path(path_type=Path),
            help="Generate an ES256 key pair, and write the private key to this new file (PEM, mode 0600).",
        ),
        click.option(
            "--jwks",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Public keys: one JWK, or a JWK set of at most 8 keys for signatures; at most 64 KiB.",
        ),
    ):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class ChosenKeys:
    """Public keys to register, and the private half to write, if one was generated."""

    public: bytes | None
    private: SigningKey | None = None
    path: Path | None = None

    @classmethod
    def of(cls, jwks: Path | None, generate_key: Path | None) -> "ChosenKeys":
        """Read a file of public keys, or generate a key. Raises UsageError for both, Refusal, OSError."""
        if jwks is not None and generate_key is not None:
            raise click.UsageError("Give --jwks or --generate-key, not both.")
        if jwks is not None:
            return cls(_read_keys(jwks))
        if generate_key is None:
            return cls(None)
        key = SigningKey.generate("ES256")
        return cls(json.dumps(key.public_jwk()).encode(), key, generate_key)

    def record(self) -> dict[str, str]:
        """Return the file of the private half, as it is printed."""
        return {} if self.path is None else {"private_key_file": str(self.path)}

    def note_ignored(self) -> None:
        """Say on standard error which keys of a valid file were not registered, and why."""
        ignored = parse_client_keys(self.public).ignored if self.public is not None else ()
        for key in ignored:
            click.echo(f"Not registered: {key}.", err=True)

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write the private half to a new file, mode 0600, and remove the file if the block fails.

        Raises:
            OSError: the file exists already, or cannot be written. Nothing of it is left then.
        """
        if self.path is None or self.private is None:
            yield
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.private.private_pem())
                file.flush()
                # On disk before the client is: it has no other key.
                os.fsync(file.fileno())
            yield
        except BaseException:
            self.path.unlink()
            raise


def _read_keys(path: Path) -> bytes:
    """Read a file up to one byte over its limit. Raises Refusal for PEM."""
    with path.open("rb") as file:
        keys = file.read(MAX_KEY_FILE + 1)
    if keys.lstrip().startswith(b"-----BEGIN"):
        raise Refusal(
            f"{path} is in PEM. Give the public key as a JWK (RFC 7517), or let --generate-key generate a key."
        )
    return keys
